"""Compares one tensor of eager with compiled's, element by element.

The allowed difference is ``max(atol, rtol * |eager|)`` of each element. For a gradient it is one number for
the whole tensor, computed from its largest element. Larger differences are compared with the rounding floor.
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
"""Compiled may also differ by at most this many times the rounding floor of its row of the batch.

Without this limit, one huge element would pass differences in all other rows as rounding. The floor of a row
is less certain than that of the tensor: a row may be a single number, measured in a single run. It therefore
counts as at least the floor of the median row, because a value on a coarse grid may be moved by no run.
"""

ILL_CONDITIONED = 1e-3
"""A tensor is ill-conditioned on an example if its floor exceeds this share of its largest element."""

FARTHER = 100.0
"""Without a rounding floor, compiled differs if it is this many times as far from float64 as eager is."""

SMALL = 0.01
"""The allowed difference of a small tensor, as a share of its largest element."""

Flipped = Callable[[int], torch.Tensor]
"""Takes the number of rows of a tensor; returns a mask of those in which compiled's choice differs."""


def no_flips(length: int) -> torch.Tensor:
    """Return a mask for a tensor of `length` rows in which all choices of compiled are eager's."""
    return torch.zeros(length, dtype=torch.bool)


NonfiniteMask = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes eager's and compiled's tensor; returns a mask of the elements with a wrong NaN or infinity."""


def nonfinite_mismatch(eager: torch.Tensor, compiled: torch.Tensor) -> torch.Tensor:
    """Return a mask of the elements that are NaN or infinite on one side and not the same on the other."""
    both = torch.isfinite(eager) & torch.isfinite(compiled)
    return ~both & ~((eager == compiled) | (eager.isnan() & compiled.isnan()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The allowed difference, ``max(atol, rtol * |eager|)``."""

    atol: float = 1e-5
    rtol: float = 1e-5


def _largest_magnitude(tensor: torch.Tensor) -> float:
    """Return the largest absolute value of the elements; NaN if one is NaN."""
    low, high = tensor.aminmax()
    return float(torch.maximum(-low, high))


class Measured:
    """The comparison of one tensor of eager with compiled's.

    Args:
        path: names the tensor.
        eager: eager's tensor.
        compiled: compiled's tensor, of the same shape and dtype.
        tolerance: the allowed differences.
        per_tensor: whether one number is allowed for the whole tensor, as for gradients.
        small: whether a tensor whose largest element is small is compared relative to that element.
        nonfinite_mask: finds the elements whose NaN or infinity is wrong.
    """

    def __init__(
        self,
        path: str,
        eager: torch.Tensor,
        compiled: torch.Tensor,
        tolerance: Tolerance,
        *,
        per_tensor: bool = False,
        small: bool = False,
        nonfinite_mask: NonfiniteMask = nonfinite_mismatch,
    ) -> None:
        self.path = path
        self._small = small
        self.per_tensor = per_tensor
        self._nonfinite_mask = nonfinite_mask
        self.floating = eager.is_floating_point() or eager.is_complex()
        self._eager, self._compiled = comparable(eager), comparable(compiled)
        self._tolerance = tolerance
        self.scale, self.finite = self._scale() if self.floating else (0.0, True)
        self.ratio = 0.0 if torch.equal(self._eager, self._compiled) else self._ratio()

    def _scale(self) -> tuple[float, bool]:
        """Return the largest finite absolute value of eager, and whether an element is finite."""
        mine = self._eager
        if not mine.numel():
            return 0.0, False
        largest = _largest_magnitude(mine)
        if math.isfinite(largest):
            return largest, True
        within = mine[torch.isfinite(mine)]
        return (_largest_magnitude(within), True) if within.numel() else (0.0, False)

    def _ratio(self) -> float:
        """Return the largest distance in units of the allowed one, for tensors that are not equal."""
        if not self.floating:
            return float("inf")
        if self.per_tensor and self._all_finite:
            # A gradient is large, so no tensor of its size is allocated before a difference is found.
            return self._largest / float(self._allowed)
        if not self._all_finite and bool(self._nonfinite.any()):
            return float("inf")
        return float((self._distance / self._allowed).nan_to_num_(0.0).max())

    @functools.cached_property
    def _largest(self) -> float:
        return largest_distance(self._eager, self._compiled)

    @property
    def _all_finite(self) -> bool:
        return math.isfinite(self._largest)

    @property
    def _distance(self) -> torch.Tensor:
        """The distance of each element, 0 if one side is not finite; 1 for integers that differ.

        Computed anew each time: the distances of all gradients together are as large as the policy.
        """
        mine, theirs = self._eager, self._compiled
        if not self.floating:
            return (mine != theirs).to(torch.float32)
        distance = (mine - theirs).abs_()
        if self._all_finite:
            return distance
        return torch.where(torch.isfinite(mine) & torch.isfinite(theirs), distance, 0.0)

    @functools.cached_property
    def _allowed(self) -> torch.Tensor:
        """The allowed distance: of each element, or one number for all."""
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
        """Whether the tensor is so small that the allowed difference depends on its largest element."""
        # An `atol` above the default applies to small tensors too. Below the smallest normal number the
        # digits run out, and a processor may flush to zero.
        strict = self._tolerance.atol <= Tolerance().atol
        normal = self.floating and self.scale >= torch.finfo(self._eager.dtype).tiny
        return self._small and strict and normal and SMALL * self.scale < self._tolerance.atol

    def within(self, most: float) -> bool:
        """Whether no element differs by more than `most` and no NaN or infinity is wrong."""
        return bool((self._distance <= most).all()) and not bool(self._nonfinite.any())

    @functools.cached_property
    def _nonfinite(self) -> torch.Tensor:
        """Mask of the elements whose NaN or infinity is wrong."""
        if not self.floating or self._all_finite:
            return torch.zeros((), dtype=torch.bool, device=self._eager.device).expand_as(self._eager)
        return self._nonfinite_mask(self._eager, self._compiled)

    @property
    def exceeds(self) -> bool:
        """Whether some element differs by more than the tolerance."""
        return self.ratio > 1

    @property
    def _unequal(self) -> torch.Tensor:
        """Mask of the elements that exceed the tolerance."""
        return (self._distance > self._allowed) | self._nonfinite

    def ill_conditioned(self, floor: Floor) -> bool:
        """Whether rounding moves this tensor so far that its comparison proves little."""
        return self.path in floor.moved and floor.moved[self.path].whole > ILL_CONDITIONED * max(
            self.scale, 1e-30
        )

    def unexplained(
        self,
        floor: Floor,
        flipped: Flipped = no_flips,
        *,
        where: torch.Tensor | None = None,
    ) -> Difference | None:
        """Return the difference if rounding does not explain it; None if it does.

        Args:
            floor: the rounding floor.
            flipped: finds the rows in which compiled's choice differs.
            where: mask of the elements to compare; None compares all.
        """
        if not self.floating:
            flips = floor.flipped.get(self.path)
            if flips is None:
                return self.difference()
            remaining = self._unequal & ~flips
            return self.difference(remaining) if bool(remaining.any()) else None
        movement = floor.moved.get(self.path, Movement())
        limit = self._limit(movement, flipped)
        distance = self._distance
        remaining = ((distance > self._allowed) & (distance > limit)) | self._nonfinite
        if where is not None:
            remaining &= where
        if movement.kinds is not None:
            # Some runs of the floor have eager's kind in this element, and others have compiled's.
            both = kinds_of(self._compiled) | kinds_of(self._eager)
            remaining &= ~(self._nonfinite & ((movement.kinds & both) == both))
        if bool(remaining.any()):
            return self.difference(remaining, floor=movement.whole, limit=limit)
        chose = bool(flipped(len(self._eager) if self._eager.dim() else 1).any())
        return None if chose or where is not None or not movement.runs else self._scale_difference(movement)

    def _limit(self, movement: Movement, flipped: Flipped) -> torch.Tensor:
        """Return the largest distance that rounding explains, for each element."""
        if movement.rows is None or movement.seen_without_flip is None:
            whole = movement.whole
            if movement.largest_with_flip is not None and (not movement.runs or bool(flipped(1).any())):
                whole = max(whole, float(movement.largest_with_flip))
            return torch.full_like(self._eager, MULTIPLE * whole)
        shape = (-1, *(1,) * (self._eager.dim() - 1))
        unflipped = movement.rows[movement.seen_without_flip]
        typical = unflipped.median() if len(unflipped) else movement.rows.new_zeros(())
        rows = (ROW_MULTIPLE * torch.maximum(movement.rows, typical)).to(self._eager).reshape(shape)
        limit = rows.clamp_max(MULTIPLE * movement.whole).expand_as(self._eager)
        if movement.largest_with_flip is None:
            return limit
        with_flip = (flipped(len(self._eager)).to(limit.device) | ~movement.seen_without_flip).reshape(shape)
        return torch.where(with_flip, torch.maximum(limit, ROW_MULTIPLE * movement.largest_with_flip), limit)

    def _scale_difference(self, movement: Movement) -> Difference | None:
        """Return the difference if the tensor as a whole grew or shrank more than rounding explains."""
        grown = abs(slope(self._eager, self._compiled))
        allowed = max(self._tolerance.rtol, MULTIPLE * movement.slope)
        if grown <= allowed or grown * self.scale <= self._tolerance.atol:
            return None
        return dataclasses.replace(
            self.difference(), problem="scale", difference=grown, allowed=allowed, floor=movement.slope
        )

    def not_covered(self, floor: Floor) -> torch.Tensor | None:
        """Return a mask of the elements above the tolerance that have no floor; None if there are none."""
        movement = floor.moved.get(self.path)
        if not self.floating:
            return None
        if movement is None or not (movement.runs or movement.largest_with_flip is not None):
            return self._unequal
        if movement.kinds is None:
            return None
        unknown = self._unequal & ((movement.kinds & kinds_of(self._eager)) == 0)
        return unknown if bool(unknown.any()) else None

    def farther_from_float64(self, reference: torch.Tensor, where: torch.Tensor) -> Difference | None:
        """Return the difference if compiled is `FARTHER` times as far from float64 as eager; else None.

        Args:
            reference: the tensor of the float64 reference.
            where: mask of the elements to compare.
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
        """Return the difference of the worst element.

        Args:
            unequal: mask of the elements that differ; None takes those above the tolerance.
            floor: the rounding floor of the tensor, for the report.
            limit: the largest distance that rounding explains, for each element.
        """
        if self.ratio == 0:
            allowed = self._tolerance.atol if self.floating else 0.0
            return Difference(path=self.path, allowed=allowed, elements=self._eager.numel())
        if unequal is None:
            unequal = self._unequal
        distance = self._distance
        excess = distance / self._allowed.clamp_min(1e-30)
        if self.floating:
            excess = torch.where(self._nonfinite, float("inf"), excess)
        excess = torch.where(unequal, excess, -1.0) if bool(unequal.any()) else excess
        flat = int(excess.reshape(-1).argmax())
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), excess.shape))
        mine, theirs = self._eager[index], self._compiled[index]
        odd = self.floating and bool(self._nonfinite[index])
        allowed = float(self._allowed if self._allowed.dim() == 0 else self._allowed[index])
        return Difference(
            path=self.path,
            problem=("NaN or infinity" if odd else "values") if bool(unequal.any()) else "",
            eager=number(mine),
            compiled=number(theirs),
            index=index,
            difference=float(distance[index]),
            allowed=max(allowed, float(limit[index]) if limit is not None else 0.0),
            relative=relative(mine, theirs) if self.floating and not odd else None,
            ulps=ulps(mine, theirs) if self.floating and not odd else None,
            floor=floor,
            unequal=int(unequal.sum()),
            elements=unequal.numel(),
            rows=first_rows(unequal) if has_rows(self.path, unequal) else (),
            grid=grid(torch.where(unequal, distance, 0.0), index),
        )


def _error(value: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the distance of each element from float64; infinite if only one of them is finite."""
    distance = (value.double() - truth.double()).abs()
    alike = (kinds_of(value) == kinds_of(truth)) & (kinds_of(value) != FINITE)
    return distance.nan_to_num_(math.inf, math.inf).masked_fill_(alike, 0.0)
