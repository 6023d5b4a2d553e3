"""The figures of a case that two reports are compared by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from pytest_torchcompile.reports.document import Case
from pytest_torchcompile.results import Deviation

QUANTILE = 0.9
"""Of the examples' differences: the largest one hangs on a single example."""


NORMAL_95 = 1.96


LEAST_SHARE = 0.01
"""A difference below 1 % of its tolerance is no better than one of 1 %."""
LEAST_VALUE = 1e-12
"""No figure is compared as a smaller one; zero has no logarithm."""
MOST_SHARE = 1e9
"""Nor is one of more, up to infinity, worse than so many tolerances."""
LEAST_COMPILE_S = 1.0
"""A growth of the compile time by less is nothing that anybody waits for."""


class Estimate(NamedTuple):
    """A figure with its 95 % interval, which is empty for what is counted."""

    value: float
    low: float
    high: float


def _speedup(case: Case) -> Estimate | str:
    figures = case.speedup
    if "speedup" not in figures:
        return "it was not timed"
    return Estimate(*(float(figures[f"speedup{end}"]) for end in ("", "_low", "_high")))


def _compile_time(case: Case) -> Estimate | str:
    return (
        _exactly(case.result.capture.compile_s) if case.result.capture.compile_s else "nothing was compiled"
    )


def _memory(case: Case) -> Estimate | str:
    size = case.speedup.get("compiled_peak_allocated_bytes")
    # What a CPU's process grew by hangs on what ran in it before.
    return _exactly(float(size)) if size else "only an accelerator tells what one case needs"


def _difference(case: Case) -> Estimate | str:
    """The 90th percentile of the examples' differences, in units of the tolerance.

    Its interval lies between two of them: so many below a percentile is a matter of the binomial alone.
    """
    if not case.result.deviations:
        return "it has no record of its examples"
    shares = [max(_share(deviation), LEAST_SHARE) for deviation in case.result.deviations]
    shares = sorted(shares + [LEAST_SHARE] * (case.result.examples - len(shares)))
    rank = QUANTILE * len(shares)
    spread = NORMAL_95 * math.sqrt(rank * (1 - QUANTILE))
    ranks = (math.ceil(rank), math.floor(rank - spread), math.ceil(rank + spread))
    return Estimate(*(shares[min(max(number, 1), len(shares)) - 1] for number in ranks))


def _share(deviation: Deviation) -> float:
    share = deviation.share
    return 1.0 if share is None or math.isnan(share) else min(share, MOST_SHARE)


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


class Metric(NamedTuple):
    """A figure that can be compared.

    Args:
        measure: the figure of a case, or why it has none.
        default: the threshold where none is given.
        counted: whether it is a count, whose threshold is a number and no percentage.
        higher_is_better: of what is no count.
        least: how much it must grow to count at all.
        timed: whether another processor, accelerator or number of threads forbids to compare it.
        show: as the reports show it.
    """

    measure: Callable[[Case], Estimate | str]
    default: float
    counted: bool = False
    higher_is_better: bool = False
    least: float = 0.0
    timed: bool = False
    show: Callable[[float], str] = "{:.2f}".format


def _counts(count: Callable[[Case], int]) -> Metric:
    return Metric(lambda case: _exactly(count(case)), 0, counted=True, show="{:.0f}".format)


METRICS = {
    "speedup": Metric(_speedup, 0.1, higher_is_better=True, timed=True),
    "difference": Metric(_difference, 1.0, show="{:.2g} of the tolerance".format),
    "graphs": _counts(lambda case: case.result.capture.graphs),
    "breaks": _counts(lambda case: len(case.result.capture.breaks)),
    "recompiles": _counts(lambda case: len(case.result.capture.recompiles)),
    "compile-time": Metric(_compile_time, 0.5, least=LEAST_COMPILE_S, timed=True, show="{:.1f} s".format),
    "memory": Metric(_memory, 0.1, timed=True, show="{:,.0f} bytes".format),
}


"""What can be compared, by the name that ``--compile-fail-on`` takes."""
