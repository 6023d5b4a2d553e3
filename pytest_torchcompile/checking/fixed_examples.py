"""Try the fixed examples of a case: contents, other ways to call the method, sizes, and memory layouts."""

from __future__ import annotations

import collections
import dataclasses

import torch

from pytest_torchcompile.checking.evidence import Evidence
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.repeating import only_trains, takes_one_row
from pytest_torchcompile.checking.sizes import Sizes
from pytest_torchcompile.checking.stops import Stop
from pytest_torchcompile.checking.trial import Failure, Trial
from pytest_torchcompile.generation import recipes
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.input_advice import advice, eager_raises
from pytest_torchcompile.policies.ordinary import equal_values, is_ordinary
from pytest_torchcompile.results import Verdict
from pytest_torchcompile.texts import raised_text, some

WITHOUT_DEFAULTS = 6
"""The number of examples of a call without the inputs whose default is None."""


class FixedExamples:
    """Tries the fixed examples of a case, up to the first failure.

    Args:
        pair: its two sides.
        options: how to check it.
        evidence: accumulates what the examples show.
    """

    def __init__(self, pair: Pair, options: CheckOptions, evidence: Evidence) -> None:
        self.pair = pair
        """The two sides; after a failure, as they are called in it."""
        self.trial = Trial(pair, options, evidence)
        """Tries examples on `pair`."""
        self.notes: list[str] = []
        self.otherwise: dict[str, Pair] = {}
        """Copies of `pair` that have called the method in another way, by words on that way."""
        self.each_size_compiles = options.dynamic is False
        """Whether each new batch size is compiled separately."""
        self.recompiles_by_layout: collections.Counter[str] = collections.Counter()
        """The number of recompiles of each code object for memory layouts."""
        self._evidence = evidence
        self._options = options

    def first_failure(self) -> Failure | None:
        """Try the fixed examples up to the first failure: contents, sizes, and last the layouts.

        The layouts come last because they add graphs.

        Raises:
            Stop: see `Trial`; also if eager raises on the first example.
        """
        tree, options = self.pair.tree, self._options
        ladder = recipes.ladder(tree, options.batch, nonfinite=options.nonfinite, seed=options.seed)
        self._try_eager(ladder[0])
        failure = (
            self._first_failure(ladder, "fixed examples", self.trial)
            or self._learn_otherwise(ladder[0])
            or self._learn_in_evaluation(ladder[0])
            or self._act_without_defaults()
        )
        self._fix_learning(failure)
        if failure is not None:
            return failure
        sizes = Sizes(self.pair, self.trial, options, ladder)
        failure = sizes.first_failure()
        self.each_size_compiles = sizes.each_compiles
        self.notes += sizes.notes
        if failure is not None or not options.layouts:
            return failure
        before = self.pair.recorder.recompiles_of_each()
        met = options.batch[:1] if sizes.each_compiles else options.batch
        laid_out, views = recipes.in_other_memory(tree, met, options.seed + len(ladder))
        shared = views if not self.pair.out_of_seconds() and not self._writes_inputs(views) else []
        failure = self._first_failure([*laid_out, *shared], "memory layouts", self.trial)
        self.recompiles_by_layout = self.pair.recorder.recompiles_of_each() - before
        return failure

    def _try_eager(self, recipe: Recipe) -> None:
        outcome = self.pair.first_eager(recipe)
        self.pair.drop_deployed_code_that_draws()
        if outcome.error is not None:
            pair = self.pair
            text = eager_raises(outcome.error, recipe.batch, pair.tree, pair.twins.eager)
            if not advice(outcome.error, pair.tree, pair.twins.eager):
                text += takes_one_row(pair, recipe)
            if pair.phase == "rollout":
                text += only_trains(pair.method.name, pair, recipe)
            raise Stop(Verdict.EAGER_FAILED, text)
        if self.pair.phase == "update" and not outcome.gradients:
            self.notes.append("no output requires grad: the update phase compared the forward only")

    def _writes_inputs(self, views: list[Recipe]) -> bool:
        """Whether eager writes to inputs that are views of one tensor; adds a remark if compiled fails.

        For such inputs torch 2.13 reuses a graph that was compiled for inputs that do not overlap, in every
        policy, so a failure says nothing about the policy that is checked.
        """
        for recipe in views:
            outcome = self.pair.run(self.pair.eager, recipe)
            given = self.pair.arguments(recipe, wide=False).drawn
            written = [
                p for p, t in given.items() if _has_changed(outcome.inputs.tensors.get(f"input {p}"), t)
            ]
            if written:
                try:
                    failure = Trial(self.pair, self._options)(recipe)
                except Stop as stop:
                    self.notes.append(f"inputs that are {recipe.shared} not tried: {stop.reason}")
                    return True
                if failure is not None:
                    self._evidence.remark(
                        f"if the inputs are {recipe.shared}, compiled does not see in the other inputs what "
                        f"{self.pair.method.name} writes to {written[0]}; pass tensors that share no memory"
                    )
                return True
        return False

    def _first_failure(self, examples: list[Recipe], what: str, trial: Trial) -> Failure | None:
        for number, recipe in enumerate(examples):
            reason = self.pair.out_of_seconds()
            # A case that compares nothing has no verdict.
            if reason and self._evidence.examples:
                self.notes.append(f"{len(examples) - number} {what} not tried: {reason}")
                return None
            failure = trial(recipe)
            if failure is not None:
                return failure
        return None

    def _learn_otherwise(self, recipe: Recipe) -> Failure | None:
        """Learn from the plain sum of the outputs, with another call before the backward, and after one.

        With ``loss.sum()`` or ``mean()`` the gradients of the outputs have another memory layout than the
        outputs. A loss of two calls needs what the first has saved for its backward. Gradients that are added
        up over minibatches must stay as they are while the next ones are computed.
        """
        if self.pair.phase != "update" or not self._evidence.learns:
            return None
        usual = self.pair.learning
        failure = self.trial.learn(recipe, dataclasses.replace(usual, summed=True))
        if failure is not None:
            return failure
        # Recorded separately: two calls of the method are no graph break.
        separate = Trial(self.pair.with_own_recorder(usual), self._options, self._evidence)
        return separate.learn(recipe, dataclasses.replace(usual, interrupted=True)) or separate.learn(
            recipe, dataclasses.replace(usual, accumulated=True)
        )

    def _learn_in_evaluation(self, recipe: Recipe) -> Failure | None:
        """Learn from an example in ``eval()`` mode, as imitation learning does.

        That compiles separate graphs, which are recorded separately. A method that is for training only, and
        raises in ``eval()``, is not asked to.
        """
        if self.pair.phase != "update" or not self._evidence.learns:
            return None
        learning = dataclasses.replace(self.pair.learning, training=False)
        refused = self.pair.run(self.pair.eager, recipe, learning=learning).error
        if refused is not None:
            self.notes.append(f"not learnt from in eval(), where eager raises {raised_text(refused)}")
            return None
        failure = Trial(self.pair.with_own_recorder(learning), self._options, self._evidence)(recipe)
        return failure and dataclasses.replace(failure, learning=failure.learning or learning)

    def _act_without_defaults(self) -> Failure | None:
        """In ``rollout``, also call without the inputs whose default is None: a policy then draws its action.

        After a failure the rest of the check calls it like that. If eager needs the inputs, nothing is done.
        """
        pair = self.pair.without_defaults() if self.pair.phase == "rollout" else None
        if pair is None:
            return None
        options = self._options
        ladder = recipes.ladder(pair.tree, options.batch, nonfinite=False, seed=options.seed)
        if pair.first_eager(ladder[0]).error is not None:
            return None
        separate = Trial(pair, options, self._evidence)
        way = f"without {some(name for name in self.pair.tree if name not in pair.tree)}"
        before = self._evidence.compared
        failure = self._first_failure(ladder[:WITHOUT_DEFAULTS], f"examples {way}", separate)
        if self._evidence.compared > before:
            self.otherwise[f"called {way}"] = pair
        if failure is not None:
            self.notes.append(f"it differs when called {way}, whose default is None")
            self.pair, self.trial = pair, separate
        return failure

    def _fix_learning(self, failure: Failure | None) -> None:
        """Set the learning for the following examples: as in the failure, or without what is never finite."""
        self.trial.extra_checks = False
        if failure is not None and failure.learning is not None:
            self.pair.learning = failure.learning
            self.notes.append(f"it differs when learning from {failure.learning}")
        elif failure is None:
            never = self.trial.leave_out_of_loss()
            if never:
                self.notes.append(f"not learnt from, as no gradient of it was ever finite: {some(never)}")


def _has_changed(after: torch.Tensor | None, before: torch.Tensor) -> bool:
    """Whether a tensor has changed; False if `after` is None or `before` a constant of an uncommon layout."""
    return after is not None and is_ordinary(before) and not equal_values(after, before)
