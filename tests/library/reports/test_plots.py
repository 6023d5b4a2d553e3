"""The plots of a page as numbers: where each mark stands."""

import dataclasses
import itertools
import math

import pytest
from documents import differing, document, result, shares, speedup

from pytest_torchcompile import Deviation, Verdict
from pytest_torchcompile.reports import case_plots, plots
from pytest_torchcompile.reports.document import cases_of


def cases(**results):
    return cases_of(document(**results))


def case(found):
    return cases(test_a=found)[0]


# --- speedups and compile times -------------------------------------------------------------------


def test_nothing_timed_or_compiled_is_no_plot():
    assert plots.speedups(cases(test_a=result())) is None
    assert plots.compile_times([]) is None


def test_a_speedup_lies_in_its_interval_right_of_one():
    found = plots.speedups(cases(test_a=result(), test_b=result(speedup=speedup(2.0, 0.5, quiet=4.0))))
    (row,) = found.rows
    assert row.case == 1
    assert found.margin[0] < found.one < found.margin[1] < row.low < row.ratio < row.high < row.quiet <= 100
    # Equal ratios are equal distances.
    assert row.quiet - row.ratio == pytest.approx(row.ratio - found.one, abs=0.02)
    assert row.conclusion == "faster"
    assert [tick.label for tick in found.ticks] == ["1", "1.5", "2", "3"]


@pytest.mark.parametrize("ratio", [0.0, 1e-9, 1e9])
def test_an_absurd_speedup_is_drawn_at_the_edge(ratio):
    found = plots.speedups(cases(test_a=result(speedup=speedup(ratio, 0.0))))
    assert found.rows[0].ratio in (0, 100)


def test_the_longest_compile_time_fills_the_width():
    capture = result().capture
    halves = {f"test_{i}": result(capture=dataclasses.replace(capture, compile_s=i)) for i in (1.0, 2.0)}
    found = plots.compile_times(cases(**halves))
    assert [row.width for row in found.rows] == [50, 100]
    instant = result(capture=dataclasses.replace(capture, compile_s=0.0))
    assert plots.compile_times(cases(test_a=instant)).rows[0].width == 0


# --- the examples of a case -----------------------------------------------------------------------


def example(number, share, verdict=Verdict.EQUAL, allowed=1e-5, **fields):
    return Deviation(
        example=number,
        batch=4,
        verdict=verdict,
        path="output",
        difference=share * allowed,
        allowed=allowed,
        **fields,
    )


def test_no_difference_is_no_plot():
    assert case_plots.deviations(case(result(deviations=()))) is None
    assert case_plots.deviations(case(result(deviations=shares(0.0)))) is None


def test_each_verdict_and_each_measure_of_rounding_has_its_marks():
    found = case_plots.deviations(
        case(
            result(
                deviations=(
                    example(1, 0.1),
                    example(2, 0.0),
                    example(3, 2.0, Verdict.WITHIN_ROUNDING, floor=4e-5),
                    example(4, 100.0, Verdict.DIFFERS, floor=1e-5, eager_error=1e-6, compiled_error=1e-3),
                )
            )
        )
    )
    marks = {series.symbol: series.marks for series in found.series}
    assert {symbol: len(them) for symbol, them in marks.items()} == {
        "equal": 2,
        "rounding": 1,
        "differs": 1,
        "floor": 2,
        "eager": 1,
        "compiled": 1,
    }
    by_height = [marks["differs"][0], marks["floor"][0], marks["rounding"][0], *marks["equal"]]
    assert [mark.y for mark in by_height] == sorted(mark.y for mark in by_height)
    assert marks["floor"][1].y == found.tolerance
    assert marks["compiled"][0].y == marks["differs"][0].y
    assert marks["eager"][0].y == marks["equal"][0].y
    labels = {tick.label: tick.at for tick in found.y_ticks}
    assert labels["exact"] == marks["equal"][1].y
    assert labels["tolerance"] == found.tolerance
    assert [tick.label for tick in found.x_ticks] == ["1", "2", "3", "4"]
    assert marks["differs"][0].label == "example 4, batch 4: output, 100 tolerances"
    assert found.summary == (
        "2 equal, 1 within rounding, 1 differs; the largest difference: example 4, batch 4: output, 100 tolerances"
    )


@pytest.mark.parametrize("difference", [0.0, math.inf, 1e300])
def test_what_has_no_size_is_drawn_above_all_others(difference):
    odd = Deviation(
        example=2,
        batch=4,
        verdict=Verdict.DIFFERS,
        difference=difference,
        allowed=1e-5 if difference else 0.0,
    )
    found = case_plots.deviations(case(result(deviations=(example(1, 1e6), odd))))
    differs = next(series for series in found.series if series.symbol == "differs")
    highest = min(mark.y for series in found.series for mark in series.marks)
    assert differs.marks[0].y == highest
    assert highest in [tick.at for tick in found.y_ticks if tick.label == "no size"]


def test_examples_without_a_size_alone_are_drawn():
    odd = Deviation(example=1, batch=4, verdict=Verdict.DIFFERS)
    (series,) = case_plots.deviations(case(result(deviations=(odd,)))).series
    assert (series.symbol, len(series.marks)) == ("differs", 1)


def test_labels_do_not_touch():
    for top in (1e-3, 1.0, 1e3, 1e12, 1e29):
        found = case_plots.deviations(case(result(deviations=(example(1, top), example(2, math.inf)))))
        heights = sorted(tick.at for tick in found.y_ticks)
        assert all(below - above >= 5 for above, below in itertools.pairwise(heights))


# --- pictures -------------------------------------------------------------------------------------


def pictured(grid):
    differs = differing()
    place = dataclasses.replace(differs.differences[0], grid=grid)
    return case_plots.picture(case(dataclasses.replace(differs, differences=(place,))))


def test_any_difference_at_all_is_seen():
    found = pictured(((0.0, 4.0, 0.0, 0.0), (0.0, 1.0, 0.001, 0.0)) * 2)
    assert (found.rows, found.columns) == (4, 4)
    cells = [(cell.row, cell.column, cell.opacity) for cell in found.cells]
    assert cells[:3] == [(0, 1, 1.0), (1, 1, 0.25), (1, 2, case_plots.FAINTEST)]
    assert len(cells) == 6


@pytest.mark.parametrize("grid", [(), ((1.0,) * 20,), ((1.0, 2.0, 3.0),) * 5, ((0.0,) * 8,) * 4, ((),) * 4])
def test_no_picture_of_what_the_text_says(grid):
    assert pictured(grid) is None
