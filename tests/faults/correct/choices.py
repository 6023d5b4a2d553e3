"""Discrete actions, and values that are computed from a choice inside the policy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical
from torch.nn import functional as F

from pytest_torchcompile import Box, LegalAction, LegalMask, MultiBinary, MultiDiscrete

from .record import correct


class Menu(nn.Module):
    """Some actions can never be chosen; a temperature follows the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 8))
        self.value = nn.Linear(10, 1)
        self.log_temperature = nn.Parameter(torch.tensor(-0.5))
        self.register_buffer("closed", torch.arange(8) % 3 == 0)

    def masked(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(self.closed, float("-inf"))

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        return self.masked(self.net(x)) / self.log_temperature.exp()

    def picked(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.argmax(-1)

    def greedy(self, x: torch.Tensor) -> Any:
        scores = self.scores(x)
        action = self.picked(scores)
        return action, scores.log_softmax(-1).gather(-1, action[:, None]).squeeze(-1)

    def forward(self, x: torch.Tensor) -> Any:
        shares = self.scores(x).softmax(-1)
        entropy = -(shares * shares.clamp(min=1e-30).log()).sum(-1)
        return shares, entropy, self.value(x).squeeze(-1)


class Drawn(nn.Module):
    """Actions under a mask that is drawn, -inf where nothing is legal, and noise on what is."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.value = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 6)), nn.Linear(10, 1)

    def masked(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(~mask, float("-inf"))

    def choices(self, x: torch.Tensor, mask: torch.Tensor) -> Categorical:
        return Categorical(logits=self.masked(self.net(x) - 1.0, mask))

    def drawn(self, choices: Categorical) -> torch.Tensor:
        return choices.sample()

    def act(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
        choices = self.choices(x, mask)
        action = self.drawn(choices)
        return action, choices.log_prob(action), self.value(x)

    def evaluate(self, x: torch.Tensor, mask: torch.Tensor, action: torch.Tensor) -> Any:
        choices = self.choices(x, mask)
        logits = choices.logits.clamp(min=torch.finfo(torch.float32).min)
        return choices.log_prob(action), -(choices.probs * logits).sum(-1), self.value(x)


class Several(nn.Module):
    """Three heads with a mask for each, the smallest number of float32 where an action is illegal."""

    sizes = (2, 3, 4)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 9)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, actions: torch.Tensor) -> Any:
        logits = torch.where(mask > 0.5, self.net(x), torch.finfo(torch.float32).min)
        heads = [part.log_softmax(-1) for part in logits.split(self.sizes, -1)]
        taken = [head.gather(-1, actions[:, i, None]).squeeze(-1) for i, head in enumerate(heads)]
        entropies = [-(head.exp() * head).sum(-1) for head in heads]
        return torch.stack(taken).sum(0), torch.stack(entropies).sum(0)


class Autoregressive(nn.Module):
    """The second action depends on the first, the third on both; each is the best."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.embed = nn.Linear(6, 12), nn.Embedding(4, 12)
        self.heads = nn.ModuleList(nn.Linear(12, 4) for _ in range(3))

    def picked(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1)

    def forward(self, x: torch.Tensor) -> Any:
        hidden, actions, log_probs = torch.tanh(self.body(x)), [], []
        for head in self.heads:
            logits = head(torch.tanh(hidden))
            actions.append(self.picked(logits))
            log_probs.append(logits.log_softmax(-1).gather(-1, actions[-1][:, None]).squeeze(-1))
            hidden = hidden + self.embed(actions[-1])
        return torch.stack(actions, -1), torch.stack(log_probs, -1)


class Hierarchical(nn.Module):
    """An option, chosen by its value, and the actor and the termination of that option."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.value = nn.Linear(6, 12), nn.Linear(12, 3)
        self.actors, self.ends = nn.Linear(12, 3 * 4), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(self.body(x))
        best, option = self.value(x).max(-1)
        rows = torch.arange(len(x))
        logits = self.actors(x).unflatten(-1, (3, 4))[rows, option]
        return option, logits, torch.sigmoid(self.ends(x))[rows, option], best


class Codebook(nn.Module):
    """The nearest of eight codes, passed on straight through, and the two losses that hold them together."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.codes, self.head = nn.Linear(6, 4), nn.Embedding(8, 4), nn.Linear(4, 3)

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        away = x.square().sum(-1, keepdim=True) - 2 * x @ self.codes.weight.t()
        return (away + self.codes.weight.square().sum(-1)).argmin(-1)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.encode(x)
        index = self.nearest(x)
        code = self.codes(index)
        loss = (code - x.detach()).square().mean(-1) + 0.25 * (code.detach() - x).square().mean(-1)
        return self.head(x + (code - x).detach()), loss, index


class Relaxed(nn.Module):
    """A hard sample of a relaxed categorical, whose gradient is the soft one's."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> Any:
        noise = -torch.log(torch.empty(len(x), 5).exponential_().clamp(min=1e-20))
        soft = ((self.net(x) + noise) / 0.5).softmax(-1)
        hard = F.one_hot(soft.argmax(-1), 5).to(soft.dtype)
        return self.head(hard + soft - soft.detach()), hard


class Canonical(nn.Module):
    """Plays on the board or on its mirror image, whichever has more on its left half."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x[..., :2].mean((1, 2)), x[..., 2:].mean((1, 2))
        return left < right

    def forward(self, x: torch.Tensor) -> Any:
        turned = self.turned(x)
        logits = self.net(torch.where(turned[:, None, None], x.flip(-1), x).flatten(1))
        return torch.where(turned[:, None], logits.flip(-1), logits), turned


class Candidates(nn.Module):
    """Scores twelve candidate actions, keeps the best five in order, and looks at them again."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.again = nn.Linear(4, 1), nn.Linear(20, 5)

    def best(self, scores: torch.Tensor) -> Any:
        return scores.topk(5, -1)

    def forward(self, x: torch.Tensor) -> Any:
        scores, index = self.best(self.score(x).squeeze(-1))
        kept = x.gather(1, index[..., None].expand(-1, -1, 4)) * torch.sigmoid(scores)[..., None]
        return self.again(kept.flatten(1)), index


class Ranked(nn.Module):
    """A state's features in order of size, their median, and the rank of each."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.Linear(6, 9), nn.Linear(10, 3)

    def order(self, x: torch.Tensor) -> torch.Tensor:
        return x.sort(-1).values

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x.median(-1, keepdim=True).values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.net(x))
        return self.head(torch.cat([self.order(x), self.middle(x)], -1))


class Hashed(nn.Module):
    """Sparse ids in a small table by multiplication and remainder."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(17, 6), nn.Linear(6, 3)

    def place(self, ids: torch.Tensor) -> torch.Tensor:
        return (ids * 2654435761 % 2**32) % 17

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(self.place(ids)).mean(1))


class Switches(nn.Module):
    """Eight independent switches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 8)

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> Any:
        switches = Bernoulli(logits=self.net(x))
        return switches.log_prob(action).sum(-1), switches.entropy().sum(-1), switches.probs > 0.5


class Sharp(nn.Module):
    """A softmax at a low temperature, and the log-probability of the best."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6))

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.net(x) / 1e-3
        return logits.softmax(-1), logits.logsumexp(-1) * 1e-3


class Assignment(nn.Module):
    """Agents to tasks by twenty rounds of normalising rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.agents, self.tasks = nn.Linear(3, 6), nn.Linear(3, 6)

    def forward(self, agents: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        scores = torch.tanh(self.agents(agents)) @ torch.tanh(self.tasks(tasks)).mT
        for _ in range(20):
            scores = scores - scores.logsumexp(-1, keepdim=True)
            scores = scores - scores.logsumexp(-2, keepdim=True)
        return scores.exp()


class Nucleus(nn.Module):
    """Drops the unlikely tail of the choices before it normalises again."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 9)

    def forward(self, x: torch.Tensor) -> Any:
        shares, order = self.net(x).softmax(-1).sort(-1, descending=True)
        before = shares.cumsum(-1) - shares
        kept = torch.where(before < 0.8, shares, 0.0)
        kept = kept / kept.sum(-1, keepdim=True)
        return torch.zeros_like(kept).scatter(-1, order, kept)


class Trees(nn.Module):
    """Soft decision trees: the product of the gates on the way to each leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.leaves = nn.Linear(6, 7), nn.Parameter(torch.randn(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        right = torch.sigmoid(self.gates(x) * math.sqrt(6))
        reach, first = x.new_ones(len(x), 1), 0
        for depth in range(3):
            level = right[:, first : first + 2**depth]
            reach = torch.stack([reach * (1 - level), reach * level], -1).flatten(1)
            first += 2**depth
        return reach @ self.leaves


CHOICES = (
    correct("shares of actions, some never legal", Menu, observation=Box((10,))),
    correct("the best of the legal actions", Menu, observation=Box((10,)), methods="greedy"),
    correct("scores of actions, some never legal", Menu, observation=Box((10,)), methods="scores"),
    correct(
        "an action under a drawn mask",
        Drawn,
        observation=Box((10,)),
        inputs={"mask": LegalMask(6)},
        methods="act",
    ),
    correct(
        "the worth of actions under a drawn mask",
        Drawn,
        observation=Box((10,)),
        inputs={"mask": LegalMask(6), "action": LegalAction("mask")},
        methods="evaluate",
    ),
    correct(
        "three masked heads",
        Several,
        observation=Box((6,)),
        inputs={"mask": MultiBinary((9,)), "actions": MultiDiscrete((2, 3, 4))},
    ),
    correct("autoregressive heads", Autoregressive, sensitive=True, observation=Box((6,))),
    correct("options", Hierarchical, sensitive=True, observation=Box((6,))),
    correct("codebook", Codebook, sensitive=True, observation=Box((6,))),
    correct("relaxed categorical, hard", Relaxed, sensitive=True, observation=Box((6,))),
    correct("canonical orientation", Canonical, sensitive=True, observation=Box((4, 4))),
    correct("best five candidates", Candidates, sensitive=True, observation=Box((12, 4))),
    correct("sorted features and their median", Ranked, observation=Box((6,))),
    correct("hashed ids", Hashed, observation=Box((5,), low=0, high=10**6, dtype="int64")),
    correct(
        "switches", Switches, sensitive=True, observation=Box((6,)), inputs={"action": MultiBinary((8,))}
    ),
    correct("softmax at a low temperature", Sharp, sensitive=True, observation=Box((6,))),
    correct("assignment", Assignment, observation=Box((4, 3)), inputs={"tasks": Box((4, 3))}),
    correct("nucleus of the choices", Nucleus, sensitive=True, observation=Box((6,))),
    correct("soft decision trees", Trees, observation=Box((6,))),
)
