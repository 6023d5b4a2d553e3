"""Policies that write to their buffers or attributes in place, as running statistics and memories do."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import nn

from pytest_torchcompile import Box

from .record import Call, Report


def vectors() -> list[Call]:
    """Two calls with four observations of eight numbers."""
    return [{"observation": torch.linspace(-1, 1, 32).reshape(4, 8) * scale} for scale in (1.0, 0.5)]


class Remembering(nn.Module):
    """An actor on eight numbers, with a buffer of four rows that forward writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.register_buffer("memory", torch.linspace(-1, 1, 32).reshape(4, 8))


class Annealed(nn.Module):
    """Explores less with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.critic = nn.Linear(8, 1)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, observation: Any) -> Any:
        """Count the call, and sharpen the logits with the count."""
        self.steps += 1
        logits = self.actor(observation) * (1 + self.steps / 10)
        return logits, self.critic(observation)


class Delayed(Remembering):
    """Keeps what it knew a step ago."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("before", torch.zeros(4, 8))

    def forward(self, observation: Any) -> Any:
        """Keep the memory of the last step, then update it."""
        self.before[:] = self.memory[:]
        self.memory.add_(observation.mean(0))
        return self.actor(torch.cat([self.memory, self.before]))


class Mirrored(Remembering):
    """Writes its observation into its memory, then averages that with its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(4))

    def forward(self, observation: Any) -> Any:
        """Write to the memory by index, then add its mirror image."""
        self.memory.index_put_((self.places,), self.memory + observation.mean(0))
        self.memory.add_(self.memory.flip(0)).div_(2)
        return self.actor(self.memory)


class Traces(Remembering):
    """Updates all of its traces at once, as optimizers do."""

    def forward(self, observation: Any) -> Any:
        """Add to each trace its mirror image with a foreach operator."""
        torch._foreach_add_([self.memory], [self.memory.flip(0)])
        return self.actor(observation + self.memory.sum(0))


class Stacked(Remembering):
    """Stacks four memories, of which each moves one place on with every step."""

    def forward(self, observation: Any) -> Any:
        """Move each row one place on."""
        self.memory[1:] = self.memory[:-1].clone()
        return self.actor(observation + self.memory.sum(0))


class Spent(Remembering):
    """Answers from its memory with a part replaced, and forgets everything."""

    def forward(self, observation: Any) -> Any:
        """Return the memory with two rows replaced, then clear it."""
        seen = observation.mean(0).expand(2, 8)
        written = torch.slice_scatter(self.memory, seen, dim=0, start=1, end=3)
        self.memory.zero_()
        return self.actor(observation), written


class EveryFifth(Remembering):
    """Keeps a trace for every fifth feature."""

    def forward(self, observation: Any) -> Any:
        """Add to every fifth trace, through a view that skips the others."""
        self.memory.unfold(1, 1, 5).add_(1.0)
        return self.actor(observation + self.memory.sum(0))


class Packed(nn.Module):
    """Packs two counters of 32 bits into each of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.register_buffer("packed", torch.arange(-12, 12).reshape(4, 6))

    def forward(self, observation: Any) -> Any:
        """Compute from the halves, then overwrite some of the wholes."""
        counts = self.packed.view(torch.int32) * 2
        counts.sub_(-4)
        self.packed[:, 2:5] = 2
        return self.actor(observation), counts.view(torch.int64)


class Covariance(nn.Module):
    """Updates the diagonal of a covariance, and returns the matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.register_buffer("covariance", torch.eye(8))

    def forward(self, observation: Any) -> Any:
        """Store the matrix with a new diagonal, and return it."""
        updated = torch.diagonal_scatter(self.covariance, observation.square().mean(0) + 1)
        self.covariance.copy_(updated)
        return self.actor(observation), updated


class Revisiting(Remembering):
    """Doubles what it knows of home, which its path visits twice."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("home", torch.linspace(1, 2, 8).reshape(1, 8))

    def forward(self, observation: Any) -> Any:
        """Add a row to itself that is named twice."""
        self.home[[0, 0]] += self.home[[0, 0]]
        return self.actor(observation + self.home)


class Logged(nn.Module):
    """Logs its values in a list of its class."""

    log: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)

    def forward(self, observation: Any) -> Any:
        """Return the logits, and log them."""
        logits = self.actor(observation)
        Logged.log.append(logits)
        return logits


def forget(policy: Any) -> None:
    """Clear the log."""
    policy.log.clear()


def logged(policy: Any) -> Any:
    """The number of entries in the log."""
    return torch.tensor(len(policy.log))


def scale_second(policy: Any, outputs: Any) -> None:
    """Scale the second output in place, as a caller may."""
    outputs[1].mul_(0.9)


_report = functools.partial(Report, kind="writes in place", calls=vectors, observation=Box((8,)))

REPORTS = (
    _report(
        number=197039,
        pull=True,
        title="backward reads a buffer again that forward has advanced since",
        policy=Annealed,
    ),
    _report(number=198131, title="a copy is taken after the original was changed", policy=Delayed),
    _report(number=198270, title="rows are read after they were written, after index_put_", policy=Mirrored),
    _report(number=198033, title="a foreach operator reads rows after it wrote them", policy=Traces),
    _report(number=197829, title="the clone is lost when rows move in their own tensor", policy=Stacked),
    _report(number=198094, title="slice_scatter is written into a buffer that is cleared next", policy=Spent),
    _report(number=198102, title="a write through unfold with gaps zeroes the gaps", policy=EveryFifth),
    _report(number=198101, title="a view of another dtype is read after a later write", policy=Packed),
    _report(
        number=195451,
        title="an output shares the memory of the buffer that it was copied to",
        policy=Covariance,
        change=scale_second,
    ),
    _report(number=174074, title="an index named twice is added twice", policy=Revisiting),
    _report(
        number=169253,
        title="what is appended to a list of the class is lost",
        policy=Logged,
        observe=logged,
        reset=forget,
        phases=("rollout", "update"),
    ),
)
