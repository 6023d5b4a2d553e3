"""The protocol of a check: from the two sides of a case to a verdict.

Eager is called first, so that an error of the user's code is reported as such. The fixed examples follow,
then those that Hypothesis draws. `Evidence` accumulates what they show, and gives the verdict at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from hypothesis import strategies as st

from pytest_torchcompile.checking.evidence import Evidence
from pytest_torchcompile.checking.fixed_examples import FixedExamples
from pytest_torchcompile.checking.known_causes import rounding_causes
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.sampling import compare_samples
from pytest_torchcompile.checking.stops import (
    Stop,
    does_not_repeat,
    require_compiled,
    suppress_stop_if_found,
)
from pytest_torchcompile.checking.trial import Failure, Trial
from pytest_torchcompile.compiling.recurrent import remedies
from pytest_torchcompile.errors import CompileFailed
from pytest_torchcompile.generation import descriptions, edges, strategies
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.generation.search import examples_of_profile, search
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.results import CheckResult, Difference, Verdict


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
        self._evidence = Evidence()
        self._fixed = FixedExamples(pair, options, self._evidence)
        self._notes = list(pair.twins.notes)
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
            failure = self._fixed.first_failure()
            self.pair = self._fixed.pair
            if failure is None and not self._evidence.examples:
                return self._result(*self._evidence.verdict())
            if failure is None or not _is_exception(failure):
                require_compiled(self.pair, options)
            if failure is None:
                for way, pair in self._fixed.otherwise.items():
                    require_compiled(pair, options, way)
            failure = self._search(failure, name)
        except Stop as stop:
            return self._result(stop.verdict, stop.reason)
        if failure is not None:
            return self._differs(failure)
        verdict, reason = self._evidence.verdict()
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

    def _search(self, first: Failure | None, name: str) -> Failure | None:
        """Let Hypothesis search for a failing example, or for a smaller one than `first`."""
        failures = [] if first is None else [first]
        # Drawn examples do not judge small tensors by their own size, which needs the rounding floor far more
        # often; the fixed examples have done so.
        self._fixed.trial.small = first is not None

        def fails(recipe: Recipe) -> bool:
            if self._out_of_budget():
                return False
            failure = suppress_stop_if_found(failures, lambda: self._fixed.trial(recipe))
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
        again = suppress_stop_if_found(failures, lambda: self._fixed.trial(failures[0].recipe))
        return again or dataclasses.replace(failures[0], replayed=False)

    def _batches(self, first: Failure | None) -> st.SearchStrategy[int]:
        """Return the batch sizes to draw: only those already used if each new one is compiled separately.

        For a smaller failing example, no size above that of `first`, at which it is likely to fail again.
        """
        sizes = self._options.batch
        low, high = min(sizes), max(sizes)
        if self._fixed.each_size_compiles or len(sizes) == 1:
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
                self._fixed.trial.rerun(failure.recipe),
            )
        reason = ""
        if not failure.replayed:
            reason = does_not_repeat(f"call {failure.call}", self._fixed.trial.rerun(failure.recipe))
        return self._with_differences(reason, self._fixed.trial.differences(failure), failure.recipe)

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
            examples=self._evidence.examples,
            attempts=self._evidence.attempts,
            rounding=self._evidence.rounding,
            worst=self._evidence.worst,
            capture=pair.capture,
            notes=(
                *self._notes,
                *self._fixed.notes,
                *pair.notes,
                *self._evidence.notes(),
                *self._capture_notes(),
                *(self._remedies() if verdict.passed or verdict is Verdict.NOT_COMPILED else ()),
            ),
            remarks=self._evidence.remarks(),
            sensitivity=self._fixed.trial.sensitivity(),
            backend="as deployed" if pair.twins.deployed else self._options.backend_name,
            deviations=self._evidence.deviations(),
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
        notes = self.pair.recorder.notes(eager_raised=self._evidence.rejected)
        # Recompiles for layouts do not count: a deployed policy does not get inputs in every layout.
        of_each = self.pair.recorder.recompiles_of_each() - self._fixed.recompiles_by_layout
        recompiles, limit = max(of_each.values(), default=0), self._fixed.trial.recompile_limit
        if recompiles > limit:
            notes.append(
                f"{recompiles} recompiles of one function exceed your recompile_limit of {limit}: outside "
                f"the check torch would run some of these calls eager"
            )
        return notes


def _is_exception(failure: Failure) -> bool:
    """Whether one side raised. The capture is then incomplete."""
    return failure.judgement.differences[0].problem == "exception"
