"""Policies whose outputs are right when compiled and whose gradients are not."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box

from .record import Call, Report


def ramp(*shape: int) -> list[Call]:
    """One call with numbers from -1 to 1."""
    return [{"observation": torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape)}]


def noise(*shape: int) -> list[Call]:
    """One call with normal numbers."""
    generator = torch.Generator().manual_seed(0)
    return [{"observation": torch.randn(shape, generator=generator)}]


class Inhibited(nn.Module):
    """On a 9x9 board, each feature is inhibited by the strongest around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.actor = nn.Linear(8 * 9 * 9, 82)
        self.critic = nn.Linear(8 * 9 * 9, 1)

    def forward(self, board: Any) -> Any:
        """Mix a convolution with its pooled self."""
        c = self.conv(board)
        strongest = F.max_pool2d(c, 3, stride=1, padding=1)
        features = (torch.relu(c) - strongest / 2).flatten(1)
        return self.actor(features), self.critic(features)


class Averaging(nn.Module):
    """Averages a 6x6 board in windows, the last of which hang over its edge."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.pool = nn.AvgPool2d(3, stride=2, ceil_mode=True)
        self.actor = nn.Linear(2 * 3 * 3, 4)

    def forward(self, board: Any) -> Any:
        """Pool what a convolution sees."""
        return self.actor(self.pool(self.conv(board)).flatten(1))


class Related(nn.Module):
    """Learns a score for each pair of eight units; that of a unit with itself is learnt apart."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.pairs = nn.Parameter(torch.zeros(8, 8))
        self.own = nn.Parameter(torch.zeros(8))

    def forward(self, observation: Any) -> Any:
        """Return logits and the sum of all scores."""
        return self.actor(observation), torch.diagonal_scatter(self.pairs, self.own).sum()


class Overwritten(nn.Module):
    """Learns thirteen tokens, of which the first six are shared with another policy."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.tokens = nn.Parameter(torch.zeros(13, 8))
        self.shared = nn.Parameter(torch.zeros(6, 8))

    def forward(self, observation: Any) -> Any:
        """Return logits of the observation beside the sum of the tokens."""
        tokens = torch.slice_scatter(self.tokens, self.shared, dim=0, start=0, end=6)
        return self.actor(observation), tokens.sum(0)


class Nearest(nn.Module):
    """Turns towards the smallest of three angles."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 3)
        self.right = nn.Linear(3, 3)

    def forward(self, observation: Any) -> Any:
        """Return the smallest angle."""
        return torch.atan2(self.left(observation), self.right(observation)).amin(-1)


class Preferring(nn.Module):
    """Learns a reward from preferences, with a margin, in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.reward = nn.Linear(8, 1, bias=False).bfloat16()
        self.better = nn.Parameter(torch.tensor([1.703125], dtype=torch.bfloat16))

    def forward(self, observation: Any) -> Any:
        """Return the loss by which the preferred reward is at least the margin larger."""
        reward = self.reward(observation.bfloat16())
        wanted = torch.ones_like(reward)
        return F.margin_ranking_loss(reward + self.better, reward.detach(), wanted, margin=1.7)


_report = functools.partial(Report, kind="gradients")

REPORTS = (
    _report(
        number=185509,
        title="gradients of a convolution beside its max-pooled self",
        policy=Inhibited,
        calls=lambda: noise(1, 4, 9, 9),
        observation=Box((4, 9, 9), low=0, high=1),
    ),
    _report(
        number=198119,
        title="gradients of avg_pool2d with ceil_mode, where a window overhangs",
        policy=Averaging,
        calls=lambda: ramp(4, 1, 6, 6),
        observation=Box((1, 6, 6), low=-1, high=1),
    ),
    _report(
        number=182012,
        title="gradients of diagonal_scatter under a sum are zero",
        policy=Related,
        calls=lambda: noise(4, 8),
        observation=Box((8,)),
    ),
    _report(
        number=180164,
        title="gradients of slice_scatter under a sum are zero",
        policy=Overwritten,
        calls=lambda: noise(4, 8),
        observation=Box((8,)),
    ),
    _report(
        number=186799,
        title="gradients of amin over atan2 are lost where values are recomputed",
        policy=Nearest,
        calls=lambda: noise(64, 3),
        observation=Box((3,)),
    ),
    _report(
        number=185517,
        title="margin_ranking_loss has no gradient at its margin, in bfloat16",
        policy=Preferring,
        calls=lambda: [{"observation": torch.zeros(4, 8)}],
        blind="the loss has its kink where it is evaluated, so eager rounded a little otherwise has no "
        "gradient there either. The rounding floor measures that and allows it.",
        observation=Box((8,)),
    ),
)
