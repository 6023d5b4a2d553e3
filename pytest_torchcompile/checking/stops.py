"""What ends a check before all of its examples were tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.tolerance import judge
from pytest_torchcompile.compiling.capture import why_not_compiled
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Outcome
from pytest_torchcompile.policies.copies import why_stale
from pytest_torchcompile.policies.holders import policy_of
from pytest_torchcompile.results import Verdict
from pytest_torchcompile.texts import raised_text

T = TypeVar("T")

RECOMPILES_IN_A_ROW = 3
"""Calls in a row that compile again for a shape already seen; so many are no coincidence."""


class Stop(BaseException):
    """Ends a check with a verdict; no `Exception`, so that Hypothesis lets it through."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        self.verdict = verdict
        self.reason = reason


def unless_found(found: Sequence[object], attempt: Callable[[], T | None]) -> T | None:
    """What `attempt` returns, or None if it stops the check after something was found.

    What was found stays a difference, whatever a smaller example shows beside it.

    Raises:
        Stop: if `attempt` does and nothing was found.
    """
    try:
        return attempt()
    except Stop:
        if not found:
            raise
        return None


def compiles_again(in_a_row: int, limit: int, recompiles: Sequence[str]) -> Stop:
    """What ends a check whose calls compile again and again, as nobody's training could afford.

    Args:
        in_a_row: calls that did.
        limit: the recompile limit of the process.
        recompiles: why, the latest last.
    """
    return Stop(
        Verdict.NOT_COMPILED,
        f"{in_a_row} calls in a row compiled again for shapes already seen; torch gives up after {limit} and "
        f"runs eager in silence; the guard that fails: {recompiles[-1] if recompiles else 'unknown'}",
    )


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
    reason = why_stale(policy_of(pair.twins.compiled)) or why_not_compiled(
        pair.capture, pair.method, options, pair.recorder
    )
    if reason and pair.twins.deployed and pair.capture.graphs == 0:
        name = pair.method.name
        reason = (
            f"the factory returned something compiled, but {name!r} does not go through it (an "
            f"OptimizedModule hands every method but forward to the eager module); write "
            f"model.{name} = torch.compile(model.{name}) instead. {reason}"
        )
    if reason:
        raise Stop(Verdict.NOT_COMPILED, reason)
