"""Policies whose Python the compiler reads otherwise than Python does, or that change between calls."""

from __future__ import annotations

import functools
import random
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box

from .record import Call, Report


def vectors() -> list[Call]:
    """Four equal calls with four observations of eight numbers."""
    return [{"observation": torch.linspace(-1, 1, 32).reshape(4, 8)} for _ in range(4)]


class Actor(nn.Module):
    """An actor on eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)


class Clipped(Actor):
    """Clips its value to a range that a schedule narrows."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(8, 2)
        self.limit = 0.8

    def forward(self, observation: Any) -> Any:
        """Return the clipped product of a gate and a value."""
        gate, up = self.critic(observation * 4).chunk(2, dim=-1)
        return F.silu(gate).clamp(max=self.limit) * up.clamp(min=-self.limit, max=self.limit)


class Normed(Actor):
    """Scales and normalises its features with a number that a schedule changes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 0.9

    def forward(self, observation: Any) -> Any:
        """Return the normalised logits."""
        return F.rms_norm(self.actor(observation) * self.scale, (4,), eps=self.scale + 1e-3)


class Shuffled(Actor):
    """Asks the members of its ensemble in a random order."""

    def forward(self, observation: Any) -> Any:
        """Return the logits, weighted by the order."""
        order = [1.0, 2.0, 3.0, 4.0]
        random.shuffle(order)
        return self.actor(observation) * torch.tensor(order)


class Growing(Actor):
    """Plans ahead: each step of the plan may append another."""

    def forward(self, observation: Any) -> Any:
        """Return the sum over the steps."""
        steps = [self.actor(observation)]

        def plan() -> Any:
            for step in steps:
                if len(steps) < 3:
                    steps.append(step + 1)
                yield step

        return torch.stack(list(plan())).sum(0)


class Sized(Actor):
    """Makes a hidden state of the size of its features."""

    def forward(self, observation: Any) -> Any:
        """Return logits and the state."""
        logits = self.actor(observation)
        return logits, torch.Tensor(logits.size()).zero_()


class Configured(Actor):
    """Reads its temperature from the class."""

    temperature: ClassVar[float] = 1.0

    def __init__(self) -> None:
        super().__init__()
        Configured.temperature = 1.0

    def forward(self, observation: Any) -> Any:
        """Return logits by the temperature."""
        return self.actor(observation) * Configured.temperature


class Replaced(nn.Module):
    """Has a head that is replaced beside nn.Module's own way."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, observation: Any) -> Any:
        """Return the head's logits."""
        return self.head(observation)


class Backwards(Actor):
    """Adds its rewards up from the last to the first."""

    def forward(self, observation: Any) -> Any:
        """Return the discounted sum of what follows the last."""
        steps = reversed([self.actor(observation) * n for n in (1.0, 2.0, 3.0)])
        total = next(steps)
        for reward in iter(steps):
            total = total * 0.9 + reward
        return total


def narrower(policy: Any, outputs: Any) -> None:
    """Narrow the clip range."""
    policy.limit -= 0.2


def smaller(policy: Any, outputs: Any) -> None:
    """Shrink the scale."""
    policy.scale -= 0.2


def hotter(policy: Any, outputs: Any) -> None:
    """Raise the temperature of the class."""
    Configured.temperature += 1.0


def another_head(policy: Any, outputs: Any) -> None:
    """Hide the head behind another one."""
    other = nn.Linear(8, 4)
    with torch.no_grad():
        other.weight.fill_(0.5)
        other.bias.fill_(0.5)
    object.__setattr__(policy, "head", other)


def scaled_gradients(policy: Any, outputs: Any) -> None:
    """Halve the gradients of the actor."""
    policy.actor.register_full_backward_pre_hook(lambda module, grads: tuple(g / 2 for g in grads))


class Hooked(Actor):
    """Gets a hook on its gradients after its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)

    def forward(self, observation: Any) -> Any:
        """Return the logits."""
        return self.actor(self.body(observation))


_report = functools.partial(Report, kind="Python", calls=vectors, observation=Box((8,)))

REPORTS = (
    _report(
        number=194976,
        title="clamp keeps an old limit that is a Python float",
        policy=Clipped,
        change=narrower,
        blind="the lifecycle multiplies a float attribute by 0.9 twice; under that schedule compiled agrees.",
    ),
    _report(
        number=197889,
        title="a norm keeps an old eps that is a Python float",
        policy=Normed,
        change=smaller,
    ),
    _report(number=197085, title="random.shuffle gives one order for ever", policy=Shuffled),
    _report(number=175855, title="what a loop appends to its own list is not visited", policy=Growing),
    _report(number=196467, title="torch.Tensor of a size holds the size", policy=Sized),
    _report(
        number=176851,
        title="a changed attribute of a class is not noticed",
        policy=Configured,
        change=hotter,
        blind="the check changes attributes of modules between calls, and none of classes.",
    ),
    _report(
        number=197859,
        title="a module that __dict__ hides is called",
        policy=Replaced,
        change=another_head,
        blind="the check replaces no modules between calls.",
    ),
    _report(number=196211, title="iter() of a reversed list that was begun starts anew", policy=Backwards),
    _report(
        number=117265,
        title="a hook on gradients is ignored that is added after the first call",
        policy=Hooked,
        change=scaled_gradients,
        remark="ignores a hook",
    ),
)
