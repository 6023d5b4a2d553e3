"""A check that compares nothing does not pass, and an output that is NaN does not hide other differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from small_checks import assert_differs, assert_passes, check
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from pytest_torchcompile import Box, NotEquivalent, Verdict, assert_equivalent, compile_policy
from pytest_torchcompile.errors import UsageError

compiling = torch.compiler.is_compiling
OBSERVATION = Box((5,))


class Base(nn.Module):
    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.net, self.value = nn.Linear(5, 3), nn.Linear(5, 1)
        self.wrong = wrong

    def fails(self) -> bool:
        return self.wrong and compiling()


# --- nothing compared -----------------------------------------------------------------------------


class ForgetsToReturn(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.net(x)


class ReturnsConstants(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.net(x)
        return "acted", 1, 0.5


@pytest.mark.parametrize("model", [ForgetsToReturn, ReturnsConstants], ids=lambda model: model.__name__)
@pytest.mark.parametrize("phase", ["update", "lifecycle"])
def test_a_method_that_returns_nothing_is_no_pass(model: type[nn.Module], phase: str) -> None:
    result = check(model, phase, observation=OBSERVATION, examples=0)
    assert result.verdict is Verdict.EAGER_FAILED
    assert "nothing was compared; end it with `return ...`" in result.reason


class ResetsNoise(Base):
    """Returns nothing and writes to a buffer, as ``reset_noise`` does."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__(wrong)
        self.register_buffer("noise", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> Any:
        with torch.no_grad():
            self.noise.copy_(self.net(x).mean(0) * (2 if self.fails() else 1))


def test_a_method_that_changes_state_is_compared_by_it() -> None:
    result = check(ResetsNoise, "update", observation=OBSERVATION)
    assert_passes(result)
    assert any("forward only" in note for note in result.notes)
    assert_differs(check(lambda: ResetsNoise(True), "update", observation=OBSERVATION), "buffer noise")


def test_a_number_that_varies_is_compared() -> None:
    class Measures(Base):
        def forward(self, x: torch.Tensor) -> Any:
            return self.net(x).shape[0]

    assert_passes(check(Measures, observation=OBSERVATION))


def test_gradients_that_are_zero_throughout_are_no_pass() -> None:
    class Dead(Base):
        def forward(self, x: torch.Tensor) -> Any:
            return self.net(x) * 0

    result = check(Dead, "update", observation=OBSERVATION)
    assert result.verdict is Verdict.EAGER_FAILED
    assert "no learning was compared" in result.reason


# --- one output hides the gradients of the others -------------------------------------------------


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor) -> torch.Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return g * -5


class HiddenByNaN(Base):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.net(x)
        return (Backwards.apply(y) if self.fails() else y), self.hides(y)  # type: ignore[no-untyped-call]

    def hides(self, y: torch.Tensor) -> torch.Tensor:
        return (y * 0).log() * 0


class HiddenBySomeNaN(HiddenByNaN):
    """Only some elements are no numbers."""

    def hides(self, y: torch.Tensor) -> torch.Tensor:
        return y.log() * 0


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (HiddenByNaN, ["not learnt from, as no gradient of it was ever finite: output[1]"]),
        # Its gradient is finite on some examples.
        (HiddenBySomeNaN, []),
    ],
    ids=["NaN", "some NaN"],
)
def test_an_output_that_is_no_number_hides_no_gradient(model: type[HiddenByNaN], told: list[str]) -> None:
    wrong = check(lambda: model(True), "update", observation=OBSERVATION)
    assert wrong.verdict is Verdict.DIFFERS
    right = check(model, "update", observation=OBSERVATION)
    assert_passes(right)
    assert [note for note in right.notes if "not learnt from" in note] == told


def test_what_aot_autograd_makes_no_number_of_is_neither_difference_nor_pass() -> None:
    result = check(HiddenByNaN, "update", observation=OBSERVATION, backend="aot_eager")
    assert result.verdict is Verdict.EAGER_FAILED
    assert "no learning was compared" in result.reason
    assert any("detach() the outputs that the loss does not use" in remark for remark in result.remarks)


# --- a loss of each output alone ------------------------------------------------------------------


def tripled_when_alone(graph: Any, _: Any) -> Any:
    def run(*args: Any) -> Any:
        tangents = [a for a in args if isinstance(a, torch.Tensor)][-2:]
        alone = any(bool((tangent == 0).all()) for tangent in tangents)
        return tuple(g * 3 if alone and isinstance(g, torch.Tensor) else g for g in graph(*args))

    return make_boxed_func(run)


class Both(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x), self.value(x)


def test_each_output_is_learnt_from_alone() -> None:
    def forward(graph: Any, _: Any) -> Any:
        return make_boxed_func(graph.forward)

    wrong = aot_autograd(fw_compiler=forward, bw_compiler=tripled_when_alone)
    result = check(Both, "update", observation=OBSERVATION, backend=wrong)
    assert result.verdict is Verdict.DIFFERS
    assert any("output[0] alone" in note for note in result.notes)
    assert_passes(check(Both, "update", observation=OBSERVATION, backend="aot_eager"))


class WrongInEvaluation(Base):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.net(x)
        return y + (y - y.detach()) if self.fails() and not self.training and y.requires_grad else y


def test_learning_in_evaluation_is_compared() -> None:
    result = check(lambda: WrongInEvaluation(True), "update", observation=OBSERVATION)
    assert result.verdict is Verdict.DIFFERS
    assert any("in eval()" in note for note in result.notes)
    assert_passes(check(WrongInEvaluation, "update", observation=OBSERVATION))


# --- writes that move no version ------------------------------------------------------------------


class Decays(Base):
    """Writes to a weight through ``.data``, as PopArt and weight clipping do."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.value(x)
        if not self.fails():
            self.value.weight.data.mul_(0.99)
        return y


@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
def test_writes_through_data_are_seen_by_value(phase: str) -> None:
    options: dict[str, Any] = {"observation": OBSERVATION, "backend": "aot_eager", "examples": 2}
    wrong = check(lambda: Decays(True), phase, **options)
    assert_differs(wrong, "parameter value.weight")
    right = check(Decays, phase, **options)
    assert right.verdict is Verdict.EQUAL, right


# --- by hand --------------------------------------------------------------------------------------


class WritesItsWeight(Base):
    def forward(self, x: torch.Tensor) -> Any:
        with torch.no_grad():
            self.net.weight.mul_(0.9)
        y = self.net(x)
        return y * 1.2 if self.fails() else y


def test_by_hand_the_callers_weights_are_put_back() -> None:
    for wrong in (True, False):
        torch.compiler.reset()
        policy = WritesItsWeight(wrong)
        before = policy.net.weight.detach().clone()
        compiled = torch.compile(policy, backend="eager")
        if wrong:
            with pytest.raises(NotEquivalent, match="output"):
                assert_equivalent(policy, compiled, torch.randn(4, 5))
        else:
            assert_equivalent(policy, compiled, torch.randn(4, 5))
        assert torch.equal(policy.net.weight, before)


def test_by_hand_what_eager_does_not_repeat_is_refused() -> None:
    kept = [0.0]

    def drifting(x: torch.Tensor) -> torch.Tensor:
        kept[0] += 1
        return x * kept[0]

    with pytest.raises(NotEquivalent, match="does not repeat itself"):
        assert_equivalent(drifting, torch.compile(drifting, backend="eager"), torch.ones(3))

    class Drifting(Base):
        def forward(self, x: torch.Tensor) -> Any:
            kept[0] += 1
            return self.net(x) * kept[0]

    with pytest.raises(UsageError, match="does not repeat itself"):
        compile_policy(Drifting, observation=OBSERVATION, backend="eager")


def test_by_hand_what_is_eager_is_no_compiled_side() -> None:
    torch.compiler.reset()
    policy = Base()
    with pytest.raises(NotEquivalent, match="ran no compiled code"):
        assert_equivalent(policy.net, policy.net, torch.ones(3, 5))
    compiled = torch.compile(policy.net, backend="eager")
    compiled(torch.ones(3, 5))
    assert_equivalent(policy.net, compiled, torch.ones(3, 5))


def test_by_hand_nothing_finite_is_no_pass() -> None:
    torch.compiler.reset()

    def lost(x: torch.Tensor) -> torch.Tensor:
        return x / 0 * 0

    with pytest.raises(NotEquivalent, match="no output was ever finite"):
        assert_equivalent(lost, torch.compile(lost, backend="eager"), torch.ones(3))
