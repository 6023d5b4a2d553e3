"""A difference as a picture in characters: where in a tensor it lies, at a glance."""

from __future__ import annotations

from pytest_torchcompile.results import Difference

SHADES = " .:-=+*#%@"
"""From nothing to the largest difference."""


def picture_lines(difference: Difference) -> list[str]:
    """The picture with a frame, one string a line; nothing for what has no two dimensions.

    Example:
        >>> grid = ((0.0, 0.5), (0.0, 1.0))
        >>> for line in picture_lines(Difference(path="output", problem="values", grid=grid)):
        ...     print(line)
        |  ==|
        |  @@|
    """
    if len(difference.grid) < 2:
        return []
    largest = max(map(max, difference.grid))
    wide = 2 if len(difference.grid[0]) <= 24 else 1
    return [f"|{''.join(_shade(cell, largest) * wide for cell in row)}|" for row in difference.grid]


def _shade(cell: float, largest: float) -> str:
    """Any difference at all is seen, however small beside the largest."""
    if not cell:
        return SHADES[0]
    return SHADES[max(1, round(min(cell / largest, 1.0) * (len(SHADES) - 1)))]
