"""Policies of floats whose values are wrong when compiled: resampling, attention, edges, random numbers."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box

from .record import Call, Report


def ramp(*shape: int) -> list[Call]:
    """One call with numbers from -1 to 1."""
    return [{"observation": torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape)}]


class Zooming(nn.Module):
    """Looks at a board a little larger than it is."""

    factor: Any = 1.3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 1, 1))

    def forward(self, observation: Any) -> Any:
        """Return the scaled board."""
        return F.interpolate(observation, scale_factor=self.factor, mode="nearest") * self.scale


class ZoomingIn(Zooming):
    """Looks at one direction larger, and at the other the same."""

    factor: Any = (1.3, 1.5)


class Wrapping(nn.Module):
    """Wraps its angles around; a joint that is no angle has an infinite period."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(16, 4)
        periods = [2 * math.pi, math.inf] * 8
        self.register_buffer("periods", torch.tensor(periods))

    def forward(self, observation: Any) -> Any:
        """Return logits of the wrapped angles."""
        return self.actor(torch.remainder(observation, self.periods))


class Attending(nn.Module):
    """Attends with four heads to four tokens; keys stay stored token by token."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 32) for _ in range(3))

    def forward(self, observation: Any) -> Any:
        """Return what each token attends to, head by head."""
        shape = (len(observation), 4, 4, 8)
        q = self.query(observation).view(shape).transpose(1, 2)
        v = self.value(observation).view(shape).transpose(1, 2)
        keys = self.key(observation).view(shape).permute(0, 2, 3, 1)
        return (q @ keys).mul(8**-0.5).softmax(-1) @ v


class Noisy(nn.Module):
    """Adds noise to its logits, which lie column by column."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 8)

    def forward(self, observation: Any) -> Any:
        """Return the noisy logits."""
        logits = self.actor(observation).t()
        return logits + torch.randn_like(logits)


_report = functools.partial(Report, kind="values")

REPORTS = (
    _report(
        number=175154,
        title="interpolate to the same size still resamples",
        policy=Zooming,
        calls=lambda: ramp(4, 1, 2, 2),
        observation=Box((1, 2, 2), low=-1, high=1),
    ),
    _report(
        number=198201,
        title="interpolate resamples a dimension whose size does not change",
        policy=ZoomingIn,
        calls=lambda: ramp(4, 1, 3, 4),
        observation=Box((1, 3, 4), low=-1, high=1),
    ),
    _report(
        number=198057,
        title="the remainder of a division by infinity is NaN",
        policy=Wrapping,
        calls=lambda: ramp(4, 16),
        observation=Box((16,), low=-10, high=10),
    ),
    _report(
        number=195320,
        title="attention is fused though its keys are permuted otherwise",
        policy=Attending,
        calls=lambda: ramp(4, 4, 8),
        observation=Box((4, 8)),
    ),
    _report(
        number=177652,
        title="randn_like of a transposed tensor draws in another order than eager's",
        policy=Noisy,
        calls=lambda: ramp(4, 8),
        observation=Box((8,)),
    ),
)
