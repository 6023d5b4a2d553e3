"""Hypothesis searches failing examples under the project's own profile, and shrinks them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from faults import backends
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase
from small_checks import assert_passes, check
from torch import nn

from pytest_torchcompile import Box, Discrete, Verdict
from pytest_torchcompile.generation.search import DEFAULT_EXAMPLES, examples_of_profile, search
from pytest_torchcompile.runtime.budget import Budget

Load = Callable[..., None]
NUMBERS = st.integers(0, 10**6)


@pytest.fixture
def load() -> Iterator[Load]:
    """Loads a profile with the given settings for the time of the test."""
    before = settings()

    def load_profile(**changes: Any) -> None:
        settings.register_profile("of-a-test", **{"database": None, "derandomize": False, **changes})
        settings.load_profile("of-a-test")

    load_profile()
    yield load_profile
    settings.register_profile("before-the-test", before)
    settings.load_profile("before-the-test")


class Tried:
    """Fails for numbers from `least` on, and remembers what it was asked."""

    def __init__(self, least: int) -> None:
        self.least = least
        self.numbers: list[int] = []

    def __call__(self, number: int) -> bool:
        self.numbers.append(number)
        return number >= self.least


def run(fails: Any, *, examples: int = 200, shrink_s: float = 10.0, digest: str = "a case") -> bool:
    return search(NUMBERS, fails, examples=examples, shrink_s=shrink_s, digest=digest)


def test_a_failure_is_found_and_shrunk(load: Load) -> None:
    tried = Tried(1000)
    assert run(tried)
    assert tried.numbers[-1] == 1000


def test_nothing_fails(load: Load) -> None:
    tried = Tried(10**7)
    assert not run(tried, examples=30)
    assert len(tried.numbers) == 30


def test_no_examples_are_none(load: Load) -> None:
    tried = Tried(0)
    assert not run(tried, examples=0)
    assert tried.numbers == []


def test_shrinking_ends_in_time(load: Load) -> None:
    """The best example so far is replayed last, whatever time is left."""

    class Slow(Tried):
        def __call__(self, number: int) -> bool:
            time.sleep(0.02)
            return super().__call__(number)

    tried = Slow(1000)
    started = time.monotonic()
    assert run(tried, shrink_s=0.1)
    assert time.monotonic() - started < 10
    assert tried.numbers[-1] >= 1000
    assert tried.numbers[-1] == min(n for n in tried.numbers if n >= 1000)


def test_a_failure_that_does_not_replay(load: Load) -> None:
    calls = 0

    def fails_once(number: int) -> bool:
        nonlocal calls
        calls += 1
        return calls == 5

    assert not run(fails_once)
    assert calls > 5


def test_what_is_no_exception_ends_the_search_at_once(load: Load) -> None:
    calls = 0

    def interrupted(number: int) -> bool:
        nonlocal calls
        calls += 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)
    assert calls == 1


# --- the profile ----------------------------------------------------------------------------------


def test_the_number_of_examples_is_the_profiles(load: Load) -> None:
    load(max_examples=7)
    assert examples_of_profile() == 7


def test_a_profile_that_says_nothing_leaves_our_default(load: Load) -> None:
    load(max_examples=100)
    assert examples_of_profile() == DEFAULT_EXAMPLES == 50


@pytest.mark.parametrize(("option", "drawn"), [(None, 7), (3, 3)])
def test_a_check_draws_so_many_examples(load: Load, option: int | None, drawn: int) -> None:
    load(max_examples=7)
    fixed = check(lambda: nn.Linear(8, 4), observation=Box((8,)), examples=0)
    result = check(lambda: nn.Linear(8, 4), observation=Box((8,)), examples=option)
    assert_passes(result)
    assert result.examples == fixed.examples + drawn


def test_a_deadline_of_the_profile_is_no_failure(load: Load) -> None:
    load(deadline=1)

    def slow(number: int) -> bool:
        time.sleep(0.01)
        return False

    assert not run(slow, examples=3)


def test_phases_of_the_profile_are_kept(load: Load) -> None:
    load(phases=[Phase.explicit, Phase.reuse, Phase.generate])
    tried = Tried(1000)
    assert run(tried)
    first = next(n for n in tried.numbers if n >= 1000)
    assert tried.numbers[-1] == first, "not shrunk, since the profile does not shrink"


def test_a_derandomized_profile_draws_the_same_each_time(load: Load) -> None:
    load(derandomize=True)
    first, second, other = Tried(10**7), Tried(10**7), Tried(10**7)
    run(first, examples=20)
    run(second, examples=20)
    run(other, examples=20, digest="another case")
    assert first.numbers == second.numbers
    assert first.numbers != other.numbers, "each case draws its own"


def test_the_seed_of_the_command_line(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--hypothesis-seed`` sets this, for all tests of the run."""

    def drawn(seed: int) -> list[int]:
        monkeypatch.setattr(hypothesis.core, "global_force_seed", seed)
        tried = Tried(10**7)
        run(tried, examples=20)
        return tried.numbers

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_what_failed_last_time_is_tried_first(load: Load) -> None:
    load(database=InMemoryExampleDatabase())
    run(Tried(1000))
    again, other = Tried(1000), Tried(1000)
    run(again)
    run(other, digest="another case")
    assert again.numbers[0] == 1000
    assert other.numbers[0] != 1000, "each case has entries of its own"


# --- in a check -----------------------------------------------------------------------------------


class Rare(nn.Module):
    """Wrong for one token in two thousand, which the fixed examples hardly meet."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2000, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.table(x)
        return y + 1e-3 * (x == 1500)[:, None] if torch.compiler.is_compiling() else y


def test_a_check_finds_again_what_it_found(load: Load) -> None:
    """The database works across checks; the first check needed many examples."""
    load(database=InMemoryExampleDatabase())
    options = {"observation": Discrete(2000), "shrink_seconds": 300.0}
    for seed in range(60):  # each finds it more often than not
        found = check(Rare, examples=500, seed=seed, **options)
        if found.verdict is Verdict.DIFFERS:
            break
    assert found.verdict is Verdict.DIFFERS
    assert "1500" in found.example
    again = check(Rare, examples=1, seed=seed, **options)
    assert again.verdict is Verdict.DIFFERS


def test_the_example_of_a_check_is_small() -> None:
    """One bad element in a batch of boards is described in one line."""

    class Planes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return y + 1e-2 * (x[:, 1:2] < -5) if torch.compiler.is_compiling() else y

    result = check(Planes, observation=Box((4, 5, 5)), examples=150, shrink_seconds=300.0)
    assert result.verdict is Verdict.DIFFERS
    assert result.example.startswith("batch 1; observation: zeros, [0, 1, ")
    assert result.example.count("=") == 1


def test_shrinking_takes_no_longer_than_the_option_says() -> None:
    def slow_and_wrong(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            time.sleep(0.02)
            return tuple(output + 1e-3 for output in graph(*args))

        return run

    started = time.monotonic()
    result = check(
        lambda: nn.Linear(8, 4),
        observation=Box((8,)),
        backend=slow_and_wrong,
        shrink_seconds=0.1,
        examples=500,
    )
    assert result.verdict is Verdict.DIFFERS
    assert time.monotonic() - started < 30


def test_the_seconds_of_a_case_count_compiling() -> None:
    def slow(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        time.sleep(0.3)
        return graph

    result = check(lambda: nn.Linear(8, 4), observation=Box((8,)), backend=slow, max_seconds=0.8, examples=20)
    assert result.verdict is Verdict.EQUAL
    assert any("the case took more than max_seconds=0.8" in note for note in result.notes)
    full = check(lambda: nn.Linear(8, 4), observation=Box((8,)), examples=20)
    assert full.examples > result.examples


class Slow(nn.Module):
    """Counts its calls, each of which may take long though nothing is compiled."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.look_ahead()
        return self.net(x)

    @torch.compiler.disable
    def look_ahead(self) -> None:
        Slow.calls += 1


@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
def test_the_seconds_of_a_case_count_calls_and_what_is_left_out_is_said(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slow, "calls", 0)
    monkeypatch.setattr(Budget, "spent", property(lambda budget: 300.0 if Slow.calls > 120 else 0.0))
    result = check(Slow, phase, observation=Box((8,)), max_seconds=299.0, examples=500)
    assert result.verdict is Verdict.EQUAL
    assert 1 <= result.examples < 500
    reason = "the case took more than max_seconds=299"
    more = "stories" if phase == "lifecycle" else "examples drawn"
    assert f"no more {more}: {reason}" in result.notes
    assert f"beyond what was declared not all was tried: {reason}" in result.notes


def test_a_failure_that_depends_on_what_ran_before_is_kept() -> None:
    """It does not replay, and is still a difference."""
    change = backends.changed(lambda outputs, call: [o + 1e-2 * (call == 3) for o in outputs])
    result = check(lambda: nn.Linear(8, 4), observation=Box((8,)), backend=change)
    assert result.verdict is Verdict.DIFFERS
    assert "depends on what ran before: differed on call 3" in result.reason
    assert result.differences
    assert result.example


def test_the_file_database_of_a_project(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from hypothesis import strategies as st
        from pytest_torchcompile.generation.search import search

        def test_numbers():
            tried = []
            def fails(number):
                tried.append(number)
                return number >= 1000
            search(st.integers(0, 10**6), fails, examples=200, shrink_s=5.0, digest="a case")
            with open("first.txt", "a") as file:
                file.write(f"{tried[0]}\\n")
        """
    )
    for _ in range(2):
        # The profile that Hypothesis loads by itself in CI has no database.
        pytester.runpytest_subprocess(
            "--hypothesis-profile=default", "-p", "no:cacheprovider"
        ).assert_outcomes(passed=1)
    assert Path(pytester.path, ".hypothesis", "examples").is_dir()
    first, second = Path(pytester.path, "first.txt").read_text().split()
    assert first != "1000"
    assert second == "1000"


def test_what_makes_a_failing_example_smaller_is_counted_apart() -> None:
    def shift(outputs: list[Any], call: int) -> list[Any]:
        return [output + 1 for output in outputs]

    result = check(
        lambda: nn.Linear(3, 2), observation=Box((3,)), backend=backends.changed(shift), examples=20
    )
    assert result.verdict is Verdict.DIFFERS
    assert result.examples == 1, "the first example differs"
    assert result.attempts > 0
    assert len(result.deviations) == result.examples + result.attempts
    right = check(lambda: nn.Linear(3, 2), observation=Box((3,)), backend="eager", examples=20)
    assert (right.verdict, right.attempts) == (Verdict.EQUAL, 0)
