"""The protocol of a check: from the two sides of a case to a verdict.

Eager first, so that the user's own error is told as such; then the fixed examples; then those that
Hypothesis draws. Facts are collected on the way and the verdict is drawn from them at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import strategies as st

from pytest_torchcompile import internals, recipes, spaces, strategies, tensors
from pytest_torchcompile.calls import Outcome
from pytest_torchcompile.capture import failure_text, why_not_compiled
from pytest_torchcompile.evidence import Evidence
from pytest_torchcompile.measure import Tolerance
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.recipes import Recipe
from pytest_torchcompile.results import (
    CheckResult,
    CompileFailed,
    Difference,
    Verdict,
    first_line,
    raised_text,
)
from pytest_torchcompile.rounding import (
    Floor,
    Rerun,
    float64_reference,
    rounding_floors,
    shift_for,
)
from pytest_torchcompile.sampling import compare_samples
from pytest_torchcompile.search import examples_of_profile, search
from pytest_torchcompile.tolerance import Judgement, judge

COMPILER_EDGES = (1, 2, 3, 8, 15, 16, 17, 32)
"""Batch sizes at which compilers change their mind: dynamo specialises 1, inductor vectorises by 8 or 16
elements; few of the sizes between are drawn, of these nearly all."""

RECOMPILES_IN_A_ROW = 3
"""Calls in a row that compile again for a shape already seen; so many are no coincidence."""


class _Stop(BaseException):
    """Ends a check with a verdict; no `Exception`, so that Hypothesis lets it through."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        self.verdict = verdict
        self.reason = reason


@dataclasses.dataclass(kw_only=True)
class _Failure:
    """An example on which compiled differs."""

    recipe: Recipe
    judgement: Judgement
    call: int
    replayed: bool = True


class CheckProtocol:
    """One case while it is checked.

    Args:
        pair: its two sides.
        options: how to check it.
    """

    def __init__(self, pair: Pair, options: CheckOptions) -> None:
        self._pair = pair
        self._options = options
        self._limit = internals.recompile_limit()
        self._tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
        self._evidence = Evidence()
        self._notes = list(pair.twins.notes)
        self._calls = 0
        self._seen: set[tuple[Any, ...]] = set()
        self._recompiled_in_a_row = 0
        self._repeats = False

    # --- the protocol

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
            if failure is None and not self._evidence.examples:
                return self._result(*self._evidence.verdict())
            if failure is None or not _is_exception(failure):
                self._require_proof()
            failure = self._search(failure, name)
        except _Stop as stop:
            return self._result(stop.verdict, stop.reason)
        if failure is not None:
            return self._differs(failure)
        verdict, reason = self._evidence.verdict()
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
            return self._with_differences(sampled.reason, sampled.differences, sampled.recipe)
        self._notes.append(sampled.note)
        return self._result(verdict, reason)

    def _try_eager(self, recipe: Recipe) -> None:
        outcome = self._pair.first_eager(recipe)
        if outcome.error is not None:
            raise _Stop(
                Verdict.EAGER_FAILED,
                f"eager raises {raised_text(outcome.error)} on inputs with batch {recipe.batch} declared as "
                f"{spaces.declared(self._pair.tree)}",
            )
        if self._pair.phase == "update" and not outcome.gradients:
            self._notes.append("no output requires grad: the update phase compared the forward only")

    def _climb(self, ladder: list[Recipe]) -> _Failure | None:
        """Try the fixed examples up to the first failure."""
        return next(filter(None, map(self._try, ladder)), None)

    def _require_proof(self) -> None:
        reason = why_not_compiled(self._pair.capture, self._pair.method, self._options, self._pair.recorder)
        if reason and self._pair.twins.deployed and self._pair.capture.graphs == 0:
            name = self._pair.method.name
            reason = (
                f"the factory returned something compiled, but {name!r} does not go through it (an "
                f"OptimizedModule hands every method but forward to the eager module); write "
                f"model.{name} = torch.compile(model.{name}) instead. {reason}"
            )
        if reason:
            raise _Stop(Verdict.NOT_COMPILED, reason)

    def _search(self, first: _Failure | None, name: str) -> _Failure | None:
        """Let Hypothesis look for a failing example, or for a smaller one than `first`."""
        failures = [] if first is None else [first]
        batches = self._batches(failures)

        def fails(recipe: Recipe) -> bool:
            failure = None if self._out_of_budget() else self._try(recipe)
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
        again = self._try(failures[0].recipe)
        return again or dataclasses.replace(failures[0], replayed=False)

    def _batches(self, failures: list[_Failure]) -> st.SearchStrategy[int]:
        """Batch sizes to draw: only those already met where each new one is compiled for itself."""
        sizes = self._options.batch
        between = (min(sizes) + max(sizes)) // 2
        if self._options.dynamic is False or len(sizes) == 1:
            return st.sampled_from(sorted(sizes))
        if between not in sizes and not failures:
            failure = self._try(recipes.random_recipe(self._pair.tree, between, self._options.seed))
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

    # --- one example

    def _try(self, recipe: Recipe) -> _Failure | None:
        """Call both sides on one example and compare; a failure, or None."""
        pair = self._pair
        pair.begin()
        eager = pair.run(pair.eager, recipe)
        # torch.fx prints what a graph raises; where eager raised, that is no news.
        quiet = contextlib.nullcontext if eager.error is None else _quiet
        compiled = pair.run(pair.compiled, recipe, under=quiet)
        self._calls += 1
        if eager.error is not None:
            return self._both_reject(recipe, eager.error, compiled.error)
        if compiled.error is not None and pair.recorder.is_compile_failure(compiled.error):
            raise _Stop(
                Verdict.COMPILE_FAILED,
                f"{failure_text(compiled.error)}, on call {self._calls} (batch {recipe.batch})",
            )
        self._watch_recompiles(recipe)
        judgement = judge(
            eager,
            compiled,
            self._tolerance,
            None if self._options.reference == "eager" else lambda: self._floors(eager, recipe),
            finite_inputs=tensors.is_finite(pair.tree, recipe),
        )
        degenerate = recipes.equal_terms(pair.tree, recipe) > 0
        self._evidence.add(eager, judgement, degenerate=degenerate)
        if not judgement.differences:
            return None
        return _Failure(recipe=recipe, judgement=judgement, call=self._calls)

    def _both_reject(self, recipe: Recipe, eager: Exception, compiled: Exception | None) -> _Failure | None:
        """Eager raised: so must compiled, and alike, unless the compiler noticed before it ran."""
        self._evidence.reject(eager)
        # A RuntimeError is how kernels reject an index, for which eager has an IndexError.
        alike = compiled is not None and (
            isinstance(compiled, (type(eager), RuntimeError))
            or self._pair.recorder.is_compile_failure(compiled)
        )
        if alike or not self._pair.capture.parameters:
            return None
        difference = Difference(
            path="output",
            problem="exception",
            eager=f"raises {first_line(eager)}",
            compiled="returns" if compiled is None else f"raises {first_line(compiled)}",
        )
        judgement = Judgement(differences=(difference,), worst=difference)
        return _Failure(recipe=recipe, judgement=judgement, call=self._calls)

    def _rerun(self, recipe: Recipe) -> Rerun:
        return lambda under, wide=False: self._pair.run(self._pair.eager, recipe, under=under, wide=wide)

    def _floors(self, eager: Outcome, recipe: Recipe) -> Iterator[Floor]:
        """Rounding floors; the first time, and where none explains, also whether eager repeats itself."""
        if not self._repeats:
            self._require_repeatable(eager, recipe)
            self._repeats = True
        shift = shift_for(recipes.equal_terms(self._pair.tree, recipe))
        yield from rounding_floors(eager, self._rerun(recipe), shift)
        self._require_repeatable(eager, recipe)

    def _require_repeatable(self, eager: Outcome, recipe: Recipe) -> None:
        """Stop if eager does not agree with itself: how rounding moves it could not be told from that."""
        again = self._pair.run(self._pair.eager, recipe)
        if again.error is not None:
            moved = f"it raises {raised_text(again.error)} when called again"
        else:
            differences = judge(eager, again, self._tolerance, None).differences
            if not differences:
                return
            moved = f"{differences[0].place} is {differences[0].eager}, then {differences[0].compiled}"
        raise _Stop(
            Verdict.EAGER_FAILED,
            f"eager does not repeat itself on one example under one seed: {moved}; it keeps state where the "
            f"check can't put it back. Keep it in buffers, in attributes that are tensors, or draw from "
            f"torch's, numpy's or python's own random numbers",
        )

    def _watch_recompiles(self, recipe: Recipe) -> None:
        """Stop if call after call compiles for shapes already seen."""
        shape = (recipe.batch, recipe.time, tuple(fill.layout for fill in recipe.fills))
        if shape in self._seen:
            again = self._pair.recorder.compiled_in_last_call
            self._recompiled_in_a_row = self._recompiled_in_a_row + 1 if again else 0
        self._seen.add(shape)
        if self._recompiled_in_a_row >= RECOMPILES_IN_A_ROW:
            reasons = self._pair.capture.recompiles or ("unknown",)
            raise _Stop(
                Verdict.NOT_COMPILED,
                f"{self._recompiled_in_a_row} calls in a row compiled again for shapes already seen; "
                f"torch gives up after {self._limit} and runs eager in silence; "
                f"the guard that fails: {reasons[-1]}",
            )

    # --- conclusions

    def _differs(self, failure: _Failure) -> CheckResult:
        reason = (
            ""
            if failure.replayed
            else f"depends on what ran before: differed on call {failure.call}, not when tried again"
        )
        return self._with_differences(reason, self._with_float64(failure), failure.recipe)

    def _with_differences(
        self, reason: str, differences: tuple[Difference, ...], recipe: Recipe
    ) -> CheckResult:
        return dataclasses.replace(
            self._result(Verdict.DIFFERS, reason),
            worst=differences[0],
            differences=differences,
            example=tensors.describe(self._pair.tree, recipe),
        )

    def _with_float64(self, failure: _Failure) -> tuple[Difference, ...]:
        differences = failure.judgement.differences
        if self._options.reference == "eager":
            return differences
        reference = float64_reference(self._pair.eager, self._rerun(failure.recipe))
        if reference is None:
            return differences
        values = reference.elementwise() | reference.differentiated()
        return tuple(_refer(difference, values.get(difference.path)) for difference in differences)

    def _result(self, verdict: Verdict, reason: str) -> CheckResult:
        pair = self._pair
        return CheckResult(
            method=pair.method.name,
            phase=pair.phase,
            verdict=verdict,
            reason=reason,
            examples=self._evidence.examples,
            rounding=self._evidence.rounding,
            worst=self._evidence.worst,
            capture=pair.capture,
            notes=(*self._notes, *self._evidence.notes(), *self._capture_notes()),
            backend="as deployed" if pair.twins.deployed else self._options.backend_name,
        )

    def _capture_notes(self) -> list[str]:
        notes = []
        suppressed = self._pair.recorder.suppressed()
        if suppressed and self._pair.capture.graphs and not self._evidence.rejected:
            notes.append(f"{suppressed}, and torch ran that part eager")
        recompiles = len(self._pair.capture.recompiles)
        if recompiles > self._limit:
            notes.append(
                f"{recompiles} recompiles exceed your recompile_limit of {self._limit}: outside the check "
                f"torch would run some of these calls eager, in silence"
            )
        return notes


def _quiet() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stderr(io.StringIO())


def _is_exception(failure: _Failure) -> bool:
    """Whether one side raised, so that what would have been captured after it never ran."""
    return failure.judgement.differences[0].problem == "exception"


def _refer(difference: Difference, reference: torch.Tensor | None) -> Difference:
    """`difference` with the float64 reference's value at the worst element."""
    if reference is None or difference.index is None or difference.problem != "values":
        return difference
    if reference.dtype != torch.float64 or len(difference.index) != reference.dim():
        return difference
    value = float(reference[difference.index])
    eager, compiled = abs(float(difference.eager) - value), abs(float(difference.compiled) - value)
    closer = "eager" if eager < compiled else "compiled" if compiled < eager else "neither"
    return dataclasses.replace(difference, float64=f"{value:.9g}", closer=closer)
