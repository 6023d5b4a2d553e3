"""References that are computed from eager when compiled differs from it by more than the tolerance.

They are computed on demand: each costs at least one more call of eager.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping

from pytest_torchcompile.comparing.cancellation import largest_operands
from pytest_torchcompile.comparing.float64 import float64_reference
from pytest_torchcompile.comparing.rounding import Floor, add_run, choice_floors, rounding_floors
from pytest_torchcompile.policies.calls import Rerun, Side
from pytest_torchcompile.policies.outcome import Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class References:
    """The references for one example, as functions.

    Args:
        floors: takes the paths that differ; yields the rounding floor after each run, which never decreases.
        choices: takes the last floor and the paths that differ; yields the floor raised by further flips of
            choices.
        reference: returns the float64 reference; None if it does not run.
        operands: takes the paths of small tensors; returns the largest operand of the sums that they are.
    """

    floors: Callable[[Collection[str]], Iterator[Floor]]
    choices: Callable[[Floor, Collection[str]], Iterator[Floor]]
    reference: Callable[[], Outcome | None]
    operands: Callable[[Collection[str]], Mapping[str, float]]


def references(
    eager: Outcome, side: Side, rerun: Rerun, scale: float = 1.0, *, learnt: bool = False
) -> References:
    """Return the references for one call of eager.

    Args:
        eager: the outcome of the call.
        side: eager's side.
        rerun: repeats the call.
        scale: factor on the perturbation; see `rounding.scale_for`.
        learnt: whether the outcome follows from gradients of earlier calls; see `rounding_floors`.
    """

    def floors(paths: Collection[str]) -> Iterator[Floor]:
        floor = Floor()
        for floor in rounding_floors(eager, rerun, paths, scale, learnt=learnt):
            yield floor
        if floor.half:
            # Eager rounds to 16 bits after each operator and compiled may not. So compiled may be as far
            # from eager as the float64 reference is.
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
