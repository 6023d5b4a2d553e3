"""Wrong compiled models, each of which must be found, with its correct twin, which must not.

A fault is either in the model, where ``torch.compiler.is_compiling()`` is true on the compiled side
only, or in a backend. `wrong=False` goes through the same code without the fault.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from faults import backends
from small_checks import assert_differs, assert_passes
from small_checks import check as check_any
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box, CheckResult, Verdict

compiling = torch.compiler.is_compiling
ALL_BATCHES = (4, 7, 1, 33)
"""The default of the option; where a fault does not depend on the batch, one size saves time."""


def check(factory: Any, phase: str = "rollout", **arguments: Any) -> CheckResult:
    return check_any(factory, phase, **{"observation": Box((8,)), "batch": 4} | arguments)


class Policy(nn.Module):
    """Logits of O(1) and a value; `change` sees them on the compiled side only."""

    def __init__(self, change: Callable[..., Any] = lambda x, logits, value: (logits, value)) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 16)
        self.policy = nn.Linear(16, 4)
        self.value = nn.Linear(16, 1)
        self.change = change

    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.tanh(self.trunk(x))
        logits, value = 2 * self.policy(hidden), self.value(hidden).squeeze(-1)
        if compiling():
            return self.change(x, logits, value)
        return logits, value


@dataclasses.dataclass(frozen=True)
class Fault:
    """A change of the outputs, or its absence; where it shows and as what."""

    change: Callable[..., Any]
    path: str = "output[0]"
    problem: str | None = "values"
    batch: int | tuple[int, ...] = 4


def _first(x: torch.Tensor) -> torch.Tensor:
    """1 for the first logit, 0 for the others."""
    return F.one_hot(torch.tensor(0), 4).to(x)


FAULTS = {
    "2e-5 on one logit": Fault(lambda on, x, p, v: (p + 2e-5 * on * _first(p), v)),
    "2e-5 on one logit of one row": Fault(
        lambda on, x, p, v: (p + 2e-5 * on * _first(p) * (torch.arange(len(p)) == 0)[:, None], v)
    ),
    "2e-5 on the value": Fault(lambda on, x, p, v: (p, v - 2e-5 * on), "output[1]"),
    "two rows exchanged": Fault(lambda on, x, p, v: (p.flip(0) if on else p, v)),
    "two outputs exchanged": Fault(lambda on, x, p, v: (p, p[:, 0] + 0 * v if on else v), "output[1]"),
    "a wrong sign": Fault(lambda on, x, p, v: (p, -v if on else v), "output[1]"),
    "NaN swallowed": Fault(
        lambda on, x, p, v: (torch.nan_to_num(p) if on else p, v), problem="NaN or infinity"
    ),
    "NaN made": Fault(
        lambda on, x, p, v: (p.masked_fill(p > 1.2, float("nan")) if on else p, v),
        problem="NaN or infinity",
    ),
    "a dtype too wide": Fault(lambda on, x, p, v: (p.double() if on else p, v), problem="dtype"),
    "a dtype too narrow": Fault(lambda on, x, p, v: (p.half() if on else p, v), problem="dtype"),
    "half precision on the way": Fault(lambda on, x, p, v: (p.half().float() if on else p, v)),
    "bfloat16 on the way": Fault(lambda on, x, p, v: (p.bfloat16().float() if on else p, v)),
    "a dimension too many": Fault(lambda on, x, p, v: (p, v[:, None] if on else v), "output[1]", "shape"),
    "a dimension too few at batch 1": Fault(
        lambda on, x, p, v: (p, v.squeeze() if on else v), "output[1]", "shape", batch=ALL_BATCHES
    ),
    "broadcast rows": Fault(lambda on, x, p, v: (p[:1].expand_as(p) if on else p, v)),
    "only batch 1": Fault(lambda on, x, p, v: (p + (2e-5 * on if len(x) == 1 else 0), v), batch=ALL_BATCHES),
    "only batches of 16 and more": Fault(
        lambda on, x, p, v: (p + (2e-5 * on if len(x) >= 16 else 0), v), batch=ALL_BATCHES
    ),
    "only odd batches": Fault(
        lambda on, x, p, v: (p + (2e-5 * on if len(x) % 2 else 0), v), batch=ALL_BATCHES
    ),
    "only negative inputs": Fault(
        lambda on, x, p, v: (p + 2e-5 * on * (x[:, :1] < 0), v),
    ),
    "only inputs all negative in three elements": Fault(
        lambda on, x, p, v: (p + 2e-5 * on * (x[:, :3] < 0).all(1, keepdim=True), v),
    ),
    "only inputs beyond 1000": Fault(
        lambda on, x, p, v: (p + 1e-3 * on * (x.abs() > 1e3).any(1)[:, None], v)
    ),
    "only inputs all zero": Fault(lambda on, x, p, v: (p + 1e-3 * on * (x == 0).all(1)[:, None], v)),
    "only inputs in another layout": Fault(
        lambda on, x, p, v: (p + (2e-5 * on if not x.is_contiguous() else 0), v)
    ),
    "a list for a tuple": Fault(lambda on, x, p, v: [p, v] if on else (p, v), "output", "structure"),
    "an output too many": Fault(lambda on, x, p, v: (p, v, v) if on else (p, v), "output", "structure"),
    "None for an output": Fault(lambda on, x, p, v: (p, None if on else v), "output[1]", "structure"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_outputs(name: str) -> None:
    fault = FAULTS[name]

    def policy(on: int) -> Policy:
        return Policy(lambda x, logits, value: fault.change(on, x, logits, value))

    assert_passes(check(lambda: policy(0), batch=fault.batch))
    assert_differs(check(lambda: policy(1), batch=fault.batch), fault.path, fault.problem)


@pytest.mark.parametrize(
    "name",
    [
        "2e-5 on one logit of one row",
        "NaN swallowed",
        "a dtype too wide",
        "only batch 1",
        "a list for a tuple",
    ],
)
def test_outputs_in_the_update_phase(name: str) -> None:
    fault = FAULTS[name]

    def policy(on: int) -> Policy:
        return Policy(lambda x, logits, value: fault.change(on, x, logits, value))

    assert_passes(check(lambda: policy(0), "update", batch=fault.batch))
    assert_differs(check(lambda: policy(1), "update", batch=fault.batch), fault.path, fault.problem)


# --- backends -------------------------------------------------------------------------------------


def _add(outputs: backends.Outputs, amount: float = 2e-5) -> backends.Outputs:
    first = backends.float_tensors(outputs)[0]
    outputs[first] = outputs[first] + amount
    return outputs


def _from_call(number: int) -> backends.Change:
    return lambda outputs, call: _add(outputs) if call >= number else outputs


def _on_call(number: int) -> backends.Change:
    return lambda outputs, call: _add(outputs) if call == number else outputs


def _every(number: int) -> backends.Change:
    return lambda outputs, call: _add(outputs) if call % number == 0 else outputs


@pytest.mark.parametrize(
    ("change", "depends"),
    [
        (_from_call(1), False),
        (_from_call(6), False),
        (_every(5), True),
        (_on_call(1), True),
        (_on_call(2), True),
        (_on_call(9), True),
    ],
    ids=["every call", "from the sixth call", "every fifth call", "first call", "second call", "ninth call"],
)
def test_a_backend_that_is_wrong_on_some_calls(change: backends.Change, depends: bool) -> None:
    result = check(Policy, backend=backends.changed(change))
    assert result.verdict is Verdict.DIFFERS
    assert {d.path for d in result.differences} & {"output[0]", "output[1]"}
    assert ("depends on what ran before" in result.reason) is depends


def test_a_backend_that_is_right() -> None:
    assert_passes(check(Policy, backend=backends.changed(backends.unchanged)))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_backend_of_whose_graphs_one_is_wrong(number: int) -> None:
    """Static shapes: the first graph is of batch 4, the second of 7, the third of 1."""
    result = check(Policy, backend=backends.changed_graph(number, _add), dynamic=False, batch=ALL_BATCHES)
    assert result.verdict is Verdict.DIFFERS
    assert result.example.startswith(f"batch {(4, 7, 1)[number - 1]};")
    right = check(Policy, backend=backends.changed_graph(0, _add), dynamic=False, batch=ALL_BATCHES)
    assert_passes(right)


def test_only_the_second_shape() -> None:
    """With dynamic shapes the second graph serves every batch but the first."""
    result = check(Policy, backend=backends.changed_graph(2, _add), batch=ALL_BATCHES)
    assert result.verdict is Verdict.DIFFERS


# --- gradients ------------------------------------------------------------------------------------


def _scaled(shape: tuple[int, ...], factor: float) -> Callable[[backends.Outputs], backends.Outputs]:
    """Scales the gradients that have this shape."""

    def change(outputs: backends.Outputs) -> backends.Outputs:
        return [o * factor if isinstance(o, torch.Tensor) and o.shape == shape else o for o in outputs]

    return change


@pytest.mark.parametrize(
    ("shape", "name"),
    [((16, 8), "trunk.weight"), ((16,), "trunk.bias"), ((4, 16), "policy.weight"), ((4,), "policy.bias")],
)
def test_five_percent_on_one_gradient(shape: tuple[int, ...], name: str) -> None:
    wrong = check(Policy, "update", backend=backends.changed_backward(_scaled(shape, 1.05)))
    assert_differs(wrong, f"gradient of {name}")
    # Which of the two shows first is a matter of the floor, and so of the processor.
    assert {difference.problem for difference in wrong.differences} <= {"values", "scale"}
    assert len(wrong.differences) == 1, "only the one gradient is reported"
    right = check(Policy, "update", backend=backends.changed_backward(_scaled(shape, 1.0)))
    assert_passes(right)


def test_a_wrong_backward_does_not_show_in_the_rollout() -> None:
    backend = backends.changed_backward(_scaled((16, 8), 1.05))
    assert_passes(check(Policy, "rollout", backend=backend))


class Straight(nn.Module):
    """One layer whose weight is replaced by `change` of it on the compiled side, same in value."""

    def __init__(self, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.other = nn.Linear(8, 4)
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.layer.weight
        if compiling():
            weight = self.change(weight, x)
        return F.linear(x, weight, self.layer.bias) * torch.tanh(self.other(x))


def _same_value(weight: torch.Tensor, factor: Any) -> torch.Tensor:
    """`weight` with its gradient times `factor`."""
    return weight.detach() + (weight - weight.detach()) * factor


GRADIENT_FAULTS = {
    "zero": (lambda w, x: _same_value(w, 0.0), "values"),
    "none": (lambda w, x: w.detach(), "presence"),
    "negative": (lambda w, x: _same_value(w, -1.0), "values"),
    "a thousandth too large": (lambda w, x: _same_value(w, 1.001), "values"),
    "only batch 1": (lambda w, x: _same_value(w, 1.05 if len(x) == 1 else 1.0), "values"),
    "only large batches": (lambda w, x: _same_value(w, 1.05 if len(x) > 30 else 1.0), "values"),
    "one element": (lambda w, x: _same_value(w, 1.0 + 0.05 * F.one_hot(torch.tensor(0), 8).to(w)), "values"),
}


@pytest.mark.parametrize("name", GRADIENT_FAULTS)
def test_gradients(name: str) -> None:
    change, problem = GRADIENT_FAULTS[name]
    wrong = check(lambda: Straight(change), "update", batch=ALL_BATCHES)
    assert_differs(wrong, "gradient of layer.weight", problem)


def test_gradients_control() -> None:
    right = check(lambda: Straight(lambda w, x: _same_value(w, 1.0)), "update", batch=ALL_BATCHES)
    assert_passes(right)


class Twice(nn.Module):
    """A gradient with regard to the input, which only its spec asks for."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if compiling() and self.wrong:
            x = _same_value(x, 1.05)
        return self.layer(x)


def test_the_gradient_of_an_input_is_compared_where_its_spec_asks_for_it() -> None:
    asked, not_asked = Box((8,), requires_grad=True), Box((8,))
    # An infinity minus itself is no infinity: the trick needs finite inputs.
    wrong = check(lambda: Twice(True), "update", observation=asked, nonfinite=False)
    assert_differs(wrong, "gradient of input observation", "values")
    assert_passes(check(lambda: Twice(False), "update", observation=asked, nonfinite=False))
    assert_passes(check(lambda: Twice(True), "update", observation=not_asked, nonfinite=False))


def test_requires_grad_of_an_output() -> None:
    def policy(on: bool) -> Policy:
        return Policy(lambda x, p, v: (p, v.detach() if on else v))

    wrong = check(lambda: policy(True), "update")
    assert_differs(wrong, "output[1]", "requires_grad")
    assert_passes(check(lambda: policy(False), "update"))


def test_wrong_in_train_mode_only() -> None:
    class TrainOnly(Policy):
        def forward(self, x: torch.Tensor) -> Any:
            logits, value = super().forward(x)
            return (logits + 2e-5 if self.training and compiling() else logits), value

    assert_differs(check(TrainOnly, "update"), "output[0]", "values")
    assert_passes(check(TrainOnly, "rollout"))


# --- state ----------------------------------------------------------------------------------------


class Stateful(nn.Module):
    """Keeps a buffer, a counter, a hidden state and a clamped weight; `lost` is not kept when compiled."""

    def __init__(self, lost: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.hidden = torch.zeros(4)
        self.lost = lost

    def keeps(self, what: str) -> bool:
        return not (compiling() and self.lost == what)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.keeps("input"):
            x.clamp_(-1, 1)
        if self.keeps("mean"):
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        if self.keeps("count"):
            self.count.add_(1)
        if self.keeps("weight"):
            with torch.no_grad():
                self.layer.bias.clamp_(-0.1, 0.1)
        y = self.layer(x)
        if self.keeps("hidden"):
            self.hidden = y.detach().mean(0)
        return y


@pytest.mark.parametrize("phase", ["rollout", "update"])
@pytest.mark.parametrize(
    ("lost", "path"),
    [
        ("mean", "buffer mean"),
        ("count", "buffer count"),
        ("hidden", "attribute hidden"),
        ("weight", "parameter layer.bias"),
        ("input", "input observation"),
    ],
)
def test_lost_state(lost: str, path: str, phase: str) -> None:
    assert_differs(check(lambda: Stateful(lost), phase), path)


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_state_kept(phase: str) -> None:
    assert_passes(check(Stateful, phase))


class Normalised(nn.Module):
    """Batch normalisation whose compiled side may forget to update the running statistics."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4)
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if compiling() and self.wrong and self.training:
            norm = self.norm
            x = F.batch_norm(x, None, None, norm.weight, norm.bias, True, norm.momentum, norm.eps)
        else:
            x = self.norm(x)
        return self.head(x)


def test_running_statistics_that_are_not_updated() -> None:
    batches = (4, 7)
    wrong = check(lambda: Normalised(True), "update", batch=batches)
    assert wrong.verdict is Verdict.DIFFERS
    paths = {d.path for d in wrong.differences}
    assert paths <= {"buffer norm.running_mean", "buffer norm.running_var", "buffer norm.num_batches_tracked"}
    assert_passes(check(lambda: Normalised(True), "rollout", batch=batches))
    assert_passes(check(lambda: Normalised(False), "update", batch=batches))


# --- randomness -----------------------------------------------------------------------------------


class Sampler(nn.Module):
    """Samples actions; `how` may freeze the draw, repeat it, or draw once too often when compiled."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("frozen", torch.randn(64, 4))
        self.how = how

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.layer(x)
        how = self.how if compiling() else ""
        if how == "frozen":
            return logits + self.frozen[: len(x)]
        noise = torch.randn_like(logits)
        if how == "frozen but drawn":
            noise = self.frozen[: len(x)]
        elif how == "drawn twice":
            noise = torch.randn_like(logits)
        elif how == "same for all rows":
            noise = noise[:1].expand_as(noise)
        return logits + noise


class Drawing(nn.Module):
    """Draws once it is compiled, and throws the number away."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return torch.as_tensor(self.layer(x) + 0 * torch.rand(()))
        return torch.as_tensor(self.layer(x))


@pytest.mark.parametrize(
    ("how", "path"),
    [
        ("frozen", "random state of torch"),
        ("frozen but drawn", "output"),
        ("drawn twice", "random state of torch"),
        ("same for all rows", "output"),
    ],
)
def test_wrong_draws(how: str, path: str) -> None:
    assert_differs(check(lambda: Sampler(how)), path)


@pytest.mark.parametrize(
    ("how", "eager", "compiled"),
    [
        ("frozen", "drew", "did not draw"),
        ("drawn twice", "drew", "drew differently"),
        ("only compiled", "did not draw", "drew"),
    ],
)
def test_the_message_says_who_drew(how: str, eager: str, compiled: str) -> None:
    result = check(lambda: Drawing() if how == "only compiled" else Sampler(how))
    (found,) = (d for d in result.differences if d.path == "random state of torch")
    assert (found.eager, found.compiled) == (eager, compiled)


def test_right_draws() -> None:
    assert_passes(check(Sampler))


def test_a_draw_frozen_at_its_first_value() -> None:
    """With one seed for all examples it would never differ."""

    def backend(on: bool) -> Callable[..., Any]:
        def frozen(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
            seeds: list[torch.Tensor] = []

            def run(*args: Any) -> Any:
                seeds.append(torch.get_rng_state())
                if on:
                    torch.set_rng_state(seeds[0])
                return graph(*args)

            return run

        return frozen

    assert check(Sampler, backend=backend(True)).verdict is Verdict.DIFFERS
    assert_passes(check(Sampler, backend=backend(False)))


class Dropping(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.layer(x), 0.5, self.training and not (compiling() and self.wrong))


def test_dropout_left_out() -> None:
    wrong = check(lambda: Dropping(True), "update")
    assert wrong.verdict is Verdict.DIFFERS
    assert_passes(check(lambda: Dropping(True), "rollout"))
    assert_passes(check(lambda: Dropping(False), "update"))


# --- actions, distributions, exceptions -----------------------------------------------------------


class Chooser(nn.Module):
    """Returns the best action."""

    def __init__(self, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        action = self.layer(x).argmax(-1)
        return self.change(action, x) if compiling() else action


@pytest.mark.parametrize(
    "change",
    [
        lambda a, x: (a + 1) % 4,
        lambda a, x: torch.where(torch.arange(len(a)) == 0, (a + 1) % 4, a),
        lambda a, x: a.clamp(max=2),
        lambda a, x: a.to(torch.int32),
        lambda a, x: a.flip(0),
    ],
    ids=["all off by one", "one row off by one", "the last action never", "int32", "rows reversed"],
)
def test_integer_actions(change: Any) -> None:
    assert_differs(check(lambda: Chooser(change)), "output")


def test_integer_actions_control() -> None:
    assert_passes(check(lambda: Chooser(lambda a, x: a)))


class Distributed(nn.Module):
    def __init__(self, factor: float, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.factor = factor
        self.kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        y = self.layer(x)
        factor = self.factor if compiling() else 1.0
        if self.kind == "categorical":
            return torch.distributions.Categorical(logits=y * factor)
        return torch.distributions.Normal(y, torch.ones_like(y) * factor)


@pytest.mark.parametrize(("kind", "path"), [("categorical", "output.logits"), ("normal", "output.scale")])
def test_distributions(kind: str, path: str) -> None:
    wrong = check(lambda: Distributed(1.001, kind))
    assert_differs(wrong, path, "values")
    assert_passes(check(lambda: Distributed(1.0, kind)))


class Plain(nn.Module):
    """Returns a number and a name beside the tensor."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> Any:
        wrong = self.wrong and compiling()
        return {"y": self.layer(x), "mode": "sampled" if wrong else "greedy", "steps": 2 if wrong else 1}


def test_plain_values() -> None:
    wrong = check(lambda: Plain(True))
    assert_differs(wrong, "output['mode']", "value")
    assert_differs(wrong, "output['steps']", "value")
    assert_passes(check(lambda: Plain(False)))


class Careful(nn.Module):
    """Raises on a NaN, before or after its layer; `compiled` says what its compiled side does instead."""

    def __init__(self, compiled: str, *, first: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.compiled = compiled
        self.first = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        how = self.compiled if compiling() else "raises"
        if self.first:
            self.guard(x, how)
        y = self.layer(x)
        if not self.first:
            self.guard(x, how)
        return y

    def guard(self, x: torch.Tensor, how: str) -> None:
        if how == "raises" and bool(torch.isnan(x).any()):
            raise ValueError("NaN in the observation")
        if how == "raises another" and bool(torch.isnan(x).any()):
            raise KeyError("NaN in the observation")
        if how == "raises too often" and bool((x > 1.5).any()):
            raise ValueError("NaN in the observation")


def test_an_exception_swallowed() -> None:
    """An exception is part of what a call leaves behind."""
    wrong = check(lambda: Careful("returns"))
    assert wrong.verdict is Verdict.DIFFERS
    assert "ValueError" in wrong.differences[0].eager


def test_an_exception_of_another_type() -> None:
    wrong = check(lambda: Careful("raises another"))
    assert wrong.verdict is Verdict.DIFFERS
    assert "ValueError" in wrong.differences[0].eager
    assert "KeyError" in wrong.differences[0].compiled


@pytest.mark.parametrize("first", [False, True], ids=["after the layer", "before anything was captured"])
def test_an_exception_that_eager_does_not_raise(first: bool) -> None:
    wrong = check(lambda: Careful("raises too often", first=first))
    assert_differs(wrong, "output", "exception")
    assert "ValueError" in wrong.differences[0].compiled


@pytest.mark.parametrize("first", [False, True])
def test_the_same_exception_on_both_sides(first: bool) -> None:
    right = check(lambda: Careful("raises", first=first))
    assert_passes(right)
    assert any("eager itself raised on" in note and "ValueError" in note for note in right.notes)


# --- convolutions and scale -----------------------------------------------------------------------


class Convolutional(nn.Module):
    """Features on scales of several hundred, where an absolute tolerance says little."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor], scale: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8 * 25, 4)
        self.scale = scale
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.conv(x)).flatten(1)
        if compiling():
            features = self.change(features)
        return self.scale * self.head(features)


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_thousandth_in_a_layer_on_any_scale(phase: str, scale: float) -> None:
    def model(factor: float) -> Convolutional:
        return Convolutional(lambda f: f * factor, scale)

    wrong = check(lambda: model(1.001), phase, observation=Box((3, 5, 5)))
    assert wrong.verdict is Verdict.DIFFERS
    assert_passes(check(lambda: model(1.0), phase, observation=Box((3, 5, 5))))


def test_one_channel_exchanged_with_another() -> None:
    wrong = check(lambda: Convolutional(lambda f: f.flip(1)), observation=Box((3, 5, 5)))
    assert_differs(wrong, "output", "values")
