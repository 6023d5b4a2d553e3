"""The table at the end of a pytest run: a row for each case.

Reads the plain properties of reports, so that it is the same with and without pytest-xdist.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from pytest_torchcompile.results import NOTE_SEPARATOR, Speedup, Verdict

PROPERTY = "compile_check."
"""What the names of our report properties begin with; ``method-phase.field`` follows."""

_OUTCOMES = ("passed", "failed", "skipped", "error", "xfailed", "xpassed")
_COLORS = {
    Verdict.EQUAL: {"green": True},
    Verdict.WITHIN_ROUNDING: {"green": True},
    Verdict.COMPILE_FAILED: {"yellow": True, "bold": True},
}
_HEADINGS = (
    "case",
    "verdict",
    "examples",
    "worst difference",
    "compiled",
    "graphs",
    "breaks",
    "recompiles",
    "seconds",
)
_SPEEDUP = "speedup"


@dataclasses.dataclass(frozen=True)
class Row:
    """One case as it comes out of a report.

    Args:
        nodeid: the pytest item.
        case: ``method-phase``.
        values: what `CheckResult.row` put there.
    """

    nodeid: str
    case: str
    values: dict[str, Any]

    @property
    def verdict(self) -> Verdict:
        """The verdict."""
        return Verdict(self.values["verdict"])

    @property
    def name(self) -> str:
        """The item, with the case where the item's id does not tell it."""
        return self.nodeid if self.nodeid.endswith(f"{self.case}]") else f"{self.nodeid} ({self.case})"

    def cells(self) -> tuple[str, ...]:
        """The row's texts, one for each heading."""
        values = self.values
        share = values["coverage"]
        place = values["worst_place"]
        return (
            self.name,
            self.verdict.value,
            str(values["examples"]),
            f"{float(values['worst_difference']):.1e} {place}" if place else "0",
            share if isinstance(share, str) else f"{share:.0%}",
            str(values["graphs"]),
            str(values["breaks"]),
            str(values["recompiles"]),
            f"{float(values['compile_s']):.1f}",
        )

    @property
    def speedup(self) -> str:
        """Ratio, interval and conclusion; ``-`` if the case was not timed."""
        values = self.values
        if _SPEEDUP not in values:
            return "-"
        ratio, low, high = (float(values[f"speedup{end}"]) for end in ("", "_low", "_high"))
        return f"{ratio:.2f} [{low:.2f}, {high:.2f}] {values['conclusion']}"


def rows_of(reports: Iterable[Any]) -> Iterator[Row]:
    """The cases found in pytest reports."""
    for report in reports:
        by_case: dict[str, dict[str, Any]] = collections.defaultdict(dict)
        for name, value in getattr(report, "user_properties", ()):
            if str(name).startswith(PROPERTY):
                case, _, field = str(name).removeprefix(PROPERTY).rpartition(".")
                by_case[case][field] = value
        for case, values in by_case.items():
            yield Row(report.nodeid, case, values)


def write_summary(reporter: Any, control: Speedup | None = None) -> None:
    """Write the table, the notes and one line that can't be overlooked if nothing was checked.

    Args:
        reporter: pytest's terminal reporter.
        control: eager timed against itself.
    """
    reports = [r for key in _OUTCOMES for r in reporter.stats.get(key, ())]
    # A report of the call repeats what the setup's says.
    rows = sorted({(row.nodeid, row.case): row for row in rows_of(reports)}.values(), key=lambda r: r.name)
    if not rows:
        return
    reporter.write_sep("=", "compiled against eager")
    timed = any(_SPEEDUP in row.values for row in rows)
    headings = (*_HEADINGS, _SPEEDUP) if timed else _HEADINGS
    table = [(*row.cells(), row.speedup) if timed else row.cells() for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *table, strict=True)]
    reporter.write_line(_padded(headings, widths))
    for row, cells in zip(rows, table, strict=True):
        reporter.write_line(_padded(cells, widths), **_COLORS.get(row.verdict, {"red": True}))
    _write_remarks(reporter, rows)
    _write_control(reporter, control)
    _write_count(reporter, rows)


def _padded(cells: tuple[str, ...], widths: list[int]) -> str:
    """Text to the left, numbers to the right."""
    left = (0, 1, 3, 9)
    return "  ".join(
        cell.ljust(width) if i in left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def _write_remarks(reporter: Any, rows: list[Row]) -> None:
    """Why cases were excused or skipped, and what was noticed; failures have a section of their own."""
    remarks: dict[str, list[str]] = collections.defaultdict(list)
    for row in rows:
        if row.verdict in (Verdict.WITHIN_ROUNDING, Verdict.COMPILE_FAILED):
            remarks[f"{row.verdict.value}: {row.values['reason']}"].append(row.name)
        if row.values.get("untimed"):
            remarks[f"not timed: {row.values['untimed']}"].append(row.name)
        for note in filter(None, row.values["notes"].split(NOTE_SEPARATOR)):
            remarks[note].append(row.name)
    for remark, names in remarks.items():
        reporter.write_line(f"{names[0] if len(names) == 1 else f'{len(names)} cases'}: {remark}")


def _write_control(reporter: Any, control: Speedup | None) -> None:
    if control is None:
        return
    low, high = control.interval
    text = f"eager timed against itself: {control.ratio:.2f} [{low:.2f}, {high:.2f}]"
    if control.misses_one:
        reporter.write_line(f"{text}; this machine is too noisy for the speedups above", yellow=True)
    else:
        reporter.write_line(text)


def _write_count(reporter: Any, rows: list[Row]) -> None:
    counts = collections.Counter(row.verdict for row in rows)
    text = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
    if counts[Verdict.COMPILE_FAILED] == len(rows):
        reporter.write_line(
            f"NOTHING WAS CHECKED: {text} of {len(rows)} case{'s' if len(rows) > 1 else ''}",
            red=True,
            bold=True,
        )
    else:
        reporter.write_line(f"{len(rows)} case{'s' if len(rows) > 1 else ''}: {text}", bold=True)
