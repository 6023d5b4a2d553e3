"""Everything that a call leaves: if compiled loses or changes it, the case differs; its correct twin passes."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from faults.backends import changed_backward, float_tensors
from small_checks import assert_differs, assert_passes, check
from torch import nn
from torch.distributions import Normal
from torch.utils.checkpoint import checkpoint
from torch_versions import RELEASE

from pytest_torchcompile import Box, Verdict
from pytest_torchcompile.policies.ordinary import equal_values

compiling = torch.compiler.is_compiling
OBSERVATION = Box((5,))


class Base(nn.Module):
    """The right twin of what derives from it, unless `wrong`."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)
        self.wrong = wrong

    def fails(self) -> bool:
        return self.wrong and compiling()


class Alpha(Base):
    """A learnt tensor that is no parameter, as SAC's."""

    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.log_alpha = torch.zeros(1, requires_grad=True)

    def forward(self, x: torch.Tensor) -> Any:
        alpha = self.log_alpha.detach() if self.fails() else self.log_alpha
        return self.net(x) * alpha.exp()


class AlphasInList(Base):
    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.alphas = [torch.zeros(1, requires_grad=True)]

    def forward(self, x: torch.Tensor) -> Any:
        alpha = self.alphas[0] * (2 if self.fails() else 1)
        return self.net(x) * alpha.exp()


@dataclasses.dataclass
class Temperature:
    log: torch.Tensor


class AlphaInDataclass(Base):
    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.temperature = Temperature(torch.zeros(1, requires_grad=True))

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x) * (self.temperature.log * (2 if self.fails() else 1)).exp()


class ModuleInDict(Base):
    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.heads = {"value": nn.Linear(5, 3)}

    def forward(self, x: torch.Tensor) -> Any:
        head = self.heads["value"](x)
        return self.net(x) + (head.detach() if self.fails() else head)


class AlphaInBuffer(Base):
    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.register_buffer("log_alpha", torch.zeros(1, requires_grad=True))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> Any:
        self.seen += 1
        alpha = self.log_alpha.detach() if self.fails() else self.log_alpha
        return self.net(x) * alpha.exp()


LEAVES = {
    AlphaInBuffer: "gradient of log_alpha",
    Alpha: "gradient of log_alpha",
    AlphasInList: "gradient of alphas.0",
    AlphaInDataclass: "gradient of temperature.log",
    ModuleInDict: "gradient of heads.value.bias",
}


@pytest.mark.parametrize("model", LEAVES, ids=lambda model: model.__name__)
def test_the_gradient_of_every_leaf_is_compared(model: Callable[[bool], nn.Module]) -> None:
    assert_differs(check(lambda: model(True), "update", observation=OBSERVATION), LEAVES[model])  # type: ignore[index]
    assert_passes(check(lambda: model(False), "update", observation=OBSERVATION))


@pytest.mark.parametrize("model", [Alpha, AlphaInBuffer])
def test_a_leaf_that_is_no_parameter_learns_in_the_lifecycle(model: Callable[[bool], nn.Module]) -> None:
    result = check(lambda: model(True), "lifecycle", observation=OBSERVATION, examples=0)
    assert result.verdict is Verdict.DIFFERS
    assert {"gradient of log_alpha"} <= {difference.path for difference in result.differences}
    right = check(lambda: model(False), "lifecycle", observation=OBSERVATION, examples=0)
    assert right.verdict is Verdict.EQUAL


class LearnsALittle(Base):
    def learn(self, x: torch.Tensor) -> Any:
        with torch.enable_grad():
            (self.net(x).pow(2).mean() * (3 if self.fails() else 1)).backward()
        return torch.zeros(())


def test_what_a_method_leaves_in_grad_is_compared_and_put_back() -> None:
    assert_differs(
        check(lambda: LearnsALittle(True), observation=OBSERVATION, methods="learn"), ".grad of net.bias"
    )
    assert_passes(check(lambda: LearnsALittle(False), observation=OBSERVATION, methods="learn"))


def test_grad_of_the_users_module_is_left_as_it_was() -> None:
    made: list[nn.Module] = []

    class Uncopyable(LearnsALittle):
        def __deepcopy__(self, memo: Any) -> nn.Module:
            raise TypeError("it can't be copied")

    model = Uncopyable(False)
    grad = torch.ones(3, 5)
    model.net.weight.grad = grad
    for phase in ("rollout", "update"):
        assert_passes(check(model, phase, observation=OBSERVATION, methods="learn"))
    assert model.net.weight.grad is grad
    assert torch.equal(grad, torch.ones(3, 5))
    assert model.net.bias.grad is None
    assert not made


class Slot:
    last: torch.Tensor


class SlotInDict(Base):
    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.slots = {"hidden": Slot()}

    def forward(self, x: torch.Tensor) -> Any:
        y = self.net(x)
        self.slots["hidden"].last = y.detach() * (2 if self.fails() else 1)
        return y


class GrowingList(Base):
    """Objects that a call adds to a list are dropped before the next."""

    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.memory: list[Temperature] = [Temperature(torch.zeros(3))]

    def forward(self, x: torch.Tensor) -> Any:
        y = self.net(x)
        self.memory.append(Temperature(y.detach().mean(0) * (2 if self.fails() else 1)))
        return y + self.memory[-2].log


class Counter(Base):
    """Not one that grows: dynamo compiles again for each number."""

    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.count = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.count = x.shape[1] + (1 if self.fails() else 0)
        return self.net(x)


class Annealed(Base):
    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.epsilon = 1.0

    def forward(self, x: torch.Tensor) -> Any:
        self.epsilon = max(self.epsilon * (0.5 if self.fails() else 0.9), 0.1)
        return self.net(x)


class Named(Base):
    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.mode = "none"

    def forward(self, x: torch.Tensor) -> Any:
        self.mode = "odd" if self.fails() else "even"
        return self.net(x)


class History(Base):
    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.sizes: collections.deque[int] = collections.deque(maxlen=4)

    def forward(self, x: torch.Tensor) -> Any:
        self.sizes.append(x.shape[1] + (1 if self.fails() else 0))
        return self.net(x)


class Seen(Base):
    """A set, which is put back between calls."""

    def __init__(self, wrong: bool) -> None:
        super().__init__(wrong)
        self.seen: set[str] = set()

    def forward(self, x: torch.Tensor) -> Any:
        self.seen.add("odd" if self.fails() else "even")
        return self.net(x)


class Switches(Base):
    """Switches a layer to evaluation."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.net(x)
        self.net.training = self.fails()
        return y


class Freezes(Base):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.net(x).detach()
        self.freeze()
        return y

    @torch.compiler.disable
    def freeze(self) -> None:
        self.net.bias.requires_grad_(False)


class Thaws(Freezes):
    """Only where eager freezes."""

    def forward(self, x: torch.Tensor) -> Any:
        if self.fails():
            return self.net(x).detach()
        return super().forward(x)


LEFT = {
    SlotInDict: "attribute slots.hidden.last",
    GrowingList: "attribute memory.1.log",
    Counter: "attribute count",
    Annealed: "attribute epsilon",
    Named: "attribute mode",
    History: "attribute sizes",
    Seen: "attribute seen",
    Switches: "training of net",
    Thaws: "requires_grad of net.bias",
}


@pytest.mark.parametrize("model", LEFT, ids=lambda model: model.__name__)
def test_what_a_call_leaves_among_the_attributes_is_compared(model: Callable[[bool], nn.Module]) -> None:
    assert_differs(check(lambda: model(True), observation=OBSERVATION), LEFT[model])  # type: ignore[index]
    assert_passes(check(lambda: model(False), observation=OBSERVATION))


def test_a_number_that_eager_does_not_repeat_is_named_and_not_compared() -> None:
    class Timed(Base):
        def __init__(self) -> None:
            super().__init__(False)
            self.elapsed, self.at = 0.0, 0

        @torch.compiler.disable
        def clock(self) -> None:
            self.at = next(TICKS)
            self.elapsed = self.at / 7

        def forward(self, x: torch.Tensor) -> Any:
            self.clock()
            return self.net(x)

    result = check(Timed, observation=OBSERVATION)
    assert_passes(result)
    assert "not compared, as eager does not repeat it: attribute at, attribute elapsed" in result.notes


TICKS = itertools.count()


# --- what is learnt from --------------------------------------------------------------------------


class LoggedView(Base):
    """An output that requires grad and has no history."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.net(x)
        with torch.no_grad():
            flat = y.view(-1)
        if self.fails():
            y = y.detach() + self.net.bias
        return y, flat


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("phase", ["update", "lifecycle"])
def test_an_output_without_history_is_not_learnt_from(phase: str, backend: str) -> None:
    if (phase, backend) == ("update", "aot_eager") and RELEASE < (2, 12):
        pytest.skip("torch 2.12 is the first whose AOTAutograd compiles a view that was made under no_grad")
    options: dict[str, Any] = {"observation": OBSERVATION, "backend": backend, "examples": 2}
    result = check(lambda: LoggedView(False), phase, **options)
    assert result.verdict is Verdict.EQUAL, result
    assert check(lambda: LoggedView(True), phase, **options).verdict is Verdict.DIFFERS


class Reentrant(Base):
    """A checkpoint that `torch.autograd.grad` refuses."""

    def forward(self, x: torch.Tensor) -> Any:
        y = checkpoint(self.net, x.requires_grad_(), use_reentrant=True)
        return y * (1 + (y.detach() > 0)) if self.fails() else y


def test_a_reentrant_checkpoint_is_learnt_through() -> None:
    result = check(lambda: Reentrant(False), "update", observation=OBSERVATION)
    assert_passes(result)
    assert not any("forward only" in note for note in result.notes)
    assert check(lambda: Reentrant(True), "update", observation=OBSERVATION).verdict is Verdict.DIFFERS


class Complex(Base):
    """A complex output, whose imaginary part learns otherwise."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.net(x)
        imaginary = y.detach() if self.fails() else y
        return torch.complex(y, imaginary)


def test_complex_outputs_and_their_gradients_are_compared() -> None:
    assert_differs(check(lambda: Complex(True), "update", observation=OBSERVATION), "gradient of net.bias")
    assert_passes(check(lambda: Complex(False), "update", observation=OBSERVATION))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ([math.nan, 1.0], [math.nan, 1.0], True),
        ([math.nan, 1.0], [7.0, 1.0], False),
        ([math.inf], [torch.finfo(torch.float32).max], False),
        ([-math.inf], [-math.inf], True),
        ([1.0], [1.0, 1.0], False),
        ([1.0], [2.0], False),
    ],
)
def test_equal_values(one: list[float], other: list[float], equal: bool) -> None:
    assert equal_values(torch.tensor(one), torch.tensor(other)) is equal
    assert equal_values(torch.tensor(other), torch.tensor(one)) is equal


# --- the gradient of a plain sum -------------------------------------------------------------------


class _WrongIfExpanded(torch.autograd.Function):
    """The gradient is doubled if all of its elements are one number in memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * (1 if any(grad.stride()) else 2)


@torch.compiler.disable
def _expanded_doubled(y: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(_WrongIfExpanded.apply(y))


@torch.compiler.disable
def _kept(y: torch.Tensor) -> torch.Tensor:
    return y.clone()


class Summed(nn.Module):
    """Compiled is wrong for ``loss.sum().backward()``."""

    last: Callable[[torch.Tensor], torch.Tensor] = staticmethod(_expanded_doubled)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        return self.last(y) if torch.compiler.is_compiling() else y


class KeptSummed(Summed):
    last = staticmethod(_kept)


def test_the_gradient_of_a_plain_sum_is_compared(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"observation": Box((8,)), "examples": 0}
    wrong = check(Summed, "update", explain_seconds=300, proof=str(tmp_path), **arguments)
    assert_differs(wrong, "gradient of net.weight")
    assert "it differs when learning from the sum of all outputs" in wrong.notes
    assert wrong.explanation is not None
    assert wrong.explanation.confirmed, wrong.explanation.remarks
    assert_passes(check(KeptSummed, "update", **arguments))


@pytest.mark.parametrize("last", [nn.Softmax(-1), nn.LogSoftmax(-1), nn.LayerNorm(4), nn.BatchNorm1d(4)])
def test_a_gradient_that_cancels_in_the_sum_passes(last: nn.Module) -> None:
    def policy() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4), copy.deepcopy(last))

    for seed in range(3):
        result = check(policy, "update", observation=Box((8,)), backend="inductor", batch=33, seed=seed)
        assert_passes(result)


# --- a loss from an attribute ---------------------------------------------------------------------


class Balanced(Base):
    """Returns values, and keeps the balance loss of its experts in an attribute."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss) -> None:
        super().__init__(wrong=True)
        self.experts, self.balance, self.change = nn.Linear(5, 4), torch.zeros(()), change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        loss = self.experts(x).softmax(-1).pow(2).mean()
        self.balance = self.change(loss) if self.fails() else loss
        return self.net(x)


class Distributed(Balanced):
    """Keeps a distribution, whose log-probabilities a loss uses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.experts(x)
        self.dist = torch.distributions.Categorical(logits=self.change(logits) if self.fails() else logits)
        return self.net(x)


def doubled_gradient(loss: torch.Tensor) -> torch.Tensor:
    return 2 * loss - loss.detach()


@pytest.mark.parametrize("policy", [Balanced, Distributed])
@pytest.mark.parametrize("change", [torch.detach, doubled_gradient])
def test_the_gradient_of_what_lies_in_an_attribute_is_compared(policy: type[Balanced], change: Any) -> None:
    result = check(functools.partial(policy, change), "update", observation=OBSERVATION)
    assert_differs(result, "gradient of experts.bias")


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("policy", [Balanced, Distributed])
@pytest.mark.parametrize("phase", ["update", "lifecycle"])
def test_a_loss_in_an_attribute_passes(policy: type[Balanced], phase: str, backend: str) -> None:
    """AOTAutograd gives zeros to what only the attribute needs, and NaN if an input is NaN."""
    assert_passes(check(policy, phase, observation=OBSERVATION, backend=backend))


class BalancedByZeros(Balanced):
    """Lets its balance loss require grad if it is compiled, though all its experts are frozen."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        if torch.compiler.is_compiling():
            self.balance = self.balance + 0 * self.net.weight.sum()
        return out


@pytest.mark.parametrize("phase", ["update", "lifecycle"])
def test_a_loss_that_only_compiled_lets_require_grad_passes(phase: str) -> None:
    """As AOTAutograd of torch 2.9 does; the losses of both sides are computed from what eager learns from."""
    assert_passes(check(BalancedByZeros, phase, observation=OBSERVATION))
    doubled = functools.partial(BalancedByZeros, doubled_gradient)
    assert_differs(check(doubled, phase, observation=OBSERVATION), "gradient of experts.bias")


def test_the_gradient_of_a_weight_that_each_call_computes_passes() -> None:
    def policy() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weight_norm is deprecated, and policies still use it
            return nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2))

    for phase in ("update", "lifecycle"):
        assert_passes(check(policy, phase, observation=OBSERVATION, backend="aot_eager"))


# --- another call before the backward -------------------------------------------------------------


class _InOneMemory(torch.autograd.Function):
    """A square that saves its input in memory of its own, as code with static buffers does."""

    memory: ClassVar[dict[Any, torch.Tensor]] = {}

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shared: bool) -> torch.Tensor:
        kept = _InOneMemory.memory.setdefault(x.shape, torch.empty_like(x)) if shared else torch.empty_like(x)
        ctx.kept = kept.copy_(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return 2 * ctx.kept * grad, None


class Squared(Base):
    """Compiled keeps what backward needs in memory that the next call overwrites, unless it is right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        return self.squared(y) if compiling() else y * y

    @torch.compiler.disable
    def squared(self, y: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(_InOneMemory.apply(y, self.wrong))


@pytest.mark.parametrize("wrong", [True, False])
def test_what_a_backward_needs_outlives_another_call(wrong: bool) -> None:
    result = check(lambda: Squared(wrong), "update", observation=OBSERVATION)
    if wrong:
        assert_differs(result, "gradient of net.bias")
        assert "when learning from all outputs, with another call before the backward" in "".join(
            result.notes
        )
    else:
        assert_passes(result)


def in_one_memory(wrong: bool) -> Callable[..., Any]:
    """A backward that returns its gradients in memory that it writes to in each call, as a CUDA graph does."""
    memory: dict[Any, torch.Tensor] = {}

    def change(outputs: list[Any]) -> list[Any]:
        for i in float_tensors(outputs) if wrong else ():
            static = memory.setdefault((i, outputs[i].shape), torch.empty_like(outputs[i]))
            outputs[i] = static.copy_(outputs[i]).view_as(static)
        return outputs

    return changed_backward(change)


@pytest.mark.parametrize("wrong", [True, False])
def test_gradients_are_kept_while_others_are_added(wrong: bool) -> None:
    result = check(lambda: Squared(False), "update", observation=OBSERVATION, backend=in_one_memory(wrong))
    if wrong:
        assert_differs(result, "gradient of net.bias")
        assert "when learning from all outputs, added to the gradients of another call" in "".join(
            result.notes
        )
    else:
        assert_passes(result)


# --- graphs from before the call ------------------------------------------------------------------


class Stores:
    """An object that is no module, as the distributions of Stable-Baselines3 are."""

    distribution: Normal


class Exploring(nn.Module):
    """Its constructor draws exploration noise, whose graph no call may use up, as with ``use_sde``."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.critic, self.actor = nn.Linear(8, 1), nn.Linear(8, 2)
        self.log_std = nn.Parameter(torch.zeros(2))
        self.noise, self.wrong = Stores(), wrong
        self.noise.distribution = Normal(torch.zeros(2), self.log_std.exp())

    def act(self, x: torch.Tensor) -> torch.Tensor:
        self.noise.distribution = Normal(self.actor(x), self.log_std.exp(), validate_args=False)
        return self.noise.distribution.entropy()

    def value(self, x: torch.Tensor) -> torch.Tensor:
        y = self.critic(x)
        return y.detach() + 2 * (y - y.detach()) if self.wrong and compiling() else y


@pytest.mark.parametrize("wrong", [True, False])
@pytest.mark.parametrize("phase", ["update", "lifecycle"])
def test_what_an_earlier_call_has_kept_is_not_learnt_from(phase: str, wrong: bool) -> None:
    methods = "value" if phase == "update" else ["act", "value"]
    result = check(lambda: Exploring(wrong), phase, observation=Box((8,)), methods=methods)
    assert not any("left out" in note for note in result.notes)
    if wrong:
        assert_differs(result, "gradient of critic.bias")
    else:
        assert_passes(result)
