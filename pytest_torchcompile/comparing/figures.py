"""Computes the figures that a report shows of a difference: values, ulps, relative size, rows, a grid."""

from __future__ import annotations

import torch

MOST_ROWS = 8
"""The largest number of rows that `first_rows` returns."""

GRID = (10, 48)
"""The largest numbers of rows and columns of `grid`."""


def number(value: torch.Tensor) -> str:
    """Return the one number in `value` as text."""
    return f"{float(value):.9g}" if value.is_floating_point() else str(value.item())


def ulps(eager: torch.Tensor, compiled: torch.Tensor) -> float | None:
    """Return the distance in units in the last place of eager's value; None if that value is zero."""
    if not bool(eager):
        return None
    away = torch.full_like(eager, float("inf"))
    place = torch.nextafter(eager.abs(), away) - eager.abs()
    return float((eager - compiled).abs() / place) if float(place) > 0 else 0.0


def relative(eager: torch.Tensor, compiled: torch.Tensor) -> float | None:
    """Return the distance relative to eager's value; None if that value is zero."""
    return float((eager - compiled).abs() / eager.abs()) if bool(eager) else None


def grid(distance: torch.Tensor, worst: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """Return the largest distance in each cell of a grid over the last two dimensions.

    Args:
        distance: the distance of each element.
        worst: index of an element; its leading dimensions select the plane.

    Returns:
        At most `GRID` rows and columns; empty if `distance` has fewer than two dimensions or is zero.
    """
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
