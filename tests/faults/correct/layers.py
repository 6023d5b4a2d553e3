"""Normalisations, parametrisations and generated weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from pytest_torchcompile import Box

from .record import correct


class RootMeanSquare(nn.Module):
    """Gated layers between root-mean-square norms."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.wide, self.narrow = nn.Parameter(torch.ones(6)), nn.Linear(6, 24), nn.Linear(12, 6)
        self.norm, self.head = nn.RMSNorm(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale
        gate, value = self.wide(normed).chunk(2, -1)
        return self.head(self.norm(normed + self.narrow(F.silu(gate) * value)))


class Deep(nn.Module):
    """Six residual layers, each normalised, each scaled by little."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()) for _ in range(6)
        )
        self.scales = nn.Parameter(torch.full((6, 16), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = x + scale * layer(x)
        return self.head(x)


class BatchNormed(nn.Module):
    """Batch statistics between layers, running ones beside, as in CrossQ."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Linear(6, 16),
            nn.BatchNorm1d(16, momentum=0.05),
            nn.Linear(16, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu6(self.norm(self.first(x))))


class InstanceNormed(nn.Module):
    """Each picture by its own statistics, shifted and scaled by an instruction."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3), nn.InstanceNorm2d(6)
        self.film, self.head = nn.Linear(4, 12), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
        scale, shift = self.film(instruction)[..., None, None].chunk(2, 1)
        return self.head(torch.relu((1 + scale) * self.norm(self.conv(x)) + shift).amax((2, 3)))


class WeightNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = weight_norm(nn.Linear(6, 16)), weight_norm(nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


class SpectralNormed(nn.Module):
    """The largest singular value by power iteration, whose vectors move while training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = spectral_norm(nn.Linear(6, 16)), spectral_norm(nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.leaky_relu(self.first(x), 0.1))


class Orthogonal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = orthogonal(nn.Linear(6, 6), orthogonal_map="cayley"), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.selu(self.first(x)))


class Hyper(nn.Module):
    """Weights that a task description generates."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.bias, self.head = nn.Linear(4, 6 * 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        weight = self.weights(task).unflatten(-1, (8, 6)) / 6**0.5
        return self.head(
            torch.tanh(torch.baddbmm(self.bias(task)[..., None], weight, x[..., None]).squeeze(-1))
        )


class Adapted(nn.Module):
    """A frozen layer with a learnt correction of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.head = nn.Linear(6, 16).requires_grad_(False), nn.Linear(16, 3)
        self.down, self.up = nn.Parameter(torch.randn(2, 6) / 3), nn.Parameter(torch.randn(16, 2) / 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.gelu(self.frozen(x) + 2 * (x @ self.down.t()) @ self.up.t(), approximate="tanh"))


class Joined(nn.Module):
    """Features of two streams by all their products, normalised by a signed root and their length."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(25, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.einsum("bi,bj->bij", self.one(x), self.two(x)).flatten(1)
        both = both.sign() * (both.abs() + 1e-4).sqrt()
        return self.head(F.normalize(both, dim=-1))


class Simplicial(nn.Module):
    """Latents in eight simplices, and a distance between two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Mish())

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        return self.encode(x).unflatten(-1, (4, 4)).softmax(-1).flatten(1)

    def forward(self, x: torch.Tensor, after: torch.Tensor) -> Any:
        one, two = self.latent(x), self.latent(after)
        return one, (1 - F.cosine_similarity(one, two, dim=-1)), torch.cdist(one, two.detach()).mean(-1)


LAYERS = (
    correct("gated layers between RMS norms", RootMeanSquare, observation=Box((6,))),
    correct("six residual layers", Deep, observation=Box((6,))),
    correct("BatchNorm between layers", BatchNormed, observation=Box((6,))),
    correct(
        "instance norm under an instruction",
        InstanceNormed,
        sensitive=True,
        observation=Box((2, 5, 5)),
        inputs={"instruction": Box((4,), low=-1, high=1)},
    ),
    correct("weight norm", WeightNormed, observation=Box((6,))),
    correct("spectral norm", SpectralNormed, observation=Box((6,))),
    correct("orthogonal weights", Orthogonal, observation=Box((6,))),
    correct("generated weights", Hyper, observation=Box((6,)), inputs={"task": Box((4,), low=-1, high=1)}),
    correct("adapter of low rank", Adapted, observation=Box((6,))),
    correct("products of two streams", Joined, observation=Box((6,))),
    correct(
        "simplicial latents", Simplicial, sensitive=True, observation=Box((6,)), inputs={"after": Box((6,))}
    ),
)
