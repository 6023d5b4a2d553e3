"""Blocks, ratios and conclusions of timings, with simulated clocks: no test depends on the machine's speed."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Callable

import pytest

from pytest_torchcompile import Speedup
from pytest_torchcompile.reports.table import is_noisy
from pytest_torchcompile.timing.blocks import PAIRS, Blocks, Timed, interleaved


class Clock:
    """Two sides whose calls take seconds drawn from `seconds`, noted in the order in which they ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: Callable[[], float]) -> None:
        self.now = 0.0
        self.ran: list[str] = []
        self.collecting: set[bool] = set()
        self._seconds = seconds
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def side(self, name: str) -> Timed:
        return Timed(lambda: self._call(name))

    def _call(self, name: str) -> float:
        taken = self._seconds[name]()
        self.now += taken
        self.ran.append(name)
        self.collecting.add(gc.isenabled())
        return taken

    def blocks(self, **arguments: float) -> Blocks:
        return interleaved(self.side("a"), self.side("b"), **{"seconds": 5.0, **arguments})


def test_the_ratio_of_two_constant_times(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Clock(monkeypatch, a=lambda: 0.03, b=lambda: 0.02).blocks()
    assert blocks.ratio() == pytest.approx(1.5)
    assert blocks.interval() == pytest.approx((1.5, 1.5))
    assert blocks.quiet_ratio() == pytest.approx(1.5)


def test_a_machine_that_slows_down_does_not_change_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows to a tenth within the run; timed one after the other, the two would differ greatly."""
    clock = Clock(monkeypatch, a=lambda: 0.002 * slowness(), b=lambda: 0.001 * slowness())

    def slowness() -> float:
        return 1 + 2 * clock.now

    blocks = clock.blocks()
    assert blocks.ratio() == pytest.approx(2.0, rel=0.05)
    low, high = blocks.interval()
    assert 1.9 < low <= high < 2.1


def test_rare_disturbances_of_one_side_do_not_change_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(0)
    disturbed = lambda: 0.001 if draws.random() < 0.9 else 0.1  # noqa: E731
    blocks = Clock(monkeypatch, a=disturbed, b=lambda: 0.001).blocks()
    assert blocks.ratio() == pytest.approx(1.0)


def test_blocks_alternate_in_random_order(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, a=lambda: 0.002, b=lambda: 0.002)
    blocks = clock.blocks()
    size, calibration = len(blocks.first[0]), 4
    pair = 2 * size + 3 * 2
    pairs = [clock.ran[i : i + pair] for i in range(calibration, len(clock.ran), pair)]
    shapes = [[(n, len(list(g))) for n, g in itertools.groupby(each)] for each in pairs]
    around = {"a": "b", "b": "a"}
    for (outer, before), (inner, within), (again, after) in shapes:
        assert (again, inner) == (outer, around[outer])
        assert (before, within, after) == ((size + 1) // 2 + 2, size + 2, size // 2 + 2)
    assert {"a", "b"} == {shape[0][0] for shape in shapes}, "either may come first"


def test_the_first_calls_of_a_block_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a switch the first two calls of a side are slow, as with cold caches."""
    clock = Clock(monkeypatch, a=lambda: settled("a"), b=lambda: 0.002)

    def settled(name: str) -> float:
        recent = clock.ran[-2:]
        return 0.001 if recent == [name, name] else 0.05

    assert clock.blocks().ratio() == pytest.approx(0.5)


def test_the_budget_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, a=lambda: 0.02, b=lambda: 0.02)
    blocks = clock.blocks(seconds=3.0)
    assert clock.now < 3.5
    assert len(blocks.first) == len(blocks.second) >= PAIRS[0]


def test_fast_calls_end_before_the_budget_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, a=lambda: 1e-6, b=lambda: 1e-6)
    assert len(clock.blocks(seconds=100.0).first) == PAIRS[1]
    assert clock.now < 1


def test_slow_calls_are_timed_often_enough_for_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, a=lambda: 3.0, b=lambda: 2.0)
    blocks = clock.blocks(seconds=1.0)
    assert len(blocks.first) == PAIRS[0]
    assert clock.now <= 3 * (PAIRS[0] + 1) * 5


def test_as_many_rounds_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Clock(monkeypatch, a=lambda: 1.0, b=lambda: 1.0).blocks(seconds=1.0, min_rounds=40)
    assert sum(map(len, blocks.first)) >= 40
    assert sum(map(len, blocks.second)) >= 40


@pytest.mark.parametrize("on", [True, False])
def test_garbage_is_not_collected_meanwhile(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    before = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        clock = Clock(monkeypatch, a=lambda: 0.01, b=lambda: 0.01)
        clock.blocks(seconds=0.1)
        assert clock.collecting == {False}
        assert gc.isenabled() is on
    finally:
        (gc.enable if before else gc.disable)()


def test_garbage_is_collected_again_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, a=lambda: 1 / 0, b=lambda: 0.01)
    with pytest.raises(ZeroDivisionError):
        clock.blocks()
    assert gc.isenabled()


def test_the_users_random_numbers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(3)
    expected = random.Random(3).random()
    Clock(monkeypatch, a=lambda: 0.01, b=lambda: 0.01).blocks(seconds=0.1).interval()
    assert random.random() == expected


# --- conclusions ----------------------------------------------------------------------------------


def speedup(low: float, ratio: float, high: float, *, quiet: float | None = None, **more: float) -> Speedup:
    quiet = ratio if quiet is None else quiet
    return Speedup(ratio=ratio, interval=(low, high), quiet=quiet, eager_s=(1.0,), compiled_s=(1.0,), **more)


@pytest.mark.parametrize(
    ("timing", "conclusion"),
    [
        (speedup(1.3, 1.4, 1.5), "faster"),
        (speedup(0.6, 0.7, 0.8), "slower"),
        (speedup(1.01, 1.02, 1.03), "no clear difference"),
        (speedup(0.96, 0.97, 0.98), "no clear difference"),
        (speedup(1.04, 1.4, 1.5), "no clear difference"),
        (speedup(0.6, 0.7, 0.96), "no clear difference"),
        (speedup(1.3, 1.4, 1.5, quiet=1.04), "no clear difference"),
        (speedup(0.6, 0.7, 0.8, quiet=0.99), "no clear difference"),
    ],
)
def test_a_conclusion_needs_interval_and_quiet_ratio_beyond_5_percent(
    timing: Speedup, conclusion: str
) -> None:
    assert timing.conclusion == conclusion


def test_few_rounds_allow_no_conclusion_and_name_the_seconds() -> None:
    few, enough = (
        Speedup(
            ratio=2.02, interval=(2.0, 2.1), quiet=2.0, eager_s=(0.4,) * n, compiled_s=(0.2,) * n, pairs=n
        )
        for n in (5, 8)
    )
    assert few.conclusion == "too few rounds"
    assert few.advice == "too few rounds (5 of 8): give --compile-benchmark-seconds=20"
    assert few.figures()["advice"] == few.advice
    assert (enough.conclusion, enough.advice) == ("faster", "")
    assert "advice" not in enough.figures()


@pytest.mark.parametrize("pairs", [5, 8, 11])
def test_the_interval_of_few_pairs_is_their_range(pairs: int) -> None:
    """Resampling would leave out the ends of 8 and 11 pairs."""
    ratios = [1.0 + number / 10 for number in range(pairs)]
    blocks = Blocks([[ratio] for ratio in ratios], [[1.0]] * pairs)
    assert blocks.interval() == pytest.approx((ratios[0], ratios[-1]))


def test_the_interval_of_many_pairs_leaves_out_outliers() -> None:
    ratios = [0.1, *[1.5] * 30, 9.0]
    assert Blocks([[ratio] for ratio in ratios], [[1.0]] * 32).interval() == pytest.approx((1.5, 1.5))


@pytest.mark.parametrize(
    ("timing", "misses"),
    [
        (speedup(0.98, 1.0, 1.02), False),
        (speedup(1.02, 1.03, 1.04), False),
        (speedup(1.0, 1.03, 1.07), True),
        (speedup(0.9, 1.0, 1.02), True),
    ],
)
def test_a_control_that_misses_one(timing: Speedup, misses: bool) -> None:
    assert is_noisy(timing.figures()) is misses


@pytest.mark.parametrize(
    ("timing", "slow"),
    [
        (speedup(0.8, 0.9, 0.95), False),
        (speedup(0.8, 0.9, 0.95, least=0.97), True),
        (speedup(0.8, 0.9, 0.95, least=0.93), False),
        (speedup(1.1, 1.2, 1.3, least=1.5), True),
    ],
)
def test_too_slow_is_what_lies_below_with_its_whole_interval(timing: Speedup, slow: bool) -> None:
    assert timing.too_slow is slow
