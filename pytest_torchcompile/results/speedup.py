"""The record of how much faster compiled is than eager."""

from __future__ import annotations

import dataclasses
import math
import statistics

FEWEST_PAIRS = 8
"""Fewer pairs of blocks allow no conclusion.

The range of n independent ratios misses their median once in 2 ** (n - 1) times, 1 in 64 for 7. Neighbouring
pairs depend on each other, so the true share is larger by an amount that was not measured.
"""
TOO_FEW = "too few rounds"
MARGIN = 1.05
"""A speedup within 5 % of 1 is not conclusive, however narrow its interval."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times faster compiled is than eager, timed side by side.

    Args:
        ratio: eager's time over compiled's, the median over pairs of neighbouring blocks.
        interval: bootstrap interval of `ratio`, 95 %, widened so that it contains `quiet`.
        quiet: the ratio of the 5th percentiles, that is of the calls least disturbed by other processes.
        eager_s: seconds of each timed call of eager.
        compiled_s: seconds of each timed call of compiled.
        pairs: how many pairs of blocks were timed.
        batch: the batch size, if the inputs were drawn.
        threads: torch threads of both sides.
        break_even: the number of calls after which compiling has saved more time than it took; None if it
            never does, or if nothing was compiled here.
        memory: bytes that eager and compiled needed, if the device reports them.
        memory_kind: what was measured: ``peak allocated`` of an accelerator's allocator, or the ``resident
            growth`` of the whole process.
        least: the required speedup, `min_speedup`.
    """

    ratio: float
    interval: tuple[float, float]
    quiet: float
    eager_s: tuple[float, ...] = ()
    compiled_s: tuple[float, ...] = ()
    pairs: int = 0
    batch: int | None = None
    threads: int = 1
    break_even: int | None = None
    memory: tuple[int, int] | None = None
    memory_kind: str = ""
    least: float | None = None

    @property
    def conclusion(self) -> str:
        """``faster`` or ``slower`` if interval and quiet ratio exceed 5 %, else ``no clear difference``.

        It is ``too few rounds`` if fewer than `FEWEST_PAIRS` pairs of blocks were timed.
        """
        if 0 < self.pairs < FEWEST_PAIRS:
            return TOO_FEW
        if self.interval[0] > MARGIN and self.quiet > MARGIN:
            return "faster"
        if self.interval[1] < 1 / MARGIN and self.quiet < 1 / MARGIN:
            return "slower"
        return "no clear difference"

    @property
    def advice(self) -> str:
        """How many seconds to time for, if there were too few rounds; else empty."""
        if self.conclusion != TOO_FEW:
            return ""
        # Calls after each switch are not timed, which about doubles the time.
        spent = 2 * (sum(self.eager_s) + sum(self.compiled_s))
        seconds = max(10, 5 * math.ceil(spent * 2 * FEWEST_PAIRS / self.pairs / 5))
        return f"{TOO_FEW} ({self.pairs} of {FEWEST_PAIRS}): give --compile-benchmark-seconds={seconds}"

    @property
    def too_slow(self) -> bool:
        """Whether the whole interval lies below the required speedup."""
        return self.least is not None and self.interval[1] < self.least

    def figures(self) -> dict[str, str | int | float]:
        """Return the figures as strings and numbers, without the times of single calls."""
        figures: dict[str, str | int | float] = {
            "speedup": round(self.ratio, 4),
            "speedup_low": round(self.interval[0], 4),
            "speedup_high": round(self.interval[1], 4),
            "speedup_quiet": round(self.quiet, 4),
            "conclusion": self.conclusion,
            "pairs": self.pairs,
            "eager_median_s": statistics.median(self.eager_s),
            "compiled_median_s": statistics.median(self.compiled_s),
            "timed_calls": len(self.eager_s),
            "threads": self.threads,
        }
        if self.advice:
            figures["advice"] = self.advice
        if self.batch is not None:
            figures["batch"] = self.batch
        if self.break_even is not None:
            figures["break_even_calls"] = self.break_even
        if self.memory is not None:
            kind = self.memory_kind.replace(" ", "_")
            figures[f"eager_{kind}_bytes"], figures[f"compiled_{kind}_bytes"] = self.memory
        if self.least is not None:
            figures["min_speedup"] = self.least
        return figures

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.ratio:.2f} [{low:.2f}, {high:.2f}] {self.conclusion}"
