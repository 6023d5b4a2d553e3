"""The figures that a report shows of a difference: values, units in the last place, shares, rows, a grid."""

from __future__ import annotations

import torch

MOST_ROWS = 8
GRID = (10, 48)
"""The most rows and columns of the picture of a difference."""


def number(value: torch.Tensor) -> str:
    """Return the one number in `value` as text."""
    return f"{float(value):.9g}" if value.is_floating_point() else str(value.item())


def ulps(eager: torch.Tensor, compiled: torch.Tensor) -> float | None:
    """The distance in units of the last place of eager's value; of no meaning where that is zero."""
    if not bool(eager):
        return None
    away = torch.full_like(eager, float("inf"))
    place = torch.nextafter(eager.abs(), away) - eager.abs()
    return float((eager - compiled).abs() / place) if float(place) > 0 else 0.0


def relative(eager: torch.Tensor, compiled: torch.Tensor) -> float | None:
    """The distance as a share of eager's value; of no meaning where that is zero."""
    return float((eager - compiled).abs() / eager.abs()) if bool(eager) else None


def grid(distance: torch.Tensor, worst: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """The largest distance in each cell of a grid over the last two dimensions, around the worst element."""
    if distance.dim() < 2 or not bool(distance.any()):
        return ()
    plane = distance[worst[:-2]].to(torch.float64)
    size = [min(most, length) for most, length in zip(GRID, plane.shape, strict=True)]
    pooled = torch.nn.functional.adaptive_max_pool2d(plane[None], size)[0]
    return tuple(tuple(row) for row in pooled.tolist())


def first_rows(unequal: torch.Tensor) -> tuple[int, ...]:
    """Return the first rows that hold an unequal element, at most `MOST_ROWS`."""
    if unequal.dim() == 0:
        return ()
    per_row = unequal.reshape(unequal.shape[0], -1).any(dim=1)
    return tuple(torch.nonzero(per_row).reshape(-1)[:MOST_ROWS].tolist())
