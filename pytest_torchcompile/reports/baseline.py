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
from collections.abc import Iterable, Mapping

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.options import unknown_name
from pytest_torchcompile.reports.document import Case, Plain, cases_of
from pytest_torchcompile.reports.metrics import LEAST_VALUE, METRICS, Estimate


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
