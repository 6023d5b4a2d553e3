"""The compiler that is deployed: a few policies right, one that torch miscompiles, planted faults found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checking import assert_passes, check
from torch import nn

from pytest_torchcompile import Box, CheckResult, Verdict


def on_inductor(factory: Any, phase: str, **arguments: Any) -> CheckResult:
    """Two batch sizes, few examples: what costs here is compiling."""
    options = {"backend": "inductor", "batch": (4, 7), "examples": 10, "shrink_seconds": 5.0}
    return check(factory, phase, **options | arguments)


class Sampling(nn.Module):
    """Dropout in the trunk and a sampled action."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 16), nn.ReLU())
        self.policy = nn.Linear(16, 4)
        self.value = nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.trunk(x)
        distribution = torch.distributions.Categorical(logits=self.policy(hidden))
        action = distribution.sample()
        return action, distribution.log_prob(action), distribution.entropy(), self.value(hidden)


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_policy_that_draws(phase: str) -> None:
    """Compared draw for draw: inductor is told to use eager's random numbers."""
    result = on_inductor(Sampling, phase, observation=Box((8,)))
    assert_passes(result)
    assert result.capture.coverage == 1.0


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(8 * 25, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).flatten(1))


def test_batch_norm_in_training() -> None:
    """Also over zeros and ones, on which normalising divides by next to nothing."""
    result = on_inductor(Convolutional, "update", observation=Box((3, 5, 5)))
    assert_passes(result)


class Miscompiled(nn.Module):
    """A trunk that mixes a convolution with its own max-pooling (pytorch issue 185509)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.policy = nn.Linear(8 * 64, 4)
        self.value = nn.Linear(8 * 64, 1)

    def forward(self, x: torch.Tensor) -> Any:
        c = self.conv(x)
        features = torch.relu(c - nn.functional.max_pool2d(c, 3, stride=1, padding=1) + 1).flatten(1)
        return self.policy(features), self.value(features)


def test_a_policy_that_torch_miscompiles() -> None:
    """Its forward agrees; the gradients of its convolution are wrong by their own size."""
    assert_passes(on_inductor(Miscompiled, "rollout", observation=Box((3, 8, 8)), batch=4, examples=2))
    result = on_inductor(Miscompiled, "update", observation=Box((3, 8, 8)), batch=4, examples=2)
    if torch.__version__.startswith("2.13"):
        assert result.verdict is Verdict.DIFFERS
        assert {d.path for d in result.differences} == {"gradient of conv.weight", "gradient of conv.bias"} or {
            d.path for d in result.differences
        } == {"gradient of conv.weight"}
        worst = result.differences[0]
        assert worst.difference > 0.1 * abs(float(worst.eager))
        assert worst.closer == "eager"
    else:
        assert result.verdict in (Verdict.EQUAL, Verdict.WITHIN_ROUNDING, Verdict.DIFFERS)


class Rectified(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.layer(x)))


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        (None, Verdict.EQUAL),
        ("accuracy", Verdict.DIFFERS),
        ("compile_error", Verdict.COMPILE_FAILED),
        ("runtime_error", Verdict.DIFFERS),
    ],
)
def test_faults_planted_in_inductor(fault: str | None, verdict: Verdict) -> None:
    with torch._inductor.config.patch({"cpp.inject_relu_bug_TESTING_ONLY": fault}):
        result = on_inductor(Rectified, "rollout", observation=Box((8,)), batch=4, examples=2)
    assert result.verdict is verdict, result.reason
    if fault == "compile_error":
        assert "CppCompileError" in result.reason
    if fault == "runtime_error":
        assert result.differences[0].problem == "exception"


def test_options_reach_inductor() -> None:
    seen: list[Any] = []

    class Looking(Rectified):
        pass

    def note(graph: Any) -> None:
        seen.append(torch._inductor.config.cpp.simdlen)

    options = {"cpp.simdlen": 1, "post_grad_custom_pre_pass": None}
    with torch._inductor.config.patch(post_grad_custom_post_pass=note, force_disable_caches=True):
        result = on_inductor(Looking, "rollout", observation=Box((8,)), batch=4, examples=0, options=options)
    assert_passes(result)
    assert set(seen) == {1}
