"""The records of one difference between eager and compiled, and of the deviation of one example."""

from __future__ import annotations

import dataclasses

from pytest_torchcompile.results.verdict import Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The comparison of one tensor (or other value) that a call left behind.

    Args:
        path: what was compared: ``output['logits']``, ``gradient of head.weight``.
        problem: the kind of difference: ``values``, ``dtype``, ``shape``, ``structure`` ... ; empty if equal.
        eager: eager's value at the worst element, or eager's dtype, shape, type, exception.
        compiled: the same for compiled.
        float64: the float64 reference at the worst element, if it ran.
        index: position of the worst element.
        difference: the largest absolute difference (0 if nothing numeric was compared).
        allowed: what was allowed at that element.
        relative: the difference as a share of eager's value there, if that is not zero.
        ulps: the difference in units of the last place of eager's value there.
        floor: the rounding floor of this tensor, if it was measured.
        unequal: how many elements exceed what is allowed.
        elements: how many elements the tensor has.
        rows: the batch rows with such elements, at most eight.
        closer: which side is closer to the float64 reference at the worst element, if it ran.
        chance: if distributions were compared, the probability of draws this unequal from two equal
            distributions; `allowed` is then the probability below which they count as different.
        grid: the largest differences in each cell of a grid, row by row, over the tensor's last two
            dimensions, in the slice that holds the worst element; 0 if what is allowed is not exceeded there.
            Empty for a tensor with fewer than two dimensions.
    """

    path: str
    problem: str = ""
    eager: str = ""
    compiled: str = ""
    float64: str | None = None
    index: tuple[int, ...] | None = None
    difference: float = 0.0
    allowed: float = 0.0
    relative: float | None = None
    ulps: float | None = None
    floor: float | None = None
    unequal: int = 0
    elements: int = 0
    rows: tuple[int, ...] = ()
    closer: str | None = None
    chance: float | None = None
    grid: tuple[tuple[float, ...], ...] = ()

    @property
    def place(self) -> str:
        """The path with the index of the worst element: ``output[0][3, 7]``."""
        return self.path + (f"[{', '.join(map(str, self.index))}]" if self.index else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far compiled was from eager on one example, at the element that came closest to its tolerance.

    Args:
        example: its number among those that were compared, from 1.
        batch: its batch size.
        verdict: ``equal``, ``within rounding`` or ``differs``.
        path: the tensor (or other value) that this element belongs to.
        difference: the absolute difference (0 if nothing numeric was compared).
        allowed: the tolerance there, not increased by rounding.
        floor: the rounding floor of the tensor, if it was measured.
        eager_error: the distance of eager's value from the float64 reference, if that ran.
        compiled_error: the distance of compiled's value from it.
    """

    example: int
    batch: int
    verdict: Verdict
    path: str = ""
    difference: float = 0.0
    allowed: float = 0.0
    floor: float | None = None
    eager_error: float | None = None
    compiled_error: float | None = None

    @property
    def share(self) -> float | None:
        """The difference in units of the tolerance; None if nothing numeric was compared."""
        if self.allowed:
            return self.difference / self.allowed
        return None if self.verdict is Verdict.DIFFERS else 0.0
