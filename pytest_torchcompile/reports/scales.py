"""Computes positions and ticks on the axes of a plot."""

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
"""The mantissas of ticks, from fine to coarse. Each choice contains 1."""


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
        """Return the position of `value` in percent. A value outside is at the nearer end."""
        value = min(max(value, self.low), self.high)
        low, high, value = (
            map(math.log10, (self.low, self.high, value))
            if self.logarithmic
            else (self.low, self.high, value)
        )
        return round(100 * (value - low) / (high - low), 2)

    def ticks(self, most: int = 6, least_step: float = 0.0) -> tuple[Tick, ...]:
        """Return ticks at round values, as many as `most` allows.

        Args:
            most: the largest number of ticks, at least 2.
            least_step: the smallest distance between two ticks of an axis that is not logarithmic.
        """
        values = self._powers(most) if self.logarithmic else self._multiples(most, least_step)
        return tuple(Tick(at=self.at(value), label=f"{value:g}") for value in values)

    def _multiples(self, most: int, least_step: float) -> list[float]:
        """Return the multiples of 1, 2 or 5 times a power of ten."""
        rough = max((self.high - self.low) / most, least_step)
        exponent = math.floor(math.log10(rough))
        steps = (float(f"{m}e{e}") for e in (exponent, exponent + 1) for m in (1, 2, 5))
        step = next(step for step in steps if step >= rough)
        return [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)][:most]

    def _powers(self, most: int) -> list[float]:
        """Return the values of the finest ladder that is not too fine, or every n-th power of ten."""
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
