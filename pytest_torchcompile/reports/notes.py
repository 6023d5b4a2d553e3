"""Collects the sentences below the table of all views, so that each thing is said once.

Sentences of several cases that differ only in their figures become one, with the smallest and the largest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pytest_torchcompile.results import NOTE_SEPARATOR, Verdict
from pytest_torchcompile.texts import meaning_of

_EXPLAINED = (Verdict.WITHIN_ROUNDING, Verdict.COMPILE_FAILED, Verdict.SKIPPED, Verdict.CRASHED)
"""Verdicts whose reason is a sentence here. Failures have messages of their own."""
_NOTHING_COMPILED = (Verdict.NOT_COMPILED, Verdict.COMPILE_FAILED, Verdict.EAGER_FAILED, Verdict.CRASHED)
"""Verdicts for which no sentence says that parts of the policy ran eager."""
_FIGURE = re.compile(r"(?<![^\s(])\d[\d,]*(?:\.\d+)?(?=[ %),;]|$)")
"""Matches a number that stands alone. Digits in names and in places of code are not figures."""


def sentences(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return the reasons of cases that passed as rounding, were skipped or crashed, and remarks and notes.

    The notes of a case that fails are in its message.

    Args:
        rows: the id and the `CheckResult.row` of each case.
    """
    rows = list(rows)
    found: dict[str, dict[str, str]] = {}
    for name, values in rows:
        for text in _sentences_of(values):
            found.setdefault(_FIGURE.sub("0", text), {}).setdefault(name, text)
    return [f"{_cases(list(texts), len(rows))}: {_joined(list(texts.values()))}" for texts in found.values()]


def _sentences_of(values: Mapping[str, Any]) -> Iterator[str]:
    verdict = Verdict(values["verdict"])
    if verdict in _EXPLAINED:
        yield f"{verdict}: {values['reason']}"
    if values.get("left_eager") and verdict not in _NOTHING_COMPILED:
        yield values["left_eager"]
    if values.get("advice"):
        yield str(values["advice"])
    if values.get("untimed"):
        yield f"not timed: {values['untimed']}"
    if values.get("sensitivity"):
        yield values["sensitivity"]
    yield from (f"remark: {remark}" for remark in values["remarks"].split(NOTE_SEPARATOR) if remark)
    if verdict.severity < 2:
        yield from filter(None, values["notes"].split(NOTE_SEPARATOR))


def _cases(names: Sequence[str], of: int) -> str:
    """Return which cases a sentence is about: the name of one, or their number and test."""
    if len(names) == 1:
        return names[0]
    if len(names) == of:
        return f"all {of} cases"
    tests = {re.split(r"\[| \(", name)[0] for name in names}
    return f"{len(names)} cases of {tests.pop() if len(tests) == 1 else f'{len(tests)} tests'}"


def _joined(texts: Sequence[str]) -> str:
    """Return one sentence for texts that differ only in figures: ``3 to 17 of 89 examples ...``."""
    columns = iter(list(zip(*map(_FIGURE.findall, texts), strict=True)))
    return _FIGURE.sub(lambda found: _range(next(columns)), texts[0])


def _range(figures: Sequence[str]) -> str:
    ordered = sorted(set(figures), key=lambda figure: float(figure.replace(",", "")))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def addresses(verdicts: Iterable[Verdict], remarks: int = 0) -> list[tuple[str, str]]:
    """Return each verdict but ``equal``, and ``remark`` if there is one, with the address that explains it.

    Args:
        verdicts: the verdicts of all cases.
        remarks: the number of remarks.
    """
    given = set(verdicts) - {Verdict.EQUAL}
    findings = [verdict.value for verdict in Verdict if verdict in given] + ["remark"] * bool(remarks)
    return [(finding, meaning_of(finding)) for finding in findings]
