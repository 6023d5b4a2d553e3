"""Writes the table at the end of a pytest run, with a row for each case."""

from __future__ import annotations

from typing import Any

from pytest_torchcompile.reports import table
from pytest_torchcompile.reports.document import Case, Plain, cases_of, remarks_of
from pytest_torchcompile.results import Verdict
from pytest_torchcompile.texts import one_line

_COLORS = {
    Verdict.EQUAL: {"green": True},
    Verdict.WITHIN_ROUNDING: {"green": True},
    Verdict.COMPILE_FAILED: {"yellow": True, "bold": True},
    Verdict.SKIPPED: {"yellow": True, "bold": True},
}


def write_summary(reporter: Any, document: Plain) -> None:
    """Write the table, the sentences below it and the count, which is red if nothing was checked.

    Args:
        reporter: pytest's terminal reporter.
        document: see `document_of`.
    """
    cases = cases_of(document)
    reporter.write_sep("=", "compiled against eager")
    if cases:
        _write_table(reporter, cases, document)
    _write_count(reporter, cases)


def _write_table(reporter: Any, cases: list[Case], document: Plain) -> None:
    timed = any(case.speedup for case in cases)
    headings = table.headings(timed=timed)
    lines = [tuple(map(one_line, table.cells(case.id, case.values, timed=timed))) for case in cases]
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    reporter.write_line(_padded(headings, widths))
    for case, cells in zip(cases, lines, strict=True):
        reporter.write_line(_padded(cells, widths), **_COLORS.get(case.result.verdict, {"red": True}))
    for sentence in table.sentences((case.id, case.values) for case in cases):
        reporter.write_line(one_line(sentence))
    for machine in document["machines"].values():
        _write_control(reporter, machine["control"])


def _padded(cells: tuple[str, ...], widths: list[int]) -> str:
    """Join the cells. Text is aligned to the left, numbers to the right."""
    return "  ".join(
        cell.ljust(width) if i in table.TEXTS else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def _write_control(reporter: Any, control: Plain | None) -> None:
    if control is None:
        return
    text, noisy = table.control_text(control), table.is_noisy(control)
    reporter.write_line(text, **({"yellow": True} if noisy else {}))


def _write_count(reporter: Any, cases: list[Case]) -> None:
    verdicts = [case.result.verdict for case in cases]
    red = {"red": True} if table.nothing_was_checked(verdicts) else {}
    reporter.write_line(table.count(verdicts, remarks_of(cases)), bold=True, **red)
