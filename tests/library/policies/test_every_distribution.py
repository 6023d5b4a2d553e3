"""Every distribution of `torch.distributions`, and subclasses of them, may be an output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from small_checks import PASSED, assert_differs, check
from torch import distributions as D
from torch import nn
from torch.distributions import constraints

from pytest_torchcompile import Box
from pytest_torchcompile.policies.outputs import named_values
from pytest_torchcompile.reports.failure import failure_text

Make = Callable[[torch.Tensor], D.Distribution]


def positive(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.softplus(x) + 0.1


def triangular(x: torch.Tensor) -> torch.Tensor:
    return torch.diag_embed(positive(x)) + torch.tril(0.1 * x[:, :, None].expand(-1, 3, 3), -1)


# By class: made of a (batch, 3) tensor, which determines it wholly.
MAKE: dict[str, Make] = {
    "Bernoulli": lambda x: D.Bernoulli(logits=x),
    "Beta": lambda x: D.Beta(positive(x), positive(x + 1)),
    "Binomial": lambda x: D.Binomial(5, logits=x),
    "Categorical": lambda x: D.Categorical(logits=x),
    "Cauchy": lambda x: D.Cauchy(x, positive(x)),
    "Chi2": lambda x: D.Chi2(positive(x)),
    "ContinuousBernoulli": lambda x: D.ContinuousBernoulli(logits=x),
    "Dirichlet": lambda x: D.Dirichlet(positive(x)),
    "Exponential": lambda x: D.Exponential(positive(x)),
    "FisherSnedecor": lambda x: D.FisherSnedecor(positive(x), positive(x + 1)),
    "Gamma": lambda x: D.Gamma(positive(x), positive(x + 1)),
    "GeneralizedPareto": lambda x: D.GeneralizedPareto(x, positive(x), 0.1 * torch.tanh(x)),
    "Geometric": lambda x: D.Geometric(logits=x),
    "Gumbel": lambda x: D.Gumbel(x, positive(x)),
    "HalfCauchy": lambda x: D.HalfCauchy(positive(x)),
    "HalfNormal": lambda x: D.HalfNormal(positive(x)),
    "Independent": lambda x: D.Independent(D.Normal(x, positive(x)), 1),
    "InverseGamma": lambda x: D.InverseGamma(positive(x), positive(x + 1)),
    "Kumaraswamy": lambda x: D.Kumaraswamy(positive(x), positive(x + 1)),
    "LKJCholesky": lambda x: D.LKJCholesky(3, positive(x[:, 0])),
    "Laplace": lambda x: D.Laplace(x, positive(x)),
    "LogNormal": lambda x: D.LogNormal(x, positive(x)),
    "LogisticNormal": lambda x: D.LogisticNormal(x, positive(x)),
    "LowRankMultivariateNormal": lambda x: D.LowRankMultivariateNormal(x, x[:, :, None], positive(x)),
    "MixtureSameFamily": lambda x: D.MixtureSameFamily(D.Categorical(logits=x), D.Normal(x, positive(x))),
    "Multinomial": lambda x: D.Multinomial(5, logits=x),
    "MultivariateNormal": lambda x: D.MultivariateNormal(x, scale_tril=triangular(x)),
    "NegativeBinomial": lambda x: D.NegativeBinomial(positive(x), logits=x),
    "Normal": lambda x: D.Normal(x, positive(x)),
    "OneHotCategorical": lambda x: D.OneHotCategorical(logits=x),
    "OneHotCategoricalStraightThrough": lambda x: D.OneHotCategoricalStraightThrough(logits=x),
    "Pareto": lambda x: D.Pareto(positive(x), positive(x + 1)),
    "Poisson": lambda x: D.Poisson(positive(x)),
    "RelaxedBernoulli": lambda x: D.RelaxedBernoulli(torch.tensor(0.7), logits=x),
    "RelaxedOneHotCategorical": lambda x: D.RelaxedOneHotCategorical(torch.tensor(0.7), logits=x),
    "StudentT": lambda x: D.StudentT(positive(x), x, positive(x)),
    "TransformedDistribution": lambda x: D.TransformedDistribution(
        D.Normal(x, positive(x)), [D.TanhTransform(), D.AffineTransform(x, positive(x))]
    ),
    "Uniform": lambda x: D.Uniform(x, x + positive(x)),
    "VonMises": lambda x: D.VonMises(x, positive(x)),
    "Weibull": lambda x: D.Weibull(positive(x), positive(x + 1)),
    "Wishart": lambda x: D.Wishart(positive(x[:, 0]) + 3.0, scale_tril=triangular(x)),
}

ABSTRACT = {"Distribution", "ExponentialFamily"}


def test_none_is_left_out() -> None:
    kinds = {name: getattr(D, name) for name in D.__all__}
    known = {n for n, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, D.Distribution)}
    assert known - ABSTRACT == MAKE.keys()


class Policy(nn.Module):
    """Returns distributions; with an error, other ones while compiling."""

    def __init__(self, makes: dict[str, Make], error: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)
        self.makes = makes
        self.error = error

    def forward(self, x: torch.Tensor) -> dict[str, D.Distribution]:
        y = self.net(x)
        if torch.compiler.is_compiling():
            y = y * (1 + self.error)
        return {name: make(y) for name, make in self.makes.items()}


# What a check is asked for here is how outputs are taken apart; few examples show it.
FEW: dict[str, Any] = {"observation": Box((5,), -1, 1), "batch": 3, "examples": 1}

# Several in one policy, so that a check stands for several.
GROUPS = [list(MAKE)[start : start + 7] for start in range(0, len(MAKE), 7)]


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_it_passes_as_an_output(names: list[str]) -> None:
    result = check(lambda: Policy({name: MAKE[name] for name in names}), "update", **FEW)
    assert result.verdict in PASSED, failure_text(result)


@pytest.mark.parametrize("name", MAKE)
def test_another_one_looks_different(name: str) -> None:
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    one, same, other = (named_values(MAKE[name](y)) for y in (x, x, 1.01 * x))
    assert one.tensors
    assert one.kinds == same.kinds == other.kinds
    assert all(torch.equal(tensor, same.tensors[path]) for path, tensor in one.tensors.items())
    assert not all(torch.allclose(t, other.tensors[p], rtol=1e-4) for p, t in one.tensors.items())


def test_a_circle_of_transforms_is_no_nest() -> None:
    """A transform and its inverse refer to each other."""
    inverse = D.AffineTransform(torch.ones(3), 2 * torch.ones(3)).inv
    found = named_values(D.TransformedDistribution(D.Normal(torch.zeros(3), 1.0), [inverse])).tensors
    assert torch.equal(found["output.transforms[0].inverse of.loc"], torch.ones(3))


# --- of a library's own ---------------------------------------------------------------------------


class Squashed(D.TransformedDistribution):
    """As TorchRL's TanhNormal: sets attributes, and transforms that change nothing, while compiling only."""

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real,
        "scale": constraints.greater_than(1e-6),
    }

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor, low: Any = -1.0, high: Any = 1.0) -> None:
        bounds = torch.as_tensor(low), torch.as_tensor(high)
        self.low, self.high = bounds
        self.non_trivial_max = True if torch.compiler.is_compiling() else (self.high != 1.0).any()
        transform: D.Transform = D.TanhTransform()
        if torch.compiler.is_compiling() or bool(self.non_trivial_max):
            centre, half = (bounds[1] + bounds[0]) / 2, (bounds[1] - bounds[0]) / 2
            transform = D.ComposeTransform([transform, D.AffineTransform(centre, half)])
        self._t = [transform]
        super().__init__(D.Independent(D.Normal(loc, scale), 1), self._t, validate_args=False)


class Truncated(D.Independent):
    """Keeps bounds of its own, which `arg_constraints` does not name."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor, low: torch.Tensor) -> None:
        self.low = low
        self.calls = [0 if torch.compiler.is_compiling() else None]
        super().__init__(D.Normal(loc, scale), 1, validate_args=False)


class Delta(D.Distribution):
    """Declares nothing."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: torch.Tensor) -> None:
        (self.param,) = args
        super().__init__(self.param.shape[:1], self.param.shape[1:], validate_args=False)


class Weighted(D.MixtureSameFamily):
    """A mixture with a flag that is another while compiling."""

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__(D.Categorical(logits=x), D.Normal(x, positive(x)))
        self.fast = torch.compiler.is_compiling()


OWN: dict[str, tuple[Make, str]] = {
    "derived from a transformed one": (
        lambda x: Squashed(x, positive(x)),
        "base_dist.base_dist.loc",
    ),
    "derived from an independent one": (
        lambda x: Truncated(x.detach() * 0, positive(x.detach() * 0), x),
        "low",
    ),
    "derived from a mixture": (Weighted, "component_distribution.loc"),
    "derived from nothing": (Delta, "param"),
    "derived from a transformed one, in its transforms": (
        lambda x: Squashed(x.detach() * 0, positive(x.detach() * 0), high=2.0 + x.mean()),
        "transforms[1].scale",
    ),
}


@pytest.mark.parametrize("kind", OWN)
def test_a_library_s_own_is_compared_by_what_determines_it(kind: str) -> None:
    make, path = OWN[kind]
    result = check(lambda: Policy({"own": make}), **FEW)
    assert result.verdict in PASSED, failure_text(result)
    assert_differs(check(lambda: Policy({"own": make}, 0.01), **FEW), f"output['own'].{path}", "values")


def test_a_transform_that_changes_nothing_is_none() -> None:
    plain = D.TransformedDistribution(D.Normal(torch.zeros(2), 1.0), [D.TanhTransform()])
    padded = D.TransformedDistribution(
        D.Normal(torch.zeros(2), 1.0),
        D.ComposeTransform([D.ComposeTransform([D.TanhTransform(), D.AffineTransform(0.0, 1.0)])]),
    )
    assert named_values(plain).kinds == named_values(padded).kinds
