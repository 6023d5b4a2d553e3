"""State that lasts: recurrent cells, world models, running statistics, targets."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box, Discrete, MultiBinary, State

from .record import correct


class GatedSequence(nn.Module):
    """A GRU cell over five steps, which forgets where an episode ends."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, done: torch.Tensor, state: torch.Tensor) -> Any:
        states = []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state * (1 - done[:, step, None]))
            states.append(state)
        return self.head(torch.stack(states, 1)), state


class LongMemory(nn.Module):
    """An LSTM by hand over 512 steps."""

    steps = 512

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Linear(2 + 4, 16), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor) -> Any:
        for step in range(self.steps):
            i, f, g, o = self.gates(torch.cat([x[:, step], hidden], -1)).chunk(4, -1)
            cell = torch.sigmoid(f + 1) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
        return self.head(hidden), hidden, cell


class ShortMemory(LongMemory):
    """The same over 8 steps."""

    steps = 8


class Reservoir(nn.Module):
    """A recurrence of 32 steps at the edge of chaos, which multiplies what rounding starts."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.around, self.head = (
            nn.Linear(3, 16),
            nn.Parameter(torch.randn(16, 16) * 0.3),
            nn.Linear(16, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(len(x), 16)
        for step in range(x.shape[1]):
            state = torch.tanh(self.inward(x[:, step]) + state @ self.around)
        return self.head(state)


class WorldModel(nn.Module):
    """A recurrent state-space model: a deterministic path, discrete latents passed straight through, a reward."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(16 + 2, 12)
        self.prior, self.posterior = nn.Linear(12, 16), nn.Linear(12 + 6, 16)
        self.decoder, self.reward = nn.Linear(12 + 16, 6), nn.Linear(12 + 16, 1)

    def latent(self, logits: torch.Tensor) -> Any:
        logits = logits.unflatten(-1, (4, 4))
        shares = 0.99 * logits.softmax(-1) + 0.01 / 4
        hard = F.one_hot(shares.argmax(-1), 4).to(shares.dtype)
        return (hard + shares - shares.detach()).flatten(1), shares.log()

    def forward(
        self, x: torch.Tensor, action: torch.Tensor, state: torch.Tensor, latent: torch.Tensor
    ) -> Any:
        state = self.cell(torch.cat([latent, action], -1), state)
        _, prior = self.latent(self.prior(state))
        latent, posterior = self.latent(self.posterior(torch.cat([state, x], -1)))
        divergence = (posterior.exp() * (posterior - prior)).sum((1, 2)).clamp(min=1.0)
        both = torch.cat([state, latent], -1)
        return self.decoder(both), self.reward(both), divergence, state, latent


class Imagined(nn.Module):
    """Eight steps of a latent model under its own actor, and the discounted rewards on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.actor = nn.Linear(6, 8), nn.Linear(8, 2)
        self.next, self.reward = nn.Linear(10, 8), nn.Linear(10, 1)

    def forward(self, x: torch.Tensor) -> Any:
        state, total = torch.tanh(self.encode(x)), x.new_zeros(len(x), 1)
        for step in range(8):
            both = torch.cat([state, torch.tanh(self.actor(state))], -1)
            total = total + 0.95**step * self.reward(both)
            state = F.softmax(self.next(both).unflatten(-1, (2, 4)), -1).flatten(1)
        return total, state


class StateSpace(nn.Module):
    """A diagonal linear state-space layer: sixty-four powers of complex numbers, and a convolution by FFT."""

    def __init__(self) -> None:
        super().__init__()
        self.decay, self.angle = nn.Parameter(torch.linspace(-3, 0, 6)), nn.Parameter(torch.linspace(0, 2, 6))
        self.out, self.skip = nn.Parameter(torch.randn(6)), nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(64.0)
        size, turn = (-F.softplus(self.decay)[:, None] * steps).exp(), self.angle[:, None] * steps
        kernel = (self.out[:, None] * size * turn.cos()).sum(0)
        y = torch.fft.irfft(torch.fft.rfft(x, n=128) * torch.fft.rfft(kernel, n=128), n=128)[:, :64]
        return y + self.skip * x


class Normaliser(nn.Module):
    """Observations in units of their running deviation, by the parallel form of Welford's update."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))
        self.register_buffer("count", torch.ones(()))

    def track(self, x: torch.Tensor) -> None:
        if not self.training:
            return
        total, delta = self.count + len(x), x.mean(0) - self.mean
        sum_of_squares = self.var * self.count + x.var(0, correction=0) * len(x)
        self.var.copy_((sum_of_squares + delta**2 * self.count * len(x) / total) / total)
        self.mean.add_(delta * len(x) / total)
        self.count.copy_(total)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.track(x.detach())
        return self.layer(((x - self.mean) / (self.var + 1e-8).sqrt()).clamp(-10, 10))


class Scaled(nn.Module):
    """Rewards divided by the running deviation of their discounted sum."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(6, 1)
        self.register_buffer("square", torch.ones(()))
        self.register_buffer("range", torch.tensor([-1.0, 1.0]))

    def track(self, rewards: torch.Tensor) -> None:
        if self.training:
            self.square.lerp_(rewards.square().mean(), 0.05)
            self.range.lerp_(torch.quantile(rewards.flatten(), torch.tensor([0.05, 0.95])), 0.1)

    def forward(self, x: torch.Tensor, rewards: torch.Tensor) -> Any:
        self.track(rewards)
        spread = (self.range[1] - self.range[0]).clamp(min=1.0)
        return (rewards - self.value(x)) / spread, rewards / (self.square + 1e-4).sqrt()


class Curious(nn.Module):
    """How badly it predicts a random network, in units of the running mean of that."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
        self.target = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8)).requires_grad_(False)
        self.register_buffer("scale", torch.ones(()))

    def track(self, error: torch.Tensor) -> None:
        if self.training:
            self.scale.lerp_(error.detach().mean(), 0.1)

    def forward(self, x: torch.Tensor) -> Any:
        error = (self.predictor(x) - self.target(x)).square().mean(-1)
        self.track(error)
        return error / (self.scale + 1e-6), error


class Polyak(nn.Module):
    """A target that follows the network while it trains, and the loss of one against the other."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        for parameter in self.target.parameters():
            parameter.data.mul_(0.9)

    @torch.no_grad()
    def follow(self) -> None:
        if self.training:
            for mine, theirs in zip(self.target.parameters(), self.online.parameters(), strict=True):
                mine.lerp_(theirs, 0.05)

    def forward(self, x: torch.Tensor, action: torch.Tensor, reward: torch.Tensor) -> Any:
        values = self.online(x)
        target = reward.squeeze(-1) + 0.9 * self.target(x).amax(-1)
        loss = F.smooth_l1_loss(values.gather(1, action[:, None]).squeeze(1), target, reduction="none")
        self.follow()
        return values, loss


class Remembered(nn.Module):
    """A rolling stack of features in a buffer; the oldest falls out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 4), nn.Linear(4 + 12, 3)
        self.register_buffer("stack", torch.zeros(3, 4))

    def push(self, features: torch.Tensor) -> None:
        self.stack.copy_(torch.cat([self.stack[1:], features.detach().mean(0, keepdim=True)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.tanh(self.layer(x))
        y = self.head(torch.cat([features, self.stack.flatten().expand(len(x), -1)], -1))
        self.push(features)
        return y


_MODEL = {"action": Box((2,), low=-1, high=1), "state": State((12,)), "latent": State((16,))}
_CELLS = {"hidden": State((4,)), "cell": State((4,))}

MEMORY = (
    correct(
        "gated cell over steps",
        GatedSequence,
        observation=Box((5, 4)),
        inputs={"done": MultiBinary((5,)), "state": State((8,))},
    ),
    correct(
        "LSTM by hand, 512 steps",
        LongMemory,
        sensitive=True,
        long=True,
        observation=Box((512, 2)),
        inputs=_CELLS,
    ),
    correct("LSTM by hand, 8 steps", ShortMemory, observation=Box((8, 2)), inputs=_CELLS),
    correct("recurrence at the edge of chaos", Reservoir, sensitive=True, observation=Box((32, 3))),
    correct(
        "world model with discrete latents", WorldModel, sensitive=True, observation=Box((6,)), inputs=_MODEL
    ),
    correct("eight imagined steps", Imagined, observation=Box((6,))),
    correct("state space by FFT", StateSpace, observation=Box((64,))),
    correct("running normaliser", Normaliser, observation=Box((6,))),
    correct("scaled rewards", Scaled, observation=Box((6,)), inputs={"rewards": Box((1,))}),
    correct("curiosity", Curious, observation=Box((6,))),
    correct(
        "target that follows",
        Polyak,
        observation=Box((6,)),
        inputs={"action": Discrete(4), "reward": Box((1,))},
    ),
    correct("rolling stack in a buffer", Remembered, observation=Box((6,))),
)
