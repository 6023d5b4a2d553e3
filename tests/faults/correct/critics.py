"""Values: single ones, distributions of values, ensembles of critics, and the returns that they are fitted to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box, Discrete, MultiBinary

from .record import correct


def symlog(x: torch.Tensor) -> torch.Tensor:
    return x.sign() * x.abs().log1p()


def symexp(x: torch.Tensor) -> torch.Tensor:
    return x.sign() * x.abs().expm1()


class Dueling(nn.Module):
    """A value and advantages whose mean is taken off."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.value, self.advantage = nn.Linear(6, 16), nn.Linear(16, 1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.body(x))
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(-1, keepdim=True)


class Quantiles(nn.Module):
    """Nine quantiles for each action, and the loss that they are fitted by."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4 * 9))
        self.register_buffer("levels", (torch.arange(9.0) + 0.5) / 9)

    def forward(self, x: torch.Tensor, action: torch.Tensor, target: torch.Tensor) -> Any:
        quantiles = self.net(x).unflatten(-1, (4, 9))
        taken = quantiles.gather(1, action[:, None, None].expand(-1, 1, 9)).squeeze(1)
        error = target[:, None, :] - taken[:, :, None]
        weight = (self.levels[:, None] - (error.detach() < 0).float()).abs()
        loss = weight * F.huber_loss(
            taken[:, :, None].expand_as(error), target[:, None, :].expand_as(error), reduction="none"
        )
        return quantiles.mean(-1), loss.sum(1).mean(-1)


class ImplicitQuantiles(nn.Module):
    """Quantiles at levels that are drawn, by their cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.cosines, self.head = nn.Linear(6, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> Any:
        levels = torch.rand(len(x), 5, 1)
        features = torch.relu(self.cosines(torch.cos(math.pi * levels * torch.arange(8.0))))
        return self.head(torch.tanh(self.body(x))[:, None] * features), levels


class Categories(nn.Module):
    """A categorical critic, and the loss against a target that is shared out among its atoms."""

    low, high, count = -5.0, 5.0, 11

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 11))
        self.register_buffer("atoms", torch.linspace(self.low, self.high, self.count))

    def shared_out(self, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        place = (values.clamp(self.low, self.high) - self.low) / (self.high - self.low) * (self.count - 1)
        below = place.floor().clamp(max=self.count - 2)
        above = place - below
        target = torch.zeros_like(weights).scatter_add(-1, below.long(), weights * (1 - above))
        return target.scatter_add(-1, below.long() + 1, weights * above)

    def forward(self, x: torch.Tensor, after: torch.Tensor, reward: torch.Tensor, done: torch.Tensor) -> Any:
        logits = self.net(x)
        with torch.no_grad():
            values = reward + 0.97 * (1 - done) * self.atoms
            target = self.shared_out(values, self.net(after).softmax(-1))
        return (logits.softmax(-1) * self.atoms).sum(-1), -(target * logits.log_softmax(-1)).sum(-1)


class TwoHot(nn.Module):
    """A value as a mean over bins in symlog space, and a target between two bins."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 21))
        self.register_buffer("bins", torch.linspace(-10, 10, 21))

    def target(self, value: torch.Tensor) -> torch.Tensor:
        value = symlog(value).clamp(-10, 10)
        return (1 - (value - self.bins).abs()).clamp(min=0)

    def forward(self, x: torch.Tensor, returns: torch.Tensor) -> Any:
        logits = self.net(symlog(x))
        loss = -(self.target(returns) * logits.log_softmax(-1)).sum(-1)
        return symexp((logits.softmax(-1) * self.bins).sum(-1)), loss


class PopArt(nn.Module):
    """A value in the units of returns whose running statistics it keeps.

    It assigns them. Written in place they are read again in backward after they have moved, which AOTAutograd
    gets wrong (pytorch 197039) and a check reports under some weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("square", torch.ones(()))

    def track(self, returns: torch.Tensor) -> None:
        if self.training:
            self.mean = self.mean.lerp(returns.mean(), 0.1)
            self.square = self.square.lerp(returns.square().mean(), 0.1)

    def forward(self, x: torch.Tensor, returns: torch.Tensor) -> Any:
        self.track(returns)
        deviation = (self.square - self.mean**2).clamp(min=1e-4).sqrt()
        normed = self.net(x)
        return normed * deviation + self.mean, F.smooth_l1_loss(normed, (returns - self.mean) / deviation)


class Ensemble(nn.Module):
    """Five critics at once by vmap over stacked parameters; the smallest of two, and how far they disagree."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 12, 8) / 3), nn.Parameter(torch.zeros(5, 12))
        self.head = nn.Parameter(torch.randn(5, 12) / 3)

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> Any:
        both = torch.cat([x, action], -1)
        one = lambda weight, bias, head: F.silu(F.linear(both, weight, bias)) @ head  # noqa: E731
        values = torch.vmap(one)(self.weight, self.bias, self.head)
        return values[:2].amin(0), values.std(0)


class Twins(nn.Module):
    """Two critics, and the loss of the pessimistic one of a target that is never learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)) for _ in range(2))

    def least(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return torch.minimum(one, two)

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> Any:
        both = torch.cat([x, torch.tanh(action)], -1)
        one, two = self.one(both), self.two(both)
        target = self.least(one, two)
        return target, F.mse_loss(one, target.detach() + 1) + F.mse_loss(two, target.detach() + 1)


class Support(nn.Module):
    """A value from a categorical support, through the inverse of a scaled square root."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ELU(), nn.Linear(16, 15))
        self.register_buffer("support", torch.arange(-7.0, 8.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (self.net(x).softmax(-1) * self.support).sum(-1)
        root = ((1 + 4 * 1e-3 * (y.abs() + 1 + 1e-3)).sqrt() - 1) / (2 * 1e-3)
        return y.sign() * (root**2 - 1)


class Successor(nn.Module):
    """Successor features by generalised improvement: the best of three tasks' policies."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.tasks = nn.Linear(6, 3 * 4 * 5), nn.Parameter(torch.randn(3, 5))
        self.joined = nn.Bilinear(6, 5, 4)

    def forward(self, x: torch.Tensor, task: torch.Tensor) -> Any:
        psi = torch.tanh(self.features(x)).unflatten(-1, (3, 4, 5))
        values = torch.einsum("bpaf,bf->bpa", psi, task)
        return values.amax(1), self.joined(x, task), torch.einsum("bpaf,pf->ba", psi, self.tasks)


def discounted(deltas: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """Sums from each step on, of which each weighs its successor's by `decay`."""
    total, sums = torch.zeros_like(deltas[:, 0]), []
    for step in reversed(range(deltas.shape[1])):
        total = deltas[:, step] + decay[:, step] * total
        sums.append(total)
    return torch.stack(sums[::-1], 1)


class Advantages(nn.Module):
    """Generalised advantages over 512 steps of values that it predicts."""

    steps = 512

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)

    def summed(self, deltas: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        return discounted(deltas, decay)

    def forward(self, x: torch.Tensor, reward: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
        values = torch.tanh(self.net(x)).squeeze(-1)
        after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
        going = 1 - done
        return self.summed(reward + 0.99 * going * after - values, 0.99 * 0.95 * going)


class AdvantagesBriefly(Advantages):
    """The same over 16 steps."""

    steps = 16


class VTrace(nn.Module):
    """Returns corrected for another policy's actions, with clipped ratios, over 6 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.actor = nn.Linear(4, 1), nn.Linear(4, 3)

    def ratios(self, mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        return (mine - theirs).exp().clamp(max=1.0)

    def forward(
        self, x: torch.Tensor, action: torch.Tensor, behaviour: torch.Tensor, reward: torch.Tensor
    ) -> Any:
        values = torch.tanh(self.value(x)).squeeze(-1)
        mine = self.actor(x).log_softmax(-1).gather(-1, action[..., None]).squeeze(-1)
        rho = self.ratios(mine, behaviour)
        after = torch.cat([values[:, 1:], values[:, -1:]], 1)
        corrected = values + discounted(rho * (reward + 0.9 * after - values), 0.9 * rho)
        return corrected, (rho.detach() * mine * (corrected - values).detach()).sum(-1)


class Survival(nn.Module):
    """The chance to be alive after each step, and the return weighed by it: running products."""

    def __init__(self) -> None:
        super().__init__()
        self.going, self.reward = nn.Linear(3, 1), nn.Linear(3, 1)

    def alive(self, chances: torch.Tensor) -> torch.Tensor:
        return chances.cumprod(1)

    def forward(self, x: torch.Tensor) -> Any:
        alive = self.alive(torch.sigmoid(self.going(x).squeeze(-1) + 2))
        return (alive * self.reward(x).squeeze(-1)).sum(1), alive


class Traces(nn.Module):
    """Sixty-four steps of exponentially weighed rewards by one product with a matrix of powers."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(3.0))
        self.score = nn.Linear(1, 2)

    def forward(self, rewards: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(64.0)
        powers = torch.sigmoid(self.rate) ** (steps - steps[:, None]).clamp(min=0)
        returns = rewards @ powers.triu().t()
        return self.score((returns / (1e-5 + returns.std(-1, keepdim=True)))[..., None])


_TRANSITION = {"after": Box((6,)), "reward": Box((1,)), "done": MultiBinary((1,))}
_OFF_POLICY = {
    "action": Box((6,), low=0, high=2, dtype="int64"),
    "behaviour": Box((6,), low=-3, high=0),
    "reward": Box((6,), low=-1, high=1),
}

CRITICS = (
    correct("dueling heads", Dueling, observation=Box((6,))),
    correct(
        "quantile critic with its loss",
        Quantiles,
        observation=Box((6,)),
        inputs={"action": Discrete(4), "target": Box((9,))},
    ),
    correct("implicit quantiles at drawn levels", ImplicitQuantiles, observation=Box((6,))),
    correct(
        "categorical critic with its target",
        Categories,
        sensitive=True,
        observation=Box((6,)),
        inputs=_TRANSITION,
    ),
    correct("two-hot value in symlog space", TwoHot, observation=Box((6,)), inputs={"returns": Box((1,))}),
    correct("PopArt", PopArt, observation=Box((6,)), inputs={"returns": Box((1,))}),
    correct(
        "five critics by vmap", Ensemble, observation=Box((6,)), inputs={"action": Box((2,), low=-1, high=1)}
    ),
    correct("the smaller of two critics", Twins, observation=Box((6,)), inputs={"action": Box((2,))}),
    correct("value from a support", Support, sensitive=True, observation=Box((6,))),
    correct(
        "successor features", Successor, observation=Box((6,)), inputs={"task": Box((5,), low=-1, high=1)}
    ),
    correct(
        "advantages over 512 steps",
        Advantages,
        sensitive=True,
        long=True,
        observation=Box((512, 2)),
        inputs={"reward": Box((512,), low=-1, high=1), "done": MultiBinary((512,))},
    ),
    correct(
        "advantages over 16 steps",
        AdvantagesBriefly,
        sensitive=True,
        observation=Box((16, 2)),
        inputs={"reward": Box((16,), low=-1, high=1), "done": MultiBinary((16,))},
    ),
    correct("V-trace", VTrace, sensitive=True, observation=Box((6, 4)), inputs=_OFF_POLICY),
    correct("running products", Survival, sensitive=True, observation=Box((64, 3))),
    correct("discounting by a matrix of powers", Traces, sensitive=True, observation=Box((64,))),
)
