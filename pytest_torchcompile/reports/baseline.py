"""Compare two reports: which figures got worse, by how much, and with what certainty.

Speed is compared as the ratio of two times of one run, because absolute times depend on the machine.
Estimated figures have a confidence interval. The interval of a change is computed from those of both reports
(MOVER: Zou and Donner 2008, "Construction of confidence limits about effect measures"). A change counts only
if its whole interval lies beyond the threshold.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.options import unknown_name
from pytest_torchcompile.reports.document import Case, Plain, cases_of
from pytest_torchcompile.reports.metrics import LEAST_VALUE, METRICS, Estimate

LARGEST_IN_PERCENT = 10.0
"""The largest factor by which a figure got worse that is shown in percent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One figure of a case in the baseline and in the newer report.

    Args:
        metric: a key of `METRICS`.
        base: the estimate in the baseline.
        head: the estimate in the newer report.
        worse: the factor by which the figure got worse; for a count, by how much it grew.
        at_least: the lower end of the interval of `worse`, lowered further if another measurement shows a
            smaller change.
    """

    metric: str
    base: Estimate
    head: Estimate
    worse: float
    at_least: float

    def exceeds(self, threshold: float) -> bool:
        """Whether the figure got worse by more than `threshold`, with its whole interval."""
        if METRICS[self.metric].counted:
            return self.worse > threshold
        return self.at_least > 1 + threshold

    def may_exceed(self, threshold: float) -> bool:
        """Whether the figure itself got worse by more than `threshold`, certainly or not."""
        return self.worse > threshold if METRICS[self.metric].counted else self.worse > 1 + threshold

    def __str__(self) -> str:
        show = METRICS[self.metric].show
        text = f"{self.metric} {show(self.base.value)} -> {show(self.head.value)}"
        if METRICS[self.metric].counted:
            return text
        if self.worse > LARGEST_IN_PERCENT:
            return f"{text}, more than {LARGEST_IN_PERCENT:.0f} times worse"
        return f"{text}, {abs(self.worse - 1):.0%} {'worse' if self.worse >= 1 else 'better'}"


# --- the figures ----------------------------------------------------------------------------------


VERDICT = "verdict"
"""The name of the rule for the verdict, which is always compared and has no threshold."""

Rules = Mapping[str, float]
"""Thresholds by metric: 0.1 for 10 %; for a count, how many more are allowed; 0 for `VERDICT`."""

DEFAULT_RULES: Rules = {name: metric.default for name, metric in METRICS.items()}


def rules_of(texts: Iterable[str], source: str) -> Rules:
    """Parse rules such as ``speedup:10%``; commas or spaces separate several rules in one text.

    Raises:
        UsageError: if a metric is unknown or a threshold is invalid; the message names `source`.
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
    """A case compared with its baseline.

    Args:
        id: the id of the case.
        base: the case in the baseline.
        head: the case in the newer report.
        changes: the figures that could be compared, by metric.
        reasons: why each of the other figures could not be compared, by metric.
        versions: which versions changed: of torch, of Python.
        circumstances: what else changed: processor, threads, backend.
    """

    id: str
    base: Case
    head: Case
    changes: dict[str, Change]
    reasons: dict[str, str]
    versions: tuple[str, ...]
    circumstances: tuple[str, ...]

    @property
    def changed(self) -> tuple[str, ...]:
        """All that changed besides the figures."""
        return (*self.versions, *self.circumstances)

    @property
    def verdict_got_worse(self) -> bool:
        """Whether the verdict got worse, by `Verdict.severity`."""
        return self.head.result.verdict.severity > self.base.result.verdict.severity

    def regressions(self, rules: Rules) -> dict[str, str]:
        """Return a sentence, by metric, for a worse verdict and each figure that exceeds its rule."""
        also = f"; also changed: {', '.join(self.changed)}" if self.changed else ""
        found = {
            metric: f"{self.changes[metric]}, allowed {_allowed(metric, threshold)}{also}"
            for metric, threshold in rules.items()
            if metric in self.changes and self.changes[metric].exceeds(threshold)
        }
        if self.verdict_got_worse:
            then, now = (case.result.verdict for case in (self.base, self.head))
            found = {VERDICT: f"verdict {then} -> {now}{also}"} | found
        return found


def _undecided(comparison: Comparison, rules: Rules) -> bool:
    """Whether some rule could not be applied, or the figure is beyond it but not certainly."""
    return any(
        metric in comparison.reasons
        or (metric in comparison.changes and comparison.changes[metric].may_exceed(threshold))
        for metric, threshold in rules.items()
    )


def held(comparison: Comparison | None, rules: Rules, regressions: Iterable[str]) -> str:
    """Return what holding a case against the baseline showed: ``kept``, ``undecided``, ``worse`` or ``new``.

    Args:
        comparison: the case beside its baseline; None if the baseline has no such case.
        rules: the allowed changes.
        regressions: the confirmed regressions of the case.
    """
    if comparison is None:
        return "new"
    if list(regressions):
        return "worse"
    failed = not comparison.head.result.verdict.passed
    return "undecided" if not failed and _undecided(comparison, rules) else "kept"


def _allowed(metric: str, threshold: float) -> str:
    return f"{threshold:.0f} more" if METRICS[metric].counted else f"{threshold:.0%}"


_MACHINE = ("processor", "cpus", "accelerator", "system", "threads")
VERSIONS = ("torch", "python")


def compare_case(base: Case, head: Case) -> Comparison:
    """Compare two reports of one case."""
    machine = [
        _change_text(name, *_pair(name, base, head)) for name in _MACHINE if _differs(name, base, head)
    ]
    backend = [_change_text("backend", base.result.backend, head.result.backend)]
    backend = backend if base.result.backend != head.result.backend else []
    versions = [
        _change_text(name, *_pair(name, base, head)) for name in VERSIONS if _differs(name, base, head)
    ]
    changes: dict[str, Change] = {}
    reasons: dict[str, str] = {}
    for name, metric in METRICS.items():
        obstacles = backend + (machine if metric.timed else [])
        if name == "compile-time" and _cached(base) != _cached(head):
            obstacles.append("one of them took graphs from inductor's cache")
        found = ", ".join(obstacles) or _change(name, base, head)
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
        versions=tuple(versions),
        circumstances=(*backend, *machine),
    )


def _cached(case: Case) -> bool:
    return case.result.capture.from_cache > 0


def _pair(name: str, base: Case, head: Case) -> tuple[object, object]:
    if name == "threads" and base.speedup and head.speedup:
        # The case may set the number of threads for its timing.
        return base.speedup[name], head.speedup[name]
    return base.machine[name], head.machine[name]


def _differs(name: str, base: Case, head: Case) -> bool:
    one, two = _pair(name, base, head)
    return one != two


def _change_text(name: str, base: object, head: object) -> str:
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
            at_least = min(at_least, _quiet_speedup(base) / _quiet_speedup(head))
        if now.value - then.value < metric.least and not metric.higher_is_better:
            at_least = min(at_least, 1.0)
    return Change(metric=name, base=then, head=now, worse=worse, at_least=at_least)


def _quiet_speedup(case: Case) -> float:
    """Return the speedup of the calls that the machine disturbed least."""
    return float(case.speedup["speedup_quiet"])


def _worse(then: Estimate, now: Estimate, *, higher_is_better: bool) -> tuple[float, float]:
    """Return the factor by which the figure got worse, and the lower end of the interval of that factor."""
    bad, good = (then, now) if higher_is_better else (now, then)
    worse = _log_ratio(bad.value, good.value)
    evidence = math.hypot(_log_ratio(bad.value, bad.low), _log_ratio(good.high, good.value))
    return math.exp(worse), math.exp(worse - evidence)


def _log_ratio(one: float, other: float) -> float:
    return math.log(max(one, LEAST_VALUE)) - math.log(max(other, LEAST_VALUE))


# --- two reports ----------------------------------------------------------------------------------


class Baseline:
    """The cases of a report, looked up for the cases of a newer report.

    Args:
        document: see `reports.document`.
    """

    def __init__(self, document: Plain) -> None:
        self._cases: dict[str, list[Case]] = {}
        for case in cases_of(document):
            self._cases.setdefault(case.id, []).append(case)

    def of(self, head: Case) -> Case | None:
        """Return the baseline of `head`, preferably from the same machine; None if there is none."""
        known = self._cases.get(head.id, [])
        alike = [case for case in known if not any(_differs(name, case, head) for name in _MACHINE)]
        return next(iter(alike or known), None)

    def gone(self, heads: Iterable[Case]) -> list[str]:
        """Return the ids of the cases that are not among `heads`."""
        present = {head.id for head in heads}
        return [name for name in self._cases if name not in present]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reports:
    """The comparison of two reports.

    Args:
        comparisons: one for each case that is in both.
        added: ids of the cases that are only in the newer report.
        gone: ids of the cases that are only in the baseline.
    """

    comparisons: tuple[Comparison, ...]
    added: tuple[str, ...]
    gone: tuple[str, ...]

    @property
    def nothing_was_checked(self) -> bool:
        """Whether the newer report has no case."""
        return not (self.comparisons or self.added)

    def regressions(self, rules: Rules) -> dict[str, list[str]]:
        """Return the sentences of `Comparison.regressions` by case; cases without one are left out."""
        found = {c.id: list(c.regressions(rules).values()) for c in self.comparisons}
        return {name: sentences for name, sentences in found.items() if sentences}


def compare(base: Plain, head: Plain) -> Reports:
    """Compare two documents case by case."""
    baseline, heads = Baseline(base), cases_of(head)
    pairs = [(baseline.of(case), case) for case in heads]
    return Reports(
        comparisons=tuple(compare_case(then, now) for then, now in pairs if then is not None),
        added=tuple(now.id for then, now in pairs if then is None),
        gone=tuple(baseline.gone(heads)),
    )
