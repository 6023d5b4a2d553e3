"""Policies that compute with whole numbers and booleans, as board games and pixels need."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import Box, Image, MultiBinary, MultiDiscrete

from .record import Call, Report

LARGEST = 2**31 - 1


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


class Inverted(Pixels):
    """Inverts its pixels by negating them, which wraps around, and adds a learnt offset."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(36))

    def forward(self, pixels: Any) -> Any:
        """Return logits of the inverted pixels."""
        return self.actor((torch.neg(pixels.flatten(1)) + self.offset) / 255)


class Doubling(nn.Module):
    """Doubles ids of 32 bits, which wraps around, and looks them up as 64-bit ones."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 4)

    def forward(self, ids: Any) -> Any:
        """Return the rows of the doubled ids."""
        return self.table((ids + ids).to(torch.int64) % 16), (ids + ids).to(torch.int64)


class Hashing(nn.Module):
    """Hashes ids of 32 bits by a product that wraps around."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 4)

    def forward(self, ids: Any) -> Any:
        """Return the rows of the hashed ids, and the hashes."""
        hashed = (ids * 1103515245 + 12345).to(torch.int64)
        return self.table(hashed % 16), hashed


class Shifting(nn.Module):
    """Makes a bit mask of each level, of which more than 63 have none."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("unit", torch.tensor(1000))

    def forward(self, levels: Any) -> Any:
        """Return the masks."""
        masks = torch.bitwise_left_shift(self.unit, levels)
        return masks, masks.float() * self.scale


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
    """Finds the first of five doors that is closed, for each of 32 rooms."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(32, 4)

    def forward(self, doors: Any) -> Any:
        """Return logits and the index of the door."""
        closed = doors.bool().min(1)
        return self.actor(closed.values.float()), closed.indices


class Binned(nn.Module):
    """Sorts its features into bins, without the first edge."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 4)
        self.register_buffer("edges", torch.linspace(-2, 2, 10))

    def forward(self, observation: Any) -> Any:
        """Return the rows of the bins, and the bins."""
        bins = torch.bucketize(observation, self.edges[1:])
        return self.table(bins), bins


class Searched(nn.Module):
    """Finds the segment of each position."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 4)

    def forward(self, positions: Any) -> Any:
        """Return the rows of the segments, and the segments."""
        offsets = torch.tensor([0, 3, 7, 12])
        segments = torch.searchsorted(offsets[1:], positions, right=True)
        return self.table(segments), segments


class Quantising(nn.Module):
    """Quantises its features into bytes, negative ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.actor = nn.Linear(16, 4)

    def forward(self, observation: Any) -> Any:
        """Return logits of the quantised features."""
        return self.actor((self.body(observation) * 32).to(torch.uint8).float())


def large_ids() -> list[Call]:
    """One call with ids up to the largest of 32 bits."""
    return [{"ids": torch.linspace(0, LARGEST, 32, dtype=torch.float64).to(torch.int32).reshape(4, 8)}]


def some_doors() -> list[Call]:
    """One call with random doors."""
    generator = torch.Generator().manual_seed(0)
    return [{"doors": torch.randint(2, (4, 5, 32), generator=generator).float()}]


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
        number=161763,
        title="the negative of a uint8 is negative beside a float",
        policy=Inverted,
        calls=lambda: pixels(4, 1, 6, 6),
        observation=Image((1, 6, 6)),
    ),
    _report(
        number=108520,
        title="a sum of int32 does not wrap around before it is widened",
        policy=Doubling,
        calls=large_ids,
        observation=Box((8,), low=0, high=LARGEST, dtype="int32"),
    ),
    _report(
        number=191132,
        pull=True,
        title="arithmetic on int32 is 2**32 away from eager's",
        policy=Hashing,
        calls=large_ids,
        observation=Box((8,), low=0, high=LARGEST, dtype="int32"),
    ),
    _report(
        number=143566,
        title="a shift by 64 bits shifts by none",
        policy=Shifting,
        calls=lambda: [{"levels": torch.tensor([[1, 63, 64, 65]]).expand(4, 4).contiguous()}],
        observation=MultiDiscrete([70, 70, 70, 70]),
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
        observation=MultiBinary((5, 32)),
    ),
    _report(
        number=160964,
        title="bucketize ignores that its edges are a slice",
        policy=Binned,
        calls=lambda: [{"observation": torch.linspace(-3, 3, 32).reshape(4, 8)}],
        observation=Box((8,), low=-3, high=3),
    ),
    _report(
        number=182343,
        title="searchsorted ignores that its sequence is a slice",
        policy=Searched,
        calls=lambda: [{"positions": torch.arange(12).expand(4, 12).contiguous()}],
        observation=MultiDiscrete([12] * 12),
    ),
    _report(
        number=156788,
        title="a negative float becomes 0 as uint8, not 255",
        policy=Quantising,
        calls=lambda: [{"observation": torch.linspace(-2, 2, 32).reshape(4, 8)}],
        observation=Box((8,), low=-2, high=2),
    ),
)
