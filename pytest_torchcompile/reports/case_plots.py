"""Computes the plots of one case. The templates of the page draw them as SVG.

Positions are percentages of the plot, from its left and its top.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pytest_torchcompile.reports.document import Case
from pytest_torchcompile.reports.scales import Scale, Tick
from pytest_torchcompile.results import Deviation, Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """One example in a plot.

    Args:
        x: its position from the left.
        y: its position from the top.
        label: which example, and of what; empty where it needs no attention.
    """

    x: float
    y: float
    label: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """Marks of one kind.

    Args:
        symbol: the name of the mark.
        label: what such a mark means.
        marks: where they are.
    """

    symbol: str
    label: str
    marks: tuple[Mark, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviations:
    """The difference of each example in units of its tolerance.

    Args:
        series: the kinds of marks that there are.
        x_ticks: numbers of examples.
        y_ticks: differences.
        tolerance: the position of the tolerance, from the top.
        summary: the plot in words.
    """

    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    tolerance: float
    summary: str


EXACT = 1e-5
"""Smaller differences, and zero, are drawn at this height, because the axis is logarithmic."""
LARGEST = 1e30
"""Larger differences are drawn like those without a size, such as another dtype."""
_SYMBOLS = {Verdict.EQUAL: "equal", Verdict.WITHIN_ROUNDING: "rounding", Verdict.DIFFERS: "differs"}
_LEAST_GAP = 6.0
"""The least distance between two labels, in percent of the plot's height."""

_Points = list[tuple[Deviation, float | None]]
"""Examples with the height of their marks in tolerances, or None for a difference without a size."""


def deviations(case: Case) -> Deviations | None:
    """Return a plot of each example's difference in units of its tolerance.

    It is None if no example was recorded, or if all are equal to the last bit.
    """
    found = case.result.deviations
    if not any(deviation.share != 0 or deviation.floor for deviation in found):
        return None
    kinds = [(*kind, points) for kind, points in _kinds(found).items() if points]
    heights = [height for *_, points in kinds for _, height in points]
    largest = max([10.0, *(height for height in heights if height is not None)])
    no_size = 10 * largest
    x = Scale(low=min(d.example for d in found) - 0.5, high=max(d.example for d in found) + 0.5)
    y = Scale(low=EXACT / 2, high=3 * (no_size if None in heights else largest), logarithmic=True)

    def from_top(height: float | None) -> float:
        return round(100 - y.at(no_size if height is None else max(height, EXACT)), 2)

    named = [Tick(at=from_top(EXACT), label="exact"), Tick(at=from_top(1), label="tolerance")]
    named += [Tick(at=from_top(None), label="no size")] if None in heights else []
    powers = (Tick(at=round(100 - tick.at, 2), label=tick.label) for tick in y.ticks(8))
    between = [tick for tick in powers if all(abs(tick.at - other.at) >= _LEAST_GAP for other in named)]
    series = (
        Series(
            symbol=symbol,
            label=label,
            marks=tuple(
                Mark(
                    x=x.at(deviation.example),
                    y=from_top(height),
                    label=_text(deviation) if symbol in ("rounding", "differs") else "",
                )
                for deviation, height in points
            ),
        )
        for symbol, label, points in kinds
    )
    return Deviations(
        series=tuple(series),
        x_ticks=x.ticks(least_step=1),
        y_ticks=(*named, *between),
        tolerance=from_top(1),
        summary=_summary(found),
    )


def _kinds(found: Sequence[Deviation]) -> dict[tuple[str, str], _Points]:
    """Return the points of each kind of mark, by its symbol and label."""
    kinds: dict[tuple[str, str], _Points] = {
        (symbol, verdict.value): [(d, _height(d.share)) for d in found if d.verdict is verdict]
        for verdict, symbol in _SYMBOLS.items()
    }
    for symbol, label, field in (
        ("floor", "rounding moves eager", "floor"),
        ("eager", "eager to float64", "eager_error"),
        ("compiled", "compiled to float64", "compiled_error"),
    ):
        known = [(d, getattr(d, field)) for d in found if d.allowed]
        kinds[symbol, label] = [(d, _height(size / d.allowed)) for d, size in known if size is not None]
    return kinds


def _height(share: float | None) -> float | None:
    return None if share is None or share > LARGEST else share


def _text(deviation: Deviation) -> str:
    size = "" if deviation.share is None else f", {deviation.share:.3g} tolerances"
    return f"example {deviation.example}, batch {deviation.batch}: {deviation.path}{size}"


def _summary(found: Sequence[Deviation]) -> str:
    """Return the number of examples per verdict, and the largest difference."""
    verdicts = [deviation.verdict for deviation in found]
    counts = ", ".join(f"{verdicts.count(v)} {v.value}" for v in _SYMBOLS if v in verdicts)
    worst = max(found, key=lambda d: float("inf") if d.share is None else d.share)
    return f"{counts}; the largest difference: {_text(worst)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a picture with a difference in it.

    Args:
        row: from the top, from 0.
        column: from the left, from 0.
        opacity: its difference as a share of the largest, `FAINTEST` at least.
    """

    row: int
    column: int
    opacity: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """Where in its tensor the worst difference lies.

    Args:
        rows: how many there are.
        columns: how many there are.
        cells: those with a difference.
    """

    rows: int
    columns: int
    cells: tuple[Cell, ...]


FAINTEST = 0.15
"""The opacity of the smallest difference, so that it can be seen."""
FEWEST_CELLS = 16
"""A picture with fewer cells would show no more than the text of the difference says."""


def picture(case: Case) -> Picture | None:
    """Return a picture of where in its tensor the worst difference lies.

    It is None if the picture would have fewer than `FEWEST_CELLS` cells, or one cell that differs.
    """
    grid = case.result.differences[0].grid if case.result.differences else ()
    largest = max((cell for row in grid for cell in row), default=0.0)
    cells = tuple(
        Cell(row=row, column=column, opacity=round(max(FAINTEST, cell / largest), 2))
        for row, values in enumerate(grid)
        for column, cell in enumerate(values)
        if cell
    )
    if len(grid) < 2 or len(grid) * len(grid[0]) < FEWEST_CELLS or len(cells) < 2:
        return None
    return Picture(rows=len(grid), columns=len(grid[0]), cells=cells)
