"""Policies whose calls leave more than outputs: gradients, Python values, flags, written weights, memory."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box

from .record import correct


class ListedTemperature(nn.Module):
    """SAC: the logarithm of the temperature is a tensor in a plain list, which an optimizer of its own has."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.logits = nn.Linear(6, 16), nn.Linear(16, 4)
        self.learnt = [torch.zeros((), requires_grad=True)]

    def temperature(self) -> torch.Tensor:
        return self.learnt[0].exp()

    def forward(self, x: torch.Tensor) -> Any:
        log_probs = self.logits(torch.relu(self.body(x))).log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs, self.temperature() * (entropy.detach() - 1.2)


@dataclasses.dataclass
class Dual:
    """A Lagrange multiplier and the limit that it holds."""

    log: torch.Tensor
    limit: float


class Constrained(nn.Module):
    """A cost within its limit, by a multiplier that is learnt; it lies in a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.reward, self.cost = nn.Linear(6, 12), nn.Linear(12, 1), nn.Linear(12, 1)
        self.dual = Dual(log=torch.full((1,), 0.5, requires_grad=True), limit=0.3)

    def multiplier(self) -> torch.Tensor:
        return F.softplus(self.dual.log)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.tanh(self.body(x))
        cost = F.softplus(self.cost(hidden))
        return self.reward(hidden) - self.multiplier() * (cost - self.dual.limit), cost


class HeadsByName(nn.Module):
    """One head for each task, in a plain dict that `parameters()` does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.heads = {"walk": nn.Linear(8, 3), "run": nn.Linear(8, 3)}

    def scored(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        return self.heads[name](hidden)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.tanh(self.body(x))
        return {name: self.scored(hidden, name) for name in self.heads}


class Predictor(nn.Module):
    """Predicts a fixed network; `learn` calls `backward` itself and hands back the error."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.target = nn.Linear(6, 4).requires_grad_(False)

    def error(self, x: torch.Tensor) -> torch.Tensor:
        return (self.predictor(x) - self.target(x)).square().mean(-1)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def learn(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            error = self.error(x)
            self.backward(error.mean())
        return error.detach()


class Annealed(nn.Module):
    """Logits beside an exploration rate that each call halves down to a floor.

    Few values: inductor compiles again for each, because a number that is stored again is a constant to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
        self.epsilon = 1.0

    def anneal(self) -> None:
        self.epsilon = max(self.epsilon * 0.5, 0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        self.anneal()
        return y


class Bookkeeping(nn.Module):
    """Notes what it was asked: the width, the last shapes, a mode, a count for each kind of call."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.value = nn.Linear(6, 4), nn.Linear(6, 1)
        self.width, self.mode = 0, "none"
        self.widths: collections.deque[int] = collections.deque(maxlen=3)
        self.notes: dict[str, int] = {"asked": 0}

    def note(self, x: torch.Tensor) -> None:
        self.width = x.shape[1]
        self.widths.append(x.shape[1])
        self.mode = "train" if self.training else "act"
        self.notes[self.mode] = x.dim()

    def forward(self, x: torch.Tensor) -> Any:
        self.note(x)
        return self.net(x), self.value(x)


class Clipped(nn.Module):
    """A Wasserstein critic, as a discriminator in imitation learning: weights are clipped through `.data`."""

    bound = 0.2

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 1)

    def clip(self) -> None:
        for parameter in self.parameters():
            parameter.data.clamp_(-self.bound, self.bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clip()
        return self.second(F.leaky_relu(self.first(x), 0.2))


class Rescaled(nn.Module):
    """PopArt as it is mostly written: `.data` of the last layer follows the mean and deviation of returns."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 12), nn.Linear(12, 1)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def rescale(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        self.head.weight.data.mul_(self.deviation / deviation)
        self.head.bias.data.mul_(self.deviation).add_(self.mean - mean).div_(deviation)

    def track(self, returns: torch.Tensor) -> None:
        mean = self.mean.lerp(returns.mean(), 0.1)
        deviation = self.deviation.lerp(returns.square().mean().sqrt(), 0.1).clamp(1e-2, 1e4)
        self.rescale(mean, deviation)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def forward(self, x: torch.Tensor, returns: torch.Tensor) -> Any:
        if self.training:
            self.track(returns)
        normed = self.head(torch.tanh(self.body(x)))
        return normed * self.deviation + self.mean, (normed - (returns - self.mean) / self.deviation).square()


class Settles(nn.Module):
    """A pretrained encoder that each call switches to evaluation, whatever `train()` said."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)

    def settle(self) -> None:
        self.encoder[1].training = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.settle()
        return self.head(self.encoder(x))


class Freezes(nn.Module):
    """A pretrained encoder whose bias the first call freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    @torch.compiler.disable
    def freeze(self) -> None:
        self.encoder.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(torch.relu(self.encoder(x)).detach())
        self.freeze()
        return y


class Parts(nn.Module):
    """Outputs in part of one memory: halves of one tensor; the others are copies."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.log_std = nn.Linear(6, 6), nn.Parameter(torch.zeros(3))
        self.register_buffer("bound", torch.ones(3))

    def kept(self) -> torch.Tensor:
        return self.bound.clone()

    def spread(self) -> torch.Tensor:
        return self.log_std.clone()

    def centre(self, mean: torch.Tensor) -> torch.Tensor:
        return mean.clone()

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    def forward(self, x: torch.Tensor) -> Any:
        mean, gate = self.net(x).chunk(2, -1)
        return mean, gate, self.centre(mean), self.seen(x), self.kept(), self.spread()


class Logged(nn.Module):
    """An output beside a flat view of it that is made for a log without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.scores(x)
        with torch.no_grad():
            flat = y.view(-1)
        return y, flat


class Phasor(nn.Module):
    """A complex output: how strong, and at which phase."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.angle = nn.Linear(6, 4), nn.Linear(6, 4)

    def phase(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.angle(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Away from zero: at subnormal sizes the gradient of compiled polar is infinite or NaN, and eager's is not.
        return torch.polar(0.01 + F.softplus(self.size(x)), self.phase(x))


class Roots(nn.Module):
    """A value, and beside it the root of a number that may be negative: NaN, and its gradient as well."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.value, self.spread = nn.Linear(6, 12), nn.Linear(12, 1), nn.Linear(12, 1)

    def valued(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.value(hidden)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.tanh(self.body(x))
        return self.valued(hidden), self.spread(hidden).sqrt()


class ActorCritic(nn.Module):
    """Logits and a value from one body, each learnt from alone or both together."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.actor, self.critic = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 1)

    def heads(self, hidden: torch.Tensor) -> Any:
        return self.actor(hidden), self.critic(hidden)

    def forward(self, x: torch.Tensor) -> Any:
        return self.heads(torch.tanh(self.body(x)))


class Regularised(nn.Module):
    """BatchNorm and dropout between layers, which a fine-tuned policy learns through in `eval()`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.dropout = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.2)
        self.second = nn.Linear(12, 3)

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.dropped(torch.relu(self.normed(self.first(x)))))


_OBSERVATION = Box((6,))

LEAVING = (
    correct("temperature in a list", ListedTemperature, observation=_OBSERVATION),
    correct("multiplier in a dataclass", Constrained, observation=_OBSERVATION),
    correct("heads in a dict", HeadsByName, observation=_OBSERVATION),
    correct("calls backward itself", Predictor, observation=_OBSERVATION, methods="learn"),
    correct("exploration that falls", Annealed, observation=_OBSERVATION),
    correct("notes in attributes", Bookkeeping, observation=_OBSERVATION),
    correct("weights clipped through .data", Clipped, observation=_OBSERVATION),
    correct(
        "PopArt through .data",
        Rescaled,
        observation=_OBSERVATION,
        inputs={"returns": Box((1,), low=-9, high=9)},
    ),
    correct("a call that settles a layer", Settles, observation=_OBSERVATION),
    correct("a call that freezes a bias", Freezes, observation=_OBSERVATION),
    correct("outputs in one memory", Parts, observation=_OBSERVATION),
    correct("a view for a log", Logged, observation=_OBSERVATION),
    correct("complex output", Phasor, observation=_OBSERVATION),
    correct("roots of negative numbers", Roots, observation=_OBSERVATION),
    correct("actor and critic on one body", ActorCritic, observation=_OBSERVATION),
    correct("BatchNorm and dropout", Regularised, observation=_OBSERVATION),
)
