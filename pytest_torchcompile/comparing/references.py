"""What eager is asked where compiled differs from it by more than the tolerance."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping

from pytest_torchcompile.comparing.cancellation import largest_operands
from pytest_torchcompile.comparing.float64 import float64_reference
from pytest_torchcompile.comparing.rounding import Floor, add_run, choice_floors, rounding_floors
from pytest_torchcompile.policies.calls import Outcome, Rerun, Side


@dataclasses.dataclass(frozen=True, kw_only=True)
class References:
    """What eager can be asked, each question at its price.

    Args:
        floors: given the paths that differ, makes the rounding floors of the example, each higher than the
            last.
        choices: given the last floor and the paths that differ, raises it by choices that flip in further
            runs.
        reference: what float64 computes, None where that does not run.
        operands: given paths of small tensors, the largest number of whose sum each is.
    """

    floors: Callable[[Collection[str]], Iterator[Floor]]
    choices: Callable[[Floor, Collection[str]], Iterator[Floor]]
    reference: Callable[[], Outcome | None]
    operands: Callable[[Collection[str]], Mapping[str, float]]


def references(eager: Outcome, side: Side, rerun: Rerun, scale: float = 1.0) -> References:
    """What can be asked of one call of eager's.

    Args:
        eager: what the call left behind.
        side: eager's side.
        rerun: makes the call again.
        scale: how much further than others this example moves.
    """

    def floors(paths: Collection[str]) -> Iterator[Floor]:
        floor = Floor()
        for floor in rounding_floors(eager, rerun, paths, scale):
            yield floor
        if floor.half:
            # Eager rounds to 16 bits after each operator where compiled may not: up to as far as that is
            # from float64.
            reference = float64_reference(side, rerun)
            if reference is not None:
                add_run(floor, eager, reference, paths)
                yield floor

    return References(
        floors=floors,
        choices=lambda floor, paths: choice_floors(floor, eager, rerun, paths, scale),
        reference=functools.cache(lambda: float64_reference(side, rerun)),
        operands=lambda paths: largest_operands(eager, rerun, paths),
    )
