"""Draws plots as SVG. Their colours are CSS variables of the page, which has a light and a dark theme."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pytest_torchcompile.reports.document import Case
from pytest_torchcompile.results import MARGIN, Deviation, Verdict
from pytest_torchcompile.texts import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib has no CSS variables. It draws with these colours, which `_svg` replaces by variables.
TEXT, GRID, GOOD, WARN, BAD, ACCENT = (f"#0{i}0{i}0{i}" for i in range(1, 7))
_VARIABLES = dict(
    zip((TEXT, GRID, GOOD, WARN, BAD, ACCENT), ["text", "grid", "good", "warn", "bad", "accent"], strict=True)
)
_STYLE = {
    "svg.fonttype": "none",  # keep text as text, which can be searched and selected
    "text.parse_math": False,  # a name may contain a dollar sign
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "font.size": 9,
    "legend.frameon": False,
}
_WIDTH = 8.0
_COLORS = {Verdict.EQUAL: GOOD, Verdict.WITHIN_ROUNDING: WARN, Verdict.DIFFERS: BAD}
_MARKERS = {Verdict.EQUAL: "o", Verdict.WITHIN_ROUNDING: "^", Verdict.DIFFERS: "X"}
EXACT = 1e-5
"""Smaller differences, and zero, are drawn at this height, because the axis is logarithmic."""


def deviations(case: Case) -> str:
    """Return a plot of each example's difference in units of its tolerance; empty if none were recorded."""
    found = case.result.deviations
    if not found:
        return ""
    return _svg(3.0, lambda axes: _draw_deviations(axes, found), visible(case.id))


def _draw_deviations(axes: Axes, found: Sequence[Deviation]) -> None:
    numeric = [deviation for deviation in found if deviation.share is not None]
    top = max([10.0, *(10 * (deviation.share or 0) for deviation in numeric)])
    for verdict, color in _COLORS.items():
        some = [deviation for deviation in found if deviation.verdict is verdict]
        heights = [top if d.share is None else max(d.share, EXACT) for d in some]
        if some:
            marker = _MARKERS[verdict]
            axes.scatter(
                [d.example for d in some], heights, s=22, color=color, marker=marker, label=verdict.value
            )
    floored = [d for d in numeric if d.floor and d.allowed]
    if floored:
        heights = [max((d.floor or 0) / d.allowed, EXACT) for d in floored]
        axes.scatter(
            [d.example for d in floored], heights, s=60, marker="_", color=TEXT, label="rounding moves eager"
        )
    for side, marker in (("eager", "1"), ("compiled", "2")):
        known = [(d, getattr(d, f"{side}_error")) for d in numeric if d.allowed]
        known = [(d, error) for d, error in known if error is not None]
        if known:
            heights = [max(error / d.allowed, EXACT) for d, error in known]
            label = f"{side} to float64"
            axes.scatter(
                [d.example for d, _ in known], heights, s=34, marker=marker, color=ACCENT, label=label
            )
    axes.axhline(1, color=BAD, linewidth=1, linestyle="--")
    axes.annotate("tolerance", (1, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=BAD)
    axes.set_yscale("log")
    axes.set_ylim(EXACT / 2, top * 2)
    axes.yaxis.set_major_formatter(FuncFormatter(_share))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("example")
    axes.set_ylabel("difference, in tolerances")
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.16), ncols=6, handletextpad=0.2, columnspacing=1.2)


def _share(value: float, position: int | None = None) -> str:
    return "exact" if value <= EXACT else f"{value:g}"


FAINTEST = 0.15
"""The opacity of the smallest difference, so that it can be seen."""


def picture(case: Case) -> str:
    """Return a picture of where in its tensor the worst difference lies; empty below two dimensions."""
    grid = case.result.differences[0].grid if case.result.differences else ()
    if len(grid) < 2:
        return ""
    return _svg(
        0.4 + 0.2 * len(grid), lambda axes: _draw_picture(axes, grid), f"picture of {visible(case.id)}"
    )


def _draw_picture(axes: Axes, grid: Sequence[Sequence[float]]) -> None:
    largest = max(map(max, grid))
    for row, cells in enumerate(grid):
        for column, cell in enumerate(cells):
            if cell:
                opacity = max(FAINTEST, cell / largest)
                axes.add_patch(Rectangle((column, row), 1, 1, color=BAD, linewidth=0, alpha=opacity))
    axes.set_xlim(0, len(grid[0]))
    axes.set_ylim(len(grid), 0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)


def speedups(cases: Sequence[Case]) -> str:
    """Return a forest plot of the speedup of each case with its interval; empty if nothing was timed."""
    timed = [case for case in cases if case.speedup]
    if not timed:
        return ""
    return _svg(0.9 + 0.28 * len(timed), lambda axes: _draw_speedups(axes, timed), "speedups")


def _draw_speedups(axes: Axes, timed: Sequence[Case]) -> None:
    colors = {"faster": GOOD, "slower": BAD}
    axes.axvspan(1 / MARGIN, MARGIN, color=GRID, alpha=0.5, linewidth=0)
    axes.axvline(1, color=TEXT, linewidth=0.8)
    for place, case in enumerate(timed):
        figures = case.speedup
        color = colors.get(figures["conclusion"], TEXT)
        ratio, low, high = (figures[f"speedup{end}"] for end in ("", "_low", "_high"))
        axes.plot([low, high], [place, place], color=color, linewidth=2)
        axes.plot([ratio], [place], color=color, marker="s", markersize=5)
        axes.plot([figures["speedup_quiet"]], [place], marker="d", markersize=5, mfc="none", color=color)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), max(high, 1.25))
    _name_rows(axes, timed)
    axes.set_xlabel("speedup: eager's time over compiled's")


def compile_times(cases: Sequence[Case]) -> str:
    """Return a bar plot of compile times with the numbers of graphs; empty if nothing was compiled."""
    compiled = [case for case in cases if case.result.capture.graphs]
    if not compiled:
        return ""
    return _svg(0.9 + 0.28 * len(compiled), lambda axes: _draw_compile_times(axes, compiled), "compile times")


def _draw_compile_times(axes: Axes, compiled: Sequence[Case]) -> None:
    captures = [case.result.capture for case in compiled]
    bars = axes.barh(range(len(compiled)), [c.compile_s for c in captures], color=ACCENT, height=0.6)
    axes.bar_label(bars, [f"{c.graphs} graph{'' if c.graphs == 1 else 's'}" for c in captures], padding=4)
    axes.margins(x=0.15)
    _name_rows(axes, compiled)
    axes.set_xlabel("seconds spent compiling")


_LONGEST_NAME = 60


def _name_rows(axes: Axes, cases: Sequence[Case]) -> None:
    names = [visible(case.id) for case in cases]
    names = [name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}" for name in names]
    axes.set_yticks(range(len(cases)), names)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)


def _svg(height: float, draw: Callable[[Axes], None], name: str) -> str:
    """Return what `draw` draws as an ``<svg>`` element. `name` makes its ids differ from other plots' ids."""
    with style.context({**_STYLE, "svg.hashsalt": name}, after_reset=True):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg


_METADATA = ("Creator", "Date", "Format", "Type")
