"""Policies whose owner changes them between calls: statistics that are loaded, schedules, pretrained layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box

from .record import correct


class Standard(nn.Module):
    """Observations in units that somebody else keeps."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / (self.var + 1e-5).sqrt()


class Scheduled(nn.Module):
    """A normaliser, a body and two heads; the temperature falls on a schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body = Standard(6), nn.Sequential(nn.Linear(6, 16), nn.Tanh())
        self.actor, self.critic = nn.Linear(16, 4), nn.Linear(16, 1)
        self.temperature = 1.5

    def cooled(self, logits: torch.Tensor) -> torch.Tensor:
        return logits / self.temperature

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.body(self.norm(x))
        return self.cooled(self.actor(hidden)), self.critic(hidden)


class Smoothed(nn.Module):
    """Target smoothing: the noise layer mixes in a scheduled share of the mean action; bounds are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
        self.share = 0.3
        self.register_buffer("bound", torch.tensor([1.0, 2.0]))

    def mixed(self, action: torch.Tensor) -> torch.Tensor:
        return action * (1 - self.share) + self.share * action.mean(-1, keepdim=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.mixed(self.net(x))) * self.bound


class Pretrained(nn.Module):
    """An encoder with BatchNorm and dropout, which stay in `eval()` while the policy trains."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.norm, self.dropout = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.2)
        self.head = nn.Linear(12, 4)

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropped(F.relu(self.normed(self.encoder(x)))))


USED = (
    correct("temperature on a schedule", Scheduled, observation=Box((6,))),
    correct("bounds in a buffer, a scheduled share", Smoothed, observation=Box((6,))),
    correct("pretrained layers in eval()", Pretrained, observation=Box((6,))),
)
