"""The state that eager keeps and the check can't restore is named, with its values; other state is not."""

from __future__ import annotations

import cProfile
import itertools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_checks import check
from torch import nn

from pytest_torchcompile import Box, NotEquivalent, UsageError, Verdict, assert_equivalent, compile_policy
from pytest_torchcompile.checking.stops import does_not_repeat
from pytest_torchcompile.policies.state import ModuleState
from pytest_torchcompile.texts import line_of

OBSERVATION = Box((8,))
STEP = 1.0
_settings = types.SimpleNamespace(scale=1.0)
_never_changes = [1.0, 2.0]


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)


class KeepsGlobal(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global STEP
        y = self.layer(x) * STEP * _never_changes[0]
        STEP += 1.0
        return torch.as_tensor(y)


class KeepsObject(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _settings.scale *= 1.5
        return torch.as_tensor(self.layer(x) * _settings.scale)


class KeepsClosure(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scaled = counting()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(self.layer(x))


def counting() -> Callable[[torch.Tensor], torch.Tensor]:
    calls = [0]

    def scaled(y: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return y * calls[0]

    return scaled


class KeepsAttribute(Base):
    def __init__(self) -> None:
        super().__init__()
        self.calls = itertools.count(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x) * next(self.calls))


class Counts(Base):
    """Its counter is a buffer, which is restored before each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return torch.as_tensor(self.layer(x) * self.calls)


class Branches(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return torch.as_tensor(y + 1 if torch.compiler.is_compiling() else y)


NAMED = [
    (KeepsGlobal, "the global STEP is ", KeepsGlobal.forward),
    (KeepsObject, "the global _settings.scale is ", KeepsObject.forward),
    (KeepsClosure, "calls of the function around it is [", counting()),
    (KeepsAttribute, "self.calls is count(", KeepsAttribute.forward),
]


@pytest.mark.parametrize(("policy", "named", "function"), NAMED)
@pytest.mark.parametrize("phase", ["rollout", "lifecycle"])
def test_what_is_kept_is_named(policy: type[Base], named: str, function: Any, phase: str) -> None:
    result = check(policy, phase, observation=OBSERVATION)
    assert result.verdict is Verdict.EAGER_FAILED
    text = result.reason.partition("it keeps state that the check can't restore: ")[2]
    assert text.startswith(named)
    line = line_of(function.__code__.co_filename, function.__code__.co_firstlineno)
    assert f"(in {function.__name__}, {line}). Keep that state in buffers" in text, "nothing else is named"
    assert ", then " in text


class Alternates(Base):
    """Two of seven calls return another result, so that eager repeats itself more often than not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x) * self.sign())

    @torch.compiler.disable
    def sign(self) -> float:
        global STEP
        STEP = (STEP + 1.0) % 7
        return 1.1 if STEP < 2 else 1.0


@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
@pytest.mark.parametrize("seed", range(3))
def test_state_that_mostly_repeats_is_no_rounding(phase: str, seed: int) -> None:
    result = check(Alternates, phase, observation=OBSERVATION, seed=seed, explain_seconds=0)
    assert result.verdict is Verdict.EAGER_FAILED
    assert "it keeps state that the check can't restore: the global STEP is " in result.reason


def test_it_is_named_beside_a_difference_that_does_not_appear_again() -> None:
    x = torch.zeros(2, 8)
    for policy, named in ((Alternates(), True), (Counts(), False)):
        state = ModuleState(policy)

        def rerun(policy: Any = policy, state: ModuleState = state) -> None:
            state.reset()
            policy(x)

        text = does_not_repeat("call 3", rerun)
        assert text.startswith("depends on what ran before: differed on call 3, not when tried again")
        assert ("; it keeps state that the check can't restore: the global STEP is " in text) is named


def test_what_is_restored_is_not_named() -> None:
    result = check(Counts, observation=OBSERVATION)
    assert result.verdict.passed
    assert not result.reason


@pytest.mark.parametrize(("policy", "named", "function"), NAMED)
def test_it_is_named_while_a_profile_is_taken_too(policy: type[Base], named: str, function: Any) -> None:
    """Before Python 3.12 `sys.getprofile` returns a profiler that `sys.setprofile` rejects."""

    def afterwards() -> None:
        pass

    profile = cProfile.Profile()
    with profile:
        result = check(policy, observation=OBSERVATION)
        afterwards()
    assert f"can't restore: {named}" in result.reason
    assert afterwards.__code__ in {entry.code for entry in profile.getstats()}, "it goes on"


def test_functions_are_listed_while_a_profile_is_taken_too() -> None:
    with cProfile.Profile():
        result = check(Branches, observation=OBSERVATION, explain_seconds=60)
    assert result.explanation is not None
    assert "asks whether it is being compiled" in result.explanation.place


def test_the_functions_name_it_too() -> None:
    with pytest.raises(
        UsageError, match=r"can't restore: the global STEP is \d+\.0, then \d+\.0 \(in forward"
    ):
        compile_policy(KeepsGlobal, observation=OBSERVATION, backend="eager")
    policy = KeepsGlobal()
    with pytest.raises(NotEquivalent, match="the global STEP is"):
        assert_equivalent(policy, torch.compile(policy, backend="eager"), torch.zeros(3, 8))
