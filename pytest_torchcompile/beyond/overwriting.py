"""Compares the two sides when an input, such as an observation buffer, is overwritten before the backward.

Eager's autograd notices it and raises. Inductor may not notice it, and then computes the gradient from the
new values (pytorch issue 197887). The check uses existing graphs, so it only takes a few calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.tolerance import judge
from pytest_torchcompile.generation import recipes
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.runtime.isolation import quietly

REMARK = (
    "if an input is overwritten between forward and backward, eager raises but compiled computes the "
    "gradient from the new values (pytorch issue 197887): if you refill a buffer, give the policy a copy, "
    "x.clone()"
)
"""The same text for all policies, so that a report shows it once."""


def overwritten_input(pair: Pair, options: CheckOptions) -> Iterator[str]:
    """Yield the remark if eager raises and compiled returns other gradients than for the first values."""
    recipe = recipes.random_recipe(pair.tree, options.batch[0], options.seed)
    noticed = _overwritten(pair, pair.eager, recipe).error
    if not isinstance(noticed, RuntimeError) or "modified by an inplace operation" not in str(noticed):
        return
    pair.begin(recipe)
    right = pair.run(pair.compiled, recipe, under=quietly)
    wrong = _overwritten(pair, pair.compiled, recipe)
    if right.error is not None or wrong.error is not None:
        return
    tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
    if judge(_only_gradients(right), _only_gradients(wrong), tolerance, None).differences:
        yield REMARK


def _overwritten(pair: Pair, side: Side, recipe: recipes.Recipe) -> Outcome:
    """Return the outcome of a call whose inputs are overwritten before its backward."""

    def function(*args: Any, **kwargs: Any) -> Any:
        returned = side.function(*args, **kwargs)
        inputs = side.named_inputs(args[len(side.leading) :], kwargs)
        with torch.no_grad():
            for tensor in inputs.tensors.values():
                if tensor.is_floating_point() and not tensor.requires_grad:
                    tensor.add_(1)
        return returned

    return pair.run(side.replaced(function, side.around), recipe, under=quietly)


def _only_gradients(outcome: Outcome) -> Outcome:
    return Outcome(gradients=outcome.gradients, seed=outcome.seed)
