"""What was found beyond what the user declared, and what becomes of it.

A case fails for what was declared. What is found beyond that is a remark: shown and counted, and a failure
only for who asks for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator

from pytest_torchcompile.beyond.empty_batch import empty_batch
from pytest_torchcompile.beyond.overwriting import overwritten_input
from pytest_torchcompile.beyond.rejection import Broken, tried_undeclared
from pytest_torchcompile.beyond.undeclared import IGNORED_HOOK, late_hook, undeclared_autocast
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.lifecycle.sides import LifecycleSides
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.copies import copied_stale
from pytest_torchcompile.results import CheckResult, Verdict
from pytest_torchcompile.texts import some


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beyond:
    """What a policy does beyond what was declared.

    Args:
        remarks: differences, a sentence each.
        broken: what fails the case whatever the option ``beyond`` says; None if nothing does.
    """

    remarks: tuple[str, ...] = ()
    broken: Broken | None = None


def look_beyond(pair: Pair, options: CheckOptions) -> Beyond:
    """What a method does beyond what was declared, in a case that passed."""
    if options.beyond == "off":
        return Beyond()
    with _unheard():
        remarks, broken = tried_undeclared(pair, options) if pair.phase == "rollout" else ([], None)
        remarks += overwritten_input(pair, options) if pair.phase == "update" else ()
        remarks += empty_batch(pair, options)
    return Beyond(remarks=tuple(remarks), broken=broken)


def look_beyond_life(sides: LifecycleSides, options: CheckOptions) -> Beyond:
    """What a policy does beyond what was declared, in a lifecycle that passed."""
    twins = sides.first.twins
    stale = copied_stale(twins.compiled) if twins.deployed else ""
    if stale and options.copies:
        return Beyond(broken=Broken(reason=stale))
    if options.beyond == "off":
        return Beyond()
    with _unheard():
        remarks = [*late_hook(sides, options), *undeclared_autocast(sides, options)]
    return Beyond(remarks=(*remarks, *filter(None, [stale])))


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Run the body without a word of what the policy warns of on inputs that nobody declared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def concluded(found: CheckResult, beyond: Beyond, options: CheckOptions) -> CheckResult:
    """`found` with its remarks; it differs if a contract is broken, or if remarks are to fail it.

    With the option ``beyond="off"`` it has no remarks: those met on the way to other things are dropped.
    """
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
    # What torch does to every policy by default is no fault of this one.
    own = [remark for remark in remarks if remark != IGNORED_HOOK]
    if options.beyond == "fail" and own and found.verdict.passed:
        reason = f"beyond what was declared: {some(own)}"
        return dataclasses.replace(found, verdict=Verdict.DIFFERS, reason=reason, remarks=remarks)
    return dataclasses.replace(found, remarks=remarks)
