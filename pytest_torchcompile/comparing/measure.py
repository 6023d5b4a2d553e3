"""One tensor of eager's held against compiled's, element by element.

Allowed is ``max(atol, rtol * |eager|)`` per element, or per tensor for gradients, each by its own largest
element. What exceeds it is held against the rounding floor.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch

from pytest_torchcompile.comparing.figures import first_rows, grid, number, relative, ulps
from pytest_torchcompile.comparing.rounding import (
    FINITE,
    Floor,
    Movement,
    comparable,
    has_rows,
    kinds_of,
    largest_distance,
    slope,
)
from pytest_torchcompile.results import Difference

MULTIPLE = 4.0
"""Compiled may differ by this many times the rounding floor."""

ROW_MULTIPLE = 16.0
"""It may also not differ by more than this many times the floor of the row of the batch that it is in, or a
huge element in one row would excuse all others. A row may be a single number, seen in as little as one
run, so that its floor is less certain than the tensor's; it counts as no lower than that of the median row,
or a value on a coarse grid that no run happened to move could never move."""

ILL_CONDITIONED = 1e-3
"""A tensor is ill-conditioned on an example if its floor exceeds this share of its largest element."""


FARTHER = 100.0
"""Without a floor, compiled has to be so many times as far from float64 as eager is."""

SMALL = 0.01
"""A small tensor has to be right to this share of its largest element."""

Flipped = Callable[[int], torch.Tensor]
"""Given how many rows a tensor has, those in which compiled made another choice than eager."""


def none_flipped(length: int) -> torch.Tensor:
    """Compiled chose as eager did."""
    return torch.zeros(length, dtype=torch.bool)


Pattern = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Given eager's and compiled's tensor, the elements whose NaN or infinity should not be."""


def same_pattern(eager: torch.Tensor, compiled: torch.Tensor) -> torch.Tensor:
    """Where one has a NaN or an infinity that the other lacks."""
    both = torch.isfinite(eager) & torch.isfinite(compiled)
    return ~both & ~((eager == compiled) | (eager.isnan() & compiled.isnan()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How much may differ.

    Args:
        atol: absolute, where eager is small.
        rtol: relative to eager, where it is large.
    """

    atol: float = 1e-5
    rtol: float = 1e-5


def _largest_magnitude(tensor: torch.Tensor) -> float:
    """NaN if there is one."""
    low, high = tensor.aminmax()
    return float(torch.maximum(-low, high))


class Measured:
    """One tensor of eager's held against compiled's."""

    def __init__(
        self,
        path: str,
        eager: torch.Tensor,
        compiled: torch.Tensor,
        tolerance: Tolerance,
        *,
        per_tensor: bool = False,
        small: bool = False,
        pattern: Pattern = same_pattern,
    ) -> None:
        self.path = path
        self._small = small
        self.per_tensor = per_tensor
        self._unequal_pattern = pattern
        self.floating = eager.is_floating_point() or eager.is_complex()
        self._eager, self._compiled = comparable(eager), comparable(compiled)
        self._tolerance = tolerance
        self.scale, self.finite = self._scale() if self.floating else (0.0, True)
        self.ratio = 0.0 if torch.equal(self._eager, self._compiled) else self._ratio()

    def _scale(self) -> tuple[float, bool]:
        """Eager's largest finite magnitude, and whether there is one."""
        mine = self._eager
        if not mine.numel():
            return 0.0, False
        largest = _largest_magnitude(mine)
        if math.isfinite(largest):
            return largest, True
        within = mine[torch.isfinite(mine)]
        return (_largest_magnitude(within), True) if within.numel() else (0.0, False)

    def _ratio(self) -> float:
        """The largest distance in units of what is allowed, of tensors that are not the same."""
        if not self.floating:
            return float("inf")
        if self.per_tensor and self._all_finite:
            # Nothing as large as a gradient is made as long as there is nothing to tell of it.
            return self._largest / float(self._allowed)
        if not self._all_finite and bool(self._pattern.any()):
            return float("inf")
        return float((self._distance / self._allowed).nan_to_num_(0.0).max())

    @functools.cached_property
    def _largest(self) -> float:
        return largest_distance(self._eager, self._compiled)

    @property
    def _all_finite(self) -> bool:
        return math.isfinite(self._largest)

    @functools.cached_property
    def _distance(self) -> torch.Tensor:
        """How far apart the elements are, 0 where one is not finite; 1 for integers that differ."""
        mine, theirs = self._eager, self._compiled
        if not self.floating:
            return (mine != theirs).to(torch.float32)
        distance = (mine - theirs).abs_()
        if self._all_finite:
            return distance
        return torch.where(torch.isfinite(mine) & torch.isfinite(theirs), distance, 0.0)

    @functools.cached_property
    def _allowed(self) -> torch.Tensor:
        """What is allowed to each element, or to all."""
        if not self.floating:
            return torch.zeros((), device=self._eager.device)
        atol, rtol = self._tolerance.atol, self._tolerance.rtol
        if self.is_small:
            return self._eager.new_tensor(SMALL * self.scale)
        if self.per_tensor:
            return self._eager.new_tensor(max(atol, rtol * self.scale))
        magnitude = self._eager.abs().nan_to_num_(0.0, 0.0)
        return (rtol * magnitude).clamp_min_(atol)

    @property
    def is_small(self) -> bool:
        """Whether the tensor is so small throughout that its largest element says what is allowed."""
        # Who allows more than the default means it, of small tensors too.
        strict = self._tolerance.atol <= Tolerance().atol
        return self._small and strict and 0.0 < SMALL * self.scale < self._tolerance.atol

    def within(self, most: float) -> bool:
        """Whether no element differs by more, nor by being no number."""
        return bool((self._distance <= most).all()) and not bool(self._pattern.any())

    @functools.cached_property
    def _pattern(self) -> torch.Tensor:
        """The elements whose NaN or infinity should not be."""
        if not self.floating or self._all_finite:
            return torch.zeros((), dtype=torch.bool, device=self._eager.device).expand_as(self._eager)
        return self._unequal_pattern(self._eager, self._compiled)

    @property
    def exceeds(self) -> bool:
        """Whether some element differs by more than the tolerance."""
        return self.ratio > 1

    @functools.cached_property
    def _unequal(self) -> torch.Tensor:
        """The elements that do; asked only of what isn't the same."""
        return (self._distance > self._allowed) | self._pattern

    def ill_conditioned(self, floor: Floor) -> bool:
        """Whether rounding alone moves this tensor so far that little can be concluded from it."""
        return self.path in floor.moved and floor.moved[self.path].whole > ILL_CONDITIONED * max(
            self.scale, 1e-30
        )

    def beyond(
        self,
        floor: Floor | None,
        flipped: Flipped = none_flipped,
        *,
        where: torch.Tensor | None = None,
    ) -> Difference | None:
        """The difference if rounding does not explain it.

        Args:
            floor: how far rounding moves eager; None if it is not asked.
            flipped: the rows in which compiled made another choice.
            where: the elements that are asked for; None is all.
        """
        if floor is None:
            return self.difference()
        if not self.floating:
            flips = floor.flipped.get(self.path)
            if flips is None:
                return self.difference()
            remaining = self._unequal & ~flips
            return self.difference(remaining) if bool(remaining.any()) else None
        movement = floor.moved.get(self.path, Movement())
        limit = self._limit(movement, flipped)
        remaining = self._unequal & ((self._distance > limit) | self._pattern)
        if where is not None:
            remaining &= where
        if movement.kinds is not None:
            # Eager itself, rounded otherwise, has now the one and now the other in this element.
            both = kinds_of(self._compiled) | kinds_of(self._eager)
            remaining &= ~(self._pattern & ((movement.kinds & both) == both))
        if bool(remaining.any()):
            return self.difference(remaining, floor=movement.whole, limit=limit)
        chose = bool(flipped(len(self._eager) if self._eager.dim() else 1).any())
        return None if chose or where is not None or not movement.runs else self._scaled(movement)

    def _limit(self, movement: Movement, flipped: Flipped) -> torch.Tensor:
        """What rounding explains, element by element."""
        if movement.rows is None or movement.calm is None:
            whole = movement.whole
            if movement.jumps is not None and (not movement.runs or bool(flipped(1).any())):
                whole = max(whole, float(movement.jumps))
            return torch.full_like(self._distance, MULTIPLE * whole)
        shape = (-1, *(1,) * (self._distance.dim() - 1))
        calm = movement.rows[movement.calm]
        typical = calm.median() if len(calm) else movement.rows.new_zeros(())
        rows = (ROW_MULTIPLE * torch.maximum(movement.rows, typical)).to(self._distance).reshape(shape)
        limit = rows.clamp_max(MULTIPLE * movement.whole).expand_as(self._distance)
        if movement.jumps is None:
            return limit
        jumping = (flipped(len(self._eager)).to(limit.device) | ~movement.calm).reshape(shape)
        return torch.where(jumping, torch.maximum(limit, ROW_MULTIPLE * movement.jumps), limit)

    def _scaled(self, movement: Movement) -> Difference | None:
        """The tensor as a whole is larger or smaller by more than rounding makes it."""
        grown = abs(slope(self._eager, self._compiled))
        allowed = max(self._tolerance.rtol, MULTIPLE * movement.slope)
        if grown <= allowed or grown * self.scale <= self._tolerance.atol:
            return None
        return dataclasses.replace(
            self.difference(), problem="scale", difference=grown, allowed=allowed, floor=movement.slope
        )

    def blind(self, floor: Floor | None) -> torch.Tensor | None:
        """The elements beyond the tolerance of which the floor knows nothing; None if there are none."""
        movement = None if floor is None else floor.moved.get(self.path)
        if not self.floating:
            return None
        if movement is None or not (movement.runs or movement.jumps is not None):
            return self._unequal
        if movement.kinds is None:
            return None
        unknown = self._unequal & ((movement.kinds & kinds_of(self._eager)) == 0)
        return unknown if bool(unknown.any()) else None

    def farther(self, reference: torch.Tensor, where: torch.Tensor) -> Difference | None:
        """The difference if compiled is much farther from float64 than eager is.

        Args:
            reference: what float64 computes.
            where: the elements that are asked for.
        """
        truth = comparable(reference)
        eager, compiled = (_error(side, truth) for side in (self._eager, self._compiled))
        least = torch.maximum(eager.nan_to_num(math.inf, math.inf), self._allowed.double())
        wrong = where & (compiled >= FARTHER * least)
        return self.difference(wrong) if bool(wrong.any()) else None

    def difference(
        self,
        unequal: torch.Tensor | None = None,
        *,
        floor: float | None = None,
        limit: torch.Tensor | None = None,
    ) -> Difference:
        """The worst element with its figures."""
        if self.ratio == 0:
            allowed = self._tolerance.atol if self.floating else 0.0
            return Difference(path=self.path, allowed=allowed, elements=self._eager.numel())
        if unequal is None:
            unequal = self._unequal
        excess = self._distance / self._allowed.clamp_min(1e-30)
        if self.floating:
            excess = torch.where(self._pattern, float("inf"), excess)
        excess = torch.where(unequal, excess, -1.0) if bool(unequal.any()) else excess
        flat = int(excess.reshape(-1).argmax())
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), excess.shape))
        mine, theirs = self._eager[index], self._compiled[index]
        odd = self.floating and bool(self._pattern[index])
        allowed = float(self._allowed if self._allowed.dim() == 0 else self._allowed[index])
        return Difference(
            path=self.path,
            problem=("NaN or infinity" if odd else "values") if bool(unequal.any()) else "",
            eager=number(mine),
            compiled=number(theirs),
            index=index,
            difference=float(self._distance[index]),
            allowed=max(allowed, float(limit[index]) if limit is not None else 0.0),
            relative=relative(mine, theirs) if self.floating and not odd else None,
            ulps=ulps(mine, theirs) if self.floating and not odd else None,
            floor=floor,
            unequal=int(unequal.sum()),
            elements=unequal.numel(),
            rows=first_rows(unequal) if has_rows(self.path, unequal) else (),
            grid=grid(torch.where(unequal, self._distance, 0.0), index),
        )


def _error(value: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """How far elements are from the truth; infinite where only one is a number."""
    distance = (value.double() - truth.double()).abs()
    alike = (kinds_of(value) == kinds_of(truth)) & (kinds_of(value) != FINITE)
    return distance.nan_to_num_(math.inf, math.inf).masked_fill_(alike, 0.0)
