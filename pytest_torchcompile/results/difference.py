"""One difference between eager and compiled, and what single examples showed."""

from __future__ import annotations

import dataclasses

from pytest_torchcompile.results.verdict import Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One tensor (or other value) that a call left behind, eager held against compiled.

    Args:
        path: what was compared: ``output['logits']``, ``gradient of head.weight``.
        problem: how it is unequal: ``values``, ``dtype``, ``shape``, ``structure`` ... ; empty if equal.
        eager: eager's value at the worst element, or eager's dtype, shape, type, exception.
        compiled: the same for compiled.
        float64: the float64 reference at the worst element, where it ran.
        index: position of the worst element.
        difference: the largest absolute difference (0 where nothing numeric was compared).
        allowed: what was allowed at that element.
        relative: the difference as a share of eager's value there, where that is not zero.
        ulps: the difference in units of the last place of eager's value there.
        floor: the rounding floor of this tensor, where it was asked for.
        unequal: how many elements exceed what is allowed.
        elements: how many elements the tensor has.
        rows: the batch rows with such elements, at most eight.
        closer: which side is closer to the float64 reference at the worst element, where it ran.
        chance: of draws so unequal from two sides that draw alike, where distributions were compared;
            `allowed` is then the chance from which on they are taken to differ.
        grid: the largest differences by place, of the tensor or the slice of its last two dimensions that
            holds the worst element: one number for each cell of a grid, row by row; 0 where what is
            allowed is not exceeded. Empty for what has less than two dimensions.
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
        path: the tensor (or other value) that this element is of.
        difference: the absolute difference (0 where nothing numeric was compared).
        allowed: the tolerance there; rounding does not raise it.
        floor: the rounding floor of the tensor, where it was asked for.
        eager_error: how far eager's value is from the float64 reference's, where that ran.
        compiled_error: how far compiled's is.
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
