"""Draws with characters where in a tensor a difference lies."""

from __future__ import annotations

from pytest_torchcompile.results import Difference

SHADES = " .:-=+*#%@"
"""Characters from no difference to the largest."""


def picture_lines(difference: Difference) -> list[str]:
    """Return the lines of the picture, with a frame; none if the tensor is no matrix, but a row or a column.

    Example:
        >>> grid = ((0.0, 0.5), (0.0, 1.0))
        >>> for line in picture_lines(Difference(path="output", problem="values", grid=grid)):
        ...     print(line)
        |  ==|
        |  @@|
    """
    if len(difference.grid) < 2 or len(difference.grid[0]) < 2:
        return []
    largest = max(map(max, difference.grid))
    wide = 2 if len(difference.grid[0]) <= 24 else 1
    return [f"|{''.join(_shade(cell, largest) * wide for cell in row)}|" for row in difference.grid]


def _shade(cell: float, largest: float) -> str:
    """Return the character of a cell. A small difference is never shown as none."""
    if not cell:
        return SHADES[0]
    return SHADES[max(1, round(min(cell / largest, 1.0) * (len(SHADES) - 1)))]
