"""Conditions that end a check before all of its examples are tried, and the exception that ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pytest_torchcompile.checking.kept_state import kept_state
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.tolerance import judge
from pytest_torchcompile.compiling.capture import why_not_compiled
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.copies import why_stale
from pytest_torchcompile.policies.holders import policy_of
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.results import Verdict
from pytest_torchcompile.texts import raised_text, some

T = TypeVar("T")

RECOMPILES_IN_A_ROW = 3
"""A check stops after this many consecutive calls that compile again for a shape already seen."""


REPEATS = 8
"""How often eager is repeated on one example if the policy keeps state that the check can't restore."""


class Stop(BaseException):
    """Ends a check with a verdict. It is not an `Exception`, so that Hypothesis does not catch it."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        self.verdict = verdict
        self.reason = reason


def suppress_stop_if_found(found: Sequence[object], attempt: Callable[[], T | None]) -> T | None:
    """Return the result of `attempt`; None if it raises `Stop` and `found` is not empty.

    A difference that was found remains the result, even if a smaller example stops the check.

    Raises:
        Stop: if `attempt` raises it and `found` is empty.
    """
    try:
        return attempt()
    except Stop:
        if not found:
            raise
        return None


def compiles_again(in_a_row: int, limit: int, recompiles: Sequence[str]) -> Stop:
    """Return the `Stop` for a case that compiles again on call after call.

    Args:
        in_a_row: the number of consecutive calls that compiled again.
        limit: the recompile limit of the process.
        recompiles: the reasons of the recompiles, the latest last.
    """
    return Stop(
        Verdict.NOT_COMPILED,
        f"{in_a_row} calls in a row compiled again for shapes already seen; torch gives up after {limit} and "
        f"runs eager instead; the guard that fails: {recompiles[-1] if recompiles else 'unknown'}. Keep what "
        f"changes with each call in a tensor, such as a buffer, or out of the compiled method",
    )


def require_repeated(
    eager: Outcome, again: Outcome, tolerance: Tolerance, rerun: Callable[[], object] | None = None
) -> None:
    """Return if a repeated call of eager on the same example has the same outcome.

    Args:
        eager: the outcome of a call.
        again: the outcome of the repeated call.
        tolerance: what counts as the same.
        rerun: calls eager once more, to find the state that it keeps; None to leave that out.

    Raises:
        Stop: if the outcomes differ, because a difference from compiled would then prove nothing.
    """
    if again.error is not None:
        moved = f"it raises {raised_text(again.error)} when called again"
    else:
        differences = judge(eager, again, tolerance, None).differences
        if not differences:
            return
        moved = f"{differences[0].place} is {differences[0].eager}, then {differences[0].compiled}"
    found = kept_state(rerun) if rerun is not None else []
    kept = f": {some(found)}" if found else ""
    raise Stop(
        Verdict.EAGER_FAILED,
        f"eager does not repeat itself on one example under one seed: {moved}; it keeps state that the "
        f"check can't restore{kept}. Keep that state in buffers or in attributes that are tensors, and draw "
        f"random numbers from torch's, numpy's or python's global generators",
    )


def require_repeatable(eager: Outcome, tolerance: Tolerance, rerun: Callable[[], Outcome]) -> None:
    """Return if repeated calls of eager on one example have the same outcome.

    If the policy keeps state that the check can't restore, eager is repeated more often: what depends on
    whether a call is an even one repeats now and then.

    Args:
        eager: the outcome of a call.
        tolerance: what counts as the same.
        rerun: calls eager once more.

    Raises:
        Stop: if an outcome differs, because a difference from compiled would then prove nothing.
    """
    require_repeated(eager, rerun(), tolerance, rerun)
    for _ in range(REPEATS if kept_state(rerun) else 0):
        require_repeated(eager, rerun(), tolerance, rerun)


def does_not_repeat(call: str, rerun: Callable[[], object]) -> str:
    """Return the sentence for a difference that does not appear when the same is tried again.

    Args:
        call: the call or move that differed, such as ``call 3``.
        rerun: calls eager once more, to find the state that it keeps.
    """
    found = kept_state(rerun)
    kept = f"; it keeps state that the check can't restore: {some(found)}" if found else ""
    return f"depends on what ran before: differed on {call}, not when tried again{kept}"


def require_compiled(pair: Pair, options: CheckOptions, way: str = "") -> None:
    """Return if the capture proves that the method was compiled.

    Args:
        pair: the two sides.
        options: with the shares of the method that the user asks for.
        way: how the method was called, if it was not as declared, for the reason.

    Raises:
        Stop: if it does not, with the reason.
    """
    reason = why_stale(policy_of(pair.twins.compiled)) or why_not_compiled(
        pair.capture, pair.method, options, pair.recorder
    )
    if reason and pair.twins.deployed and pair.capture.graphs == 0:
        name = pair.method.name
        reason = (
            f"the factory returned something compiled, but {name!r} does not go through it (an "
            f"OptimizedModule calls every method except forward on the eager module); write "
            f"`model.{name} = torch.compile(model.{name})` instead. {reason}"
        )
    if reason:
        raise Stop(Verdict.NOT_COMPILED, f"{way}: {reason}" if way else reason)
