"""Renders the comparison of two reports as Markdown, for a comment on a pull request."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from pytest_torchcompile.reports.baseline import DEFAULT_RULES, VERSIONS, Comparison, Reports, Rules
from pytest_torchcompile.reports.document import Case
from pytest_torchcompile.reports.markdown import SIGNS, code, escaped, fitted, row
from pytest_torchcompile.reports.metrics import METRICS
from pytest_torchcompile.texts import some

MOST_CHARACTERS = 65536
"""The longest comment that GitHub accepts."""


def comparison_markdown(reports: Reports, rules: Rules) -> str:
    """Return what got worse, what else changed and a table of all cases, cut to `MOST_CHARACTERS`.

    Args:
        reports: see `compare`.
        rules: thresholds by metric, which decide whether a case is worse.
    """
    return fitted(_lines(reports, rules), MOST_CHARACTERS)


def _lines(reports: Reports, rules: Rules) -> Iterator[str]:
    yield from ("## Compiled against eager, compared with the baseline", "")
    if reports.comparisons:
        yield from (escaped(_versions(reports)), "")
    yield from _findings(reports, rules)
    yield ""
    yield from _gained_and_lost(reports)
    for sentence in _circumstances(reports, rules):
        yield f"* {escaped(sentence)}"
    for kind, names in (("Only here", reports.added), ("Only in the baseline", reports.gone)):
        if names:
            yield f"* {kind}: {escaped(some(names))}"
    if reports.comparisons:
        yield from ("", "<details><summary>All cases</summary>", "")
        yield from _table(reports)
        yield from ("", "</details>")


def _findings(reports: Reports, rules: Rules) -> Iterator[str]:
    """Yield the count, and a line for each other verdict and each figure that got worse.

    A figure that no rule names is shown if it exceeds its default threshold, and does not decide.
    """
    worse = reports.regressions(rules)
    others = {name: threshold for name, threshold in DEFAULT_RULES.items() if name not in rules}
    beside = [
        (name, sentence)
        for name, sentences in reports.regressions(others).items()
        for sentence in sentences
        if sentence not in worse.get(name, ())
    ]
    unequal = [
        c
        for c in reports.comparisons
        if c.base.result.verdict is not c.head.result.verdict and not c.verdict_got_worse
    ]
    yield f"**{_count(reports, len(worse), len(unequal), len({name for name, _ in beside}))}**"
    yield ""
    for comparison in unequal:
        then, now = (case.result.verdict for case in (comparison.base, comparison.head))
        yield f"* {SIGNS[now]} {code(comparison.id)}: {escaped(f'{then} -> {now}')}"
    for name, sentences in worse.items():
        for sentence in sentences:
            yield f"* ❌ {code(name)}: {escaped(sentence)}"
    for name, sentence in beside:
        yield f"* {code(name)}: {escaped(sentence)}; no rule names this figure"


def _count(reports: Reports, worse: int, unequal: int, beside: int) -> str:
    if reports.nothing_was_checked:
        return "0 cases: nothing was checked"
    texts = [f"{len(reports.comparisons)} compared", f"{worse} worse"]
    if unequal:
        texts.append(f"{unequal} with another verdict")
    if beside:
        texts.append(f"{beside} worse in a figure that no rule names (--fail-on)")
    return ", ".join(texts)


def _versions(reports: Reports) -> str:
    """Return which versions ran which report: ``torch 2.13.0 -> 2.15.0, python 3.11.7``."""
    texts = []
    for name in VERSIONS:
        then = _values(name, (comparison.base for comparison in reports.comparisons))
        now = _values(name, (comparison.head for comparison in reports.comparisons))
        texts.append(f"{name} {then}" if then == now else f"{name} {then} -> {now}")
    return ", ".join(texts)


def _values(name: str, cases: Iterable[Case]) -> str:
    return " and ".join(dict.fromkeys(str(case.machine[name]) for case in cases))


def _gained_and_lost(reports: Reports) -> Iterator[str]:
    """Return the graph breaks and the recompiles that only one of the reports has, a line each."""
    for comparison, (name, what) in itertools.product(
        reports.comparisons, (("breaks", "graph breaks"), ("recompiles", "recompiles"))
    ):
        then, now = (getattr(case.result.capture, name) for case in (comparison.base, comparison.head))
        for change, here, there in (("gained", now, then), ("lost", then, now)):
            texts = [text for text in here if text not in there]
            if texts:
                yield f"* {code(comparison.id)}: {escaped(f'{what} {change}: {some(texts)}')}"


def _circumstances(reports: Reports, rules: Rules) -> list[str]:
    """Return what else changed, and what was not compared though it decides or because of it.

    Each is a sentence with the number of cases.
    """
    counts: dict[str, int] = {}
    for comparison in reports.comparisons:
        for text in comparison.circumstances:
            counts[f"changed: {text}"] = counts.get(f"changed: {text}", 0) + 1
        for metric, reason in comparison.reasons.items():
            changed = any(circumstance in reason for circumstance in comparison.circumstances)
            if changed or metric in rules:
                text = f"not compared: {metric}, because {'of ' * changed}{reason}"
                counts[text] = counts.get(text, 0) + 1
    return [f"{text} ({number} case{'' if number == 1 else 's'})" for text, number in counts.items()]


def _table(reports: Reports) -> Iterator[str]:
    metrics = [name for name in METRICS if any(name in c.changes for c in reports.comparisons)]
    yield row(("case", "verdict", *metrics))
    yield row(("---", "---", *("--:" for _ in metrics)))
    for comparison in reports.comparisons:
        verdict = comparison.head.result.verdict
        yield row(
            (
                code(comparison.id),
                f"{SIGNS[verdict]} {escaped(verdict)}",
                *(_cell(comparison, name) for name in metrics),
            )
        )


def _cell(comparison: Comparison, name: str) -> str:
    if name not in comparison.changes:
        return "-"
    change, text = comparison.changes[name], METRICS[name].text
    then, now = text(change.base), text(change.head)
    return escaped(now if then == now else f"{then} -> {now}")
