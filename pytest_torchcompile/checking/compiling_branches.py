"""Find the lines where a policy checks whether it is being compiled.

With a branch on ``torch.compiler.is_compiling()`` compiled code is a different program than eager. No
compiler stage is then at fault for a difference, and the user has to look at that line.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from typing import Any

import torch

from pytest_torchcompile.checking.executed import functions_run
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.texts import line_of

_CHECKS = ("is_compiling", "is_dynamo_compiling", "is_exporting")


def compiling_branches(pair: Pair, recipe: Recipe) -> tuple[str, ...]:
    """Return ``file:line`` of each check in the user's code that one eager call runs.

    Args:
        pair: the two sides.
        recipe: the example to call eager on.
    """
    frames = functions_run(pair, recipe)
    lines = (line for code, scope in frames.items() for line in _lines(code, scope))
    return tuple(dict.fromkeys(lines))


def _lines(code: types.CodeType, scope: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that use one of torch's check functions, as an attribute or under a global name."""
    checks = {getattr(torch.compiler, name) for name in _CHECKS}
    starts, line = dict(dis.findlinestarts(code)), code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = starts.get(instruction.offset) or line
        name = instruction.argval
        if not isinstance(name, str):
            continue
        as_global = "GLOBAL" in instruction.opname or "NAME" in instruction.opname
        if name in _CHECKS or (as_global and _is_one_of(scope.get(name), checks)):
            yield line_of(code.co_filename, line)


def _is_one_of(value: Any, functions: set[Any]) -> bool:
    return isinstance(value, types.FunctionType) and value in functions
