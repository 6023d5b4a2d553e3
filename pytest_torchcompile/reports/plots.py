"""Computes the plots that have a row for each case. The templates of the page draw them as SVG.

Positions are percentages of the plot's width, so that a browser can draw it at any width without scaling its
text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pytest_torchcompile.reports.document import Case
from pytest_torchcompile.reports.scales import Scale, Tick
from pytest_torchcompile.results import MARGIN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """The speedup of one case.

    Args:
        case: which one, as an index into the cases.
        low: the position of the lower end of its interval.
        high: that of the upper end.
        ratio: that of the speedup itself.
        quiet: that of the ratio of the quietest calls.
        conclusion: ``faster``, ``slower``, ``no clear difference`` or ``too few rounds``.
    """

    case: int
    low: float
    high: float
    ratio: float
    quiet: float
    conclusion: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speedups:
    """A forest plot.

    Args:
        rows: one for each timed case.
        ticks: of its axis.
        one: the position of the speedup 1.
        margin: the positions between which nothing is concluded.
    """

    rows: tuple[Interval, ...]
    ticks: tuple[Tick, ...]
    one: float
    margin: tuple[float, float]


_SLOWEST, _FASTEST = 1e-3, 1e3
"""The widest range of the axis. Speedups outside are drawn at its ends."""


def speedups(cases: Sequence[Case]) -> Speedups | None:
    """Return a forest plot of the speedup of each case with its interval; None if nothing was timed."""
    timed = [(index, case.speedup) for index, case in enumerate(cases) if case.speedup]
    if not timed:
        return None
    names = ("speedup_low", "speedup_high", "speedup", "speedup_quiet")
    values = [float(figures[name]) for _, figures in timed for name in names]
    low, high = max(min(0.8, *values) / MARGIN, _SLOWEST), min(max(1.25, *values) * MARGIN, _FASTEST)
    scale = Scale(low=low, high=high, logarithmic=True)
    rows = []
    for index, figures in timed:
        low, high, ratio, quiet = (scale.at(float(figures[name])) for name in names)
        rows.append(
            Interval(
                case=index, low=low, high=high, ratio=ratio, quiet=quiet, conclusion=figures["conclusion"]
            )
        )
    margin = (scale.at(1 / MARGIN), scale.at(MARGIN))
    return Speedups(rows=tuple(rows), ticks=scale.ticks(), one=scale.at(1), margin=margin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """The compile time of one case.

    Args:
        case: which one, as an index into the cases.
        width: the length of its bar.
        seconds: the time.
        graphs: how many graphs were compiled in it.
    """

    case: int
    width: float
    seconds: float
    graphs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileTimes:
    """A bar chart.

    Args:
        rows: one for each case of which something was compiled.
        ticks: of its axis, in seconds.
    """

    rows: tuple[Bar, ...]
    ticks: tuple[Tick, ...]


def compile_times(cases: Sequence[Case]) -> CompileTimes | None:
    """Return a bar plot of compile times with the numbers of graphs; None if nothing was compiled."""
    captures = [(i, case.result.capture) for i, case in enumerate(cases) if case.result.capture.graphs]
    if not captures:
        return None
    longest = max(capture.compile_s for _, capture in captures)
    scale = Scale(low=0, high=longest if longest > 0 else 1)
    rows = (
        Bar(case=index, width=scale.at(c.compile_s), seconds=c.compile_s, graphs=c.graphs)
        for index, c in captures
    )
    return CompileTimes(rows=tuple(rows), ticks=scale.ticks())
