"""What eager rejects, compiled has to reject.

Eager is asked first: a graph that is compiled for inputs that eager takes would cost seconds and
prove nothing. It all happens after the rest of a case, because it leaves graphs behind that nobody
deploys.
"""

from __future__ import annotations

import dataclasses
import functools

from pytest_torchcompile import recipes, tensors
from pytest_torchcompile.calls import Outcome, Side
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.outputs import NamedValues
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.recipes import Recipe
from pytest_torchcompile.results import CheckResult, Difference, Verdict
from pytest_torchcompile.texts import some
from pytest_torchcompile.trial import quietly, unlike_rejection
from pytest_torchcompile.wrong import Wrong, wrong_inputs


def with_rejection(result: CheckResult, pair: Pair, options: CheckOptions) -> CheckResult:
    """`result` of a case that passed, or how it differs on the first wrong input that compiled takes.

    Args:
        result: of a case that passed.
        pair: its two sides.
        options: how it was checked; no input is tried once `max_seconds` have gone into compiling.
    """
    recipe = recipes.random_recipe(pair.tree, options.batch[0], options.seed)
    attempt = _Attempt(pair, recipe)
    for wrong in wrong_inputs(pair.tree):
        if pair.recorder.compile_s > options.max_seconds:
            return result
        difference = attempt(wrong)
        if difference is not None:
            return dataclasses.replace(
                result,
                verdict=Verdict.DIFFERS,
                reason=f"compiled does not reject what eager rejects: {wrong.what}",
                worst=difference,
                differences=(difference,),
                example=tensors.describe(wrong.tree, recipe),
                speedup=None,
            )
    return result


class _Attempt:
    """Gives wrong inputs to both sides of a pair."""

    def __init__(self, pair: Pair, recipe: Recipe) -> None:
        self._pair = pair
        self._recipe = recipe

    def __call__(self, wrong: Wrong) -> Difference | None:
        """What eager raised and compiled did not; None if eager takes the inputs or both reject them."""
        eager = self._outcome(self._pair.eager, wrong)
        if eager is None or eager.error is None:
            return None
        compiled = self._outcome(self._able_to_raise if wrong.in_values else self._pair.compiled, wrong)
        if compiled is None:
            return None
        returned = f"returns {_shapes(compiled.outputs)}"
        return unlike_rejection(self._pair, eager.error, compiled.error, returned)

    @functools.cached_property
    def _able_to_raise(self) -> Side | None:
        return self._pair.on_one_thread()

    def _outcome(self, side: Side | None, wrong: Wrong) -> Outcome | None:
        """What a side makes of the inputs; None if there is no telling."""
        if side is None:
            return None
        try:
            return self._pair.run(side, self._recipe, under=quietly, tree=wrong.tree)
        except UsageError:
            # The user's own functions (Wrapped, observe) were written for what is declared.
            return None


def _shapes(outputs: NamedValues) -> str:
    """``float32 (4, 8)`` of the first few tensors."""
    return some(
        f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        for tensor in outputs.tensors.values()
    )
