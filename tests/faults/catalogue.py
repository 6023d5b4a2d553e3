"""The catalogue: faults by class, and controls.

A fault is either in the model, on the compiled side only (``torch.compiler.is_compiling()``), or in a
backend. It is caught if some case of a check under default settings says so; the backend aside, no
option is set for any of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box, CheckResult, Discrete, Verdict

from . import backends, hard, policies
from .policies import Policy

compiling = torch.compiler.is_compiling

ROLLOUT, UPDATE, LIFECYCLE = "rollout", "update", "lifecycle"


def fails(result: CheckResult) -> bool:
    """The check fails the test: compiled differs, or was not compiled."""
    return result.verdict in (Verdict.DIFFERS, Verdict.NOT_COMPILED)


def beyond(word: str) -> Callable[[CheckResult], bool]:
    """The check passes, as it has to, and has a remark with this word: nobody declared what the fault needs."""
    return lambda result: result.verdict.passed and any(word in remark for remark in result.remarks)


def is_not_compiled(result: CheckResult) -> bool:
    """The check says that what was called proves nothing."""
    return result.verdict is Verdict.NOT_COMPILED


def reports_breaks(result: CheckResult) -> bool:
    """The check passes, as it has to, and its report counts graph breaks, each with its file and line."""
    return bool(result.capture.breaks) and all(".py:" in text for text in result.capture.breaks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One fault, or one control.

    Args:
        kind: its class.
        name: what is wrong.
        factory: makes the policy.
        declaration: what the policy is called with.
        backend: makes the backend; a fault in it may remember calls, so that each check has its own.
        phase: the case in which it shows at the latest; a control is checked in all.
        path: what differs, where that is certain.
        caught: whether a result shows the fault.
    """

    kind: str
    name: str
    factory: Callable[[], Any]
    declaration: Mapping[str, Any]
    backend: Callable[[], Any] = lambda: "eager"
    phase: str = ROLLOUT
    path: str = ""
    caught: Callable[[CheckResult], bool] = fails


# --- faults in the model --------------------------------------------------------------------------

Change = Callable[..., Any]
"""``change(model, right, *inputs)``: what the method returns when compiled, `right` being the method."""


def changed(model: type[nn.Module], change: Change, method: str = "forward") -> type[nn.Module]:
    """A class that is right in eager and `change` when compiled."""
    right = getattr(model, method)

    @functools.wraps(right)
    def wrong(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if compiling():
            return change(self, lambda *a, **k: right(self, *a, **k), *args, **kwargs)
        return right(self, *args, **kwargs)

    return type(model.__name__, (model,), {method: wrong})


def one_hot(like: torch.Tensor) -> torch.Tensor:
    """1 for the first element of each row."""
    return F.one_hot(torch.tensor(0), like.shape[-1]).to(like.dtype)


def rows(x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """1 for the rows of `x` of which all else holds."""
    return condition.reshape(len(x), -1).any(1).to(torch.float32)


def same_value(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    """`tensor` with its gradient times `factor`."""
    return tensor.detach() + (tensor - tensor.detach()) * factor


def _outputs(change: Callable[..., Any]) -> Change:
    """A change of what a policy with logits and a value returns: ``change(x, logits, value)``."""
    return lambda self, right, x: change(x, *right(x))


def _tower(change: Callable[..., Any]) -> Change:
    return lambda self, right, x: change(x, right(x))


def _recorded(kind: str, phase: str = ROLLOUT, **defaults: Any) -> Callable[..., Entry]:
    """Makes the entries of a class."""

    def entry(
        name: str,
        policy: Policy,
        change: Change | None = None,
        *,
        method: str = "forward",
        model: type[nn.Module] | None = None,
        **values: Any,
    ) -> Entry:
        made = model or (policy.model if change is None else changed(policy.model, change, method))
        values = {"phase": phase, "factory": made, "declaration": policy.declaration} | defaults | values
        return Entry(kind=kind, name=name, **values)

    return entry


def _add(outputs: backends.Outputs, amount: float = 1e-4) -> backends.Outputs:
    first = backends.float_tensors(outputs)[0]
    return [output + amount if place == first else output for place, output in enumerate(outputs)]


def _when(condition: Callable[[int], bool]) -> Callable[[], Any]:
    """A backend that is wrong on some calls."""
    return lambda: backends.changed(lambda outputs, call: _add(outputs) if condition(call) else outputs)


def _scaled(shape: tuple[int, ...], factor: float) -> Callable[[], Any]:
    """A backend whose gradients of one shape are scaled."""

    def change(outputs: backends.Outputs) -> backends.Outputs:
        return [o * factor if isinstance(o, torch.Tensor) and o.shape == shape else o for o in outputs]

    return lambda: backends.changed_backward(change)


p = policies

# --- values ---------------------------------------------------------------------------------------

_element = _recorded("a wrong output element")
ELEMENT = [
    _element(
        "2e-5 on a logit", p.MLP, _outputs(lambda x, y, v: (y + 3e-5 * one_hot(y), v)), path="output[0]"
    ),
    _element(
        "one pixel column of a tower's logits",
        p.TOWER,
        _tower(lambda x, y: torch.cat([y[:, :-1], y[:, -1:] * 1.001], 1)),
        path="output",
    ),
    _element(
        "two rows exchanged", p.CONVOLUTIONAL, _outputs(lambda x, y, v: (y, v.flip(0))), path="output[1]"
    ),
    _element("the worst action", p.GREEDY, lambda self, right, x: (right(x) + 1) % 4, method="greedy"),
    _element(
        "entropy in bits",
        p.MASKED_LEARNER,
        lambda self, right, *a, **k: (lambda log_prob, e, v: (log_prob, e * 1.442695, v))(*right(*a, **k)),
        method="evaluate",
        path="output[1]",
    ),
    _element(
        "the mean of a distribution",
        p.CONTINUOUS,
        lambda self, right, x: torch.distributions.Normal(right(x).mean + 1e-4, right(x).stddev),
    ),
    _element("a backend that adds", p.GATED, backend=_when(lambda call: True)),
]

_regime = _recorded("a wrong batch regime")
REGIME = [
    _regime("batch 1", p.MLP, _outputs(lambda x, y, v: (y + (1e-4 if len(x) == 1 else 0), v))),
    _regime("16 and more", p.CONVOLUTIONAL, _outputs(lambda x, y, v: (y, v + (1e-4 if len(x) >= 16 else 0)))),
    _regime("odd batches", p.TOWER, _tower(lambda x, y: y + (1e-3 if len(x) % 2 else 0))),
    _regime("rows from the eighth", p.MLP, _outputs(lambda x, y, v: (y + 1e-4 * _from(8, y), v))),
    _regime("the second graph", p.GATED, backend=lambda: backends.changed_graph(2, _add)),
]


def _from(first: int, like: torch.Tensor) -> torch.Tensor:
    return (torch.arange(len(like)) >= first)[:, None]


_region = _recorded("a wrong input region")
REGION = [
    _region("negative", p.MLP, _outputs(lambda x, y, v: (y + 1e-4 * (x[:, :1] < 0), v))),
    _region("huge", p.CONVOLUTIONAL, _outputs(lambda x, y, v: (y, v * (1 + 1e-2 * rows(x, x.abs() > 1e3))))),
    _region("zero", p.TOWER, _tower(lambda x, y: y + 1e-3 * (x.reshape(len(x), -1) == 0).all(1)[:, None])),
    _region("NaN", p.MLP, _outputs(lambda x, y, v: (torch.nan_to_num(y), v))),
    _region("infinity", p.TOWER, _tower(lambda x, y: torch.nan_to_num(y, posinf=0.0, neginf=0.0))),
    _region(
        "one legal action",
        p.MASKED_LEARNER,
        lambda self, right, x, mask, action: tuple(
            out + 1e-3 * (mask.sum(1) == 1).reshape(-1, *[1] * (out.dim() - 1))
            for out in right(x, mask, action)
        ),
        method="evaluate",
    ),
    _region("a zero state", p.GATED, lambda self, right, x, state: _shifted(right(x, state), state)),
]


def _shifted(outputs: Any, state: torch.Tensor) -> Any:
    y, new = outputs
    return y + 1e-3 * (state == 0).all(1, keepdim=True), new


_kind = _recorded("a wrong dtype or shape")
DTYPE = [
    _kind("double", p.MLP, _outputs(lambda x, y, v: (y.double(), v)), path="output[0]"),
    _kind("half on the way", p.TOWER, _tower(lambda x, y: y.half().float()), path="output"),
    _kind(
        "squeezed at batch 1", p.CONVOLUTIONAL, _outputs(lambda x, y, v: (y, v.squeeze())), path="output[1]"
    ),
    _kind("a value's column", p.MLP, _outputs(lambda x, y, v: (y, v[:, None])), path="output[1]"),
    _kind("int32 actions", p.GREEDY, lambda self, right, x: right(x).int(), method="greedy", path="output"),
    _kind("a list for a tuple", p.CONVOLUTIONAL, _outputs(lambda x, y, v: [y, v]), path="output"),
    _kind("a key lost", p.NESTED, lambda self, right, observation: {"logits": right(observation)["logits"]}),
]

# --- gradients and state --------------------------------------------------------------------------

_gradient = _recorded("a wrong gradient", UPDATE)
GRADIENT = [
    _gradient("5 % on a weight", p.MLP, backend=_scaled((16, 8), 1.05), path="gradient of trunk.weight"),
    _gradient("none", p.MLP, _outputs(lambda x, y, v: (y, v.detach())), path="output[1]"),
    _gradient(
        "zero for a convolution's weight",
        p.CONVOLUTIONAL,
        backend=_scaled((8, 3, 3, 3), 0.0),
        path="gradient of conv.weight",
    ),
    _gradient("negative", p.TOWER, _tower(lambda x, y: same_value(y, -1.0)), path="gradient of head.weight"),
    _gradient(
        "only batch 1", p.MLP, _outputs(lambda x, y, v: (y, same_value(v, 1.05 if len(x) == 1 else 1.0)))
    ),
    _gradient(
        "a deviation that does not learn",
        p.CONTINUOUS_SAMPLER,
        lambda self, right, x: _without_gradient(self.mean(x), self.log_std),
        method="act",
        path="gradient of log_std",
    ),
    _gradient("a gate's, by a thousandth", p.GATED, backend=_scaled((18, 6), 1.001)),
]


def _without_gradient(mean: torch.Tensor, log_std: torch.Tensor) -> Any:
    normal = torch.distributions.Normal(mean, log_std.detach().exp().expand_as(mean))
    action = normal.rsample()
    return action, normal.log_prob(action).sum(-1)


class StatisticsForgotten(policies.Convolutional):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        if not (compiling() and self.training):
            return super().features(x)
        x, norm = self.conv(x), self.norm
        x = F.batch_norm(x, None, None, norm.weight, norm.bias, True, norm.momentum, norm.eps)
        return torch.relu(x).flatten(1)


class CountedTwice(policies.Remembering):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if compiling():
            self.count.add_(1)
        return super().forward(x)


class HiddenForgotten(policies.Remembering):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.hidden
        y = super().forward(x)
        if compiling():
            self.hidden = before
        return y


_buffer = _recorded("a dropped buffer update")
BUFFER = [
    _buffer(
        "running statistics",
        p.CONVOLUTIONAL,
        model=StatisticsForgotten,
        phase=UPDATE,
        path="buffer norm.running_mean",
    ),
    _buffer(
        "a running mean",
        p.NORMALISING,
        lambda self, right, x: None,
        method="track",
        phase=UPDATE,
        path="buffer mean",
    ),
    _buffer("a hidden state", p.REMEMBERING, model=HiddenForgotten, path="attribute hidden"),
    _buffer("a count, made twice", p.REMEMBERING, model=CountedTwice, path="buffer count"),
]


class WritesToItsInput(policies.Mlp):
    def forward(self, x: torch.Tensor) -> Any:
        outputs = super().forward(x)
        if compiling():
            x.mul_(2)
        return outputs


class ClampLost(hard.Clamping):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if compiling() else super().forward(x)


class WeightDecayed(policies.Gated):
    def forward(self, x: torch.Tensor, state: torch.Tensor) -> Any:
        if compiling():
            with torch.no_grad():
                self.head.weight.mul_(0.999)
        return super().forward(x, state)


CLAMPING = Policy(hard.Clamping, p.MLP.declaration)
_mutation = _recorded("a lost or added in-place mutation")
MUTATION = [
    _mutation(
        "an input's clamp lost",
        p.NORMALISING,
        lambda self, right, x: x.clamp(-5, 5),
        method="clamp",
        path="input observation",
    ),
    _mutation("an input written to", p.MLP, model=WritesToItsInput, path="input observation"),
    _mutation("a weight's clamp lost", CLAMPING, model=ClampLost, path="parameter layer.weight"),
    _mutation("a weight written to", p.GATED, model=WeightDecayed),
]

# --- what only the life of a policy shows ---------------------------------------------------------


class StaleBias(policies.Mlp):
    """A value whose bias is the one from before the optimizer's steps."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = self.critic.bias.detach().clone()

    def forward(self, x: torch.Tensor) -> Any:
        logits, value = super().forward(x)
        if compiling():
            value = value + (self.kept - self.critic.bias.detach()).to(value.dtype)
        return logits, value


_stale = _recorded("stale weights", LIFECYCLE)
STALE = [
    _stale("all, when acting", p.MLP, backend=lambda: backends.stale_weights(True)),
    _stale("all, when acting by convolutions", p.CONVOLUTIONAL, backend=lambda: backends.stale_weights(True)),
    _stale("folded into each graph", p.TOWER, backend=backends.folded_weights),
    _stale("folded, of a recurrent cell", p.GATED, backend=backends.folded_weights),
    _stale("one bias", p.MLP, model=StaleBias),
]

_memory = _recorded("static output memory", LIFECYCLE)
MEMORY = [
    _memory("one buffer", p.MLP, backend=lambda: backends.static_outputs(True)),
    _memory("one buffer for a state", p.GATED, backend=lambda: backends.static_outputs(True)),
    _memory("one buffer for named outputs", p.NESTED, backend=lambda: backends.static_outputs(True)),
    _memory("two buffers in turn", p.TOWER, backend=backends.two_buffers),
]


class FrozenNoise(policies.Continuous):
    """Adds the same numbers each time, drawn when it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(64, 2))

    def act(self, x: torch.Tensor) -> Any:
        if not compiling():
            return super().act(x)
        normal = self(x)
        action = normal.loc + normal.scale * self.noise[: len(x)]
        return action, normal.log_prob(action).sum(-1)


class FrozenAsDeployed(policies.Continuous):
    """Draws right as long as it is told to draw eager's numbers."""

    def act(self, x: torch.Tensor) -> Any:
        if not compiling() or torch._inductor.config.fallback_random:
            return super().act(x)
        normal = self(x)
        action = normal.loc + normal.scale * torch.arange(2.0)
        return action, normal.log_prob(action).sum(-1)


_frozen = _recorded("frozen random numbers")
FROZEN = [
    _frozen("drawn when it was made", p.CONTINUOUS_SAMPLER, model=FrozenNoise),
    _frozen("the first ones of each graph", p.CONTINUOUS_SAMPLER, backend=backends.frozen_draws),
    _frozen("the first ones of each graph, discrete", p.SAMPLER, backend=backends.frozen_draws),
    _frozen("only as deployed", p.CONTINUOUS_SAMPLER, model=FrozenAsDeployed, phase=LIFECYCLE),
]

_rate = _recorded("a wrong dropout rate", UPDATE)
RATE = [
    _rate("left out", p.DROPPING, lambda self, right, x: x, method="dropped"),
    _rate("0.25", p.DROPPING, lambda self, right, x: F.dropout(x, 0.25, self.training), method="dropped"),
    _rate("0.45", p.DROPPING, lambda self, right, x: F.dropout(x, 0.45, self.training), method="dropped"),
    _rate(
        "not made up for",
        p.DROPPING,
        lambda self, right, x: right(x) * (1 - 0.5 * self.training),
        method="dropped",
    ),
]


class BatchStatistics(policies.Convolutional):
    """Normalises by the batch, whatever the mode."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        if not compiling():
            return super().features(x)
        x = F.batch_norm(self.conv(x), None, None, self.norm.weight, self.norm.bias, True)
        return torch.relu(x).flatten(1)


class ActsAlways(nn.Module):
    """Has a part for training only, which is left out when compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.extra = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        training = self.training and not compiling()
        return torch.as_tensor(self.layer(x) + (self.extra(x) if training else 0 * self.extra(x)))


_mode = _recorded("a train/eval or grad-mode mix-up")
MODE = [
    _mode("batch statistics when acting", p.CONVOLUTIONAL, model=BatchStatistics),
    _mode(
        "dropout when acting", p.DROPPING, lambda self, right, x: F.dropout(x, 0.5, True), method="dropped"
    ),
    _mode(
        "acts as in training", p.NORMALISING, lambda self, right, x: self.mean.add_(x.mean(0)), method="track"
    ),
    _mode("learns as if acting", p.MLP, model=ActsAlways, phase=UPDATE),
    _mode(
        "no gradients in training",
        p.TOWER,
        lambda self, right, x: torch.no_grad()(right)(x) if self.training else right(x),
        phase=UPDATE,
    ),
    _mode(
        "in inference mode only",
        p.MLP,
        backend=lambda: backends.changed(
            lambda outputs, call: _add(outputs, 1e-3) if torch.is_inference_mode_enabled() else outputs
        ),
        phase=LIFECYCLE,
    ),
]

_autocast = _recorded("only with autocast", LIFECYCLE, caught=beyond("autocast"))


def _autocast_on() -> bool:
    return torch.is_autocast_enabled("cpu")


def _under_autocast(change: Callable[[Any], Any]) -> Callable[[], Any]:
    def changed(outputs: backends.Outputs, call: int) -> backends.Outputs:
        return [change(o) if isinstance(o, torch.Tensor) and o.is_floating_point() else o for o in outputs]

    return lambda: backends.changed(lambda o, call: changed(o, call) if _autocast_on() else o)


AUTOCAST = [
    _autocast("a fifth too large", p.MLP, backend=_under_autocast(lambda o: o * 1.2)),
    _autocast("float32", p.TOWER, backend=_under_autocast(lambda o: o.float())),
    _autocast("zeros", p.CONVOLUTIONAL, backend=_under_autocast(torch.zeros_like)),
    _autocast("negative", p.GATED, backend=_under_autocast(lambda o: -o)),
    *(
        _autocast(
            f"a fifth too large in {phase}, declared",
            p.MLP,
            backend=_under_autocast(lambda o: o * 1.2),
            declaration={**p.MLP.declaration, "autocast": "bfloat16"},
            phase=phase,
            caught=fails,
        )
        for phase in (ROLLOUT, UPDATE, LIFECYCLE)
    ),
]

# --- exceptions and calls -------------------------------------------------------------------------

CHOSEN = {"observation": p.VECTOR, "inputs": {"action": Discrete(4)}}


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.table = nn.Embedding(4, 4)

    def chosen(self, action: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.table(action))

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x) + self.chosen(action))


class Spreading(nn.Module):
    """Draws with the deviation that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def drawn(self, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        # Given the mean, torch.normal() would give it a gradient of zeros.
        return mean + torch.normal(torch.zeros_like(mean), std)

    def forward(self, x: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        return self.drawn(self.layer(x), std)


class Careful(nn.Module):
    """Raises on a NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def guard(self, x: torch.Tensor) -> None:
        if bool(torch.isnan(x).any()):
            raise ValueError("NaN in the observation")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        self.guard(x)
        return torch.as_tensor(y)


CHOOSING = Policy(Choosing, CHOSEN)
SPREADING = Policy(Spreading, {"observation": p.VECTOR, "inputs": {"std": Box((4,), low=0)}})
CAREFUL = Policy(Careful, p.MLP.declaration)

_swallowed = _recorded("a swallowed exception", caught=beyond("not declared"))
SWALLOWED = [
    _swallowed("NaN", CAREFUL, lambda self, right, x: None, method="guard", caught=fails),
    _swallowed("a size too many", p.MLP, lambda self, right, x: right(x[:, :8])),
    _swallowed("a channel too many", p.TOWER, lambda self, right, x: right(x[..., :5])),
    _swallowed("float64", p.MLP, backend=lambda: backends.lenient(_single)),
    _swallowed("an index", CHOOSING, lambda self, right, a: right(a.clamp(0, 3)), method="chosen"),
    _swallowed("an index, by a kernel", CHOOSING, backend=lambda: backends.lenient(_clamped)),
    _swallowed(
        "a negative deviation", SPREADING, lambda self, right, m, std: right(m, std.abs()), method="drawn"
    ),
]


def _single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype is torch.float64 else tensor


def _clamped(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clamp(0, 3) if tensor.dtype is torch.int64 else tensor


_call = _recorded("only on the nth call")
CALL = [
    _call("the first", p.MLP, backend=_when(lambda call: call == 1)),
    _call("the sixth", p.TOWER, backend=_when(lambda call: call == 6)),
    _call("every seventh", p.GATED, backend=_when(lambda call: call % 7 == 0)),
    _call("from the fortieth", p.NESTED, backend=_when(lambda call: call >= 40)),
]

_method = _recorded("only in a non-forward method")
METHOD = [
    _method("get_value", p.AGENT, lambda self, right, x: right(x) + 1e-4, method="get_value"),
    _method(
        "evaluate, not act",
        p.MASKED_AGENT,
        lambda self, right, *a, **k: (lambda log_prob, e, v: (log_prob, e, v * 1.001))(*right(*a, **k)),
        method="evaluate",
    ),
    _method(
        "act, not evaluate",
        p.MASKED_AGENT,
        lambda self, right, x, mask: (lambda a, log_prob, v: (a, log_prob - 1e-3, v))(*right(x, mask)),
        method="act",
    ),
    _method("greedy", p.GREEDY, lambda self, right, x: right(x).clamp(max=2), method="greedy"),
]

# --- compiled in name only ------------------------------------------------------------------------


class Disabled(policies.Mlp):
    forward = torch.compiler.disable(policies.Mlp.forward)  # type: ignore[assignment]


class LayersDisabled(nn.Module):
    """Compiles an addition, and leaves the layers eager."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    @torch.compiler.disable
    def layers(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x + 1) * 2


_nothing = _recorded("nothing compiled", caught=is_not_compiled)
NOTHING = [
    _nothing("forward disabled", p.MLP, model=Disabled),
    _nothing("all layers disabled", p.MLP, model=LayersDisabled),
    _nothing(
        "a method past the wrapper",
        p.AGENT,
        factory=lambda: torch.compile(policies.Mlp(), backend="eager"),
    ),
    _nothing(
        "a greedy method past the wrapper",
        p.GREEDY,
        factory=lambda: torch.compile(policies.Mlp(), backend="aot_eager", dynamic=True),
    ),
]


class CountsCalls(policies.Mlp):
    """Computes with a count of its calls, for each value of which there is a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.calls += 1
        return super().forward(x + min(self.calls, 0))


class NewObject(policies.Tower):
    """Guards on an object that is made anew on each call."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: Any = lambda x: x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.scale(super().forward(x))
        self.renew()
        return torch.as_tensor(y)

    @torch.compiler.disable
    def renew(self) -> None:
        class Scale:
            def __call__(self, x: torch.Tensor) -> torch.Tensor:
                return x

        self.scale = Scale()


LOG: list[str] = []
"""What `Logs` writes to: as a global no check puts it back."""


class Logs(policies.Gated):
    """Guards on the length of a list that grows."""

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> Any:
        LOG.append("acted")
        return super().forward(x, state)


_recompiling = _recorded("recompilation per call", caught=is_not_compiled)
RECOMPILING = [
    _recompiling("a counter", p.MLP, model=CountsCalls),
    _recompiling("an object made anew", p.TOWER, model=NewObject),
    _recompiling("a list that grows", p.GATED, model=Logs),
]


class Breaks(policies.Mlp):
    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.tanh(self.trunk(x))
        torch._dynamo.graph_break()
        return 2 * self.actor(hidden), self.critic(hidden).squeeze(-1)


class BranchesOnData(policies.Tower):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        if bool(x.detach().mean() > 1e9):
            x = x / 2
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return torch.as_tensor(self.head(x.flatten(1)))


class LeavesACell(policies.Gated):
    """Of whose two layers one is left eager."""

    @torch.compiler.disable
    def step(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.cell(x, state))

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> Any:
        state = self.step(x, state)
        return self.head(state), state


_broken = _recorded("silent graph breaks", caught=reports_breaks)
BROKEN = [
    _broken("asked for", p.MLP, model=Breaks),
    _broken("a branch on data", p.TOWER, model=BranchesOnData),
    _broken("a layer left eager", p.GATED, model=LeavesACell),
]

FAULTS: tuple[Entry, ...] = tuple(
    ELEMENT
    + REGIME
    + REGION
    + DTYPE
    + GRADIENT
    + BUFFER
    + MUTATION
    + STALE
    + MEMORY
    + FROZEN
    + RATE
    + MODE
    + AUTOCAST
    + SWALLOWED
    + CALL
    + METHOD
    + NOTHING
    + RECOMPILING
    + BROKEN
)

# --- controls -------------------------------------------------------------------------------------


_control = _recorded("control", backend=lambda: "aot_eager")
_rejecting = {"NaN": CAREFUL, "an index": CHOOSING, "a negative deviation": SPREADING}

CORRECT = [
    *(_control(name, policy) for name, policy in p.POLICIES.items()),
    _control("autocast", p.MLP, declaration={**p.MLP.declaration, "autocast": "bfloat16"}),
    *(_control(f"{name}, which both reject", policy) for name, policy in _rejecting.items()),
]
RIGHT_BACKENDS = [
    _control(f"{name}, a backend that is right", policy, backend=backends.right)
    for name, policy in p.POLICIES.items()
]
HARD = [_control(name, p.MLP, factory=model) for name, model in hard.CORRECT.items()]
ROUNDED = [
    _control(
        f"{name}, rounded otherwise",
        p.MLP,
        factory=model,
        declaration={"observation": spec},
        backend=lambda: "eager",
    )
    for name, (model, spec, _) in hard.ROUNDED.items()
]

CONTROLS: tuple[Entry, ...] = (*CORRECT, *RIGHT_BACKENDS, *HARD, *ROUNDED)
