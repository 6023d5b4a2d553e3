"""Convolutions, pooling and sampling of pixels and boards."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box, Image, MultiBinary

from .record import correct


class SpatialTransformer(nn.Module):
    """Looks at a part of the picture that it chooses: an affine grid, sampled.

    The grid is made by hand: torch 2.13 can't compile the backward of `affine_grid` for any batch size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.where, self.head = nn.Linear(2 * 36, 6), nn.Linear(2 * 16, 4)
        nn.init.normal_(self.where.weight, std=0.02)
        self.where.bias.data.copy_(torch.tensor([0.7, 0.0, 0.0, 0.0, 0.7, 0.0]))
        places = torch.cartesian_prod(torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 4)).flip(-1)
        self.register_buffer("places", torch.cat([places, torch.ones(16, 1)], -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = self.where(x.flatten(1)).unflatten(1, (2, 3))
        grid = (self.places @ theta.mT).unflatten(1, (4, 4))
        return self.head(F.grid_sample(x, grid, align_corners=False).flatten(1))


class Atari(nn.Module):
    """Bytes to actions: three convolutions, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(2, 8, 4, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()),
            *(nn.Conv2d(8, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 32), nn.ReLU()),
        )
        self.actor, self.critic = nn.Linear(32, 6), nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.body(x.float() / 255)
        return self.actor(hidden), self.critic(hidden).squeeze(-1)


class Impala(nn.Module):
    """Residual blocks behind pooling by maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(6 * 16, 5)

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pooled(self.stem(x))
        first, second = self.inner
        x = x + second(F.relu(first(F.relu(x))))
        return self.head(F.relu(x).flatten(1))


class Upsampling(nn.Module):
    """A score for each pixel: dilated on the way down, transposed on the way up, joined in between."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1)
        self.score = nn.Conv2d(6, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = F.leaky_relu(self.down(x))
        low = low + F.leaky_relu(self.wide(low))
        return self.score(torch.cat([x, self.up(low)], 1)).flatten(1).log_softmax(-1)


class Keypoints(nn.Module):
    """Where each feature is, as the mean position under a softmax over the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 5, 3), nn.Linear(10, 3)
        self.register_buffer(
            "places", torch.cartesian_prod(torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 4))
        )
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = (self.conv(x).flatten(2) / self.temperature).softmax(-1)
        return torch.tanh(self.head((shares @ self.places).flatten(1)))


class SqueezeExcite(nn.Module):
    """Channels are weighed by their own means; groups are normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.GroupNorm(2, 8)
        self.narrow, self.wide, self.head = nn.Linear(8, 4), nn.Linear(4, 16), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        scale, shift = self.wide(torch.relu(self.narrow(y.mean((2, 3))))).chunk(2, -1)
        y = torch.relu(torch.sigmoid(scale)[..., None, None] * y + shift[..., None, None])
        return self.head(y.mean((2, 3)))


class NearConstantBatch(nn.Module):
    """Batch statistics of numbers that hardly vary: their deviation is a hundredth of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.pointwise, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = 3 + 0.01 * torch.tanh(x)
        x = F.relu6(self.norm(self.pointwise(self.depthwise(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Board(nn.Module):
    """A board of any size within a mask: means and maxima of the places that are on it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bias = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(12, 6)
        self.score, self.skip = nn.Conv2d(6, 1, 1), nn.Linear(12, 1)

    def pooled(self, x: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
        count = on.sum((2, 3)).clamp(min=1)
        mean = (x * on).sum((2, 3)) / count
        most = (x - 1e4 * (1 - on)).amax((2, 3))
        return torch.cat([mean, most * (on.sum((2, 3)) > 0)], 1)

    def forward(self, x: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
        x = self.conv(x) * on
        x = F.mish(x + self.bias(self.pooled(x, on))[..., None, None]) * on
        places = self.score(x).flatten(1).masked_fill(on.flatten(1) < 0.5, -5000.0)
        return torch.cat([places, self.skip(self.pooled(x, on))], 1).log_softmax(-1)


class Patches(nn.Module):
    """A vision transformer of one block: patches, a token of its own, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(3 * 4, 16), nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(10, 16) / 4)
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.embed(F.unfold(x, 2, stride=2).mT)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.places
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y, need_weights=False)[0])[:, 0])


class Resized(nn.Module):
    """Two scales of the same picture, brought to one by interpolation and by shuffled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 16, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        both = torch.cat([self.fine(x), F.pixel_shuffle(self.coarse(half), 2)], 1)
        return self.head(F.silu(both).mean((2, 3)))


class Planes(nn.Module):
    """Piece numbers on a board, written as floats, to planes of their own; a tower over them."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(13, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
        self.head = nn.Linear(4 * 16, 6)

    def planes(self, board: torch.Tensor) -> torch.Tensor:
        return F.one_hot(board.long() + 6, 13).permute(0, 3, 1, 2).float()

    def forward(self, board: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.tower(self.planes(board.float()))).flatten(1))


PIXELS = (
    correct("spatial transformer", SpatialTransformer, observation=Box((2, 6, 6), low=-1, high=1)),
    correct("bytes to actions", Atari, observation=Image((2, 14, 14))),
    correct("residual blocks behind pooling", Impala, observation=Box((3, 8, 8))),
    correct("a score for each pixel", Upsampling, observation=Box((2, 8, 8))),
    correct("keypoints", Keypoints, observation=Box((2, 6, 6))),
    correct("squeeze and excite, GroupNorm", SqueezeExcite, observation=Box((2, 5, 5))),
    correct(
        "BatchNorm of a near-constant batch", NearConstantBatch, sensitive=True, observation=Box((3, 5, 5))
    ),
    correct(
        "a board within a mask", Board, observation=Box((2, 5, 5)), inputs={"on": MultiBinary((1, 5, 5))}
    ),
    correct("patches", Patches, observation=Box((3, 6, 6))),
    correct("two scales", Resized, observation=Box((2, 6, 6))),
    correct("piece numbers to planes", Planes, observation=Box((4, 4), low=-6, high=6, dtype="int64")),
)
