"""The protocol of a check: from the two sides of a case to a verdict.

Eager first, so that the user's own error is told as such; then the fixed examples; then those that
Hypothesis draws. Facts are collected on the way and the verdict is drawn from them at the end.
"""

from __future__ import annotations

import dataclasses

from hypothesis import strategies as st

from pytest_torchcompile import recipes, strategies, tensors, trees
from pytest_torchcompile.errors import CompileFailed
from pytest_torchcompile.known import rounding_causes
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.recipes import Recipe
from pytest_torchcompile.results import CheckResult, Difference, Verdict
from pytest_torchcompile.sampling import compare_samples
from pytest_torchcompile.search import examples_of_profile, search
from pytest_torchcompile.texts import raised_text
from pytest_torchcompile.trial import Failure, Stop, Trial, require_compiled

COMPILER_EDGES = (1, 2, 3, 8, 15, 16, 17, 32)
"""Batch sizes at which compilers change their mind: dynamo specialises 1, inductor vectorises by 8 or 16
elements; few of the sizes between are drawn, of these nearly all."""


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
        ladder = recipes.ladder(
            self._pair.tree, options.batch, nonfinite=options.nonfinite, seed=options.seed
        )
        try:
            self._try_eager(ladder[0])
            failure = self._climb(ladder)
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

    def _climb(self, ladder: list[Recipe]) -> Failure | None:
        """Try the fixed examples up to the first failure."""
        return next(filter(None, map(self._trial, ladder)), None)

    def _search(self, first: Failure | None, name: str) -> Failure | None:
        """Let Hypothesis look for a failing example, or for a smaller one than `first`."""
        failures = [] if first is None else [first]
        batches = self._batches(failures)

        def fails(recipe: Recipe) -> bool:
            failure = None if self._out_of_budget() else self._trial(recipe)
            if failure is not None:
                failures.append(failure)
            return failure is not None

        drawn = self._options.examples
        replayed = search(
            strategies.recipes(self._pair.tree, batches, like=failures[0].recipe if failures else None),
            fails,
            examples=examples_of_profile() if drawn is None else drawn,
            shrink_s=self._options.shrink_seconds,
            digest=f"{name}-{self._pair.method.name}-{self._pair.phase}",
        )
        if replayed or not failures:
            return failures[-1] if failures else None
        again = self._trial(failures[0].recipe)
        return again or dataclasses.replace(failures[0], replayed=False)

    def _batches(self, failures: list[Failure]) -> st.SearchStrategy[int]:
        """Batch sizes to draw: only those already met where each new one is compiled for itself."""
        sizes = self._options.batch
        between = (min(sizes) + max(sizes)) // 2
        if self._options.dynamic is False or len(sizes) == 1:
            return st.sampled_from(sorted(sizes))
        if between not in sizes and not failures:
            failure = self._trial(recipes.random_recipe(self._pair.tree, between, self._options.seed))
            failures += [failure] if failure else []
            if self._pair.recorder.compiled_in_last_call:
                return st.sampled_from(sorted({*sizes, between}))
        low, high = min(sizes), max(sizes)
        edges = [n for n in (low, low + 1, *COMPILER_EDGES, high - 1, high) if low <= n <= high]
        return st.sampled_from(sorted(set(edges))) | st.integers(low, high)

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
            example=tensors.describe(self._pair.tree, recipe),
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
            notes=(*self._notes, *self._trial.evidence.notes(), *self._capture_notes()),
            sensitivity=self._trial.sensitivity(),
            backend="as deployed" if pair.twins.deployed else self._options.backend_name,
            deviations=self._trial.evidence.deviations(),
        )

    def _capture_notes(self) -> list[str]:
        notes = []
        suppressed = self._pair.recorder.suppressed()
        if suppressed and self._pair.capture.graphs and not self._trial.evidence.rejected:
            notes.append(f"{suppressed}, and torch ran that part eager")
        recompiles, limit = len(self._pair.capture.recompiles), self._trial.recompile_limit
        if recompiles > limit:
            notes.append(
                f"{recompiles} recompiles exceed your recompile_limit of {limit}: outside the check "
                f"torch would run some of these calls eager, in silence"
            )
        return notes


def _is_exception(failure: Failure) -> bool:
    """Whether one side raised, so that what would have been captured after it never ran."""
    return failure.judgement.differences[0].problem == "exception"
