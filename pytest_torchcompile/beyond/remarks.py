"""Collects the remarks of a case, and adds them to its result.

A case fails for differences on what was declared. A difference beyond that is a remark: it is shown and
counted, and fails the case only if the user asks for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator

from pytest_torchcompile.beyond.empty_batch import empty_batch
from pytest_torchcompile.beyond.overwriting import overwritten_input
from pytest_torchcompile.beyond.rejection import BrokenContract, try_undeclared_inputs
from pytest_torchcompile.beyond.undeclared import IGNORED_HOOK, late_hook, undeclared_autocast
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.comparing.representation import ZERO_GRADIENTS
from pytest_torchcompile.lifecycle.sides import LifecycleSides
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.copies import copied_stale
from pytest_torchcompile.results import CheckResult, Verdict
from pytest_torchcompile.texts import some


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beyond:
    """What was found beyond what was declared.

    Args:
        remarks: the differences, one sentence each.
        notes: what was not tried, and why.
        broken: a broken contract, which fails the case whatever the option ``beyond`` is; None if none.
    """

    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    broken: BrokenContract | None = None


def look_beyond(pair: Pair, options: CheckOptions) -> Beyond:
    """Check a method beyond what was declared, after its case has passed."""
    if options.beyond == "off":
        return Beyond()
    with _without_warnings():
        remarks, broken = try_undeclared_inputs(pair, options) if pair.phase == "rollout" else ([], None)
        remarks += overwritten_input(pair, options) if pair.phase == "update" else ()
        remarks += empty_batch(pair, options)
    return Beyond(remarks=tuple(remarks), notes=_left_out(pair), broken=broken)


def look_beyond_life(sides: LifecycleSides, options: CheckOptions) -> Beyond:
    """Check a policy beyond what was declared, after its lifecycle has passed."""
    twins = sides.first.twins
    stale = copied_stale(twins.compiled) if twins.deployed else ""
    if stale and options.copies:
        return Beyond(broken=BrokenContract(reason=stale))
    if options.beyond == "off":
        return Beyond()
    remarks: list[str] = []
    if not sides.first.out_of_seconds():
        with _without_warnings():
            remarks += [*late_hook(sides, options), *undeclared_autocast(sides, options)]
    return Beyond(remarks=(*remarks, *filter(None, [stale])), notes=_left_out(sides.first))


def _left_out(pair: Pair) -> tuple[str, ...]:
    """Return a note if the seconds of the case were spent before everything was tried."""
    reason = pair.out_of_seconds()
    return (f"beyond what was declared not all was tried: {reason}",) if reason else ()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """In the body, ignore warnings: the policy may warn of inputs that were not declared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def concluded(found: CheckResult, beyond: Beyond, options: CheckOptions) -> CheckResult:
    """Return `found` with its remarks. It differs if a contract is broken, or with ``beyond="fail"``.

    With ``beyond="off"`` it has no remarks: those that other checks added are dropped.
    """
    found = dataclasses.replace(found, notes=(*found.notes, *beyond.notes))
    if beyond.broken is not None:
        return dataclasses.replace(
            found,
            verdict=Verdict.DIFFERS,
            reason=beyond.broken.reason,
            worst=beyond.broken.difference or found.worst,
            differences=(beyond.broken.difference,) if beyond.broken.difference else (),
            example=beyond.broken.example,
            remarks=() if options.beyond == "off" else (*found.remarks, *beyond.remarks),
        )
    if options.beyond == "off":
        return dataclasses.replace(found, remarks=())
    remarks = (*found.remarks, *beyond.remarks)
    # These remarks are on torch's defaults for every policy, so they do not fail this one.
    own = [remark for remark in remarks if remark not in (IGNORED_HOOK, ZERO_GRADIENTS)]
    if options.beyond == "fail" and own and found.verdict.passed:
        reason = f"beyond what was declared: {some(own)}"
        return dataclasses.replace(found, verdict=Verdict.DIFFERS, reason=reason, remarks=remarks)
    return dataclasses.replace(found, remarks=remarks)
