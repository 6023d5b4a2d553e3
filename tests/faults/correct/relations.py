"""Graphs, sets and experts: messages between nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box, MultiBinary

from .record import correct

_FROM = torch.tensor([0, 1, 2, 3, 4, 5, 0, 2, 4, 1])
_TO = torch.tensor([1, 2, 3, 4, 5, 0, 3, 5, 1, 0])


class MessagePassing(nn.Module):
    """Each node of a fixed graph takes the mean of its neighbours' messages, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message, self.update = nn.Linear(4, 12), nn.Linear(24, 12), nn.Linear(24, 12)
        self.head = nn.Linear(12, 3)
        self.register_buffer("source", _FROM)
        self.register_buffer("target", _TO)
        self.register_buffer("degree", torch.bincount(_TO, minlength=6).clamp(min=1)[:, None].float())

    def gathered(self, messages: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(nodes).index_add(1, self.target, messages) / self.degree

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.embed(x))
        for _ in range(2):
            pairs = torch.cat([x[:, self.source], x[:, self.target]], -1)
            news = self.gathered(torch.relu(self.message(pairs)), x)
            x = torch.tanh(self.update(torch.cat([x, news], -1)))
        return self.head(x)


class EdgeAttention(nn.Module):
    """A softmax over the edges that end in each node: scattered maxima and sums."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score, self.head = nn.Linear(4, 12), nn.Linear(24, 1), nn.Linear(12, 3)
        self.register_buffer("source", _FROM)
        self.register_buffer("target", _TO)

    def shares(self, scores: torch.Tensor) -> torch.Tensor:
        index = self.target.expand_as(scores)
        empty = scores.new_full((len(scores), 6), float("-inf"))
        most = empty.scatter_reduce(1, index, scores, "amax").gather(1, index)
        exponentials = (scores - most).exp()
        sums = scores.new_zeros(len(scores), 6).scatter_add(1, index, exponentials)
        return exponentials / sums.gather(1, index)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        pairs = torch.cat([x[:, self.source], x[:, self.target]], -1)
        share = self.shares(F.leaky_relu(self.score(pairs).squeeze(-1), 0.2))
        taken = torch.zeros_like(x).index_add(1, self.target, share[..., None] * x[:, self.source])
        return self.head(F.elu(taken))


class DenseGraph(nn.Module):
    """A graph convolution over an adjacency that is part of the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        edges = ((edges + edges.mT) > 0).float() + torch.eye(6)
        edges = edges.clamp(max=1)
        root = edges.sum(-1).rsqrt()
        edges = root[..., None] * edges * root[:, None]
        return self.second(edges @ torch.relu(self.first(edges @ x)))


class EdgeMaximum(nn.Module):
    """Each node takes the largest message of its neighbours, element by element."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.head = nn.Linear(4, 8), nn.Linear(12, 3)
        self.register_buffer("source", _FROM)
        self.register_buffer("target", _TO)

    def gathered(self, messages: torch.Tensor) -> torch.Tensor:
        index = self.target[None, :, None].expand_as(messages)
        start = messages.new_zeros(len(messages), 6, messages.shape[-1])
        return start.scatter_reduce(1, index, messages, "amax", include_self=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        messages = self.message(x[:, self.source] - x[:, self.target])
        return self.head(torch.cat([x, self.gathered(messages)], -1))


class Experts(nn.Module):
    """Two of four experts for each observation, weighed by their renormalised scores."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.first = nn.Parameter(torch.randn(4, 6, 12) / 3)
        self.second = nn.Parameter(torch.randn(4, 12, 3) / 4)

    def routed(self, x: torch.Tensor) -> Any:
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        return weights / weights.sum(-1, keepdim=True), chosen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.routed(x)
        hidden = torch.relu(torch.einsum("bi,eio->beo", x, self.first))
        experts = torch.einsum("beh,eho->beo", hidden, self.second)
        taken = experts.gather(1, chosen[..., None].expand(-1, -1, 3))
        return (weights[..., None] * taken).sum(1)


class Switch(nn.Module):
    """One expert for each observation, and the loss that balances them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6, 3) / 3), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: torch.Tensor) -> Any:
        shares = self.gate(x).softmax(-1)
        share, chosen = shares.max(-1)
        y = torch.einsum("bi,bio->bo", x, self.weight[chosen]) + self.bias[chosen]
        load = F.one_hot(chosen, 4).float().mean(0)
        return share[:, None] * y, 4 * (load * shares.mean(0)).sum()


class SoftExperts(nn.Module):
    """Every expert takes a mean of all tokens, every token a mean of all experts."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(5, 4) / 2)
        self.experts = nn.Parameter(torch.randn(4, 5, 5) / 2)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x @ self.slots
        slots = scores.softmax(1).mT @ x
        out = F.silu(torch.einsum("bei,eio->beo", slots, self.experts))
        return self.head((scores.softmax(-1) @ out).mean(1))


class Pooled(nn.Module):
    """A set by its mean, its maximum, its minimum and its deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(32, 3)

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        deviation = (x.var(1, correction=0) + 1e-5).sqrt()
        return torch.cat([x.mean(1), x.amax(1), x.amin(1), deviation], -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pooled(F.silu(self.embed(x))))


class SparseGates(nn.Module):
    """Gates that are exactly open or shut over much of their range: hard concrete ones, stretched and cut."""

    def __init__(self) -> None:
        super().__init__()
        self.openness = nn.Parameter(torch.linspace(-3, 3, 12))
        self.layer, self.gate, self.head = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> Any:
        fixed = (torch.sigmoid(self.openness) * 1.2 - 0.1).clamp(0, 1)
        open_ = F.hardsigmoid(self.gate(x) * 4)
        return self.head(torch.tanh(self.layer(x)) * fixed * open_), fixed


RELATIONS = (
    correct("message passing by index_add", MessagePassing, observation=Box((6, 4))),
    correct("softmax over edges by scatter", EdgeAttention, observation=Box((6, 4))),
    correct(
        "graph in the observation", DenseGraph, observation=Box((6, 4)), inputs={"edges": MultiBinary((6, 6))}
    ),
    correct("largest message of the neighbours", EdgeMaximum, observation=Box((6, 4))),
    correct("two of four experts", Experts, sensitive=True, observation=Box((6,))),
    correct("one of four experts", Switch, sensitive=True, observation=Box((6,))),
    correct("soft experts", SoftExperts, observation=Box((7, 5))),
    correct("a set by its moments and extremes", Pooled, observation=Box((9, 4))),
    correct("gates that shut", SparseGates, observation=Box((6,))),
)
