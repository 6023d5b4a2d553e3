"""Correct policies of the usual kinds with their inputs; the catalogue injects faults into them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

from pytest_torchcompile import Box, Discrete, LegalAction, LegalMask, MultiBinary, State


@dataclasses.dataclass(frozen=True)
class Policy:
    """A kind of policy.

    Args:
        model: its class, which takes no arguments.
        declaration: the arguments of `check_equivalence` that say what it is called with.
    """

    model: type[nn.Module]
    declaration: Mapping[str, Any]


class Mlp(nn.Module):
    """Logits of O(1) and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 16)
        self.actor = nn.Linear(16, 4)
        self.critic = nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.tanh(self.trunk(x))
        return 2 * self.actor(hidden), self.critic(hidden).squeeze(-1)

    def get_value(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self(x)[1])

    def greedy(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self(x)[0].argmax(-1))

    def sample(self, x: torch.Tensor) -> Any:
        choices = Categorical(logits=self(x)[0])
        action = choices.sample()
        return action, choices.log_prob(action)


class Convolutional(nn.Module):
    """Batch statistics, pixels, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.actor = nn.Linear(8 * 25, 4)
        self.critic = nn.Linear(8 * 25, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x))).flatten(1)

    def forward(self, x: torch.Tensor) -> Any:
        features = self.features(x)
        return self.actor(features), self.critic(features).squeeze(-1)


class Tower(nn.Module):
    """Residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(3)
        )
        self.head = nn.Linear(8 * 25, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return torch.as_tensor(self.head(x.flatten(1)))


class Gated(nn.Module):
    """A recurrent state that is handed in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> Any:
        state = self.cell(x, state)
        return self.head(state), state


class Remembering(nn.Module):
    """A recurrent state that is kept in an attribute, and a count in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.hidden = torch.zeros(4)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.layer(x) + self.hidden)
        self.hidden = y.detach().mean(0)
        self.count.add_(1)
        return y


class Masked(nn.Module):
    """Actions under a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.actor = nn.Linear(16, 6)
        self.critic = nn.Linear(16, 1)

    def choices(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
        hidden = torch.tanh(self.body(x))
        return Categorical(logits=self.actor(hidden).masked_fill(~mask, -1e9)), self.critic(hidden)

    def act(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
        choices, value = self.choices(x, mask)
        action = choices.sample()
        return action, choices.log_prob(action), value

    def evaluate(self, x: torch.Tensor, mask: torch.Tensor, action: torch.Tensor) -> Any:
        choices, value = self.choices(x, mask)
        return choices.log_prob(action), choices.entropy(), value


class Continuous(nn.Module):
    """A normal distribution whose deviation is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(8, 2)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> Any:
        mean = self.mean(x)
        return Normal(mean, self.log_std.exp().expand_as(mean))

    def act(self, x: torch.Tensor) -> Any:
        normal = self(x)
        action = normal.rsample()
        return action, normal.log_prob(action).sum(-1)


class Nested(nn.Module):
    """A nested observation, and outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = nn.Linear(9, 8)
        self.turn = nn.Embedding(2, 8)
        self.rights = nn.Linear(4, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, observation: Any) -> Any:
        hidden = self.pieces(observation["board"]) + self.rights(observation["rights"])
        hidden = torch.relu(hidden + self.turn(observation["turn"]))
        return {"logits": self.head(hidden), "features": hidden}


class Dropping(nn.Module):
    """Dropout, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 4)

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, self.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.second(self.dropped(torch.tanh(self.first(x)))))


class Normalising(nn.Module):
    """Running statistics that are written in training only, and an input that is clamped in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(8))

    def clamp(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp_(-5, 5)

    def track(self, x: torch.Tensor) -> None:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.clamp(x)
        self.track(x)
        return torch.as_tensor(self.layer(x - self.mean))


def _of(model: type[nn.Module], **declaration: Any) -> Policy:
    return Policy(model, MappingProxyType(declaration))


VECTOR, PIXELS = Box((8,)), Box((3, 5, 5))
MASKED = {"mask": LegalMask(6), "action": LegalAction("mask")}
BOARD = {"board": Box((9,)), "turn": Discrete(2), "rights": MultiBinary(4)}

MLP = _of(Mlp, observation=VECTOR)
AGENT = _of(Mlp, observation=VECTOR, methods=("forward", "get_value"))
GREEDY = _of(Mlp, observation=VECTOR, methods="greedy")
SAMPLER = _of(Mlp, observation=VECTOR, methods="sample")
CONVOLUTIONAL = _of(Convolutional, observation=PIXELS)
TOWER = _of(Tower, observation=PIXELS)
GATED = _of(Gated, observation=VECTOR, inputs={"state": State((6,))})
REMEMBERING = _of(Remembering, observation=VECTOR)
MASKED_AGENT = _of(Masked, observation=VECTOR, inputs=MASKED, methods=("act", "evaluate"))
MASKED_LEARNER = _of(Masked, observation=VECTOR, inputs=MASKED, methods="evaluate")
CONTINUOUS = _of(Continuous, observation=VECTOR)
CONTINUOUS_SAMPLER = _of(Continuous, observation=VECTOR, methods="act")
NESTED = _of(Nested, observation=BOARD)
DROPPING = _of(Dropping, observation=VECTOR)
NORMALISING = _of(Normalising, observation=VECTOR)

POLICIES = {
    "MLP": MLP,
    "agent with two methods": AGENT,
    "greedy actions": GREEDY,
    "sampled actions": SAMPLER,
    "convolutions and BatchNorm": CONVOLUTIONAL,
    "residual tower": TOWER,
    "recurrent state as input": GATED,
    "recurrent state in an attribute": REMEMBERING,
    "masked actions": MASKED_AGENT,
    "a distribution": CONTINUOUS,
    "reparametrised actions": CONTINUOUS_SAMPLER,
    "nested observation": NESTED,
    "dropout in training": DROPPING,
    "running mean, input clamped in place": NORMALISING,
}
