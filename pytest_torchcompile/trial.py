"""One example: both sides called on it, and what they leave behind judged.

What the examples of a case show is summed up on the way; what makes further examples pointless ends
the check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator
from typing import Any

import torch

from pytest_torchcompile import internals, recipes, tensors
from pytest_torchcompile.calls import Outcome, Side
from pytest_torchcompile.capture import failure_text, why_not_compiled
from pytest_torchcompile.evidence import Evidence
from pytest_torchcompile.measure import Tolerance
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.reach import Reach
from pytest_torchcompile.recipes import Recipe
from pytest_torchcompile.results import Deviation, Difference, Sensitivity, Verdict
from pytest_torchcompile.rounding import Floor, Rerun, float64_reference, rounding_floors, shift_for
from pytest_torchcompile.texts import first_line, raised_text
from pytest_torchcompile.tolerance import Judgement, judge

RECOMPILES_IN_A_ROW = 3
"""Calls in a row that compile again for a shape already seen; so many are no coincidence."""

REFERRED = 4
"""Examples beyond the tolerance whose distance to float64 is kept: enough for a picture, two calls each."""


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
        self._reach = Reach(pair.twins.eager) if options.sensitivity else None
        self._referred = 0

    def __call__(self, recipe: Recipe) -> Failure | None:
        """Call both sides on one example and compare; a failure, or None.

        Raises:
            Stop: if the compiler fails, or compiles on every call, or eager does not repeat itself.
        """
        pair = self._pair
        pair.begin(recipe)
        eager = pair.run(pair.eager, recipe)
        # Where eager raised, it is no news that a graph raises.
        quiet = contextlib.nullcontext if eager.error is None else quietly
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
        finite = tensors.is_finite(pair.tree, recipe)
        if self._reach is not None and finite:
            self._reach.add(eager, recipe.batch)
        judgement = judge(
            eager,
            compiled,
            self._tolerance,
            None if self._options.reference == "eager" else lambda: self._floors(eager, recipe),
            finite_inputs=finite,
        )
        degenerate = recipes.equal_terms(pair.tree, recipe) > 0
        self.evidence.add(eager, judgement, degenerate=degenerate)
        self.evidence.keep(self._deviation(recipe, judgement))
        if not judgement.differences:
            return None
        return Failure(recipe=recipe, judgement=judgement, call=self._calls)

    def sensitivity(self) -> Sensitivity | None:
        """How much of the policy the examples have reached; None if nobody asks."""
        return None if self._reach is None else self._reach.sensitivity()

    def _deviation(self, recipe: Recipe, judgement: Judgement) -> Deviation:
        """What this example showed, with the distances to float64 if it is among the first that exceed."""
        verdict = Verdict.DIFFERS if judgement.differences else Verdict.EQUAL
        if judgement.rounding:
            verdict = Verdict.WITHIN_ROUNDING
        largest = judgement.largest or Difference(path="")
        if verdict is not Verdict.EQUAL and self._referred < REFERRED:
            self._referred += 1
            (largest,) = self._with_float64((largest,), recipe)
        eager_error, compiled_error = _errors(largest)
        return Deviation(
            example=self.evidence.examples,
            batch=recipe.batch,
            verdict=verdict,
            path=largest.path,
            difference=largest.difference,
            allowed=largest.allowed,
            floor=largest.floor,
            eager_error=eager_error,
            compiled_error=compiled_error,
        )

    def _both_reject(self, recipe: Recipe, eager: Exception, compiled: Exception | None) -> Failure | None:
        """Eager raised: so must compiled, and alike, unless the compiler noticed before it ran."""
        self.evidence.reject(eager)
        difference = unlike_rejection(self._pair, eager, compiled)
        if difference is None or not self._pair.capture.parameters:
            return None
        judgement = Judgement(differences=(difference,), worst=difference)
        return Failure(recipe=recipe, judgement=judgement, call=self._calls)

    def rerun(self, recipe: Recipe) -> Rerun:
        """Calls eager again on one example."""
        return lambda under, wide=False: self._pair.run(self._pair.eager, recipe, under=under, wide=wide)

    def _floors(self, eager: Outcome, recipe: Recipe) -> Iterator[Floor]:
        """Rounding floors; the first time, and where none explains, also whether eager repeats itself."""
        if not self._repeats:
            self._require_repeatable(eager, recipe)
            self._repeats = True
        shift = shift_for(recipes.equal_terms(self._pair.tree, recipe))
        yield from rounding_floors(eager, self.rerun(recipe), shift)
        self._require_repeatable(eager, recipe)

    def _require_repeatable(self, eager: Outcome, recipe: Recipe) -> None:
        """Stop if eager does not agree with itself: how rounding moves it could not be told from that."""
        require_repeated(eager, self._pair.run(self._pair.eager, recipe), self._tolerance)

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
        return self._with_float64(failure.judgement.differences, failure.recipe)

    def _with_float64(self, differences: tuple[Difference, ...], recipe: Recipe) -> tuple[Difference, ...]:
        if self._options.reference == "eager":
            return differences
        return referred(differences, self._pair.eager, self.rerun(recipe))


def require_repeated(eager: Outcome, again: Outcome, tolerance: Tolerance) -> None:
    """Return if eager, called again on what it was called on before, leaves the same behind.

    Raises:
        Stop: if it does not, so that nothing can be concluded from a difference.
    """
    if again.error is not None:
        moved = f"it raises {raised_text(again.error)} when called again"
    else:
        differences = judge(eager, again, tolerance, None).differences
        if not differences:
            return
        moved = f"{differences[0].place} is {differences[0].eager}, then {differences[0].compiled}"
    raise Stop(
        Verdict.EAGER_FAILED,
        f"eager does not repeat itself on one example under one seed: {moved}; it keeps state where the "
        f"check can't put it back. Keep it in buffers, in attributes that are tensors, or draw from "
        f"torch's, numpy's or python's own random numbers",
    )


def require_compiled(pair: Pair, options: CheckOptions) -> None:
    """Return if what was captured proves that the method was compiled.

    Raises:
        Stop: if it doesn't, with the reason.
    """
    reason = why_not_compiled(pair.capture, pair.method, options, pair.recorder)
    if reason and pair.twins.deployed and pair.capture.graphs == 0:
        name = pair.method.name
        reason = (
            f"the factory returned something compiled, but {name!r} does not go through it (an "
            f"OptimizedModule hands every method but forward to the eager module); write "
            f"model.{name} = torch.compile(model.{name}) instead. {reason}"
        )
    if reason:
        raise Stop(Verdict.NOT_COMPILED, reason)


def referred(differences: tuple[Difference, ...], eager: Side, rerun: Rerun) -> tuple[Difference, ...]:
    """The differences with the float64 reference's values where there is one."""
    reference = float64_reference(eager, rerun)
    if reference is None:
        return differences
    values = reference.elementwise() | reference.differentiated()
    return tuple(_refer(difference, values.get(difference.path)) for difference in differences)


def unlike_rejection(
    pair: Pair, eager: Exception, compiled: Exception | None, returned: str = "returns"
) -> Difference | None:
    """What differs where eager raised; None if compiled raised too, and alike.

    Args:
        pair: the two sides.
        eager: what eager raised.
        compiled: what compiled raised, None if it returned.
        returned: how that is told.
    """
    if compiled is not None:
        # A RuntimeError is how kernels reject an index, for which eager has an IndexError.
        if isinstance(compiled, (type(eager), RuntimeError)) or pair.recorder.is_compile_failure(compiled):
            return None
        returned = f"raises {first_line(compiled)}"
    return Difference(
        path="output", problem="exception", eager=f"raises {first_line(eager)}", compiled=returned
    )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Run the body without what torch prints and logs of the exceptions in its graphs."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


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


def _errors(difference: Difference) -> tuple[float, float] | tuple[None, None]:
    """How far eager's and compiled's values are from float64's; None where that did not run."""
    if difference.float64 is None:
        return None, None
    value = float(difference.float64)
    return abs(float(difference.eager) - value), abs(float(difference.compiled) - value)
