"""Measures the rounding floor: false alarms for correct policies, the smallest faults found, and the cost.

Compiles the correct policies of ``tests/faults/correct`` once each, in the ``update`` phase on inductor, and
checks them on the same graphs under many seeds of weights and examples. It prints, for each policy:

* examples that exceeded the plain tolerance and that rounding explains; **false alarms**;
* the smallest fault found: one row of all outputs, and all gradients, larger by a share from a ladder;
* the share of a check's seconds, without compiling, that computing the floor takes.

The constants of ``rounding.py`` and ``measure.py`` come from these figures. From the repository's root:

    python -m benchmarks.rounding_floor --seeds 10
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from pytest_torchcompile import internals
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.stops import Stop, require_compiled
from pytest_torchcompile.checking.trial import Failure, Trial
from pytest_torchcompile.generation import recipes, strategies
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.methods import as_methods
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.runtime.isolation import isolated
from tests.faults.correct import CORRECT, Correct

LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""The shares by which something is made larger, until it is found."""

BATCHES = (4, 7, 33)
"""Two graphs serve these; one serves a single size, and 1 would have graphs of its own."""

Change = Callable[[Outcome], Outcome]


def a_row_larger(share: float) -> Change:
    """The last row of every output that is a float is larger."""

    def change(outcome: Outcome) -> Outcome:
        tensors = dict(outcome.outputs.tensors)
        for path, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.dim():
                tensors[path] = torch.cat([tensor[:-1], tensor[-1:] * (1 + share)])
        return dataclasses.replace(outcome, outputs=dataclasses.replace(outcome.outputs, tensors=tensors))

    return change


def gradients_larger(share: float) -> Change:
    """All gradients are larger."""

    def change(outcome: Outcome) -> Outcome:
        gradients = {n: None if g is None else g * (1 + share) for n, g in outcome.gradients.items()}
        return dataclasses.replace(outcome, gradients=gradients)

    return change


class Watched(Pair):
    """A pair that times eager's additional calls, and whose compiled side can be made wrong."""

    change: Change | None = None
    rerun_s = 0.0
    _called = False

    def begin(self, recipe: Recipe) -> None:
        """Begin an example, with eager not called yet."""
        self._called = False
        super().begin(recipe)

    def run(self, side: Side, recipe: Recipe, **how: Any) -> Outcome:
        """Call one side; eager's calls after its first are for the floor and for float64."""
        begun = time.perf_counter()
        outcome = super().run(side, recipe, **how)
        if side is self.eager:
            self.rerun_s += (time.perf_counter() - begun) * self._called
            self._called = True
        elif self.change is not None and outcome.error is None:
            outcome = self.change(outcome)
        return outcome

    def reseed(self, seed: int) -> None:
        """Other weights in the same modules, whose graphs stay."""
        torch.manual_seed(seed)
        fresh = dict(self.factory().named_parameters())
        with torch.no_grad():
            for side in (self.twins.eager, self.twins.compiled):
                for name, parameter in side.named_parameters():
                    parameter.copy_(fresh[name])


@dataclasses.dataclass(kw_only=True)
class Figures:
    """What was measured of one policy.

    Args:
        examples: how many were compared.
        rounding: of how many rounding explains what exceeded the tolerance.
        alarms: false alarms, one text each.
        trouble: why nothing more could be measured.
        row: the smallest share by which a row was found to be larger, for each seed asked.
        gradient: the same of gradients.
        compile_s: seconds spent compiling.
        check_s: seconds of examples on graphs that were there.
        rerun_s: those of them in which eager was asked again.
    """

    examples: int = 0
    rounding: int = 0
    alarms: list[str] = dataclasses.field(default_factory=list)
    trouble: str = ""
    row: list[float] = dataclasses.field(default_factory=list)
    gradient: list[float] = dataclasses.field(default_factory=list)
    compile_s: float = 0.0
    check_s: float = 0.0
    rerun_s: float = 0.0

    def line(self, name: str) -> str:
        """The row of the table; of smallest faults the largest over the seeds."""
        row, gradient = (
            f"{max(found):8.0e}" if found else f"{'-':>8}" for found in (self.row, self.gradient)
        )
        share = self.rerun_s / self.check_s if self.check_s else 0.0
        text = f"{name:44} {self.examples:8} {self.rounding:8} {len(self.alarms):6} {row} {gradient}"
        return f"{text} {share:6.0%} {self.compile_s:7.1f} {self.trouble}".rstrip()


def measure(policy: Correct, arguments: argparse.Namespace) -> Figures:
    """Compile a policy once, and check it under each seed."""
    figures = Figures()
    options = CheckOptions(backend=arguments.backend, batch=tuple(arguments.batch))
    declaration = Declaration(**policy.declaration)
    (method,) = as_methods(declaration.methods)
    with isolated(1), internals.raised_recompile_limit():
        torch.compiler.reset()
        pair = Watched(policy.model, method, arguments.phase, declaration=declaration, options=options)
        try:
            begun = time.perf_counter()
            first = fixed(pair, options, 0)
            pair.first_eager(first[0])
            check(pair, options, first, figures, "compiling")
            require_compiled(pair, options)
            figures.compile_s = time.perf_counter() - begun
            for seed in range(arguments.seeds):
                pair.reseed(seed)
                begun, pair.rerun_s = time.perf_counter(), 0.0
                check(
                    pair,
                    options,
                    [*fixed(pair, options, seed), *drawn(pair, options, seed, arguments.examples)],
                    figures,
                    f"seed {seed}",
                )
                figures.check_s += time.perf_counter() - begun
                figures.rerun_s += pair.rerun_s
                if seed < arguments.ladders:
                    figures.row.append(smallest(pair, options, first[0], a_row_larger))
                    if arguments.phase == "update":
                        figures.gradient.append(smallest(pair, options, first[0], gradients_larger))
        except Stop as stopped:
            figures.trouble = f"{stopped.verdict.value}: {stopped.reason:.200}"
    return figures


def fixed(pair: Pair, options: CheckOptions, seed: int) -> list[Recipe]:
    """The examples that a check begins with, without those that need graphs of their own."""
    found = recipes.ladder(pair.tree, options.batch, nonfinite=False, seed=1000 * seed)
    return [one for one in found if all(fill.layout == "contiguous" for fill in one.fills)]


def drawn(pair: Pair, options: CheckOptions, seed: int, examples: int) -> list[Recipe]:
    """Examples that Hypothesis draws, of sizes for which there are graphs."""
    found: list[Recipe] = []

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @hypothesis_seed(seed)
    @given(strategies.recipes(pair.tree, st.sampled_from(options.batch)))
    def draw(recipe: Recipe) -> None:
        found.append(recipe)

    draw()
    return found


def check(
    pair: Watched, options: CheckOptions, examples: Iterable[Recipe], figures: Figures, when: str
) -> None:
    """Add what the examples show."""
    trial = Trial(pair, options)
    for recipe in examples:
        failure = trial(recipe)
        if failure is not None:
            figures.alarms.append(f"{when}, {recipe}: {worst_text(failure)}")
    figures.examples += trial.evidence.examples
    figures.rounding += trial.evidence.rounding


def worst_text(failure: Failure) -> str:
    """Return the worst difference with its figures, as text."""
    worst = failure.judgement.differences[0]
    return (
        f"{worst.place} {worst.problem}: eager {worst.eager}, compiled {worst.compiled}, "
        f"difference {worst.difference:.3g}, allowed {worst.allowed:.3g}, floor {worst.floor}"
    )


def smallest(pair: Watched, options: CheckOptions, recipe: Recipe, fault: Callable[[float], Change]) -> float:
    """The smallest share of the ladder that is found; infinity if none is."""
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, pair, "change", None)
        for share in LADDER:
            pair.change = fault(share)
            if Trial(pair, options)(recipe) is not None:
                return share
    return float("inf")


def chosen(arguments: argparse.Namespace) -> list[Correct]:
    """The policies to measure: without ``--all`` every sensitive one and every third of the others."""
    right = [one for one in CORRECT.values() if not one.miscompiled or arguments.backend != "inductor"]
    short = [one for one in right if arguments.long or not one.long]
    others = [one.name for one in short if not one.sensitive][::3]
    return [
        one
        for one in short
        if arguments.only in one.name and (arguments.all or one.sensitive or one.name in others)
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="of weights and examples")
    parser.add_argument("--ladders", type=int, default=2, help="seeds for which faults are tried")
    parser.add_argument(
        "--examples", type=int, default=5, help="drawn for each seed beside the fixed ones, at least 1"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES, help="batch sizes")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--phase", default="update", choices=("rollout", "update"))
    parser.add_argument("--only", default="", help="policies whose name contains this")
    parser.add_argument("--all", action="store_true", help="all policies, not a choice of them")
    parser.add_argument("--long", action="store_true", help="also policies that compile for minutes")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {arguments.backend}, {arguments.phase}, {arguments.seeds} seeds")
    heads = f"{'rounding':>8} {'alarms':>6} {'row':>8} {'gradient':>8} {'floor':>6} {'compile':>7}"
    print(f"{'policy':44} {'examples':>8} {heads}")
    begun, total = time.perf_counter(), Figures()
    policies = chosen(arguments)
    for policy in policies:
        figures = measure(policy, arguments)
        print(figures.line(policy.name), flush=True)
        for alarm in figures.alarms[:3]:
            print(f"    {alarm}", flush=True)
        for field in ("examples", "rounding", "alarms", "row", "gradient", "compile_s", "check_s", "rerun_s"):
            setattr(total, field, getattr(total, field) + getattr(figures, field))
    print(total.line(f"all {len(policies)} policies"))
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
