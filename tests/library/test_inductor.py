"""Checks with inductor: correct policies pass, a policy that torch miscompiles and injected faults differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_checks import assert_passes, check
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
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
        )
        self.head = nn.Linear(8 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).flatten(1))


def test_batch_norm_in_training_in_every_layout() -> None:
    """Also for zeros and ones, where normalising divides by almost zero."""
    result = on_inductor(Convolutional, "update", observation=Box((3, 5, 5)))
    assert_passes(result)


class Pooling(nn.Module):
    """Max-pooling as in many a policy for images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8 * 9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(nn.functional.max_pool2d(self.conv(x), 2)).flatten(1))


def test_max_pooling_over_a_nan() -> None:
    """It is unspecified which of several NaN in a window is the largest and gets the gradient."""
    assert_passes(on_inductor(Pooling, "update", observation=Box((3, 6, 6)), batch=4))


# --- what torch 2.13 gets wrong -------------------------------------------------------------------

torch_2_13 = pytest.mark.skipif(
    not torch.__version__.startswith("2.13"),
    reason="observed on torch 2.13; see examples/test_miscompiled.py",
)


class Inhibited(nn.Module):
    """A trunk that mixes a convolution with its own max-pooling (pytorch issue 185509)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8 * 64, 4)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        c = self.conv(x)
        return torch.relu(c - nn.functional.max_pool2d(c, 3, stride=1, padding=1) + 1).flatten(1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.features(x))


class TwoHeads(Inhibited):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(8 * 64, 1)

    def forward(self, x: torch.Tensor) -> Any:
        features = self.features(x)
        return self.head(features), self.value(features)


# No NaN, so that what is found is the fault and not what max-pooling makes of a NaN.
SMALL = {"observation": Box((3, 8, 8)), "batch": 4, "examples": 2, "nonfinite": False}


@pytest.fixture
def two_threads() -> Iterator[None]:
    """inductor writes other code for one thread than for several; the fault is in the latter."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def assert_wrong_gradients(result: CheckResult) -> None:
    assert result.verdict is Verdict.DIFFERS
    assert {d.path for d in result.differences} <= {"gradient of conv.weight", "gradient of conv.bias"}
    worst = result.differences[0]
    assert worst.difference > 0.1
    assert worst.closer == "eager"


@torch_2_13
@pytest.mark.parametrize("model", [Inhibited, TwoHeads])
def test_a_policy_that_torch_miscompiles(model: type[nn.Module]) -> None:
    """Its forward agrees; the gradients of its convolution are wrong by their own size."""
    assert_passes(on_inductor(model, "rollout", threads=2, **SMALL))
    assert_wrong_gradients(on_inductor(model, "update", threads=2, **SMALL))


@torch_2_13
def test_what_is_checked_is_what_is_deployed(two_threads: None) -> None:
    """Compiled for one thread the policy is right; the user's process has several."""
    assert_wrong_gradients(on_inductor(Inhibited, "update", **SMALL))


@torch_2_13
def test_a_policy_for_which_inductor_writes_invalid_code() -> None:
    """The backward uses a buffer that it never made."""
    assert_passes(on_inductor(TwoHeads, "rollout", threads=1, **SMALL))
    result = on_inductor(TwoHeads, "update", threads=1, **SMALL)
    assert result.verdict is Verdict.COMPILE_FAILED
    assert "UnboundLocalError: cannot access local variable 'buf" in result.reason
    assert "(batch 4)" in result.reason


# --- faults planted in inductor -------------------------------------------------------------------


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
    seen: set[Any] = set()

    def note(graph: torch.fx.Graph) -> None:
        seen.add(torch._inductor.config.cpp.simdlen)

    with torch._inductor.config.patch(post_grad_custom_post_pass=note, force_disable_caches=True):
        result = on_inductor(
            Rectified,
            "rollout",
            observation=Box((8,)),
            batch=4,
            examples=0,
            options={"cpp.simdlen": 1},
        )
    assert_passes(result)
    assert seen == {1}
