"""Calls that compile again and again, and branches that only compile when they are first taken."""

from __future__ import annotations

import pytest
import torch
from small_checks import assert_passes, check
from torch import nn

from pytest_torchcompile import Box, Verdict, check_equivalence
from pytest_torchcompile.compiling.recompiling import Recompiling
from pytest_torchcompile.reports.table import HEADINGS, cells


class Branching(nn.Module):
    """Takes one of two ways by its data, as each layout and size does anew."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x) if x.sum() > 0 else self.layer(-x)
        return y


class Counting(Branching):
    """Compiles anew in each call, behind the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x + min(self.calls, 0))


def test_a_branch_on_data_is_no_recompile() -> None:
    assert_passes(check(Branching, "rollout", observation=Box((4,)), backend="eager", examples=10))


def test_a_counter_is_one() -> None:
    result = check(Counting, "rollout", observation=Box((4,)), backend="eager", examples=10)
    assert result.verdict is Verdict.NOT_COMPILED
    assert "calls in a row compiled again" in result.reason


def test_what_is_new_for_the_like_does_not_count() -> None:
    recompiling = Recompiling(2)
    assert not any(recompiling.add("batch 4", {f"frame {n}"}) for n in range(9))
    assert not recompiling.add("batch 7", {"frame 1"})
    assert not recompiling.add("batch 4", {"frame 1"})
    assert recompiling.add("batch 4", {"frame 1", "frame 9"})


def test_a_call_that_compiles_nothing_ends_the_row() -> None:
    recompiling = Recompiling(2)
    compiled = [{"frame 0"}, {"frame 0"}, set(), {"frame 0"}, {"frame 0"}]
    assert [recompiling.add("batch 4", frames) for frames in compiled] == [False, False, False, False, True]


class CountingBesideAnother(Counting):
    """Another method is called in between, which compiles once."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.as_tensor(self.layer(x) / self.calls)

    def value(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.critic(x))


@pytest.mark.parametrize("phase", ["rollout", "lifecycle"])
@pytest.mark.parametrize("methods", ["forward", ["forward", "value"]])
def test_a_counter_has_one_verdict_in_all_phases(methods: str | list[str], phase: str) -> None:
    torch.compiler.reset()
    results = check_equivalence(
        CountingBesideAnother,
        observation=Box((4,)),
        methods=methods,
        phases=phase,
        backend="eager",
        explain_seconds=0,
    )
    assert results[0].verdict is Verdict.NOT_COMPILED
    assert "calls in a row compiled again for shapes already seen" in results[0].reason
    row = dict(zip(HEADINGS, cells("a", results[0].row(), timed=False), strict=False))
    assert row["compiled"] == "each call", "100 % beside `not compiled` is a contradiction"
    assert all(result.verdict.passed for result in results[1:])


def test_a_policy_without_a_counter_is_compiled_once() -> None:
    (result,) = check_equivalence(
        Branching, observation=Box((4,)), phases="lifecycle", backend="eager", explain_seconds=0
    )
    assert result.verdict.passed
    assert dict(zip(HEADINGS, cells("a", result.row(), timed=False), strict=False))["compiled"] == "100%"
