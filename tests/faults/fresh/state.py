"""Statistics, targets and buffers that are wrong after a call."""

from __future__ import annotations

import functools

import torch
from torch import nn

from .record import UPDATE, fault

_state = functools.partial(fault, "running statistics", phase=UPDATE)
STATE = (
    _state("not tracked", "running normaliser", lambda self, right, x: None, method="track"),
    _state(
        "tracked twice", "running normaliser", lambda self, right, x: (right(x), right(x)), method="track"
    ),
    _state(
        "a count of one more",
        "running normaliser",
        lambda self, right, x: (right(x), self.count.add_(1))[0],
        method="track",
    ),
    _state(
        "a variance of n - 1", "running normaliser", lambda self, right, x: _unbiased(self, x), method="track"
    ),
    _state(
        "a mean that forgets",
        "PopArt",
        lambda self, right, r: (right(r), self.mean.zero_())[0],
        method="track",
    ),
    _state(
        "a deviation 1 % too large",
        "PopArt",
        lambda self, right, r: (right(r), self.square.mul_(1.02))[0],
        method="track",
    ),
    _state(
        "a range that is turned",
        "scaled rewards",
        lambda self, right, r: (right(r), self.range.copy_(self.range.flip(0)))[0],
        method="track",
    ),
    _state(
        "a rate of 0.11",
        "curiosity",
        lambda self, right, e: self.scale.lerp_(e.detach().mean(), 0.11),
        method="track",
    ),
    _state("a target that stays", "target that follows", lambda self, right: None, method="follow"),
    _state(
        "a target that follows twice",
        "target that follows",
        lambda self, right: (right(), right()),
        method="follow",
    ),
    _state(
        "acts as in training",
        "running normaliser",
        lambda self, right, x: self.mean.add_(1e-3),
        method="track",
        phase="rollout",
    ),
    _state(
        "the newest at the wrong end",
        "rolling stack in a buffer",
        lambda self, right, f: self.stack.copy_(
            torch.cat([f.detach().mean(0, keepdim=True), self.stack[1:]])
        ),
        method="push",
        phase="rollout",
    ),
    _state(
        "nothing pushed",
        "rolling stack in a buffer",
        lambda self, right, f: None,
        method="push",
        phase="rollout",
    ),
    _state(
        "biased running variance", "BatchNorm between layers", lambda self, right, x: _biased(self, right, x)
    ),
    _state(
        "noise left out of the weights",
        "noise on weights",
        lambda self, right, size: right(size) * 0,
        method="drawn",
    ),
)


def _unbiased(policy: nn.Module, x: torch.Tensor) -> None:
    if policy.training:
        total, delta = policy.count + len(x), x.mean(0) - policy.mean
        spread = x.var(0, correction=0) * len(x) / max(len(x) - 1, 1)
        sum_of_squares = policy.var * policy.count + spread * len(x)
        policy.var.copy_((sum_of_squares + delta**2 * policy.count * len(x) / total) / total)
        policy.mean.add_(delta * len(x) / total)
        policy.count.copy_(total)


def _biased(policy: nn.Module, right: object, x: torch.Tensor) -> torch.Tensor:
    before = policy.norm.running_var.clone()
    y = right(x)
    if policy.training:
        share = (len(x) - 1) / len(x)
        policy.norm.running_var.copy_(before * 0.95 + (policy.norm.running_var - before * 0.95) * share)
    return y
