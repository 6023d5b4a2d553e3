"""The protocol of a check: from the two sides of a case to a verdict.

Eager is called first, so that an error of the user's code is reported as such. The fixed examples follow,
then those that Hypothesis draws. `Evidence` accumulates what they show, and gives the verdict at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from hypothesis import strategies as st

from pytest_torchcompile.checking.known_causes import rounding_causes
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.repeating import only_trains
from pytest_torchcompile.checking.sampling import compare_samples
from pytest_torchcompile.checking.sizes import Sizes
from pytest_torchcompile.checking.stops import (
    Stop,
    does_not_repeat,
    require_compiled,
    suppress_stop_if_found,
)
from pytest_torchcompile.checking.trial import Failure, Trial
from pytest_torchcompile.compiling.recurrent import remedies
from pytest_torchcompile.errors import CompileFailed
from pytest_torchcompile.generation import descriptions, edges, recipes, strategies
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.generation.search import examples_of_profile, search
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.input_advice import eager_raises
from pytest_torchcompile.results import CheckResult, Difference, Verdict
from pytest_torchcompile.texts import raised_text, some

WITHOUT_DEFAULTS = 6
"""The number of examples of a call without the inputs whose default is None."""


class CheckProtocol:
    """Checks one case.

    Args:
        pair: its two sides.
        options: how to check it.
    """

    def __init__(self, pair: Pair, options: CheckOptions) -> None:
        self.pair = pair
        """The two sides; after `run`, as they are called in the example on which the case differs."""
        self._options = options
        self._trial = Trial(pair, options)
        self._notes = list(pair.twins.notes)
        self._each_size_compiles = options.dynamic is False
        self._recompiles_by_layout = 0
        self.failure: Failure | None = None
        """After `run`: the example on which the case differs; None if only its samples differ."""
        self.sampled = False
        """After `run`: whether the case differs in its samples."""

    def run(self, name: str) -> CheckResult:
        """Run the whole check.

        Args:
            name: identifies the case in Hypothesis' database.
        """
        options = self._options
        try:
            failure = self._try_fixed_examples()
            if failure is None and not self._trial.evidence.examples:
                return self._result(*self._trial.evidence.verdict())
            if failure is None or not _is_exception(failure):
                require_compiled(self.pair, self._options)
            failure = self._search(failure, name)
        except Stop as stop:
            return self._result(stop.verdict, stop.reason)
        if failure is not None:
            return self._differs(failure)
        verdict, reason = self._trial.evidence.verdict()
        if verdict.passed and options.samples:
            return self._with_samples(verdict, reason)
        return self._result(verdict, reason)

    def _with_samples(self, verdict: Verdict, reason: str) -> CheckResult:
        """Return the result of a case that is equal draw for draw, after comparing the distributions."""
        self.pair.progress.step("comparing samples")
        try:
            sampled = compare_samples(self.pair, self._options)
        except CompileFailed as error:
            return self._result(Verdict.COMPILE_FAILED, str(error))
        if sampled.recipe is not None:
            self.sampled = True
            return self._with_differences(sampled.reason, sampled.differences, sampled.recipe)
        self._notes.append(sampled.note)
        return self._result(verdict, reason)

    def _try_eager(self, recipe: Recipe) -> None:
        outcome = self.pair.first_eager(recipe)
        self.pair.drop_deployed_code_that_draws()
        if outcome.error is not None:
            pair = self.pair
            text = eager_raises(outcome.error, recipe.batch, pair.tree, pair.twins.eager)
            if pair.phase == "rollout":
                text += only_trains(pair.method.name, pair, recipe)
            raise Stop(Verdict.EAGER_FAILED, text)
        if self.pair.phase == "update" and not outcome.gradients:
            self._notes.append("no output requires grad: the update phase compared the forward only")

    def _try_fixed_examples(self) -> Failure | None:
        """Try the fixed examples up to the first failure: contents, sizes, and last the layouts.

        The layouts come last because they add graphs.
        """
        tree, options = self.pair.tree, self._options
        ladder = recipes.ladder(tree, options.batch, nonfinite=options.nonfinite, seed=options.seed)
        self._try_eager(ladder[0])
        failure = (
            self._first_failure(ladder, "fixed examples", self._trial)
            or self._learn_otherwise(ladder[0])
            or self._learn_in_evaluation(ladder[0])
            or self._act_without_defaults()
        )
        self._fix_learning(failure)
        if failure is not None:
            return failure
        sizes = Sizes(self.pair, self._trial, options, ladder)
        failure = sizes.first_failure()
        self._each_size_compiles = sizes.each_compiles
        self._notes += sizes.notes
        if failure is not None or not options.layouts:
            return failure
        before = len(self.pair.capture.recompiles)
        met = options.batch[:1] if sizes.each_compiles else options.batch
        laid_out, views = recipes.in_other_memory(tree, met, options.seed + len(ladder))
        shared = views if not self.pair.out_of_seconds() and not self._writes_inputs(views) else []
        failure = self._first_failure([*laid_out, *shared], "memory layouts", self._trial)
        self._recompiles_by_layout = len(self.pair.capture.recompiles) - before
        return failure

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
                    failed = Trial(self.pair, self._options)(recipe) is not None
                except Stop:
                    failed = True
                if failed:
                    self._trial.evidence.remark(
                        f"if the inputs are {recipe.shared}, compiled does not see in the other inputs what "
                        f"{self.pair.method.name} writes to {written[0]}; pass tensors that share no memory"
                    )
                return True
        return False

    def _first_failure(self, examples: list[Recipe], what: str, trial: Trial) -> Failure | None:
        for number, recipe in enumerate(examples):
            reason = self.pair.out_of_seconds()
            # A case that compares nothing has no verdict.
            if reason and self._trial.evidence.examples:
                self._notes.append(f"{len(examples) - number} {what} not tried: {reason}")
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
        if self.pair.phase != "update" or not self._trial.evidence.learns:
            return None
        usual = self.pair.learning
        failure = self._trial.learn(recipe, dataclasses.replace(usual, summed=True))
        if failure is not None:
            return failure
        # Recorded separately: two calls of the method are no graph break.
        separate = Trial(self.pair.with_own_recorder(usual), self._options)
        return separate.learn(recipe, dataclasses.replace(usual, interrupted=True)) or separate.learn(
            recipe, dataclasses.replace(usual, accumulated=True)
        )

    def _learn_in_evaluation(self, recipe: Recipe) -> Failure | None:
        """Learn from an example in ``eval()`` mode, as imitation learning does.

        That compiles separate graphs, which are recorded separately. A method that is for training only, and
        raises in ``eval()``, is not asked to.
        """
        if self.pair.phase != "update" or not self._trial.evidence.learns:
            return None
        learning = dataclasses.replace(self.pair.learning, training=False)
        refused = self.pair.run(self.pair.eager, recipe, learning=learning).error
        if refused is not None:
            self._notes.append(f"not learnt from in eval(), where eager raises {raised_text(refused)}")
            return None
        separate = Trial(self.pair.with_own_recorder(learning), self._options)
        failure = separate(recipe)
        self._trial.evidence.take_remarks(separate.evidence)
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
        separate = Trial(pair, options)
        left_out = some(name for name in self.pair.tree if name not in pair.tree)
        failure = self._first_failure(ladder[:WITHOUT_DEFAULTS], f"examples without {left_out}", separate)
        self._trial.evidence.take_remarks(separate.evidence)
        if failure is not None:
            self._notes.append(f"it differs when called without {left_out}, whose default is None")
            self.pair, self._trial = pair, separate
        return failure

    def _fix_learning(self, failure: Failure | None) -> None:
        """Set the learning for the following examples: as in the failure, or without what is never finite."""
        self._trial.extra_checks = False
        if failure is not None and failure.learning is not None:
            self.pair.learning = failure.learning
            self._notes.append(f"it differs when learning from {failure.learning}")
        elif failure is None:
            never = self._trial.leave_out_of_loss()
            if never:
                self._notes.append(f"not learnt from, as no gradient of it was ever finite: {some(never)}")

    def _search(self, first: Failure | None, name: str) -> Failure | None:
        """Let Hypothesis search for a failing example, or for a smaller one than `first`."""
        failures = [] if first is None else [first]
        # Drawn examples do not judge small tensors by their own size, which needs the rounding floor far more
        # often; the fixed examples have done so.
        self._trial.small = first is not None

        def fails(recipe: Recipe) -> bool:
            if self._out_of_budget():
                return False
            failure = suppress_stop_if_found(failures, lambda: self._trial(recipe))
            if failure is not None:
                failures.append(failure)
            return failure is not None

        drawn = self._options.examples
        replayed = search(
            strategies.recipes(self.pair.tree, self._batches(first), like=first.recipe if first else None),
            fails,
            examples=examples_of_profile() if drawn is None else drawn,
            shrink_s=self._options.shrink_seconds,
            digest=f"{name}-{self.pair.method.name}-{self.pair.phase}",
        )
        if replayed or not failures:
            return failures[-1] if failures else None
        again = suppress_stop_if_found(failures, lambda: self._trial(failures[0].recipe))
        return again or dataclasses.replace(failures[0], replayed=False)

    def _batches(self, first: Failure | None) -> st.SearchStrategy[int]:
        """Return the batch sizes to draw: only those already used if each new one is compiled separately.

        For a smaller failing example, no size above that of `first`, at which it is likely to fail again.
        """
        sizes = self._options.batch
        low, high = min(sizes), max(sizes)
        if self._each_size_compiles or len(sizes) == 1:
            return st.sampled_from(sorted(sizes))
        if first is not None:
            return strategies.at_most(first.recipe.batch, low)
        near = {low, low + 1, high - 1, high, *edges.between(edges.BATCHES, low, high)}
        return st.sampled_from(sorted(near)) | st.integers(low, high)

    def _out_of_budget(self) -> bool:
        reason = self.pair.out_of_seconds()
        note = f"no more examples drawn: {reason}"
        if reason and note not in self._notes:
            self._notes.append(note)
        return bool(reason)

    def _differs(self, failure: Failure) -> CheckResult:
        self.failure = failure
        if failure.replayed:
            self._notes += rounding_causes(
                self._options,
                lambda lenient: Trial(self.pair, lenient)(failure.recipe) is None,
                self._trial.rerun(failure.recipe),
            )
        reason = ""
        if not failure.replayed:
            reason = does_not_repeat(f"call {failure.call}", self._trial.rerun(failure.recipe))
        return self._with_differences(reason, self._trial.differences(failure), failure.recipe)

    def _with_differences(
        self, reason: str, differences: tuple[Difference, ...], recipe: Recipe
    ) -> CheckResult:
        return dataclasses.replace(
            self._result(Verdict.DIFFERS, reason),
            worst=differences[0],
            differences=differences,
            example=descriptions.describe(self.pair.tree, recipe),
        )

    def _result(self, verdict: Verdict, reason: str) -> CheckResult:
        pair = self.pair
        return CheckResult(
            method=pair.method.name,
            phase=pair.phase,
            verdict=verdict,
            reason=reason,
            examples=self._trial.evidence.examples,
            attempts=self._trial.evidence.attempts,
            rounding=self._trial.evidence.rounding,
            worst=self._trial.evidence.worst,
            capture=pair.capture,
            notes=(
                *self._notes,
                *pair.notes,
                *self._trial.evidence.notes(),
                *self._capture_notes(),
                *(self._remedies() if verdict.passed or verdict is Verdict.NOT_COMPILED else ()),
            ),
            remarks=self._trial.evidence.remarks(),
            sensitivity=self._trial.sensitivity(),
            backend="as deployed" if pair.twins.deployed else self._options.backend_name,
            deviations=self._trial.evidence.deviations(),
        )

    def _remedies(self) -> Iterator[str]:
        """Return what may help if recurrent modules ran eager."""
        capture = self.pair.capture
        names = {
            *capture.modules_left_eager,
            *(place.partition(" at ")[0] for place in capture.work_left_eager),
        }
        return remedies(self.pair.twins.eager, names, self._options)

    def _capture_notes(self) -> list[str]:
        notes = []
        suppressed = self.pair.recorder.suppressed()
        if suppressed and self.pair.capture.graphs and not self._trial.evidence.rejected:
            notes.append(f"{suppressed}, and torch ran that part eager")
        if self.pair.recorder.uncounted() and self.pair.capture.graphs:
            notes.append(f"not known what share of the work is compiled: {self.pair.recorder.uncounted()}")
        # Recompiles for layouts do not count: a deployed policy does not get inputs in every layout.
        recompiles = len(self.pair.capture.recompiles) - self._recompiles_by_layout
        limit = self._trial.recompile_limit
        if recompiles > limit:
            notes.append(
                f"{recompiles} recompiles exceed your recompile_limit of {limit}: outside the check "
                f"torch would run some of these calls eager"
            )
        return notes


def _has_changed(after: torch.Tensor | None, before: torch.Tensor) -> bool:
    """Whether a tensor has changed; False if `after` is None."""
    return after is not None and not torch.equal(after, before)


def _is_exception(failure: Failure) -> bool:
    """Whether one side raised. The capture is then incomplete."""
    return failure.judgement.differences[0].problem == "exception"
