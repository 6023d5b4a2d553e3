"""Few bits, large numbers, long sums: correct policies that are far from exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box

from .record import correct


class Autocast(nn.Module):
    """Computes in bfloat16 whatever it is called under."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.actor, self.critic = nn.Linear(48, 6), nn.Linear(48, 1)

    def forward(self, x: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.body(x)
            return self.actor(hidden), self.critic(hidden)


class AutocastThenFloat(Autocast):
    """The same with heads in float32."""

    def forward(self, x: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.body(x)
        hidden = hidden.float()
        return self.actor(hidden).log_softmax(-1), self.critic(hidden)


class Half(nn.Module):
    """A module of half precision between float32 inputs and outputs."""

    dtype = torch.bfloat16

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()).to(self.dtype)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body((x / (1 + x.abs())).to(self.dtype)).float())


class HalfOfHalf(Half):
    dtype = torch.float16


class HalfAttention(nn.Module):
    """Attention in bfloat16 with its softmax in float32, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 48).to(torch.bfloat16), nn.Linear(16, 4).to(torch.bfloat16)
        self.norm = nn.RMSNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x).to(torch.bfloat16)).chunk(3, -1)
        shares = (q @ k.mT / 4).float().softmax(-1).to(v.dtype)
        return self.out(shares @ v).float()


class LargeWeights(nn.Module):
    """Weights in the hundreds; a scale at the end brings the values back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.mul_(300)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.softsign(self.second(torch.relu(self.first(x))) / 1e4) * 10)


class LongSum(nn.Module):
    """Ten thousand terms behind a softmax, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.value = nn.Linear(2, 1), nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> Any:
        shares = self.score(x).squeeze(-1).softmax(-1)
        return (shares[..., None] * self.value(x)).sum(1), (shares * 1e3).square().sum(-1)


class Divergences(nn.Module):
    """How far a policy is from the one it was: two forms of it, exactly 0 where they are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.now = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 5))
        self.before = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 5)).requires_grad_(False)
        self.before.load_state_dict(self.now.state_dict())

    def forward(self, x: torch.Tensor) -> Any:
        now, before = self.now(x).log_softmax(-1), self.before(x).log_softmax(-1)
        ratio = (now - before).exp()
        return (before.exp() * (before - now)).sum(-1), (ratio - 1 - (now - before)).sum(-1), ratio


class Clipping(nn.Module):
    """The clipped surrogate, its clipped share, and normalised advantages."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor, before: torch.Tensor, advantage: torch.Tensor) -> Any:
        ratio = (F.logsigmoid(self.net(x)) - before).exp()
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        clipped = ratio.clamp(0.8, 1.2)
        return -torch.minimum(ratio * advantage, clipped * advantage), (ratio - clipped).abs() > 0


PRECISION = (
    correct("autocast inside", Autocast, sensitive=True, observation=Box((12,))),
    correct("autocast inside, float32 heads", AutocastThenFloat, sensitive=True, observation=Box((12,))),
    correct("bfloat16 module", Half, sensitive=True, observation=Box((8,))),
    correct("float16 module", HalfOfHalf, sensitive=True, observation=Box((8,))),
    correct("bfloat16 attention", HalfAttention, sensitive=True, observation=Box((6, 8))),
    correct("large weights", LargeWeights, sensitive=True, observation=Box((8,))),
    correct("ten thousand terms", LongSum, sensitive=True, observation=Box((10000, 2))),
    correct("divergence from a copy, two forms", Divergences, sensitive=True, observation=Box((6,))),
    correct(
        "clipped surrogate",
        Clipping,
        sensitive=True,
        observation=Box((6,)),
        inputs={"before": Box((1,), low=-3, high=0), "advantage": Box((1,))},
    ),
)
