"""Gradients that are lost, doubled or misplaced while every value is right."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from ..correct import FAMILIES
from .record import UPDATE, Change, Fault, fault, of_value, scaled_gradient


def misplaced(self: torch.nn.Module, right: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The right value; its gradient goes to the last elements, whatever was chosen."""
    y = right(x)
    return y.detach() + _passed_on(x, y)


def _passed_on(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Zeros whose gradient goes to the last elements of `x`, as many as `y` has."""
    last = x[:, -y.shape[-1] :]
    return last - last.detach()


CHANGES: dict[str, Change] = {
    "zeroed": of_value(scaled_gradient(0.0)),
    "doubled": of_value(scaled_gradient(2.0)),
    "misplaced": misplaced,
}

_extreme = functools.partial(fault, "a gradient of what is chosen by size", method="chosen", phase=UPDATE)
EXTREME: tuple[Fault, ...] = tuple(
    _extreme(how, one.name, change) for one in FAMILIES["extremes"] for how, change in CHANGES.items()
)

_tied = functools.partial(fault, "a gradient among equals", method="chosen", phase=UPDATE)
TIED = (
    _tied(
        "to the first, not shared", "amax over ties", lambda self, right, x: x.max(-1, keepdim=True).values
    ),
    _tied("shared, not to the first", "max over ties", lambda self, right, x: x.amax(-1, keepdim=True)),
    _tied("shared, not to the first", "min over ties", lambda self, right, x: x.amin(-1, keepdim=True)),
    _tied(
        "to one of two, not halved",
        "maximum over ties",
        lambda self, right, x: torch.where(x[:, 0::2] >= x[:, 1::2], x[:, 0::2], x[:, 1::2]),
    ),
    _tied(
        "shared, not to the first",
        "max_pool1d over ties",
        lambda self, right, x: torch.stack([x[:, i : i + 3].amax(-1) for i in (0, 2, 4)], -1),
    ),
)

_path = functools.partial(fault, "a gradient that is lost on the way", phase=UPDATE)
PATHS = (
    _path(
        "of the order of features",
        "sorted features and their median",
        lambda self, right, x: right(x).detach(),
        method="order",
    ),
    _path(
        "of the smaller critic",
        "the smaller of two critics",
        lambda self, right, a, b: torch.where(a < b, a, b.detach()),
        method="least",
    ),
    _path("straight through a codebook", "codebook", lambda self, right, x: _quantised(self, x)),
    _path(
        "of extremes in a set",
        "a set by its moments and extremes",
        lambda self, right, x: _without_extremes(right(x)),
        method="pooled",
    ),
    _path(
        "pooled before a residual block",
        "residual blocks behind pooling",
        of_value(scaled_gradient(1.05)),
        method="pooled",
    ),
    _path(
        "of scattered maxima",
        "largest message of the neighbours",
        of_value(scaled_gradient(0.5)),
        method="gathered",
    ),
    _path(
        "of scores behind topk",
        "best five candidates",
        lambda self, right, s: (s.topk(5, -1).values.detach(), right(s)[1]),
        method="best",
    ),
    _path(
        "of gates between experts",
        "two of four experts",
        lambda self, right, x: (right(x)[0].detach(), right(x)[1]),
        method="routed",
    ),
    _path(
        "of the correction of a squashed action",
        "squashed Gaussian, learnt temperature",
        lambda self, right, raw: right(raw.detach()),
        method="correction",
    ),
    _path(
        "of discounted sums, by a thousandth",
        "advantages over 16 steps",
        of_value(scaled_gradient(1.001)),
        method="summed",
    ),
    _path(
        "into a clipped ratio",
        "V-trace",
        lambda self, right, a, b: (a - b).exp().detach().clamp(max=1.0),
        method="ratios",
    ),
    _path("of running products", "running products", of_value(scaled_gradient(0.9)), method="alive"),
    _path(
        "into edges",
        "softmax over edges by scatter",
        lambda self, right, s: right(s.detach()),
        method="shares",
    ),
)


def _quantised(policy: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = policy.encode(x)
    index = policy.nearest(x)
    code = policy.codes(index)
    loss = (code - x.detach()).square().mean(-1) + 0.25 * (code.detach() - x).square().mean(-1)
    return policy.head(code), loss, index


def _without_extremes(pooled: torch.Tensor) -> torch.Tensor:
    mean, most, least, deviation = pooled.chunk(4, -1)
    return torch.cat([mean, most.detach(), least, deviation], -1)


GRADIENTS = (*EXTREME, *TIED, *PATHS)
