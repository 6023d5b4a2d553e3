"""Compares the two sides on an empty batch. It is not declared, but may occur in a training loop.

It is the last check, on a compiled object of its own, because it adds graphs and may make the compiler fail.
Neither may affect the case.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.tolerance import judge
from pytest_torchcompile.compiling.failures import failure_text
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.generation import recipes
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.runtime.isolation import quietly
from pytest_torchcompile.texts import first_line


def empty_batch(pair: Pair, options: CheckOptions) -> Iterator[str]:
    """Yield a remark if eager accepts an empty batch, in the phase of the pair, and compiled differs.

    A policy that its factory compiles is not checked, because it can't be compiled a second time.
    """
    if pair.twins.deployed or pair.out_of_seconds() or _may_abort(pair):
        return
    recipe = recipes.random_recipe(pair.tree, 0, options.seed)
    try:
        own = pair.compiled_anew(options)
        own.begin(recipe)
        eager = own.run(own.eager, recipe, under=quietly)
        if eager.error is not None:
            return
        compiled = own.run(own.compiled, recipe, under=quietly)
    except UsageError:
        # The user's own functions (Wrapped, observe) need not support undeclared inputs.
        return
    where = f"on an empty batch, which eager accepts in {pair.phase},"
    if compiled.error is not None:
        failed = own.recorder.is_compile_failure(compiled.error)
        yield f"{where} compiled raises {(failure_text if failed else first_line)(compiled.error)}"
        return
    tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
    for worst in judge(eager, compiled, tolerance, None).differences[:1]:
        both = f"eager {worst.eager}, compiled {worst.compiled}"
        yield f"{where} {worst.place} differs ({worst.problem}): {both}"


def _may_abort(pair: Pair) -> bool:
    """Return whether the process may abort, as it did for a compiled `nn.LSTM` on no rows (torch 2.13)."""
    return any(isinstance(module, nn.RNNBase) for module in pair.twins.eager.modules())
