"""Positions and ticks on the axes of a plot, as plain numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

_LADDERS = (
    (1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0),
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 2.0, 5.0),
    (1.0,),
)
"""The ticks within a power of ten, from fine to coarse. Each has 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tick:
    """A labelled position on an axis.

    Args:
        at: the position in percent.
        label: its text.
    """

    at: float
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis from `low` to `high`.

    Args:
        low: the value at 0 %; positive if the axis is logarithmic.
        high: the value at 100 %, larger than `low`.
        logarithmic: whether equal distances are equal ratios.

    Example:
        >>> Scale(low=0.1, high=10, logarithmic=True).at(1)
        50.0
        >>> [tick.label for tick in Scale(low=0, high=7).ticks(4)]
        ['0', '2', '4', '6']
    """

    low: float
    high: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The position of `value` in percent; that of the nearer end for what lies outside."""
        value = min(max(value, self.low), self.high)
        low, high, value = (
            map(math.log10, (self.low, self.high, value))
            if self.logarithmic
            else (self.low, self.high, value)
        )
        return round(100 * (value - low) / (high - low), 2)

    def ticks(self, most: int = 6, least_step: float = 0.0) -> tuple[Tick, ...]:
        """As many ticks at round values as fit.

        Args:
            most: how many at most, 2 or more.
            least_step: the smallest distance between two, where the axis is not logarithmic.
        """
        values = self._powers(most) if self.logarithmic else self._multiples(most, least_step)
        return tuple(Tick(at=self.at(value), label=f"{value:g}") for value in values)

    def _multiples(self, most: int, least_step: float) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten."""
        rough = max((self.high - self.low) / most, least_step)
        exponent = math.floor(math.log10(rough))
        steps = (float(f"{m}e{e}") for e in (exponent, exponent + 1) for m in (1, 2, 5))
        step = next(step for step in steps if step >= rough)
        return [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)][:most]

    def _powers(self, most: int) -> list[float]:
        """Values of the finest ladder that is not too fine, or else every so many powers of ten."""
        first, last = (math.floor(math.log10(end)) for end in (self.low, self.high))
        for ladder in _LADDERS:
            if len(ladder) * (last - first) > 10 * most:
                continue
            values = self._within(float(f"{m}e{e}") for e in range(first, last + 1) for m in ladder)
            if len(values) <= most:
                return values
        stride = math.ceil((last - first + 1) / most)
        return self._within(float(f"1e{e}") for e in range(first, last + 1) if e % stride == 0)

    def _within(self, values: Iterable[float]) -> list[float]:
        return [value for value in values if self.low <= value <= self.high]
