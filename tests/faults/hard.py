"""Correct models that are hard to compare, each with the size of an error that a check has to find in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box

compiling = torch.compiler.is_compiling


def nudged(x: torch.Tensor) -> torch.Tensor:
    """`x` with every element up to one unit in the last place away, as another order of sums leaves it."""
    if not compiling() or not x.is_floating_point():
        return x
    up = torch.nextafter(x.detach(), torch.full_like(x, float("inf")))
    odd = (torch.arange(x.numel()) % 2 == 0).reshape(x.shape)
    moved = torch.where(odd & torch.isfinite(x), up - x.detach(), torch.zeros_like(x))
    return x + moved.detach()


class Model(nn.Module):
    """A body that is rounded a little differently when compiled; `wrong` multiplies what it returns."""

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.wrong = wrong
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def body(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return y * (1 + self.wrong) if compiling() and self.wrong else y


class Kink(Model):
    """A ReLU whose arguments are zero but for rounding, so that gradients jump with the last bit.

    The two layers sum the same products in opposite order.
    """

    def build(self) -> None:
        self.first = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 4)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        same = F.linear(x.flip(-1), self.first.weight.detach().flip(-1))
        return self.head(torch.relu(nudged(y) - same) + y)


class Large(Model):
    """Values of 1e4 and gradients to match."""

    def build(self) -> None:
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(nudged(x * 1e4))


class Cancellation(Model):
    """The variance of numbers far from zero by its textbook formula: most digits are lost."""

    def build(self) -> None:
        self.layer = nn.Linear(8, 16)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x) + 100
        return nudged((y * y).mean(-1)) - y.mean(-1) ** 2


class CastInside(Model):
    """Turns whatever it is given into float32."""

    def build(self) -> None:
        self.layer = nn.Linear(8, 4)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(nudged(x.float()))


class CastBack(Model):
    """Hands back another dtype than it computes in."""

    dtype = torch.float64

    def build(self) -> None:
        self.layer = nn.Linear(8, 4)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(nudged(x.float())).to(self.dtype)


class CastToHalf(CastBack):
    dtype = torch.float16


class LayerNormed(Model):
    def build(self) -> None:
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(nudged(x))


class BatchNormed(Model):
    def build(self) -> None:
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
        )

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(nudged(x))


class Rejecting(Model):
    """``BatchNorm1d`` refuses a batch of one in training."""

    def build(self) -> None:
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(nudged(x))


class Saturated(Model):
    """Softmax of logits in the hundreds: gradients of 1e-30 beside some of O(1)."""

    def build(self) -> None:
        self.layer = nn.Linear(8, 4)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(nudged(300 * self.layer(x)), -1).exp()


class Deep(Model):
    def build(self) -> None:
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(12)))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(nudged(x))


ROUNDED: dict[str, tuple[type[Model], Any, float]] = {
    "gradients at a ReLU kink": (Kink, Box((8,)), 1e-3),
    "values of 1e4": (Large, Box((8,)), 1e-3),
    "catastrophic cancellation": (Cancellation, Box((8,)), 1e-1),
    "inputs cast to float32 inside": (CastInside, Box((8,), dtype="float64"), 1e-3),
    "integer inputs cast to float32 inside": (CastInside, Box((8,), dtype="int64"), 1e-3),
    "outputs cast back to float64": (CastBack, Box((8,)), 1e-3),
    "outputs cast back to half": (CastToHalf, Box((8,)), 1e-1),
    "LayerNorm": (LayerNormed, Box((8,)), 1e-3),
    "BatchNorm": (BatchNormed, Box((3, 4, 4)), 1e-3),
    "BatchNorm1d that rejects a batch of one": (Rejecting, Box((8,)), 1e-3),
    "saturated softmax": (Saturated, Box((8,)), 1e-1),
    "twelve layers": (Deep, Box((16,)), 1e-3),
}


# --- models that change or hide something ---------------------------------------------------------


class Dropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Sampling(nn.Module):
    """Samples an action and returns its log-probability and the entropy."""

    def __init__(self, kind: str = "categorical") -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        y = self.layer(x)
        if self.kind == "categorical":
            distribution: Any = torch.distributions.Categorical(logits=y)
        else:
            distribution = torch.distributions.Normal(y, torch.ones_like(y))
        action = distribution.sample() if self.kind != "rsample" else distribution.rsample()
        return action, distribution.log_prob(action), distribution.entropy()


class ClampsItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.clamp_(-1, 1)
        x[:, 0] = 0
        return self.layer(x)


class Recurrent(nn.Module):
    """Keeps its hidden state in a plain attribute, as policies for a running game do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.hidden = torch.zeros(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.layer(x) + self.hidden)
        self.hidden = y.detach().mean(0)
        return y


class Lazily(nn.Module):
    """Its hidden state is None until the first call, and as long as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.hidden: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.layer(x))
        self.hidden = y.detach()
        return y


class Hooked(nn.Module):
    """Hooks before and after change what the module computes, on itself and on a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.layer.register_forward_hook(lambda module, args, output: output * 2)
        self.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        self.register_forward_hook(lambda module, args, output: output - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Normaliser(nn.Module):
    """Normalises observations by running statistics kept in buffers, in training and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.register_buffer("count", torch.tensor(1e-4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            mean, var, n = x.mean(0), x.var(0, correction=0), len(x)
            delta, total = mean - self.mean, self.count + n
            self.mean += delta * n / total
            m2 = self.var * self.count + var * n + delta**2 * self.count * n / total
            self.var = m2 / total
            self.count = total
        return self.layer((x - self.mean) / torch.sqrt(self.var + 1e-8))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(8, 8, bias=False)
        self.decode = nn.Linear(8, 8, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(torch.tanh(self.encode(x)))


class PartlyFrozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 8).requires_grad_(False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.trunk(x)))


class Frozen(PartlyFrozen):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Clamping(nn.Module):
    """Clamps a weight each time it is called, as a Wasserstein critic does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.layer.weight.clamp_(-0.1, 0.1)
        return self.layer(x)


class Unused(nn.Module):
    """Has a head that this method does not use, and a parameter whose gradient is zero throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.value = nn.Linear(8, 1)
        self.dead = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + 0 * self.dead


class Viewing(nn.Module):
    """Hands back views: of its input, of a buffer, of one another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.layer(x)
        return y, y[:, 0], x[:, :2], self.table, y.t()


CORRECT: dict[str, Callable[[], nn.Module]] = {
    "dropout": Dropout,
    "sampling a categorical": Sampling,
    "sampling a normal": lambda: Sampling("normal"),
    "reparametrised sampling": lambda: Sampling("rsample"),
    "in-place input changes": ClampsItsInput,
    "a hidden state in an attribute": Recurrent,
    "module hooks": Hooked,
    "a running normaliser": Normaliser,
    "tied weights": Tied,
    "frozen parameters": PartlyFrozen,
    "a parameter clamped in forward": Clamping,
    "views": Viewing,
}
