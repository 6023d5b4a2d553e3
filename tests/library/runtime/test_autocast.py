"""Declared autocast: rollout, update and lifecycle run under it, on both sides, including learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_checks import assert_differs, assert_passes, check
from torch import nn

from pytest_torchcompile import Box, Verdict, compile_policy, measure_speedup
from pytest_torchcompile.runtime.autocast import autocasting

compiling = torch.compiler.is_compiling


class Agent(nn.Module):
    """A head in the dtype that autocast makes of it."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        # No float attribute, as a lifecycle anneals those.
        self.factor = (factor,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.as_tensor(self.head(torch.tanh(self.body(x))))
        return y * self.factor[0] if compiling() and y.dtype is not torch.float32 else y


class Full(nn.Module):
    """The last layer in full precision, as recipes of mixed precision have it for values and losses.

    Its backward runs in full precision in eager and, by torch's default, in half once compiled
    (pytorch 179804).
    """

    def __init__(self, full: bool) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.full = full

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.full:
            return torch.as_tensor(self.head(x))
        with torch.autocast("cpu", enabled=False):
            return torch.as_tensor(self.head(x.float()))


def check_half(factory: Any, phase: str, **arguments: Any) -> Any:
    small = {"observation": Box((8,)), "autocast": "bfloat16", "backend": "aot_eager", "batch": (4, 7)}
    return check(factory, phase, **small | {"examples": 2} | arguments)


@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
def test_a_fault_in_half_precision(phase: str) -> None:
    wrong = check_half(lambda: Agent(1.25), phase)
    assert wrong.verdict is Verdict.DIFFERS
    right = check_half(Agent, phase)
    assert_passes(right)
    assert right.settings["autocast"] == "bfloat16"


def test_without_it_nothing_runs_in_half_precision_but_a_look_beyond() -> None:
    for phase in ("rollout", "update"):
        result = check_half(lambda: Agent(1.25), phase, autocast=None)
        assert_passes(result)
        assert not result.remarks
    result = check_half(lambda: Agent(1.25), "lifecycle", autocast=None)
    assert_passes(result)
    assert sum("autocast" in remark for remark in result.remarks) == 1


def test_learning_is_compared_too() -> None:
    wrong = check_half(lambda: Full(True), "update")
    assert_differs(wrong, "gradient of head.weight", "values")
    assert_passes(check_half(lambda: Full(False), "update"))
    assert_passes(check_half(lambda: Full(True), "rollout"))
    assert_passes(check_half(lambda: Full(True), "update", autocast=None))


def test_float16() -> None:
    assert_passes(check_half(Agent, "update", autocast="float16"))
    assert check_half(lambda: Agent(1.25), "update", autocast="float16").verdict is Verdict.DIFFERS


def test_what_comes_compiled_runs_under_it() -> None:
    def deployed(factor: float) -> Any:
        return torch.compile(Agent(factor), backend="eager")

    assert_passes(check_half(lambda: deployed(1.0), "rollout"))
    assert check_half(lambda: deployed(1.25), "rollout").verdict is Verdict.DIFFERS


def test_the_parts_by_hand_run_under_it() -> None:
    policy = compile_policy(Agent, observation=Box((8,)), backend="eager", autocast="bfloat16")
    x = torch.zeros(3, 8)
    assert policy(x).dtype is policy.eager(x).dtype is torch.bfloat16
    assert measure_speedup(policy.eager, policy, x, seconds=0.05).pairs > 0
    plain = compile_policy(Agent, observation=Box((8,)), backend="eager")
    assert plain(x).dtype is torch.float32


def test_the_backward_runs_outside() -> None:
    seen = []

    class Watched(Agent):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            if y.requires_grad and not compiling():
                y.register_hook(lambda g: seen.append(torch.is_autocast_enabled("cpu")))
            return y

    check_half(Watched, "update", backend="eager")
    assert set(seen) == {False}


def test_nothing_is_cast_where_nothing_is_declared() -> None:
    model = nn.Linear(2, 2)
    with autocasting(None, model)():
        assert not torch.is_autocast_enabled("cpu")
    with autocasting("float16", model)():
        assert model(torch.zeros(1, 2)).dtype is torch.float16
