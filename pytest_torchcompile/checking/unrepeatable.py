"""Leaves attributes that eager does not repeat, such as a time or an ``id()``, out of the comparison."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.state import unequal_numbers


def leave_out(sides: Iterable[Side], first: Outcome, again: Outcome) -> list[str]:
    """Leave out the plain attributes that have different values after two equal calls of eager.

    Args:
        sides: the sides whose later outcomes leave these attributes out.
        first: the outcome of eager's first call.
        again: the outcome of the repeated call; if it raised, nothing is left out.

    Returns:
        The paths of the attributes, sorted.
    """
    unequal = unequal_numbers(first.state, again.state) if again.error is None else []
    for side in sides:
        if side.state is not None:
            side.state.unrepeatable.update(unequal)
    return unequal
