"""Policies with one operator that selects among features, some of which are equal, to see where gradients go.

Two of eight features are one number above most, two are one number below; all four are parameters of their own,
so that their gradients tell which was chosen. In float32 and in bfloat16.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box

from .record import Correct, correct


class Extreme(nn.Module):
    """Eight features, `chosen` among them, and two heads behind what was chosen."""

    dtype = torch.float32
    width = 1

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 4), nn.Linear(self.width, 3)
        self.high, self.low = nn.Parameter(torch.full((2,), 0.5)), nn.Parameter(torch.full((2,), -0.5))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.layer(x).chunk(2, -1)
        high, low = self.high.expand(len(x), 2), self.low.expand(len(x), 2)
        return torch.cat([high, one, low, two], -1).to(self.dtype)

    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.chosen(self.features(x)).float())


class Amax(Extreme):
    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        return features.amax(-1, keepdim=True)


class Amin(Extreme):
    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        return features.amin(-1, keepdim=True)


class Max(Extreme):
    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        return features.max(-1, keepdim=True).values


class Min(Extreme):
    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        return features.min(-1, keepdim=True).values


class Aminmax(Extreme):
    width = 2

    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(features.aminmax(dim=-1, keepdim=True)), -1)


class Median(Extreme):
    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        return features.median(-1, keepdim=True).values


class Sorted(Extreme):
    width = 8

    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        return features.sort(dim=-1, stable=True).values


class TopThree(Extreme):
    width = 3

    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        return features.topk(3, -1).values


class RunningMaximum(Extreme):
    width = 8

    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        return features.cummax(-1).values


class ScatteredMaximum(Extreme):
    width = 3

    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        index = (torch.arange(8) // 3).expand_as(features)
        start = features.new_zeros(len(features), 3)
        return start.scatter_reduce(-1, index, features, "amax", include_self=False)


class PooledMaximum(Extreme):
    width = 3

    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        return F.max_pool1d(features[:, None], 3, stride=2)[:, 0]


class LargerOfTwo(Extreme):
    width = 4

    def chosen(self, features: torch.Tensor) -> torch.Tensor:
        return torch.maximum(features[:, 0::2], features[:, 1::2])


_EXTREMES: dict[str, type[Extreme]] = {
    "amax": Amax,
    "amin": Amin,
    "max": Max,
    "min": Min,
    "aminmax": Aminmax,
    "median": Median,
    "sort": Sorted,
    "topk": TopThree,
    "cummax": RunningMaximum,
    "scatter_reduce": ScatteredMaximum,
    "max_pool1d": PooledMaximum,
    "maximum": LargerOfTwo,
}


def _narrow(name: str, model: type[Extreme]) -> Correct:
    narrow = type(f"{model.__name__}InBfloat16", (model,), {"dtype": torch.bfloat16})
    one = correct(f"{name} over ties, bfloat16", narrow, sensitive=True, observation=Box((6,)))
    return dataclasses.replace(one, miscompiled=_MISCOMPILED.get(name, ""))


_MISCOMPILED = dict.fromkeys(
    ("amax", "amin"), "gradients of NaN: backward compares features that were not narrowed (pytorch 186799)"
)

EXTREMES: tuple[Correct, ...] = (
    *(correct(f"{name} over ties", model, observation=Box((6,))) for name, model in _EXTREMES.items()),
    *(_narrow(name, model) for name, model in _EXTREMES.items()),
)
