"""Times two callables in alternating blocks, so that changes in the speed of the machine have little effect.

If one is timed after the other, the speed of the machine may change in between: a function timed against
itself was more than 5 % apart in 11 of 20 such runs. Here short blocks of calls alternate. In each pair of
blocks, one side, chosen at random, is split in two halves around the other, so that a steady drift cancels.
The ratio is the median of the ratios of the pairs.
"""

from __future__ import annotations

import contextlib
import gc
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

PAIRS = (5, 100)
"""The fewest and the most pairs of blocks."""
FEW = 12
"""Of fewer pairs the interval is the whole range of their ratios."""
LONGEST_BLOCK = 24
UNTIMED = 2
"""Calls after each switch that are not timed: caches, branch predictors and clock frequency must settle."""
SLOW_S = 0.1
"""If a call takes longer, in seconds, one untimed call is enough."""
RESAMPLES = 2000
QUIET_PERCENTILE = 5

Around = Callable[[], contextlib.AbstractContextManager[Any]]


class Timed(NamedTuple):
    """One side of a timing.

    Args:
        call: prepares a call, makes it, and returns its seconds, without those of the preparation.
        around: returns the context in which a block of calls runs.
    """

    call: Callable[[], float]
    around: Around = contextlib.nullcontext


class Blocks(NamedTuple):
    """Seconds of every timed call of two sides, one list per block. Blocks with the same index are a pair."""

    first: list[list[float]]
    second: list[list[float]]

    def ratios(self) -> list[float]:
        """Return how many times faster `second` is, for each pair of blocks."""
        pairs = zip(self.first, self.second, strict=True)
        return [statistics.median(one) / statistics.median(two) for one, two in pairs]

    def ratio(self) -> float:
        """Return the median of `ratios`."""
        return statistics.median(self.ratios())

    def interval(self) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of `ratio` (percentile method, pairs are resampled).

        Of fewer than `FEW` pairs it is the whole range: resampling few pairs yields too narrow an interval.
        """
        ratios = np.asarray(self.ratios())
        if len(ratios) < FEW:
            return float(ratios.min()), float(ratios.max())
        drawn = np.random.default_rng(0).choice(ratios, size=(RESAMPLES, len(ratios)))
        low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
        return float(low), float(high)

    def quiet_ratio(self) -> float:
        """Return the ratio of the 5th percentiles: the calls that other processes disturbed least."""
        one, two = (np.percentile(np.concatenate(side), QUIET_PERCENTILE) for side in self)
        return float(one / two)


def interleaved(first: Timed, second: Timed, *, seconds: float, min_rounds: int = 1) -> Blocks:
    """Time two sides in alternating blocks, with Python's garbage collector off.

    Args:
        first: one side, warmed up.
        second: the other side, warmed up.
        seconds: the budget, which includes the preparation of calls. It is exceeded if the fewest pairs or
            `min_rounds` need more.
        min_rounds: the least number of timed calls of each side.
    """
    order = random.Random(0)
    fewest, most = PAIRS
    blocks = Blocks([], [])
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        size, untimed = _block_size((first, second), seconds)
        deadline = time.perf_counter() + seconds
        while len(blocks.first) < most or size * len(blocks.first) < min_rounds:
            enough = len(blocks.first) >= fewest and size * len(blocks.first) >= min_rounds
            if enough and time.perf_counter() >= deadline:
                break
            sides = [(first, blocks.first), (second, blocks.second)]
            order.shuffle(sides)
            (outer, outers), (inner, inners) = sides
            before = _block(outer, (size + 1) // 2, untimed)
            inners.append(_block(inner, size, untimed))
            outers.append(before + _block(outer, size // 2, untimed))
    finally:
        if collecting:
            gc.enable()
    return blocks


def _block(timed: Timed, size: int, untimed: int) -> list[float]:
    if not size:
        return []
    with timed.around():
        for _ in range(untimed):
            timed.call()
        return [timed.call() for _ in range(size)]


def _block_size(sides: tuple[Timed, Timed], seconds: float) -> tuple[int, int]:
    """Return the timed and untimed calls per block, so that half of the most pairs fit into the budget."""
    begin = time.perf_counter()
    for timed in sides:
        _block(timed, 1, 1)
    per_call = (time.perf_counter() - begin) / 4
    untimed = UNTIMED if per_call < SLOW_S else 1
    calls = seconds / (PAIRS[1] / 2) / 2 / max(per_call, 1e-9)
    return max(1, min(LONGEST_BLOCK, int(calls - 1.5 * untimed))), untimed
