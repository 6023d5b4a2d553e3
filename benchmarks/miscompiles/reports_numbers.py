"""Policies that compute with whole numbers and booleans, as board games and pixels need."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import Box, Image, MultiBinary

from .record import Call, Report


def pixels(*shape: int) -> list[Call]:
    """One call with pixels from 5 to 250."""
    count = torch.Size(shape).numel()
    return [{"pixels": torch.linspace(5, 250, count).to(torch.uint8).reshape(shape)}]


class Pixels(nn.Module):
    """An actor on one number that is made of 36 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(36, 4)


class Darkest(Pixels):
    """Scales each image by its darkest pixel."""

    def forward(self, pixels: Any) -> Any:
        """Return logits of how much brighter than the darkest each pixel is."""
        flat = pixels.flatten(1)
        return self.actor((flat - flat.amin(1, keepdim=True)).float() / 255)


class Contrast(nn.Module):
    """Sums how far all pixels are from white, in whole numbers, for two eyes."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(1, 4)

    def forward(self, pixels: Any) -> Any:
        """Return logits of the sum."""
        darkness = -pixels.abs()
        both = torch.cat([darkness, darkness], dim=1).flatten(1)
        return self.actor(both.sum(1, keepdim=True).float() / 255)


class Greedy(nn.Module):
    """Chooses the best pair from a table of waves."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(35, 1)
        self.register_buffer("grid", torch.linspace(-4, 4, 35).reshape(5, 7))

    def forward(self, observation: Any) -> Any:
        """Return a value and the index of the best pair, column by column."""
        waves = self.grid + observation.mean()
        waves.sin_()
        return self.actor(waves.flatten()), waves.t().argmax()


class FirstClosed(nn.Module):
    """Finds the first of 32 doors that is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 4)

    def forward(self, doors: Any) -> Any:
        """Return a row for the door, and its number."""
        closed = doors.min(1)
        return self.table(closed.indices), closed.indices


def some_doors() -> list[Call]:
    """One call with random doors."""
    generator = torch.Generator().manual_seed(0)
    return [{"doors": torch.randint(2, (4, 32), generator=generator).bool()}]


_report = functools.partial(Report, kind="whole numbers")

REPORTS = (
    _report(
        number=191499,
        title="the least of 16 or more uint8 is 0",
        policy=Darkest,
        calls=lambda: pixels(4, 1, 6, 6),
        observation=Image((1, 6, 6)),
    ),
    _report(
        number=187018,
        title="the negative of a uint8 that went through abs is negative",
        policy=Contrast,
        calls=lambda: pixels(4, 1, 1, 4),
        observation=Image((1, 1, 4)),
    ),
    _report(
        number=183082,
        title="argmax of a transposed tensor counts in the wrong order",
        policy=Greedy,
        calls=lambda: [{"observation": torch.zeros(4, 8)}],
        observation=Box((8,)),
    ),
    _report(
        number=184893,
        title="the index of the least boolean is that of the largest",
        policy=FirstClosed,
        calls=some_doors,
        observation=MultiBinary((32,), dtype="bool"),
    ),
)
