"""Whole numbers in floats, waves, layouts in memory, and other arithmetic on observations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box

from .record import correct


class Identities(nn.Module):
    """Entity ids in a float observation: a table, and a plane for each."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 6), nn.Linear(6 + 30, 3)

    def ids(self, x: torch.Tensor) -> torch.Tensor:
        return x.long()

    def forward(self, units: torch.Tensor) -> torch.Tensor:
        ids = self.ids(units.float())
        return self.head(torch.cat([self.table(ids).sum(1), F.one_hot(ids, 30).float().sum(1)], -1))


class Digits(nn.Module):
    """A counter by its digits: floor division and remainder in floats."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def divided(self, x: torch.Tensor, by: float) -> torch.Tensor:
        return torch.floor_divide(x, by)

    def left(self, x: torch.Tensor, by: float) -> torch.Tensor:
        return torch.remainder(x, by)

    def forward(self, clock: torch.Tensor) -> Any:
        clock = clock.float()
        digits = torch.stack(
            [self.left(self.divided(clock, base), 7.0) for base in (1.0, 7.0, 49.0, 343.0)], -1
        )
        return self.head(digits), digits


class Cells(nn.Module):
    """Positions to cells of a grid and to the place within: floor, round, frac, and running counts."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(6, 3)

    def cell(self, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    def counted(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1)

    def forward(self, quarters: torch.Tensor) -> Any:
        places = quarters.float() / 4
        cells = self.cell(places)
        visits = self.counted((cells > 3).float())
        features = torch.stack([places.frac(), visits], -1)
        return self.head(torch.cat([self.table(cells.long()), features], -1)).sum(1), visits


class Fourier(nn.Module):
    """Random Fourier features of a state, and learnt ones."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", torch.randn(4, 8) * 3)
        self.learnt, self.head = nn.Parameter(torch.randn(4, 8)), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fixed, learnt = 2 * math.pi * x @ self.waves, math.pi * x @ self.learnt
        return self.head(torch.cat([fixed.sin(), fixed.cos(), learnt.cos()], -1))


class Spectrum(nn.Module):
    """The spectrum of a window: absolute values, phases by their cosines, a filter that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(17, 2) / 4)
        self.head = nn.Linear(17 + 32, 3)
        self.register_buffer("window", torch.hann_window(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(x * self.window, norm="ortho")
        power = (spectrum.real.square() + spectrum.imag.square() + 1e-6).log()
        back = torch.fft.irfft(spectrum * torch.view_as_complex(self.filter), n=32, norm="ortho")
        return self.head(torch.cat([power, back], -1))


class Companded(nn.Module):
    """Continuous values to tokens by the mu-law, as a generalist agent reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(64, 8), nn.Linear(8, 3)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        squeezed = x.sign() * (x.abs() * 100 + 1).log() / math.log(100 * 256 + 1)
        return ((squeezed.clamp(-1, 1) + 1) / 2 * 63).round().long()

    def forward(self, x: torch.Tensor) -> Any:
        tokens = self.tokens(x)
        return self.head(self.table(tokens).mean(1)), tokens


class Strides(nn.Module):
    """Overlapping windows of a trajectory, read through strides."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(3 * 4, 2)

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        batch, steps, width = x.shape
        rows, lines, columns = x.stride()
        return x.as_strided((batch, steps - 2, 3, width), (rows, lines, lines, columns))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.windows(self.embed(x))).flatten(2))


class Diagonals(nn.Module):
    """A square of scores by its rows, its columns and its diagonals."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.head = nn.Linear(3, 1), nn.Linear(13, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        board = self.score(x).squeeze(-1)
        lines = board.sum(1), board.sum(2), board.transpose(1, 2).amax(1)
        diagonal = torch.stack([board.diagonal(dim1=1, dim2=2).sum(-1)], -1)
        return self.head(torch.cat([*lines, diagonal], -1))


class Chart(nn.Module):
    """Rotations of a frame by quaternions that are learnt up to their length."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.head = nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = F.normalize(self.turn(x) + torch.tensor([1.0, 0, 0, 0]), dim=-1, eps=1e-6)
        scalar, axis = q[:, :1, None], q[:, None, 1:]
        points = x.unflatten(-1, (2, 3))
        across = 2 * torch.linalg.cross(axis.expand_as(points), points)
        return self.head(
            (points + scalar * across + torch.linalg.cross(axis.expand_as(points), across)).flatten(1)
        )


class Tiles(nn.Module):
    """Tile coding: eight shifted grids over two numbers, one weight for each tile."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(8, 25, 3) / 8)
        self.register_buffer("shifts", torch.arange(8.0)[:, None] / 8 * torch.tensor([1.0, 3.0]) % 1)

    def tiles(self, x: torch.Tensor) -> torch.Tensor:
        cells = (x[:, None] * 4 + self.shifts).floor().long().clamp(0, 4)
        return cells[..., 0] * 5 + cells[..., 1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights[torch.arange(8), self.tiles(x)].sum(1)


NUMBERS = (
    correct("ids in floats", Identities, observation=Box((5,), low=0, high=29, dtype="int64")),
    correct("digits of a counter", Digits, observation=Box((3,), low=0, high=2400, dtype="int64")),
    correct("cells of a grid", Cells, observation=Box((6,), low=0, high=32, dtype="int64")),
    correct("Fourier features", Fourier, sensitive=True, observation=Box((4,), low=-1, high=1)),
    correct("spectrum of a window", Spectrum, observation=Box((32,))),
    correct("tokens by the mu-law", Companded, sensitive=True, observation=Box((5,))),
    correct("windows through strides", Strides, observation=Box((9, 3))),
    correct("rows, columns, diagonals", Diagonals, observation=Box((4, 4, 3))),
    correct("rotations by quaternions", Chart, sensitive=True, observation=Box((6,))),
    correct("tile coding", Tiles, sensitive=True, observation=Box((2,), low=0, high=1)),
)
