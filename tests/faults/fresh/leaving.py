"""Faults in what a call leaves beside its outputs: gradients, attributes, flags, memory."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .record import UPDATE, Fault, fault, of_value, same_value, scaled_gradient

# --- leaves that are no parameters ------------------------------------------------------------------

_leaf = functools.partial(fault, "a leaf that is no parameter", phase=UPDATE)
LEAVES = (
    _leaf(
        "a temperature that does not learn",
        "temperature in a list",
        of_value(torch.Tensor.detach),
        method="temperature",
    ),
    _leaf(
        "a temperature whose gradient has the other sign",
        "temperature in a list",
        of_value(scaled_gradient(-1.0)),
        method="temperature",
    ),
    _leaf(
        "a multiplier that does not learn",
        "multiplier in a dataclass",
        of_value(torch.Tensor.detach),
        method="multiplier",
    ),
    _leaf(
        "a multiplier that learns a tenth too fast",
        "multiplier in a dataclass",
        of_value(scaled_gradient(1.1)),
        method="multiplier",
    ),
    _leaf(
        "one of two heads without a gradient",
        "heads in a dict",
        lambda self, right, hidden, name: (
            F.linear(hidden, self.heads[name].weight.detach(), self.heads[name].bias)
            if name == "run"
            else right(hidden, name)
        ),
        method="scored",
    ),
    _leaf(
        "the gradient of one head at the other",
        "heads in a dict",
        lambda self, right, hidden, name: _of_the_other(self, right(hidden, name), hidden, name),
        method="scored",
    ),
)


def _of_the_other(policy: Any, y: torch.Tensor, hidden: torch.Tensor, name: str) -> torch.Tensor:
    other = policy.heads["run" if name == "walk" else "walk"](hidden)
    return y.detach() + (other - other.detach())


_own = functools.partial(fault, "what a method learns by itself")
OWN = (
    _own("half of `.grad`", "calls backward itself", of_value(scaled_gradient(0.5)), method="error"),
    _own(
        "`.grad` twice",
        "calls backward itself",
        lambda self, right, x: (right(x), right(x))[1],
        method="learn",
    ),
    _own(
        "no `.grad` at all",
        "calls backward itself",
        lambda self, right, x: self.error(x).detach(),
        method="learn",
    ),
    _own(
        "no `.grad` of one bias",
        "calls backward itself",
        lambda self, right, x: _without_a_bias(self, x),
        method="error",
        phase=UPDATE,
    ),
)


def _without_a_bias(policy: Any, x: torch.Tensor) -> torch.Tensor:
    first, between, last = policy.predictor
    predicted = F.linear(between(first(x)), last.weight, last.bias.detach())
    return (predicted - policy.target(x)).square().mean(-1)


# --- attributes and flags -----------------------------------------------------------------------------

_python = functools.partial(fault, "a value of Python's")
PYTHON = (
    _python("no annealing", "exploration that falls", lambda self, right: None, method="anneal"),
    _python(
        "annealing twice", "exploration that falls", lambda self, right: (right(), right()), method="anneal"
    ),
    _python(
        "a number that stays",
        "notes in attributes",
        lambda self, right, x: (right(x), setattr(self, "width", 0)),
        method="note",
    ),
    _python(
        "another mode",
        "notes in attributes",
        lambda self, right, x: (right(x), setattr(self, "mode", "none")),
        method="note",
        phase=UPDATE,
    ),
    _python(
        "a deque that is appended to twice",
        "notes in attributes",
        lambda self, right, x: (right(x), self.widths.append(x.shape[1])),
        method="note",
    ),
    _python(
        "a dict without its new key",
        "notes in attributes",
        lambda self, right, x: (right(x), self.notes.pop(self.mode)),
        method="note",
        phase=UPDATE,
    ),
)

_flag = functools.partial(fault, "a flag")


@torch.compiler.disable
def _freeze_the_weight(policy: Any) -> None:
    policy.encoder.weight.requires_grad_(False)


def _leaves_training(policy: Any, y: torch.Tensor) -> torch.Tensor:
    policy.encoder[1].training = True
    return y


def _leaves_in_eval(policy: Any, y: torch.Tensor) -> torch.Tensor:
    policy.head.training = False
    return y


def _freezes_too_much(policy: Any, y: torch.Tensor) -> torch.Tensor:
    _freeze_the_weight(policy)
    return y


FLAGS = (
    _flag(
        "a layer left in train()",
        "a call that settles a layer",
        lambda self, right, x: _leaves_training(self, right(x)),
    ),
    _flag(
        "another layer left in eval()",
        "a call that settles a layer",
        lambda self, right, x: _leaves_in_eval(self, right(x)),
        phase=UPDATE,
    ),
    _flag(
        "a bias that is not frozen",
        "a call that freezes a bias",
        lambda self, right, x: self.head(torch.relu(self.encoder(x)).detach()),
    ),
    _flag(
        "a weight frozen as well",
        "a call that freezes a bias",
        lambda self, right, x: _freezes_too_much(self, right(x)),
    ),
)

_data = functools.partial(fault, "a write through `.data`")


def _clip_the_first(policy: Any) -> None:
    for parameter in policy.first.parameters():
        parameter.data.clamp_(-policy.bound, policy.bound)


DATA = (
    _data("no clipping", "weights clipped through .data", lambda self, right: None, method="clip"),
    _data(
        "one of two layers clipped",
        "weights clipped through .data",
        lambda self, right: _clip_the_first(self),
        method="clip",
        phase=UPDATE,
    ),
    _data(
        "no rescaling",
        "PopArt through .data",
        lambda self, right, mean, deviation: None,
        method="rescale",
        phase=UPDATE,
    ),
    _data(
        "rescaled twice",
        "PopArt through .data",
        lambda self, right, mean, deviation: (right(mean, deviation), right(mean, deviation)),
        method="rescale",
        phase=UPDATE,
    ),
)

# --- learning -----------------------------------------------------------------------------------------


class _Alone(torch.autograd.Function):
    """The gradient of two outputs is right if both are learnt from, and too small where one is."""

    @staticmethod
    def forward(ctx: Any, first: torch.Tensor, second: torch.Tensor) -> Any:
        return first.clone(), second.clone()

    @staticmethod
    def backward(ctx: Any, first: torch.Tensor, second: torch.Tensor) -> Any:
        both = first.any() & second.any()
        share = torch.where(both, 1.0, 0.9)
        return first * share, second * share


_output = functools.partial(fault, "one output's gradient", phase=UPDATE)
OUTPUTS = (
    _output(
        "doubled beside a NaN",
        "roots of negative numbers",
        of_value(scaled_gradient(2.0)),
        method="valued",
    ),
    _output(
        "lost beside a NaN",
        "roots of negative numbers",
        lambda self, right, hidden: right(hidden.detach()),
        method="valued",
    ),
    _output(
        "wrong where one is learnt from alone",
        "actor and critic on one body",
        lambda self, right, hidden: _Alone.apply(*right(hidden)),
        method="heads",
    ),
    _output(
        "of the value, lost on the way to the body",
        "actor and critic on one body",
        lambda self, right, hidden: (self.actor(hidden), self.critic(hidden.detach())),
        method="heads",
    ),
    _output(
        "5 % too large beside a view for a log",
        "a view for a log",
        of_value(scaled_gradient(1.05)),
        method="scores",
    ),
    _output(
        "of the phase of a complex number",
        "complex output",
        of_value(scaled_gradient(0.9)),
        method="phase",
    ),
)

_settled = functools.partial(fault, "learning in `eval()`", phase=UPDATE)


def _learns_in_eval(policy: nn.Module) -> bool:
    return not policy.training and torch.is_grad_enabled()


def _batch_statistics(policy: Any, right: Any, x: torch.Tensor) -> torch.Tensor:
    if not _learns_in_eval(policy):
        return right(x)
    mean, var = x.mean(0), x.var(0, correction=0)
    return (x - mean) / (var + policy.norm.eps).sqrt() * policy.norm.weight + policy.norm.bias


EVAL = (
    _settled("statistics of the batch", "BatchNorm and dropout", _batch_statistics, method="normed"),
    _settled(
        "dropout that stays",
        "BatchNorm and dropout",
        lambda self, right, x: F.dropout(x, 0.2) if _learns_in_eval(self) else right(x),
        method="dropped",
    ),
    _settled(
        "no gradient of what was normalised",
        "BatchNorm and dropout",
        lambda self, right, x: right(x.detach() if _learns_in_eval(self) else x),
        method="normed",
    ),
    _settled(
        "statistics that go on",
        "running normaliser",
        lambda self, right, x: self.mean.add_(1e-3) if _learns_in_eval(self) else right(x),
        method="track",
    ),
    _settled(
        "gradients a tenth smaller",
        "six residual layers",
        lambda self, right, x: same_value(right(x), 0.9 if _learns_in_eval(self) else 1.0),
    ),
)

# --- memory -------------------------------------------------------------------------------------------

_memory = functools.partial(fault, "memory that is shared")
MEMORY = (
    _memory("that of a buffer", "outputs in one memory", lambda self, right: self.bound, method="kept"),
    _memory(
        "that of a parameter",
        "outputs in one memory",
        lambda self, right: self.log_std.detach(),
        method="spread",
    ),
    _memory("that of another output", "outputs in one memory", lambda self, right, y: y, method="centre"),
    _memory("that of the observation", "outputs in one memory", lambda self, right, x: x, method="seen"),
)

LEAVING: tuple[Fault, ...] = (*LEAVES, *OWN, *PYTHON, *FLAGS, *DATA, *OUTPUTS, *EVAL, *MEMORY)
