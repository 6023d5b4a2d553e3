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
    """Scores eight units in pairs; the score of a unit with itself is learnt apart."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 8)
        self.own = nn.Parameter(torch.zeros(8))

    def forward(self, observation: Any) -> Any:
        """Return the sum of all scores."""
        scores = self.left(observation).unsqueeze(2) * observation.unsqueeze(1)
        own = self.own.expand(len(observation), 8)
        return torch.diagonal_scatter(scores, own, dim1=1, dim2=2).sum((1, 2))


class Overwritten(nn.Module):
    """Replaces the first of thirteen tokens by learnt ones and adds all up."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.learnt = nn.Parameter(torch.zeros(6, 8))

    def forward(self, tokens: Any) -> Any:
        """Return the sum over the tokens."""
        learnt = self.learnt.expand(len(tokens), 6, 8)
        return torch.slice_scatter(self.body(tokens), learnt, dim=1, start=0, end=6).sum(1)


class InnerGradient(nn.Module):
    """Sees the gradient of a potential beside its observation."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(3, 4)

    def forward(self, observation: Any) -> Any:
        """Return the logits and the gradient of the potential."""

        def potential(x: Any) -> Any:
            y = torch.zeros_like(x)
            y[:, 0] += x[:, 2].abs()
            y[:, 0] += x[:, 2].abs()
            return y.sum()

        force = torch.func.grad(potential)(observation)
        return self.actor(observation + force), force


class Grouped(nn.Module):
    """Keeps the strongest of its units in each of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.Linear(8, 6)
        self.register_buffer("group", torch.tensor([0, 1, 0, 1, 0, 1]))

    def forward(self, observation: Any) -> Any:
        """Return the strongest of each group."""
        units = self.units(observation)
        none = torch.full((len(observation), 2), float("-inf"))
        return none.index_reduce(1, self.group, units, "amax", include_self=False)


class Nearest(nn.Module):
    """Turns towards the smallest of three angles."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 3)
        self.right = nn.Linear(3, 3)

    def forward(self, observation: Any) -> Any:
        """Return the smallest angle."""
        return torch.atan2(self.left(observation), self.right(observation)).amin(-1)


class Bounded(nn.Module):
    """Bounds its log standard deviation, which starts at the bound, in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 3).bfloat16()
        self.log_std = nn.Parameter(torch.full((3,), 0.7, dtype=torch.bfloat16))

    def forward(self, observation: Any) -> Any:
        """Return mean and standard deviation."""
        mean = self.actor(observation.bfloat16())
        return mean, F.hardtanh(self.log_std, -0.7, 0.7).exp().expand_as(mean)


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
        calls=lambda: noise(4, 13, 8),
        observation=Box((13, 8)),
    ),
    _report(
        number=136662,
        title="torch.func.grad forgets one of two in-place additions",
        policy=InnerGradient,
        calls=lambda: noise(2, 3),
        observation=Box((3,)),
    ),
    _report(
        number=168358,
        title="gradients of index_reduce with amax are NaN",
        policy=Grouped,
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
        number=185472,
        title="hardtanh has no gradient at its bound, in bfloat16",
        policy=Bounded,
        calls=lambda: noise(4, 8),
        observation=Box((8,)),
    ),
    _report(
        number=185517,
        title="margin_ranking_loss has no gradient at its margin, in bfloat16",
        policy=Preferring,
        calls=lambda: [{"observation": torch.zeros(4, 8)}],
        observation=Box((8,)),
    ),
)
