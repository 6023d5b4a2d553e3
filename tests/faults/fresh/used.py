"""Stale results: compiled ignores a change of inputs, buffers, attributes, weights or modes between calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .. import backends
from ..catalogue import LIFECYCLE
from .record import Fault, fault

_change = functools.partial(fault, "a change between calls", phase=LIFECYCLE)

Stale = Callable[[torch.Tensor, Any, dict[Any, Any]], torch.Tensor]
"""``stale(tensor, place, memory)``: what a graph makes of a tensor that it is given at `place`."""


def _names(graph: fx.GraphModule) -> list[str]:
    """What dynamo calls the inputs of a graph; those of buffers hold ``_buffers_``."""
    return [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]


def _remembering(buffers: Stale | None = None, weights: Stale | None = None) -> Callable[[], Any]:
    """A backend that hands its graphs something else for buffers or, without gradients, for weights."""

    def make() -> Any:
        memory: dict[Any, Any] = {}

        def wrap(graph: fx.GraphModule, run: backends.Run) -> backends.Run:
            names = _names(graph)

            def kept(name: str, value: Any) -> Any:
                if isinstance(value, nn.Parameter):
                    acts = weights is not None and not torch.is_grad_enabled()
                    return weights(value, id(value), memory) if acts else value
                if buffers is not None and "_buffers_" in name:
                    return buffers(value, name, memory)
                return value

            return lambda *args: run(*map(kept, names, args))

        return backends.wrapped(wrap)

    return make


def _first_value(value: torch.Tensor, place: Any, memory: dict[Any, Any]) -> torch.Tensor:
    """A constant that was folded."""
    return memory.setdefault(place, value.detach().clone())


def _first_object(value: torch.Tensor, place: Any, memory: dict[Any, Any]) -> torch.Tensor:
    """The object that was there first."""
    return memory.setdefault(place, value)


def _first_memory(value: torch.Tensor, place: Any, memory: dict[Any, Any]) -> torch.Tensor:
    """The memory that was there first, as an address that was written into code."""
    return memory.setdefault(place, value.detach())


def _by_version(value: torch.Tensor, place: Any, memory: dict[Any, Any]) -> torch.Tensor:
    """A copy made anew when the version has moved, which writing through `.data` does not."""
    version, copied = memory.get(place, (None, None))
    if version != value._version:
        copied = value.detach().clone()
        memory[place] = (value._version, copied)
    return copied


def _by_identity(value: torch.Tensor, place: Any, memory: dict[Any, Any]) -> torch.Tensor:
    """A copy made anew when the object is another; a copy into the same goes unnoticed."""
    seen, copied = memory.get(place, (None, None))
    if seen is not value:
        copied = value.detach().clone()
        memory[place] = (value, copied)
    return copied


def _asked_again() -> Any:
    """The answer to the very tensors of the last call is that of the last call, whatever they hold now."""

    def wrap(graph: fx.GraphModule, run: backends.Run) -> backends.Run:
        names = _names(graph)
        last: list[Any] = []

        def cached(*args: Any) -> Any:
            state = [
                (id(arg), arg._version)
                for name, arg in zip(names, args, strict=True)
                if isinstance(arg, nn.Parameter) or "_buffers_" in name
            ]
            asked = [
                arg
                for name, arg in zip(names, args, strict=True)
                if not isinstance(arg, nn.Parameter) and "_buffers_" not in name
            ]
            if last and state == last[0] and all(a is b for a, b in zip(asked, last[1], strict=True)):
                return last[2]
            last[:] = [state, asked, run(*args)]
            return last[2]

        return cached

    return backends.wrapped(wrap)


def _refreshed_by_learning() -> Any:
    """Weights are copied when a policy learns, and not when they are loaded or written to."""
    copies: dict[int, torch.Tensor] = {}
    learnt = [0]
    made: dict[int, int] = {}

    def kept(value: Any) -> Any:
        if not isinstance(value, nn.Parameter):
            return value
        if made.get(id(value)) != learnt[0]:
            copies[id(value)], made[id(value)] = value.detach().clone(), learnt[0]
        return copies[id(value)]

    def wrap(graph: fx.GraphModule, run: backends.Run) -> backends.Run:
        def acts(*args: Any) -> Any:
            if torch.is_grad_enabled():
                learnt[0] += 1
                return run(*args)
            return run(*map(kept, args))

        return acts

    return backends.wrapped(wrap)


def _frozen_for_good() -> Any:
    """What once needed no gradient never gets one."""
    ever: set[int] = set()

    def cut(value: Any) -> Any:
        if not isinstance(value, nn.Parameter):
            return value
        if not value.requires_grad:
            ever.add(id(value))
        return value.detach() if id(value) in ever else value

    return backends.wrapped(lambda graph, run: lambda *args: run(*map(cut, args)))


def _constant_while_frozen() -> Any:
    """What needs no gradient is taken for a constant."""
    constants: dict[int, torch.Tensor] = {}

    def folded(value: Any) -> Any:
        if not isinstance(value, nn.Parameter) or value.requires_grad:
            return value
        return constants.setdefault(id(value), value.detach().clone())

    return backends.wrapped(lambda graph, run: lambda *args: run(*map(folded, args)))


def _batch_statistics(policy: Any, right: Any, x: torch.Tensor) -> torch.Tensor:
    """The flag of the policy in place of that of the layer."""
    norm = policy.norm
    if not policy.training or norm.training:
        return right(x)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)


INPUTS = (
    _change("an observation that is refilled", "temperature on a schedule", backend=_asked_again),
    _change("observations that are refilled", "quantile critic with its loss", backend=_asked_again),
)

BUFFERS = (
    _change("buffers folded", "temperature on a schedule", backend=_remembering(buffers=_first_value)),
    _change(
        "a buffer that is written to",
        "bounds in a buffer, a scheduled share",
        backend=_remembering(buffers=_by_identity),
    ),
    _change(
        "a buffer that is assigned",
        "temperature on a schedule",
        backend=_remembering(buffers=_first_object),
    ),
    _change("a buffer that is assigned", "value from a support", backend=_remembering(buffers=_first_object)),
)

ATTRIBUTES = (
    _change(
        "a temperature taken for a constant",
        "temperature on a schedule",
        lambda self, right, logits: logits / 1.5,
        method="cooled",
    ),
    _change(
        "a share taken for a constant",
        "bounds in a buffer, a scheduled share",
        lambda self, right, a: a * 0.7 + 0.3 * a.mean(-1, keepdim=True),
        method="mixed",
    ),
)

WEIGHTS = (
    _change("weights by .data", "dueling heads", backend=_remembering(weights=_by_version)),
    _change("weights by .data =", "six residual layers", backend=_remembering(weights=_first_memory)),
    _change("weights that are loaded", "weight norm", backend=_refreshed_by_learning),
    _change("weights by any way", "soft experts", backend=_remembering(weights=_first_value)),
)

LAYERS = (
    _change("a layer frozen for good", "temperature on a schedule", backend=_frozen_for_good),
    _change("a layer frozen for good", "actor and critic on one body", backend=_frozen_for_good),
    _change("a frozen layer folded", "dueling heads", backend=_constant_while_frozen),
    _change(
        "batch statistics of a layer in eval()",
        "pretrained layers in eval()",
        _batch_statistics,
        method="normed",
    ),
    _change(
        "dropout of a layer in eval()",
        "pretrained layers in eval()",
        lambda self, right, x: F.dropout(x, 0.2, training=self.training),
        method="dropped",
    ),
)

USED: tuple[Fault, ...] = (*INPUTS, *BUFFERS, *ATTRIBUTES, *WEIGHTS, *LAYERS)
