"""Sequences of any length: attention by running sums, convolution, pooling over time."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box

from .attention import LinearAttention
from .record import correct


class Causal(nn.Module):
    """Two convolutions along time that see no future."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 8, 3), nn.Conv1d(8, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(F.pad(x.mT, (2, 0))))
        return self.second(F.pad(y, (2, 0))).mT


class Pooled(nn.Module):
    """Each step is weighed by a score of its own; the weighed mean decides."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score, self.head = nn.Linear(5, 8), nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.tanh(self.embed(x))
        return self.head((self.score(steps).softmax(1) * steps).sum(1))


LENGTHS = (
    correct("running sums over any length", LinearAttention, observation=Box(("T", 6))),
    correct("causal convolutions over any length", Causal, observation=Box(("T", 4))),
    correct("weighed mean over any length", Pooled, observation=Box(("T", 5))),
)
