"""The protocol of a check: from the two sides of a case to a verdict.

Eager first, so that the user's own error is told as such; then the fixed examples; then those that
Hypothesis draws. Facts are collected on the way and the verdict is drawn from them at the end.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import torch
from hypothesis import strategies as st

from pytest_torchcompile.checking.known_causes import rounding_causes
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.sampling import compare_samples
from pytest_torchcompile.checking.sizes import Sizes
from pytest_torchcompile.checking.stops import Stop, require_compiled, unless_found
from pytest_torchcompile.checking.trial import Failure, Trial
from pytest_torchcompile.compiling.recurrent import remedies
from pytest_torchcompile.errors import CompileFailed
from pytest_torchcompile.generation import descriptions, edges, recipes, strategies
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.generation.search import examples_of_profile, search
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.results import CheckResult, Difference, Verdict
from pytest_torchcompile.specs import trees
from pytest_torchcompile.texts import raised_text, some


class CheckProtocol:
    """One case while it is checked.

    Args:
        pair: its two sides.
        options: how to check it.
    """

    def __init__(self, pair: Pair, options: CheckOptions) -> None:
        self._pair = pair
        self._options = options
        self._trial = Trial(pair, options)
        self._notes = list(pair.twins.notes)
        self._each_size_compiles = options.dynamic is False
        self._recompiles_by_layout = 0
        self.failure: Failure | None = None
        """The example that the case differs on, once it was run; None if it differs in its samples."""
        self.sampled = False
        """Whether it differs in its samples."""

    def run(self, name: str) -> CheckResult:
        """The whole check.

        Args:
            name: tells this case apart in Hypothesis' database.
        """
        options = self._options
        try:
            failure = self._climb(time.monotonic())
            if failure is None and not self._trial.evidence.examples:
                return self._result(*self._trial.evidence.verdict())
            if failure is None or not _is_exception(failure):
                require_compiled(self._pair, self._options)
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
        """The result of a case that is equal draw for draw, once the distributions are compared."""
        self._pair.progress.step("comparing samples")
        try:
            sampled = compare_samples(self._pair, self._options)
        except CompileFailed as error:
            return self._result(Verdict.COMPILE_FAILED, str(error))
        if sampled.recipe is not None:
            self.sampled = True
            return self._with_differences(sampled.reason, sampled.differences, sampled.recipe)
        self._notes.append(sampled.note)
        return self._result(verdict, reason)

    def _try_eager(self, recipe: Recipe) -> None:
        outcome = self._pair.first_eager(recipe)
        self._pair.drop_other_draws()
        if outcome.error is not None:
            raise Stop(
                Verdict.EAGER_FAILED,
                f"eager raises {raised_text(outcome.error)} on inputs with batch {recipe.batch} declared as "
                f"{trees.declared(self._pair.tree)}",
            )
        if self._pair.phase == "update" and not outcome.gradients:
            self._notes.append("no output requires grad: the update phase compared the forward only")

    def _climb(self, began: float) -> Failure | None:
        """Try the fixed examples up to the first failure: contents, sizes, and last what adds graphs."""
        tree, options = self._pair.tree, self._options
        ladder = recipes.ladder(tree, options.batch, nonfinite=options.nonfinite, seed=options.seed)
        self._try_eager(ladder[0])
        failure = self._first_failure(ladder) or self._learn_in_evaluation(ladder[0])
        self._settle_learning(failure)
        if failure is not None:
            return failure
        sizes = Sizes(self._pair, self._trial, options, ladder)
        failure = sizes.climb(began)
        self._each_size_compiles = sizes.each_compiles
        self._notes += sizes.notes
        if failure is not None or not options.layouts:
            return failure
        before = len(self._pair.capture.recompiles)
        met = options.batch[:1] if sizes.each_compiles else options.batch
        laid_out, views = recipes.in_other_memory(tree, met, options.seed + len(ladder))
        failure = self._first_failure([*laid_out, *(views if not self._writes_inputs(views) else ())])
        self._recompiles_by_layout = len(self._pair.capture.recompiles) - before
        return failure

    def _writes_inputs(self, views: list[Recipe]) -> bool:
        """Whether eager writes to inputs that are views of one tensor; a remark says if compiled does not.

        Torch (2.13) uses a graph again that was compiled for inputs that lie apart, in any such policy, so
        that this tells nothing of the one that is checked.
        """
        for recipe in views:
            outcome = self._pair.run(self._pair.eager, recipe)
            given = self._pair.arguments(recipe, wide=False).drawn
            written = [p for p, t in given.items() if _is_other(outcome.inputs.tensors.get(f"input {p}"), t)]
            if written:
                try:
                    failed = Trial(self._pair, self._options)(recipe) is not None
                except Stop:
                    failed = True
                if failed:
                    self._trial.evidence.remark(
                        f"where inputs are {recipe.shared}, compiled does not see in the others what "
                        f"{self._pair.method.name} writes to {written[0]}; give it tensors of their own"
                    )
                return True
        return False

    def _first_failure(self, examples: list[Recipe]) -> Failure | None:
        return next(filter(None, map(self._trial, examples)), None)

    def _learn_in_evaluation(self, recipe: Recipe) -> Failure | None:
        """Learn from an example in ``eval()``, as imitation does: in graphs of its own, recorded apart."""
        if self._pair.phase != "update" or not self._trial.evidence.learns:
            return None
        learning = dataclasses.replace(self._pair.learning, training=False)
        apart = Trial(self._pair.watched_apart(learning), self._options)
        failure = apart(recipe)
        self._trial.evidence.take_remarks(apart.evidence)
        return failure and dataclasses.replace(failure, learning=failure.learning or learning)

    def _settle_learning(self, failure: Failure | None) -> None:
        """What is tried from now on is learnt from as the failure was, or without what is never finite."""
        self._trial.climbing = False
        if failure is not None and failure.learning is not None:
            self._pair.learning = failure.learning
            self._notes.append(f"it differs learning from {failure.learning}")
        elif failure is None:
            never = self._trial.leave_out_of_loss()
            if never:
                self._notes.append(f"not learnt from, as no gradient of it was ever finite: {some(never)}")

    def _search(self, first: Failure | None, name: str) -> Failure | None:
        """Let Hypothesis look for a failing example, or for a smaller one than `first`."""
        failures = [] if first is None else [first]
        # It asks for the rounding floor far more often, which the fixed examples are enough for.
        self._trial.small = first is not None

        def fails(recipe: Recipe) -> bool:
            if self._out_of_budget():
                return False
            failure = unless_found(failures, lambda: self._trial(recipe))
            if failure is not None:
                failures.append(failure)
            return failure is not None

        drawn = self._options.examples
        replayed = search(
            strategies.recipes(self._pair.tree, self._batches(first), like=first.recipe if first else None),
            fails,
            examples=examples_of_profile() if drawn is None else drawn,
            shrink_s=self._options.shrink_seconds,
            digest=f"{name}-{self._pair.method.name}-{self._pair.phase}",
        )
        if replayed or not failures:
            return failures[-1] if failures else None
        again = unless_found(failures, lambda: self._trial(failures[0].recipe))
        return again or dataclasses.replace(failures[0], replayed=False)

    def _batches(self, first: Failure | None) -> st.SearchStrategy[int]:
        """Batch sizes to draw: only those already met where each new one is compiled for itself.

        To make a failing example smaller, no larger ones; it is likely to fail again at its own size.
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
        if self._pair.recorder.compile_s <= self._options.max_seconds:
            return False
        note = f"compiling took more than max_seconds={self._options.max_seconds:g}: no more examples"
        if note not in self._notes:
            self._notes.append(note)
        return True

    def _differs(self, failure: Failure) -> CheckResult:
        self.failure = failure
        if failure.replayed:
            self._notes += rounding_causes(
                self._options,
                lambda lenient: Trial(self._pair, lenient)(failure.recipe) is None,
                self._trial.rerun(failure.recipe),
            )
        reason = (
            ""
            if failure.replayed
            else f"depends on what ran before: differed on call {failure.call}, not when tried again"
        )
        return self._with_differences(reason, self._trial.differences(failure), failure.recipe)

    def _with_differences(
        self, reason: str, differences: tuple[Difference, ...], recipe: Recipe
    ) -> CheckResult:
        return dataclasses.replace(
            self._result(Verdict.DIFFERS, reason),
            worst=differences[0],
            differences=differences,
            example=descriptions.describe(self._pair.tree, recipe),
        )

    def _result(self, verdict: Verdict, reason: str) -> CheckResult:
        pair = self._pair
        return CheckResult(
            method=pair.method.name,
            phase=pair.phase,
            verdict=verdict,
            reason=reason,
            examples=self._trial.evidence.examples,
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
        """What may help where recurrent modules ran eager."""
        capture = self._pair.capture
        names = {
            *capture.modules_left_eager,
            *(place.partition(" at ")[0] for place in capture.work_left_eager),
        }
        return remedies(self._pair.twins.eager, names, self._options)

    def _capture_notes(self) -> list[str]:
        notes = []
        suppressed = self._pair.recorder.suppressed()
        if suppressed and self._pair.capture.graphs and not self._trial.evidence.rejected:
            notes.append(f"{suppressed}, and torch ran that part eager")
        if self._pair.recorder.uncounted():
            notes.append(f"not known what share of the work is compiled: {self._pair.recorder.uncounted()}")
        # Nobody deploys one policy on inputs in every layout.
        recompiles = len(self._pair.capture.recompiles) - self._recompiles_by_layout
        limit = self._trial.recompile_limit
        if recompiles > limit:
            notes.append(
                f"{recompiles} recompiles exceed your recompile_limit of {limit}: outside the check "
                f"torch would run some of these calls eager, in silence"
            )
        return notes


def _is_other(after: torch.Tensor | None, before: torch.Tensor) -> bool:
    """Whether a tensor has changed; None if it was not compared."""
    return after is not None and not torch.equal(after, before)


def _is_exception(failure: Failure) -> bool:
    """Whether one side raised, so that what would have been captured after it never ran."""
    return failure.judgement.differences[0].problem == "exception"
