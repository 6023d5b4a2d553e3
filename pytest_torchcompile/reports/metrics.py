"""The figures by which two reports of a case are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from pytest_torchcompile.reports.document import Case
from pytest_torchcompile.results import TOO_FEW, Deviation

QUANTILE = 0.9
"""The quantile of the examples' differences that is compared; the maximum depends on a single example."""

NORMAL_95 = 1.96
"""The 97.5 % quantile of the standard normal distribution."""

LEAST_SHARE = 0.01
"""Smaller differences, in units of the tolerance, count as this one."""

MOST_SHARE = 1e9
"""Larger differences, in units of the tolerance, count as this one; so does infinity."""

LEAST_VALUE = 1e-12
"""Smaller figures count as this one, because zero has no logarithm."""

LEAST_COMPILE_S = 1.0
"""A smaller growth of the compile time, in seconds, does not count."""


class Estimate(NamedTuple):
    """A figure with its 95 % interval; for an exact figure, both ends equal the value."""

    value: float
    low: float
    high: float


def _speedup(case: Case) -> Estimate | str:
    figures = case.speedup
    if "speedup" not in figures:
        return "it was not timed"
    if figures.get("conclusion") == TOO_FEW:
        return "it was timed in too few rounds"
    return Estimate(*(float(figures[f"speedup{end}"]) for end in ("", "_low", "_high")))


def _compile_time(case: Case) -> Estimate | str:
    return (
        _exactly(case.result.capture.compile_s) if case.result.capture.compile_s else "nothing was compiled"
    )


def _memory(case: Case) -> Estimate | str:
    size = case.speedup.get("compiled_peak_allocated_bytes")
    # The growth of a process on the CPU depends on what ran in it before.
    return _exactly(float(size)) if size else "the memory of one case is measured only on an accelerator"


def _difference(case: Case) -> Estimate | str:
    """Return the 90th percentile of the examples' differences, in units of the tolerance.

    The ends of its interval are two of these differences: the number of examples below a percentile has a
    binomial distribution, whatever the distribution of the differences is.
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
        measure: returns the figure of a case, or a sentence that says why it has none.
        default: the threshold if the user gives none.
        counted: whether the figure is a count, whose threshold is a number and not a percentage.
        higher_is_better: whether a higher figure is better; ignored for counts.
        least: smaller growth than this never counts.
        timed: whether the figure is comparable only on the same processor, accelerator and number of threads.
        show: formats the figure for reports.
        interval: whether reports show its interval beside it.
    """

    measure: Callable[[Case], Estimate | str]
    default: float
    counted: bool = False
    higher_is_better: bool = False
    least: float = 0.0
    timed: bool = False
    show: Callable[[float], str] = "{:.2f}".format
    interval: bool = False

    def text(self, estimate: Estimate) -> str:
        """Format an estimate: ``1.50``, or ``1.50 [1.42, 1.58]`` with its interval."""
        ends = f" [{self.show(estimate.low)}, {self.show(estimate.high)}]" if self.interval else ""
        return self.show(estimate.value) + ends


def _counts(count: Callable[[Case], int]) -> Metric:
    return Metric(lambda case: _exactly(count(case)), 0, counted=True, show="{:.0f}".format)


METRICS = {
    "speedup": Metric(_speedup, 0.1, higher_is_better=True, timed=True, interval=True),
    "difference": Metric(_difference, 1.0, show="{:.2g} of the tolerance".format),
    "graphs": _counts(lambda case: case.result.capture.graphs),
    "breaks": _counts(lambda case: len(case.result.capture.breaks)),
    "recompiles": _counts(lambda case: len(case.result.capture.recompiles)),
    "compile-time": Metric(_compile_time, 0.5, least=LEAST_COMPILE_S, timed=True, show="{:.1f} s".format),
    "memory": Metric(_memory, 0.1, timed=True, show="{:,.0f} bytes".format),
}
"""The figures that can be compared, by the name that ``--compile-fail-on`` takes."""
