"""An empty batch, which nobody declares and a training loop may meet: whatever comes of it is a remark.

It comes last and in a compiled object of its own, because it leaves graphs behind, or a compiler that
failed, which must not touch the case.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.trial import quietly
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.tolerance import judge
from pytest_torchcompile.compiling.capture import failure_text
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.generation import recipes
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.texts import first_line


def empty_batch(pair: Pair, options: CheckOptions) -> Iterator[str]:
    """What compiled makes of no rows at all, in the phase of the pair, if eager takes them.

    What comes compiled can't be had a second time, and is not asked.
    """
    if pair.twins.deployed or pair.recorder.compile_s > options.max_seconds or _aborts(pair):
        return
    recipe = recipes.random_recipe(pair.tree, 0, options.seed)
    try:
        eager = pair.run(pair.eager, recipe, under=quietly)
        if eager.error is not None:
            return
        own = pair.compiled_anew(options)
        own.begin(recipe)
        compiled = own.run(own.compiled, recipe, under=quietly)
    except UsageError:
        # The user's own functions (Wrapped, observe) were written for what is declared.
        return
    where = f"on an empty batch, which eager takes in {pair.phase},"
    if compiled.error is not None:
        failed = own.recorder.is_compile_failure(compiled.error)
        yield f"{where} compiled raises {(failure_text if failed else first_line)(compiled.error)}"
        return
    tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
    for worst in judge(eager, compiled, tolerance, None).differences[:1]:
        both = f"eager {worst.eager}, compiled {worst.compiled}"
        yield f"{where} {worst.place} differs ({worst.problem}): {both}"


def _aborts(pair: Pair) -> bool:
    """Whether the process may end: a compiled `nn.LSTM` on no rows was seen to abort it (torch 2.13)."""
    return any(isinstance(module, nn.RNNBase) for module in pair.twins.eager.modules())
