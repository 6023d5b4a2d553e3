"""One example: both sides called on it, and what they leave behind judged.

What the examples of a case show is summed up on the way; what makes further examples pointless ends
the check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import torch

from pytest_torchcompile import internals, recipes, tensors
from pytest_torchcompile.calls import Outcome
from pytest_torchcompile.capture import failure_text
from pytest_torchcompile.evidence import Evidence
from pytest_torchcompile.measure import Tolerance
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.recipes import Recipe
from pytest_torchcompile.results import Difference, Verdict, first_line, raised_text
from pytest_torchcompile.rounding import Floor, Rerun, float64_reference, rounding_floors, shift_for
from pytest_torchcompile.tolerance import Judgement, judge

RECOMPILES_IN_A_ROW = 3
"""Calls in a row that compile again for a shape already seen; so many are no coincidence."""


class Stop(BaseException):
    """Ends a check with a verdict; no `Exception`, so that Hypothesis lets it through."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        self.verdict = verdict
        self.reason = reason


@dataclasses.dataclass(kw_only=True)
class Failure:
    """An example on which compiled differs."""

    recipe: Recipe
    judgement: Judgement
    call: int
    replayed: bool = True


class Trial:
    """Tries examples on the two sides of a case, one after the other.

    Args:
        pair: the two sides.
        options: how to compare them.
    """

    def __init__(self, pair: Pair, options: CheckOptions) -> None:
        self.evidence = Evidence()
        self.recompile_limit = internals.recompile_limit()
        self._pair = pair
        self._options = options
        self._tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
        self._calls = 0
        self._seen: set[tuple[Any, ...]] = set()
        self._recompiled_in_a_row = 0
        self._repeats = False

    def __call__(self, recipe: Recipe) -> Failure | None:
        """Call both sides on one example and compare; a failure, or None.

        Raises:
            Stop: if the compiler fails, or compiles on every call, or eager does not repeat itself.
        """
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
            raise Stop(
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
        self.evidence.add(eager, judgement, degenerate=degenerate)
        if not judgement.differences:
            return None
        return Failure(recipe=recipe, judgement=judgement, call=self._calls)

    def _both_reject(self, recipe: Recipe, eager: Exception, compiled: Exception | None) -> Failure | None:
        """Eager raised: so must compiled, and alike, unless the compiler noticed before it ran."""
        self.evidence.reject(eager)
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
        return Failure(recipe=recipe, judgement=judgement, call=self._calls)

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
        raise Stop(
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
            raise Stop(
                Verdict.NOT_COMPILED,
                f"{self._recompiled_in_a_row} calls in a row compiled again for shapes already seen; "
                f"torch gives up after {self.recompile_limit} and runs eager in silence; "
                f"the guard that fails: {reasons[-1]}",
            )

    def differences(self, failure: Failure) -> tuple[Difference, ...]:
        """What differs in a failure, with the float64 reference's values where there is one."""
        differences = failure.judgement.differences
        if self._options.reference == "eager":
            return differences
        reference = float64_reference(self._pair.eager, self._rerun(failure.recipe))
        if reference is None:
            return differences
        values = reference.elementwise() | reference.differentiated()
        return tuple(_refer(difference, values.get(difference.path)) for difference in differences)


def _quiet() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stderr(io.StringIO())


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
