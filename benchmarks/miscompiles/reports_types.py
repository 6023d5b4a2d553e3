"""Policies whose numbers come back in another type, or with another precision, when compiled."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from pytest_torchcompile import Box

from .record import Call, Report


def vectors() -> list[Call]:
    """One call with four observations of eight numbers."""
    return [{"observation": torch.linspace(-1, 1, 32).reshape(4, 8)}]


class Numbered(nn.Module):
    """Adds to each of its tokens where it stands, in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)

    def forward(self, observation: Any) -> Any:
        """Return logits and the positions."""
        places = torch.ones((len(observation), 8), dtype=torch.bool).cumsum(1, dtype=torch.bfloat16)
        return self.actor(observation + places.float()), places


class Exponents(nn.Module):
    """Makes signed powers of two from flags and exponents in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)

    def forward(self, observation: Any) -> Any:
        """Return logits and the powers."""
        powers = torch.ldexp(observation > 0, self.actor(observation).tanh().half().repeat(1, 2))
        return self.actor(observation), powers


class Weighted(nn.Module):
    """Predicts what it sees, in half precision, with a weight for each feature in full precision."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.register_buffer("weight", torch.linspace(0.5, 1.5, 8))

    def forward(self, observation: Any) -> Any:
        """Return the loss of each feature."""
        predicted = self.body(observation).sigmoid().bfloat16()
        wanted = (observation > 0).bfloat16()
        return F.binary_cross_entropy(predicted, wanted, weight=self.weight, reduction="none")


class Sampling(nn.Module):
    """Draws its actions around a mean in half precision, as under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 3).half()
        self.std = nn.Parameter(torch.full((3,), 0.5))

    def forward(self, observation: Any) -> Any:
        """Return the actions and what their density grows with."""
        mean = self.actor(observation.half())
        action = Normal(mean, self.std.expand_as(mean), validate_args=False).sample()
        away = (action.float() - mean.float()) / self.std
        return action, -away.square().sum(-1) / 2


class Rounding(nn.Module):
    """Rounds its features to bfloat16, as the robot that runs it will."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)

    def forward(self, observation: Any) -> Any:
        """Return the rounded features in full precision."""
        return self.body(observation).to(torch.bfloat16).to(torch.float32)


class RotaryHalf(nn.Module):
    """Turns its features by learnt angles, in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16).bfloat16()
        self.angles = nn.Parameter(torch.linspace(0, 3, 16))

    def forward(self, observation: Any) -> Any:
        """Return the turned features."""
        x = self.body(observation.bfloat16())
        turned = torch.cat((-x[..., 8:], x[..., :8]), dim=-1)
        cos, sin = self.angles.cos().bfloat16(), self.angles.sin().bfloat16()
        return x * cos + turned * sin


_report = functools.partial(Report, kind="types", calls=vectors, observation=Box((8,)))

REPORTS = (
    _report(number=189518, title="cumsum of ones forgets the dtype it was asked for", policy=Numbered),
    _report(number=197091, title="ldexp of a boolean and a half is a float", policy=Exponents),
    _report(
        number=197098,
        title="binary_cross_entropy in half precision is a float if its weight is",
        policy=Weighted,
    ),
    _report(
        number=194547,
        title="samples around a mean in half precision are floats if the deviation is",
        policy=Sampling,
    ),
    _report(number=176565, title="rounding to bfloat16 and back is left out", policy=Rounding),
    _report(
        number=182225,
        title="rotary embeddings in bfloat16 are rounded once",
        policy=RotaryHalf,
        blind="compiled rounds less often than eager, and the rounding floor allows what rounding moves.",
    ),
)
