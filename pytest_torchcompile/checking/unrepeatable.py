"""Attributes that eager does not repeat: a time, a path, an identity. They are not compared."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_torchcompile.policies.calls import Outcome, Side
from pytest_torchcompile.policies.state import unequal_numbers


def leave_out(sides: Iterable[Side], first: Outcome, again: Outcome) -> list[str]:
    """Stop comparing the plain attributes that two equal calls of eager leave with different values.

    Args:
        sides: the sides whose later outcomes leave these attributes out.
        first: what eager's first call left.
        again: what the same call left when it was repeated; an exception leaves nothing out.

    Returns:
        The paths of the attributes, sorted.
    """
    unequal = unequal_numbers(first.state, again.state) if again.error is None else []
    for side in sides:
        if side.state is not None:
            side.state.unrepeatable.update(unequal)
    return unequal
