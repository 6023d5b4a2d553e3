"""Attention: language models that act, entities under masks, trajectories as sequences."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from pytest_torchcompile import Box, LegalAction, LegalMask, MultiBinary, Tokens

from .record import correct


def heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """``(batch, length, width)`` as ``(batch, heads, length, width / heads)``."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


class CausalBlock(nn.Module):
    """Self-attention that looks back only, then a feed-forward layer."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.register_buffer("past", torch.ones(length, length).tril().bool())

    def masked(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(~self.past, float("-inf"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(part, 2) for part in self.qkv(self.before(x)).chunk(3, -1))
        share = self.masked(q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + self.out((share @ v).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.between(x))))


class LanguageModel(nn.Module):
    """A transformer with a language head and a value for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(24, 16), nn.Parameter(torch.randn(10, 16) / 4)
        self.blocks = nn.Sequential(CausalBlock(16, 10))
        self.norm = nn.LayerNorm(16)
        self.value = nn.Linear(16, 1)

    def forward(self, tokens: torch.Tensor) -> Any:
        x = self.norm(self.blocks(self.words(tokens) + self.places))
        return x @ self.words.weight.t(), self.value(x).squeeze(-1)


class Rlhf(nn.Module):
    """The log-probabilities of a response, and how far they are from those of a frozen copy."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = LanguageModel()
        self.reference = copy.deepcopy(self.actor).requires_grad_(False)

    def log_probs(self, model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens)[0].log_softmax(-1)

    def penalty(self, mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        return (mine.exp() * (mine - theirs)).sum(-1)

    def forward(self, tokens: torch.Tensor) -> Any:
        mine = self.log_probs(self.actor, tokens)
        with torch.no_grad():
            theirs = self.log_probs(self.reference, tokens)
        taken = mine[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
        return taken, self.penalty(mine, theirs)


class Entities(nn.Module):
    """Attention over entities of which any number may be absent, none or all included."""

    fill = float("-inf")

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out, self.value = nn.Linear(5, 24), nn.Linear(8, 4), nn.Linear(8, 1)

    def shares(self, scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        shares = scores.masked_fill(~present[:, None], self.fill).softmax(-1)
        return torch.where(present.any(-1)[:, None, None], shares, 0.0)

    def forward(self, x: torch.Tensor, present: torch.Tensor) -> Any:
        present = present > 0.5
        q, k, v = self.embed(x).chunk(3, -1)
        pooled = self.pooled(self.shares(q @ k.mT / math.sqrt(8), present) @ v, present)
        return self.out(pooled), self.value(pooled).squeeze(-1)

    def pooled(self, seen: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return (seen * present[..., None]).sum(1) / present.sum(-1, keepdim=True).clamp(min=1)


class EntitiesBarely(Entities):
    """The same; a row without entities comes out as NaN, which has to stay one."""

    def shares(self, scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(~present[:, None], self.fill).softmax(-1)


class EntitiesSafely(Entities):
    """The same; an absent entity counts -inf only in rows where one is present."""

    def shares(self, scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        absent = ~present & present.any(-1, keepdim=True)
        return scores.masked_fill(absent[:, None], self.fill).softmax(-1)


class EntitiesLargeNegative(Entities):
    """A row without entities attends to all of them alike; all are pooled."""

    fill = -1e9

    def pooled(self, seen: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return seen.mean(1)

    def shares(self, scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(~present[:, None], self.fill).softmax(-1)


class Crowd(EntitiesLargeNegative):
    """Three hundred entities; a bias of the smallest number that float32 has is added to the scores."""

    def shares(self, scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros_like(present, dtype=scores.dtype)
        return (scores + bias.masked_fill(~present, torch.finfo(scores.dtype).min)[:, None]).softmax(-1)


class Queried(nn.Module):
    """torch's own attention: a learnt query over entities, of which the first is always there."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query = nn.Linear(5, 16), nn.Parameter(torch.randn(1, 1, 16) / 4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        keys = self.embed(x)
        gone = (absent > 0.5) & (torch.arange(x.shape[1]) > 0)
        query = self.query.expand(len(x), -1, -1)
        pooled, _ = self.attention(query, keys, keys, key_padding_mask=gone, need_weights=False)
        return self.head(pooled.squeeze(1))


class DecisionTransformer(nn.Module):
    """Returns to go, states and actions as one sequence; the action after each state."""

    def __init__(self) -> None:
        super().__init__()
        self.returns, self.states, self.actions = nn.Linear(1, 16), nn.Linear(6, 16), nn.Linear(2, 16)
        self.steps, self.norm = nn.Embedding(8, 16), nn.LayerNorm(16)
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, states: torch.Tensor, actions: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
        times = self.steps(torch.arange(states.shape[1]))
        parts = self.returns(returns), self.states(states), self.actions(actions)
        x = torch.stack([part + times for part in parts], 2).flatten(1, 2)
        q, k, v = (heads(part, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(seen)
        return torch.tanh(self.head(x[:, 1::3]))


class Rotary(nn.Module):
    """Positions turn queries and keys by an angle; one row of scores for each step looks back three steps."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 24), nn.Linear(8, 3)
        angles = torch.outer(torch.arange(12.0), 100.0 ** -torch.linspace(0, 1, 4))
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())
        gap = torch.arange(12)[:, None] - torch.arange(12)
        self.register_buffer("near", (gap >= 0) & (gap < 4))

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = even * self.cosine - odd * self.sine, even * self.sine + odd * self.cosine
        return torch.stack(turned, -1).flatten(-2)

    def masked(self, scores: torch.Tensor) -> torch.Tensor:
        return torch.where(self.near, scores, float("-inf"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = self.masked(self.turned(q) @ self.turned(k).mT)
        return self.head((scores / 3).softmax(-1) @ v)


class Perceiver(nn.Module):
    """Four learnt queries over three hundred observations, nearly all attention on the nearest."""

    temperature = 0.02

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, 8))
        self.keys, self.values, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.latents @ self.keys(x).mT
        share = torch.softmax(scores / self.temperature, -1)
        return self.head((share @ self.values(x)).flatten(1))


class LinearAttention(nn.Module):
    """Causal attention by running sums of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 24), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        seen = torch.einsum("btk,btv->btkv", k, v).cumsum(1)
        norm = (q * k.cumsum(1)).sum(-1, keepdim=True)
        return self.head(torch.einsum("btk,btkv->btv", q, seen) / (norm + 1e-6))


class Pointer(nn.Module):
    """Chooses one of the legal units by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.query, self.value = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def choices(self, units: torch.Tensor, mask: torch.Tensor) -> Any:
        keys = torch.tanh(self.units(units))
        mean = (keys * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        scores = (keys @ self.query(mean)[..., None]).squeeze(-1) / 4
        return Categorical(logits=scores.masked_fill(~mask, float("-inf"))), self.value(mean)

    def act(self, units: torch.Tensor, mask: torch.Tensor) -> Any:
        choices, value = self.choices(units, mask)
        action = choices.probs.argmax(-1)
        return action, choices.log_prob(action), value

    def evaluate(self, units: torch.Tensor, mask: torch.Tensor, action: torch.Tensor) -> Any:
        choices, value = self.choices(units, mask)
        logits = choices.logits.masked_fill(~mask, 0.0)
        return choices.log_prob(action), -(choices.probs * logits).sum(-1), value


class GatedBlock(nn.Module):
    """A block of attention whose residual is a gate, as in a stabilised transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.qkv = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 48)
        self.reset, self.update, self.new = (nn.Linear(32, 16) for _ in range(3))
        self.head = nn.Linear(16, 3)

    def gated(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        both = torch.cat([x, y], -1)
        update = torch.sigmoid(self.update(both) - 2)
        new = torch.tanh(self.new(torch.cat([torch.sigmoid(self.reset(both)) * x, y], -1)))
        return (1 - update) * x + update * new

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.head(self.gated(x, torch.relu((q @ k.mT / 4).softmax(-1) @ v)).mean(1))


_PRESENT = {"present": MultiBinary((12,))}
_TRAJECTORY = {"actions": Box((8, 2), low=-1, high=1), "returns": Box((8, 1))}

ATTENTION = (
    correct("language model with a value head", LanguageModel, observation=Tokens(24, 10)),
    correct("divergence from a frozen copy", Rlhf, sensitive=True, observation=Tokens(24, 10)),
    correct("entities, absent ones -inf, empty rows 0", Entities, observation=Box((12, 5)), inputs=_PRESENT),
    correct("entities, empty rows NaN", EntitiesBarely, observation=Box((12, 5)), inputs=_PRESENT),
    correct("entities, -inf only beside others", EntitiesSafely, observation=Box((12, 5)), inputs=_PRESENT),
    correct("entities, absent ones -1e9", EntitiesLargeNegative, observation=Box((12, 5)), inputs=_PRESENT),
    correct(
        "three hundred entities",
        Crowd,
        sensitive=True,
        observation=Box((300, 5)),
        inputs={"present": MultiBinary((300,))},
    ),
    correct("a learnt query", Queried, observation=Box((9, 5)), inputs={"absent": MultiBinary((9,))}),
    correct("decision transformer", DecisionTransformer, observation=Box((8, 6)), inputs=_TRAJECTORY),
    correct("rotary attention in a window", Rotary, observation=Box((12, 6))),
    correct("three hundred observations, sharply", Perceiver, sensitive=True, observation=Box((300, 3))),
    correct("linear attention by running sums", LinearAttention, observation=Box((12, 6))),
    correct("pointer", Pointer, observation=Box((7, 4)), inputs={"mask": LegalMask(7)}, methods="act"),
    correct(
        "the worth of units that are pointed to",
        Pointer,
        observation=Box((7, 4)),
        inputs={"mask": LegalMask(7), "action": LegalAction("mask")},
        methods="evaluate",
    ),
    correct("gated attention", GatedBlock, observation=Box((6, 6))),
)
