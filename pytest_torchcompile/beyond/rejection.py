"""Finds undeclared inputs that one side rejects and the other accepts.

An exception that the policy raises on purpose is a contract: compiled must raise it too. If only one side's
kernels reject an input, that is a remark.

This runs after the rest of a case, because it adds graphs that are not deployed. Eager runs first. If eager
accepts an input, compiled is usually not called: compiling would take seconds and show little.
"""

from __future__ import annotations

import dataclasses
import functools

import torch

from pytest_torchcompile.checking.contracts import is_contract, rejection_difference, rejection_text
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.generation import descriptions, recipes
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.outputs import NamedValues
from pytest_torchcompile.results import Difference
from pytest_torchcompile.runtime.isolation import quietly
from pytest_torchcompile.specs.invalid_inputs import InvalidInputs, invalid_inputs
from pytest_torchcompile.texts import first_line, some


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrokenContract:
    """A contract of the policy that compiled breaks.

    Args:
        reason: one sentence for the user.
        difference: the difference between the two sides; None if nothing was called.
        example: the inputs of the calls, in one line.
        wrong: the inputs that compiled does not reject; None if nothing was called.
        recipe: the example of them.
    """

    reason: str
    difference: Difference | None = None
    example: str = ""
    wrong: InvalidInputs | None = None
    recipe: Recipe | None = None


def try_undeclared_inputs(pair: Pair, options: CheckOptions) -> tuple[list[str], BrokenContract | None]:
    """Return remarks on undeclared inputs that one side rejects, up to the first broken contract.

    Args:
        pair: the two sides of a case that passed.
        options: how it was checked. No more inputs are tried once its budget is spent.
    """
    recipe = recipes.random_recipe(pair.tree, options.batch[0], options.seed)
    attempt = Attempt(pair, recipe)
    remarks: list[str] = []
    for wrong in invalid_inputs(pair.tree):
        if pair.out_of_seconds():
            break
        found = attempt(wrong)
        if found is None:
            continue
        if found.is_contract:
            return remarks, BrokenContract(
                reason=f"compiled does not reject what eager rejects: {wrong.what}",
                difference=found.difference,
                example=descriptions.describe(wrong.tree, recipe),
                wrong=wrong,
                recipe=recipe,
            )
        remarks.append(f"on inputs that were not declared ({wrong.what}) {rejection_text(found.difference)}")
    return remarks, None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disagreement:
    """An exception that only one side raises, or two that differ.

    Args:
        difference: the difference.
        is_contract: whether the user's code or a library's validation rejects the inputs on purpose.
    """

    difference: Difference
    is_contract: bool


class Attempt:
    """Gives wrong inputs to both sides of a pair.

    Args:
        pair: the two sides.
        recipe: the example whose inputs are wrong.
    """

    def __init__(self, pair: Pair, recipe: Recipe) -> None:
        self._pair = pair
        self._recipe = recipe

    def __call__(self, wrong: InvalidInputs) -> Disagreement | None:
        """Return how the sides disagree; None if both accept the inputs or both reject them."""
        eager = self._outcome(self._pair.eager, wrong)
        if eager is None or (eager.error is None and not self._costs_no_compile(wrong)):
            return None
        compiled = self._outcome(self._able_to_raise if wrong.in_values else self._pair.compiled, wrong)
        if compiled is None:
            return None
        difference = self._difference(eager, compiled)
        if difference is None:
            return None
        return Disagreement(difference=difference, is_contract=is_contract(eager.error, compiled.error))

    def _difference(self, eager: Outcome, compiled: Outcome) -> Difference | None:
        if eager.error is not None:
            returned = f"returns {_shapes(compiled.outputs)}"
            return rejection_difference(self._pair, eager.error, compiled.error, returned)
        if compiled.error is None:
            return None
        return Difference(
            path="output",
            problem="exception",
            eager=f"returns {_shapes(eager.outputs)}",
            compiled=f"raises {first_line(compiled.error)}",
        )

    @staticmethod
    def _costs_no_compile(wrong: InvalidInputs) -> bool:
        """Return whether compiled can be called without compiling again."""
        return wrong.in_values and torch.get_num_threads() == 1

    @functools.cached_property
    def _able_to_raise(self) -> Side | None:
        return self._pair.on_one_thread()

    def _outcome(self, side: Side | None, wrong: InvalidInputs) -> Outcome | None:
        """Return the outcome of a side; None if it can't be called on the inputs."""
        if side is None:
            return None
        try:
            return self._pair.run(side, self._recipe, under=quietly, tree=wrong.tree)
        except UsageError:
            # The user's own functions (Wrapped, observe) need not support undeclared inputs.
            return None


def _shapes(outputs: NamedValues) -> str:
    """Return text such as ``float32 (4, 8)`` for the first few tensors."""
    return some(
        f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        for tensor in outputs.tensors.values()
    )
