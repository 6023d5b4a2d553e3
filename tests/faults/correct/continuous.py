"""Continuous actions: squashed, bounded, mixed, transformed, denoised."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import distributions as D
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box

from .record import correct


class SoftActorCritic(nn.Module):
    """A squashed Gaussian with the correction of its log-probability, and a learnt temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.log_std = nn.Linear(6, 16), nn.Linear(16, 2), nn.Linear(16, 2)
        self.log_alpha = nn.Parameter(torch.zeros(()))

    def correction(self, raw: torch.Tensor) -> torch.Tensor:
        return (2 * (math.log(2) - raw - F.softplus(-2 * raw))).sum(-1)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.relu(self.body(x))
        normal = D.Normal(self.mean(hidden), self.log_std(hidden).clamp(-5, 2).exp())
        raw = normal.rsample()
        log_prob = normal.log_prob(raw).sum(-1) - self.correction(raw)
        return torch.tanh(raw), log_prob, self.log_alpha.exp() * (log_prob.detach() + 2)


class Squashed(nn.Module):
    """The log-probability of a squashed action that was taken: an inverse tanh close to its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Linear(6, 2), nn.Parameter(torch.zeros(2))

    def correction(self, action: torch.Tensor) -> torch.Tensor:
        return (1 - action.square() + 1e-6).log().sum(-1)

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        action = action.clamp(-0.999999, 0.999999)
        normal = D.Normal(self.mean(x), self.log_std.exp())
        return normal.log_prob(torch.atanh(action)).sum(-1) - self.correction(action)


class Deterministic(nn.Module):
    """TD3: an action with clipped noise, within its bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2), nn.Tanh())

    def forward(self, x: torch.Tensor) -> Any:
        action = 2 * self.net(x)
        noise = (0.2 * torch.randn_like(action)).clamp(-0.5, 0.5)
        return action, (action + noise).clamp(-2, 2)


class Bounded(nn.Module):
    """A Beta distribution: log-probability, entropy, mean."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> Any:
        beta = D.Beta(1 + F.softplus(self.alpha(x)), 1 + F.softplus(self.beta(x)))
        return beta.log_prob(action.clamp(1e-4, 1 - 1e-4)).sum(-1), beta.entropy().sum(-1), beta.mean


class Mixture(nn.Module):
    """Three Gaussians and their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 3 + 3 * 4)

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> Any:
        y = self.net(x)
        mean, log_std = y[:, 3:].unflatten(1, (3, 4)).chunk(2, -1)
        parts = D.Independent(D.Normal(mean, F.softplus(log_std) + 0.1), 1)
        mixture = D.MixtureSameFamily(D.Categorical(logits=y[:, :3]), parts)
        return mixture.log_prob(action), mixture.mean


class Correlated(nn.Module):
    """A Gaussian whose covariance is learnt by its Cholesky factor."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.factor = nn.Linear(6, 3), nn.Linear(6, 6)
        self.register_buffer("below", torch.tril_indices(3, 3))

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> Any:
        y = torch.tanh(self.factor(x))
        lower = y.new_zeros(len(y), 3, 3)
        lower[:, self.below[0], self.below[1]] = y
        diagonal = F.softplus(lower.diagonal(dim1=-2, dim2=-1)) + 0.2
        lower = lower.tril(-1) + torch.diag_embed(diagonal)
        away = torch.linalg.solve_triangular(lower, (action - self.mean(x))[..., None], upper=False)
        return -0.5 * away.square().sum((1, 2)) - diagonal.log().sum(-1), lower @ lower.mT


class Flow(nn.Module):
    """A normalising flow of three affine couplings: the action of a noise, and its log-probability."""

    def __init__(self) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(
            nn.Sequential(nn.Linear(6 + 2, 12), nn.Tanh(), nn.Linear(12, 4)) for _ in range(3)
        )

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> Any:
        log_prob = (-0.5 * noise.square() - 0.5 * math.log(2 * math.pi)).sum(-1)
        one, two = noise.chunk(2, -1)
        for coupling in self.couplings:
            scale, shift = coupling(torch.cat([x, one], -1)).chunk(2, -1)
            scale = torch.tanh(scale)
            one, two = two * scale.exp() + shift, one
            log_prob = log_prob - scale.sum(-1)
        return torch.cat([one, two], -1), log_prob


class StateDependentNoise(nn.Module):
    """Noise that is a product of the features and a matrix which is drawn anew at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.log_std = (
            nn.Linear(6, 8),
            nn.Linear(8, 2),
            nn.Parameter(torch.full((8, 2), -1.0)),
        )

    def forward(self, x: torch.Tensor) -> Any:
        features = torch.tanh(self.body(x))
        std = self.log_std.exp()
        variance = features.detach().square() @ std.square() + 1e-6
        mean = self.mean(features)
        action = mean + features.detach() @ (std * torch.randn(8, 2))
        return action, D.Normal(mean, variance.sqrt()).log_prob(action.detach()).sum(-1)


class Denoised(nn.Module):
    """Three steps of a diffusion policy, with an embedding of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6 + 2 + 8, 16), nn.Mish(), nn.Linear(16, 2))
        self.register_buffer("kept", torch.linspace(0.99, 0.7, 3).cumprod(0))

    def step(self, x: torch.Tensor, action: torch.Tensor, number: int) -> torch.Tensor:
        angle = number * 100.0 ** -torch.linspace(0, 1, 4)
        time = torch.cat([angle.sin(), angle.cos()]).expand(len(x), -1)
        noise = self.net(torch.cat([x, action, time], -1))
        kept = self.kept[number]
        before = self.kept[number - 1] if number else torch.ones_like(kept)
        clean = ((action - (1 - kept).sqrt() * noise) / kept.sqrt()).clamp(-3, 3)
        return before.sqrt() * clean + (1 - before).sqrt() * noise

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        for number in reversed(range(3)):
            noise = self.step(x, noise, number)
        return noise


class Noisy(nn.Module):
    """Factorised noise on weights while training."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6) / 3), nn.Parameter(torch.zeros(4))
        self.weight_noise, self.bias_noise = (
            nn.Parameter(torch.full((4, 6), 0.2)),
            nn.Parameter(torch.full((4,), 0.2)),
        )

    def drawn(self, size: int) -> torch.Tensor:
        noise = torch.randn(size)
        return noise.sign() * noise.abs().sqrt()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return F.linear(x, self.weight, self.bias)
        rows, columns = self.drawn(4), self.drawn(6)
        weight = self.weight + self.weight_noise * torch.outer(rows, columns)
        return F.linear(x, weight, self.bias + self.bias_noise * rows)


class Angles(nn.Module):
    """A heading as sine and cosine, turned by the action and wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, angle: torch.Tensor, target: torch.Tensor) -> Any:
        x = torch.cat([angle.sin(), angle.cos(), target.sin(), target.cos()], -1)
        away = torch.atan2(torch.sin(target - angle), torch.cos(target - angle))
        sine, cosine, speed = self.net(x).chunk(3, -1)
        return torch.atan2(sine, cosine + 2), away.cos(), F.softplus(speed) * away.abs()


class Clipped(nn.Module):
    """The chances of a Gaussian that is cut at its bounds: an error function and its logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Linear(6, 2), nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        mean, std = self.mean(x), self.log_std.exp()
        inside = D.Normal(mean, std).log_prob(action)
        low = torch.special.log_ndtr((-1 - mean) / std)
        high = torch.special.log_ndtr((mean - 1) / std)
        return torch.where(action <= -1, low, torch.where(action >= 1, high, inside)).sum(-1)


_ACTION = {"action": Box((2,), low=-1, high=1)}

CONTINUOUS = (
    correct("squashed Gaussian, learnt temperature", SoftActorCritic, observation=Box((6,))),
    correct(
        "squashed action that was taken", Squashed, sensitive=True, observation=Box((6,)), inputs=_ACTION
    ),
    correct("deterministic with clipped noise", Deterministic, observation=Box((6,))),
    correct(
        "Beta", Bounded, sensitive=True, observation=Box((6,)), inputs={"action": Box((2,), low=0, high=1)}
    ),
    correct("mixture of Gaussians", Mixture, observation=Box((6,)), inputs=_ACTION),
    correct("correlated Gaussian", Correlated, observation=Box((6,)), inputs={"action": Box((3,))}),
    correct("normalising flow", Flow, observation=Box((6,)), inputs={"noise": Box((4,), low=-3, high=3)}),
    correct("noise that depends on the state", StateDependentNoise, observation=Box((6,))),
    correct(
        "three steps of denoising",
        Denoised,
        observation=Box((6,)),
        inputs={"noise": Box((2,), low=-3, high=3)},
    ),
    correct("noise on weights", Noisy, observation=Box((6,))),
    correct(
        "angles",
        Angles,
        observation=Box((1,), low=-7, high=7),
        inputs={"target": Box((1,), low=-7, high=7)},
    ),
    correct("Gaussian cut at its bounds", Clipped, observation=Box((6,)), inputs=_ACTION),
)
