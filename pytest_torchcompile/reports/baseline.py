"""Two reports held against each other: what got worse, by how much, and how sure that is.

Times are compared as ratios that were measured within one run, which survive another machine's pace. What
is estimated has an interval; the interval of a change is made of those of both sides (MOVER: Zou and
Donner 2008, "Construction of confidence limits about effect measures"). A change counts only if all of
its interval lies beyond the threshold, so that size and evidence both clear it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.options import unknown_name
from pytest_torchcompile.reports.document import Case, Plain, cases_of
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One figure of a case, then and now.

    Args:
        metric: see `METRICS`.
        base: of the baseline.
        head: of the newer report.
        worse: how many times worse it is; of a count, by how much it grew.
        at_least: the lower end of the interval of `worse`; less where further evidence says less.
    """

    metric: str
    base: Estimate
    head: Estimate
    worse: float
    at_least: float

    def exceeds(self, threshold: float) -> bool:
        """Whether it got worse by more than `threshold`, beyond doubt."""
        if METRICS[self.metric].counted:
            return self.worse > threshold
        return self.at_least > 1 + threshold

    def __str__(self) -> str:
        show = METRICS[self.metric].show
        text = f"{self.metric} {show(self.base.value)} -> {show(self.head.value)}"
        if METRICS[self.metric].counted:
            return text
        return f"{text}, {abs(self.worse - 1):.0%} {'worse' if self.worse >= 1 else 'better'}"


# --- the figures ----------------------------------------------------------------------------------


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

VERDICT = "verdict"
"""What is always compared, and has no threshold; a rule of this name compares nothing else."""

Rules = Mapping[str, float]
"""Thresholds by metric: 0.1 for 10 %; of a count, how many more are allowed. 0 for `VERDICT`."""

DEFAULT_RULES: Rules = {name: metric.default for name, metric in METRICS.items()}


def rules_of(texts: Iterable[str], source: str) -> Rules:
    """What ``speedup:10%`` and the like say; several in a text are separated by commas or spaces.

    Raises:
        UsageError: naming `source`, for an unknown metric or a threshold that is none.
    """
    rules: dict[str, float] = {}
    for rule in (rule for text in texts for rule in text.replace(",", " ").split()):
        name, colon, threshold = rule.partition(":")
        if rule == VERDICT:
            rules[VERDICT] = 0.0
            continue
        if name not in METRICS:
            raise UsageError(unknown_name(source, "metric", name, [VERDICT, *METRICS]))
        rules[name] = _threshold(name, threshold, source) if colon else METRICS[name].default
    return rules


def _threshold(name: str, text: str, source: str) -> float:
    counted = METRICS[name].counted
    match = re.fullmatch(r"(\d+)" if counted else r"(\d+(?:\.\d+)?)%", text)
    if match is None:
        accepted = f"{name}:2 (two more are allowed)" if counted else f"{name}:10%"
        raise UsageError(f"{source} got {name}:{text}; accepted: such as {accepted}")
    return float(match[1]) / (1 if counted else 100)


# --- two cases ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A case held against its baseline.

    Args:
        id: of the case.
        base: then.
        head: now.
        changes: the figures that could be compared, by metric.
        reasons: why the others could not.
        circumstances: what else changed: torch, processor, threads, backend.
    """

    id: str
    base: Case
    head: Case
    changes: dict[str, Change]
    reasons: dict[str, str]
    circumstances: tuple[str, ...]

    @property
    def verdict_got_worse(self) -> bool:
        """Whether the verdict is a worse one, by `Verdict.severity`."""
        return self.head.result.verdict.severity > self.base.result.verdict.severity

    def regressions(self, rules: Rules) -> dict[str, str]:
        """A sentence if the verdict got worse, and for each figure that did by more than a rule allows."""
        also = f"; also changed: {', '.join(self.circumstances)}" if self.circumstances else ""
        found = {
            metric: f"{self.changes[metric]}, allowed {_allowed(metric, threshold)}{also}"
            for metric, threshold in rules.items()
            if metric in self.changes and self.changes[metric].exceeds(threshold)
        }
        if self.verdict_got_worse:
            then, now = (case.result.verdict for case in (self.base, self.head))
            found = {VERDICT: f"verdict {then} -> {now}{also}"} | found
        return found


def _allowed(metric: str, threshold: float) -> str:
    return f"{threshold:.0f} more" if METRICS[metric].counted else f"{threshold:.0%}"


_TIMED = ("processor", "cpus", "accelerator", "system", "threads")
_NAMED = ("torch", "python")


def compare_case(base: Case, head: Case) -> Comparison:
    """Two reports of one case held against each other."""
    forbidding = [_said(name, *_pair(name, base, head)) for name in _TIMED if _differs(name, base, head)]
    backend = [_said("backend", base.result.backend, head.result.backend)]
    backend = backend if base.result.backend != head.result.backend else []
    named = [_said(name, *_pair(name, base, head)) for name in _NAMED if _differs(name, base, head)]
    changes: dict[str, Change] = {}
    reasons: dict[str, str] = {}
    for name, metric in METRICS.items():
        unlike = backend + (forbidding if metric.timed else [])
        if name == "compile-time" and _cached(base) != _cached(head):
            unlike.append("one of them took graphs from inductor's cache")
        found = ", ".join(unlike) or _change(name, base, head)
        if isinstance(found, Change):
            changes[name] = found
        else:
            reasons[name] = found
    return Comparison(
        id=head.id,
        base=base,
        head=head,
        changes=changes,
        reasons=reasons,
        circumstances=(*named, *backend, *forbidding),
    )


def _cached(case: Case) -> bool:
    return case.result.capture.from_cache > 0


def _pair(name: str, base: Case, head: Case) -> tuple[object, object]:
    if name == "threads" and base.speedup and head.speedup:
        # Those of the timing, which the case may have set for itself.
        return base.speedup[name], head.speedup[name]
    return base.machine[name], head.machine[name]


def _differs(name: str, base: Case, head: Case) -> bool:
    one, two = _pair(name, base, head)
    return one != two


def _said(name: str, base: object, head: object) -> str:
    return f"{name} {base or 'none'} -> {head or 'none'}"


def _change(name: str, base: Case, head: Case) -> Change | str:
    metric = METRICS[name]
    then, now = metric.measure(base), metric.measure(head)
    if isinstance(then, str):
        return f"in the baseline {then}"
    if isinstance(now, str):
        return now
    if metric.counted:
        worse = at_least = now.value - then.value
    else:
        worse, at_least = _worse(then, now, higher_is_better=metric.higher_is_better)
        if name == "speedup":
            at_least = min(at_least, _quiet(base) / _quiet(head))
        if now.value - then.value < metric.least and not metric.higher_is_better:
            at_least = min(at_least, 1.0)
    return Change(metric=name, base=then, head=now, worse=worse, at_least=at_least)


def _quiet(case: Case) -> float:
    """The speedup of the calls that the machine disturbed least: evidence of another kind."""
    return float(case.speedup["speedup_quiet"])


def _worse(then: Estimate, now: Estimate, *, higher_is_better: bool) -> tuple[float, float]:
    """How many times worse it is now, and the lower end of the interval of that."""
    bad, good = (then, now) if higher_is_better else (now, then)
    worse = _log_ratio(bad.value, good.value)
    evidence = math.hypot(_log_ratio(bad.value, bad.low), _log_ratio(good.high, good.value))
    return math.exp(worse), math.exp(worse - evidence)


def _log_ratio(one: float, other: float) -> float:
    return math.log(max(one, LEAST_VALUE)) - math.log(max(other, LEAST_VALUE))


# --- two reports ----------------------------------------------------------------------------------


class Baseline:
    """The cases of a report, to be looked up by the cases of a newer one.

    Args:
        document: see `reports.document`.
    """

    def __init__(self, document: Plain) -> None:
        self._cases: dict[str, list[Case]] = {}
        for case in cases_of(document):
            self._cases.setdefault(case.id, []).append(case)

    def of(self, head: Case) -> Case | None:
        """The baseline of `head`, the one of its machine if there are several; None if there is none."""
        known = self._cases.get(head.id, [])
        alike = [case for case in known if not any(_differs(name, case, head) for name in _TIMED)]
        return next(iter(alike or known), None)

    def gone(self, heads: Iterable[Case]) -> list[str]:
        """The ids of the cases that are not among `heads`."""
        present = {head.id for head in heads}
        return [name for name in self._cases if name not in present]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reports:
    """Two reports held against each other.

    Args:
        comparisons: of the cases that are in both.
        added: ids of those that are only in the newer one.
        gone: ids of those that are only in the baseline.
    """

    comparisons: tuple[Comparison, ...]
    added: tuple[str, ...]
    gone: tuple[str, ...]

    @property
    def nothing_was_checked(self) -> bool:
        """Whether the newer report has no case."""
        return not (self.comparisons or self.added)

    def regressions(self, rules: Rules) -> dict[str, list[str]]:
        """Sentences on what got worse by more than a rule allows, by case."""
        found = {c.id: list(c.regressions(rules).values()) for c in self.comparisons}
        return {name: sentences for name, sentences in found.items() if sentences}


def compare(base: Plain, head: Plain) -> Reports:
    """Two documents held against each other, case by case."""
    baseline, heads = Baseline(base), cases_of(head)
    pairs = [(baseline.of(case), case) for case in heads]
    return Reports(
        comparisons=tuple(compare_case(then, now) for then, now in pairs if then is not None),
        added=tuple(now.id for then, now in pairs if then is None),
        gone=tuple(baseline.gone(heads)),
    )
