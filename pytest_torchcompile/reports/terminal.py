"""Writes the table at the end of a pytest run: a row for each case, in the columns that fit the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pytest_torchcompile.reports import notes, table
from pytest_torchcompile.reports.document import Case, Plain, cases_of, remarks_of
from pytest_torchcompile.results import Verdict
from pytest_torchcompile.texts import VERDICTS_PAGE, one_line, shortened, wrapped

_COLORS = {
    Verdict.EQUAL: {"green": True},
    Verdict.WITHIN_ROUNDING: {"green": True},
    Verdict.COMPILE_FAILED: {"yellow": True, "bold": True},
    Verdict.SKIPPED: {"yellow": True, "bold": True},
}

_LEFT_OUT = ("breaks", "recompiles", "graphs", "seconds", "examples", "compiled")
"""The columns that a narrow terminal leaves out, in this order. The other views show all columns."""
_BEFORE_SHORT = 3
"""The number of columns that are left out before figures are shortened."""

_TEXTS = [table.HEADINGS[position] for position in table.TEXTS]
_INDENT = "  "
_LEAST_NAME = 20
"""The least number of characters that are shown of a name: indent, some of the method, the longest phase."""
_LEAST_WIDTH = 40
"""Sentences are not broken into shorter lines than this."""


class Line(NamedTuple):
    """One line of the table, and how the terminal writer shows it."""

    text: str
    markup: dict[str, bool]


class _Grid(NamedTuple):
    """A choice of columns.

    Args:
        headings: the headings of the columns.
        cells: the texts of each case, one for each column.
        grouped: whether a line with the test's name precedes its cases, which then have short names.
    """

    headings: tuple[str, ...]
    cells: list[tuple[str, ...]]
    grouped: bool

    @property
    def widths(self) -> list[int]:
        """The number of characters of each column."""
        return [max(map(len, column)) for column in zip(self.headings, *self.cells, strict=True)]

    @property
    def width(self) -> int:
        """The number of characters of a line."""
        return sum(self.widths) + 2 * (len(self.headings) - 1)

    def line(self, cells: Sequence[str]) -> str:
        """Return the cells as one line: texts are left-aligned, numbers right-aligned."""
        columns = zip(self.headings, cells, self.widths, strict=True)
        return "  ".join(
            cell.ljust(width) if heading in _TEXTS else cell.rjust(width) for heading, cell, width in columns
        ).rstrip()


def write_summary(reporter: Any, document: Plain, width: int) -> None:
    """Write the table, the sentences below it and the count, which is red if nothing was checked.

    Args:
        reporter: pytest's terminal reporter.
        document: see `document_of`.
        width: the terminal's width in characters.
    """
    cases = cases_of(document)
    reporter.write_sep("=", "compiled against eager")
    if cases:
        for text, markup in lines(cases, width):
            reporter.write_line(text, **markup)
        _write_notes(reporter, cases, width)
        for machine in document["machines"].values():
            _write_control(reporter, machine["control"])
    _write_count(reporter, cases, width)


def lines(cases: Sequence[Case], width: int) -> Iterator[Line]:
    """Yield the lines of the table: the headings, and the rows of the cases.

    It tries, until the lines fit: all columns; the test's name on a line above its cases; fewer columns;
    shorter figures; names with ``...`` in the middle of the method.

    Args:
        cases: at least one case.
        width: the terminal's width in characters.
    """
    grid = next((grid for grid in _grids(cases) if grid.width <= width), None)
    if grid is None:
        *_, narrowest = _grids(cases)
        grid = _with_short_names(narrowest, width)
    yield Line(grid.line(grid.headings), {})
    before = ""
    for case, cells in zip(cases, grid.cells, strict=True):
        test, _ = _name(case)
        if grid.grouped and test != before:
            yield Line(shortened(test, max(width, _LEAST_NAME)), {})
        before = test
        verdict = case.result.verdict
        colors = _COLORS if table.is_passing(case.values) or not verdict.passed else {}
        yield Line(grid.line(cells), colors.get(verdict, {"red": True}))


def _grids(cases: Sequence[Case]) -> Iterator[_Grid]:
    """Yield the choices of columns, the widest first."""
    timed = any(case.speedup for case in cases)
    headings = table.headings(timed=timed)
    full = [tuple(map(one_line, table.cells(case.id, case.values, timed=timed))) for case in cases]
    yield _Grid(headings, full, grouped=False)
    named = [(_INDENT + _name(case)[1], *cells[1:]) for case, cells in zip(cases, full, strict=True)]
    short = [_with_short_figures(case, cells, headings) for case, cells in zip(cases, named, strict=True)]
    for count in range(_BEFORE_SHORT + 1):
        yield _of_columns(headings, named, _LEFT_OUT[:count])
    for count in range(_BEFORE_SHORT, len(_LEFT_OUT) + 1):
        yield _of_columns(headings, short, _LEFT_OUT[:count])


def _of_columns(headings: tuple[str, ...], rows: list[tuple[str, ...]], left_out: Sequence[str]) -> _Grid:
    kept = [heading not in left_out for heading in headings]
    chosen = [tuple(itertools.compress(cells, kept)) for cells in rows]
    return _Grid(tuple(itertools.compress(headings, kept)), chosen, grouped=True)


def _with_short_figures(case: Case, cells: tuple[str, ...], headings: tuple[str, ...]) -> tuple[str, ...]:
    """Return the cells without the place of the worst difference and the interval of the speedup."""
    short = {
        "worst / allowed": table.short_worst_text(case.values),
        "speedup": table.short_speedup_text(case.values),
    }
    return tuple(short.get(heading, cell) for heading, cell in zip(headings, cells, strict=True))


def _with_short_names(grid: _Grid, width: int) -> _Grid:
    """Return a grid in which names are as short as needed. Phases stay whole: they tell rows apart."""
    longest = max(grid.widths[0] - (grid.width - width), _LEAST_NAME)

    def short(name: str) -> str:
        method, hyphen, phase = name.rpartition("-") if "-" in name else (name, "", "")
        return shortened(method, longest - len(hyphen + phase)) + hyphen + phase

    return grid._replace(cells=[(short(cells[0]), *cells[1:]) for cells in grid.cells])


def _name(case: Case) -> tuple[str, str]:
    """Return the test of a case, and its method and phase: ``test_x.py::test_agent``, ``forward-rollout``."""
    name = case.result.case
    test = case.id.removesuffix(f" ({name})").removesuffix(f"{name}]")
    if not test.endswith(("[", "-")) or test == case.id:
        return one_line(test), one_line(name)
    return one_line(test.removesuffix("[") if test.endswith("[") else f"{test[:-1]}]"), one_line(name)


def _write_notes(reporter: Any, cases: Sequence[Case], width: int) -> None:
    """Write the sentences below the table, and the address that explains the verdicts."""
    for sentence in notes.sentences((case.id, case.values) for case in cases):
        _write_wrapped(reporter, sentence, width)
    found = notes.addresses((case.result.verdict for case in cases), remarks_of(cases))
    if len(found) == 1:
        reporter.write_line("what '{}' means: {}".format(*found[0]))
    elif found:
        reporter.write_line(f"what the verdicts mean: {VERDICTS_PAGE}")


def _write_wrapped(reporter: Any, sentence: str, width: int, **markup: bool) -> None:
    for line in wrapped(one_line(sentence), max(width, _LEAST_WIDTH), indent=len(_INDENT)):
        reporter.write_line(line, **markup)


def _write_control(reporter: Any, control: Plain | None) -> None:
    if control is None:
        return
    text, noisy = table.control_text(control), table.is_noisy(control)
    reporter.write_line(text, **({"yellow": True} if noisy else {}))


def _write_count(reporter: Any, cases: list[Case], width: int) -> None:
    verdicts = [case.result.verdict for case in cases]
    red = {"red": True} if table.nothing_was_checked(verdicts) else {}
    held = table.held_text(case.values for case in cases)
    _write_wrapped(reporter, table.count(verdicts, remarks_of(cases), held), width, bold=True, **red)
