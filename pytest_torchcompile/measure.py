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

from pytest_torchcompile.results import Difference
from pytest_torchcompile.rounding import Floor, largest_distance

MULTIPLE = 4.0
"""Compiled may differ by this many times the rounding floor."""

ROW_MULTIPLE = 16.0
"""It may also not differ by more than this many times the floor of the row of the batch that it is in, or a
huge element in one row would excuse all others. A row may be a single number, seen in as little as one
run, so that its floor is less certain than the tensor's; it counts as no lower than that of the median row,
or a value on a coarse grid that no run happened to move could never move."""

ILL_CONDITIONED = 1e-3
"""A tensor is ill-conditioned on an example if its floor exceeds this share of its largest element."""

_MAX_ROWS = 8

GRID = (10, 48)
"""The most rows and columns of the picture of a difference."""

Pattern = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Given eager's and compiled's tensor, the elements whose NaN or infinity should not be."""


def same_pattern(eager: torch.Tensor, compiled: torch.Tensor) -> torch.Tensor:
    """Where one has a NaN or an infinity that the other lacks."""
    both = torch.isfinite(eager) & torch.isfinite(compiled)
    return ~both & ~((eager == compiled) | (eager.isnan() & compiled.isnan()))


def same_finiteness(eager: torch.Tensor, compiled: torch.Tensor) -> torch.Tensor:
    """Where only one is finite. The mean of an infinity is infinite or NaN, by the order of the sums."""
    return torch.isfinite(eager) != torch.isfinite(compiled)


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
        pattern: Pattern = same_pattern,
    ) -> None:
        self.path = path
        self.per_tensor = per_tensor
        self._unequal_pattern = pattern
        self.floating = eager.is_floating_point() or eager.is_complex()
        self._eager, self._compiled = _comparable(eager), _comparable(compiled)
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
        if self.per_tensor:
            return self._eager.new_tensor(max(self._tolerance.atol, self._tolerance.rtol * self.scale))
        magnitude = self._eager.abs().nan_to_num_(0.0, 0.0)
        return (self._tolerance.rtol * magnitude).clamp_min_(self._tolerance.atol)

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
        return floor.movement[self.path] > ILL_CONDITIONED * max(self.scale, 1e-30) and floor.runs > 0

    def beyond(self, floor: Floor | None) -> Difference | None:
        """The difference if rounding does not explain it."""
        if floor is None:
            return self.difference()
        unequal = self._unequal
        flipped = floor.flipped.get(self.path)
        if not self.floating:
            explained = flipped is not None and bool((flipped | ~unequal).all())
            return None if explained else self.difference(unequal & ~flipped if flipped is not None else None)
        limit = self._limit(floor)
        remaining = unequal & ((self._distance > limit) | self._pattern)
        if flipped is not None:
            remaining &= ~(self._pattern & flipped.reshape(remaining.shape))
        if not bool(remaining.any()):
            return None
        return self.difference(remaining, floor=floor.movement[self.path], limit=limit)

    def _limit(self, floor: Floor) -> torch.Tensor:
        """What rounding explains, element by element."""
        whole = torch.full_like(self._distance, MULTIPLE * floor.movement[self.path])
        rows = floor.rows.get(self.path)
        if rows is None:
            return whole
        shape = (-1, *(1,) * (whole.dim() - 1))
        certain = torch.maximum(rows, rows.median())
        return torch.minimum(whole, (ROW_MULTIPLE * certain).to(whole).reshape(shape))

    def difference(
        self,
        unequal: torch.Tensor | None = None,
        *,
        floor: float | None = None,
        limit: torch.Tensor | None = None,
    ) -> Difference:
        """The worst element with its figures."""
        if self.ratio == 0:
            return Difference(path=self.path, elements=self._eager.numel())
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
            eager=_number(mine),
            compiled=_number(theirs),
            index=index,
            difference=float(self._distance[index]),
            allowed=max(allowed, float(limit[index]) if limit is not None else 0.0),
            relative=_relative(mine, theirs) if self.floating and not odd else None,
            ulps=_ulps(mine, theirs) if self.floating and not odd else None,
            floor=floor,
            unequal=int(unequal.sum()),
            elements=unequal.numel(),
            rows=_rows(unequal) if self.path.startswith(("output", "input")) else (),
            grid=_grid(torch.where(unequal, self._distance, 0.0), index),
        )


def _comparable(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in a dtype and layout in which differences can be taken."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point() and tensor.element_size() < 4:
        return tensor.float()
    return tensor


def _number(value: torch.Tensor) -> str:
    return f"{float(value):.9g}" if value.is_floating_point() else str(value.item())


def _ulps(eager: torch.Tensor, compiled: torch.Tensor) -> float | None:
    """The distance in units of the last place of eager's value; of no meaning where that is zero."""
    if not bool(eager):
        return None
    away = torch.full_like(eager, float("inf"))
    place = torch.nextafter(eager.abs(), away) - eager.abs()
    return float((eager - compiled).abs() / place) if float(place) > 0 else 0.0


def _relative(eager: torch.Tensor, compiled: torch.Tensor) -> float | None:
    """The distance as a share of eager's value; of no meaning where that is zero."""
    return float((eager - compiled).abs() / eager.abs()) if bool(eager) else None


def _grid(distance: torch.Tensor, worst: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """The largest distance in each cell of a grid over the last two dimensions, around the worst element."""
    if distance.dim() < 2 or not bool(distance.any()):
        return ()
    plane = distance[worst[:-2]].to(torch.float64)
    size = [min(most, length) for most, length in zip(GRID, plane.shape, strict=True)]
    pooled = torch.nn.functional.adaptive_max_pool2d(plane[None], size)[0]
    return tuple(tuple(row) for row in pooled.tolist())


def _rows(unequal: torch.Tensor) -> tuple[int, ...]:
    if unequal.dim() == 0:
        return ()
    per_row = unequal.reshape(unequal.shape[0], -1).any(dim=1)
    return tuple(torch.nonzero(per_row).reshape(-1)[:_MAX_ROWS].tolist())
