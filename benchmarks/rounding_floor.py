"""Does the rounding floor excuse correct compiled policies, and by what margin?

Checks BatchNorm policies in the ``update`` phase on inductor over many seeds, near-constant batches
included, and prints how far compiled is from eager in units of the rounding floor, for every tensor
that exceeds the plain tolerance. ``tolerance.MULTIPLE`` must stay above the largest, with a margin.

    python benchmarks/rounding_floor.py --seeds 20
"""

from __future__ import annotations

import argparse
import collections
import statistics

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box, internals, recipes, strategies
from pytest_torchcompile.declaration import Declaration
from pytest_torchcompile.isolation import isolated
from pytest_torchcompile.measure import MULTIPLE
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.policy import Method
from pytest_torchcompile.rounding import rounding_floors, shift_for


class ConvNet(nn.Module):
    """Two convolutions with BatchNorm, two heads."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
        )
        self.policy, self.value = nn.Linear(512, 6), nn.Linear(512, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and value."""
        features = self.trunk(x)
        return self.policy(features), self.value(features)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Tower(nn.Module):
    """A residual tower in the manner of Keisei."""

    shape = (8, 9, 9)

    def __init__(self, channels: int = 16, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(8, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.policy = nn.Sequential(
            nn.Conv2d(channels, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(162, 100)
        )
        self.value = nn.Sequential(nn.Flatten(), nn.Linear(channels * 81, 1), nn.Tanh())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and value."""
        features = self.blocks(F.relu(self.stem(x)))
        return self.policy(features), self.value(features)


def ratios(pair: Pair, recipe: recipes.Recipe, tolerance: float = 1e-5) -> list[float]:
    """Distance over rounding floor of each tensor that exceeds the tolerance on one example."""
    eager, compiled = pair.run(pair.eager, recipe), pair.run(pair.compiled, recipe)
    if eager.error is not None:
        return []
    mine = eager.elementwise() | eager.differentiated()
    theirs = compiled.elementwise() | compiled.differentiated()
    far = {
        path: float((tensor - theirs[path]).abs().max())
        for path, tensor in mine.items()
        if tensor.is_floating_point()
        and bool(((tensor - theirs[path]).abs() > tolerance * max(1.0, float(tensor.abs().max()))).any())
    }
    if not far:
        return []
    *_, floor = rounding_floors(
        eager,
        lambda under, wide=False: pair.run(pair.eager, recipe, under=under, wide=wide),
        shift_for(recipes.equal_terms(pair.tree, recipe)),
    )
    return [distance / max(floor.movement[path], 1e-30) for path, distance in far.items()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--backend", default="inductor")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {arguments.backend}, {arguments.seeds} seeds, MULTIPLE = {MULTIPLE:g}")
    print(
        f"{'policy':8} {'examples':10} {'drawn':>6} {'tensors':>8} {'median':>7} {'largest':>8} {'alarms':>7}"
    )
    for policy in (ConvNet, Tower):
        found: dict[str, list[float]] = {"plain": [], "degenerate": []}
        drawn: collections.Counter[str] = collections.Counter()
        for seed in range(arguments.seeds):
            measure(policy, 1000 * seed, arguments, found, drawn)
        for kind, values in found.items():
            alarms = sum(value > MULTIPLE for value in values)
            middle, most = (statistics.median(values), max(values)) if values else (0.0, 0.0)
            print(
                f"{policy.__name__:8} {kind:10} {drawn[kind]:6} {len(values):8} {middle:7.2f} {most:8.2f} "
                f"{alarms:7}"
            )


def measure(
    policy: type[ConvNet | Tower],
    seed: int,
    arguments: argparse.Namespace,
    found: dict[str, list[float]],
    drawn: collections.Counter[str],
) -> None:
    """Add the ratios of one seed's policy."""
    options = CheckOptions(seed=seed, backend=arguments.backend)
    with isolated(1), internals.raised_recompile_limit():
        torch.compiler.reset()
        declaration = Declaration(observation=Box(policy.shape))
        pair = Pair(policy, Method("forward"), "update", declaration=declaration, options=options)
        fixed = recipes.ladder(pair.tree, options.batch, nonfinite=False, seed=seed)
        pair.first_eager(fixed[0])

        def count(recipe: recipes.Recipe) -> None:
            kind = "degenerate" if recipes.equal_terms(pair.tree, recipe) else "plain"
            drawn[kind] += 1
            found[kind] += ratios(pair, recipe)

        for recipe in fixed:
            count(recipe)
        draw = given(strategies.recipes(pair.tree, st.integers(1, 33)))(count)
        settings(
            max_examples=arguments.examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )(draw)()


if __name__ == "__main__":
    main()
