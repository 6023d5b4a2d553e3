"""Errors of 1 % on values and gradients of policies that rounding moves far; larger ones in half precision."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from ..correct import CORRECT, FAMILIES
from .record import UPDATE, Fault, fault, of_output, scaled_gradient

EXTREMES = FAMILIES["extremes"]
HALF = ("autocast inside", "bfloat16", "float16")


def _others(half: bool) -> list[str]:
    """The sensitive policies that a compiler needs no minutes for, by the precision that they compute in."""
    sensitive = [
        one.name for one in CORRECT.values() if one.sensitive and not one.long and one not in EXTREMES
    ]
    return [name for name in sensitive if any(word in name for word in HALF) is half]


def _output(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., object]:
    return of_output(_FLOATING.get(name, 0), change)


_FLOATING = {
    "divergence from a copy, two forms": 2,
    "autoregressive heads": 1,
    "options": 1,
}
"""Which output is a float, and not zero where all is right; the first unless told."""

_value = functools.partial(fault, "1 % in a sensitive policy")
_gradient = functools.partial(fault, "1 % on a gradient of a sensitive policy", phase=UPDATE)
_half = functools.partial(fault, "half precision")


def _larger(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda y: y * factor


SENSITIVE: tuple[Fault, ...] = (
    *(_value("all of an output", name, _output(name, _larger(1.01))) for name in _others(half=False)),
    *(_gradient("all of them", name, _output(name, scaled_gradient(1.01))) for name in _others(half=False)),
    *(_half("a tenth more", name, _output(name, _larger(1.1))) for name in _others(half=True)),
    *(_half("3 % more", name, _output(name, _larger(1.03))) for name in _others(half=True)),
    *(
        _half("gradients a tenth more", name, _output(name, scaled_gradient(1.1)), phase=UPDATE)
        for name in _others(half=True)
    ),
    *(
        _half("gradients 3 % more", name, _output(name, scaled_gradient(1.03)), phase=UPDATE)
        for name in _others(half=True)
    ),
    fault(
        "1 % in a sensitive policy",
        "a divergence of a thousandth for none",
        "divergence from a frozen copy",
        of_output(1, lambda y: y + 1e-3),
    ),
    fault(
        "1 % in a sensitive policy",
        "a ratio that is not 1",
        "divergence from a copy, two forms",
        of_output(2, lambda y: y + 1e-4),
    ),
)
