"""Positions and ticks of axes."""

from __future__ import annotations

import pytest

from pytest_torchcompile.reports.scales import Scale


def labels(scale: Scale, *arguments: float) -> list[str]:
    return [tick.label for tick in scale.ticks(*arguments)]  # type: ignore[arg-type]


def test_positions_are_percentages() -> None:
    scale = Scale(low=2, high=6)
    assert [scale.at(value) for value in (2, 3, 4, 6)] == [0, 25, 50, 100]
    assert [scale.at(value) for value in (-1, 100, float("inf"))] == [0, 100, 100]


def test_equal_ratios_are_equal_distances() -> None:
    scale = Scale(low=0.01, high=100, logarithmic=True)
    assert [scale.at(value) for value in (0, 0.01, 0.1, 1, 10, 1e6)] == [0, 0, 25, 50, 75, 100]


@pytest.mark.parametrize(
    ("high", "expected"),
    [
        (1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (12.3, ["0", "5", "10"]),
        (60, ["0", "10", "20", "30", "40", "50"]),
        (3e-7, ["0", "5e-08", "1e-07", "1.5e-07", "2e-07", "2.5e-07"]),
    ],
)
def test_ticks_are_round(high: float, expected: list[str]) -> None:
    assert labels(Scale(low=0, high=high))[: len(expected)] == expected


def test_ticks_of_numbers_are_whole() -> None:
    assert labels(Scale(low=0.5, high=3.5), 6, 1) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.76, 1.3, ["0.8", "0.9", "1", "1.1", "1.2", "1.3"]),
        (0.5, 6, ["0.5", "1", "2", "5"]),
        (0.01, 1000, ["0.01", "0.1", "1", "10", "100", "1000"]),
        (1e-6, 1e6, ["1e-06", "0.001", "1", "1000", "1e+06"]),
        (1e-30, 1e30, ["1e-22", "1e-11", "1", "1e+11", "1e+22"]),
    ],
)
def test_ticks_of_ratios(low: float, high: float, expected: list[str]) -> None:
    assert labels(Scale(low=low, high=high, logarithmic=True)) == expected


@pytest.mark.parametrize("low", [1e-3, 0.01, 0.3, 0.77, 0.95])
@pytest.mark.parametrize("high", [1.06, 1.3, 7.0, 80.0, 1e4])
@pytest.mark.parametrize("most", [2, 4, 8])
def test_ticks_of_ratios_are_few_and_one_is_among_them(low: float, high: float, most: int) -> None:
    scale = Scale(low=low, high=high, logarithmic=True)
    found = scale.ticks(most)
    assert 1 <= len(found) <= most
    assert "1" in [tick.label for tick in found]
    assert all(0 <= tick.at <= 100 for tick in found)
