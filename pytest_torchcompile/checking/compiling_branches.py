"""Where a policy asks whether it is being compiled.

A branch on ``torch.compiler.is_compiling()`` makes compiled code another program than eager's. No stage
of the compiler is wrong then; what has to be looked at is the line that asks.
"""

from __future__ import annotations

import contextlib
import dis
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.texts import line_of

_QUESTIONS = ("is_compiling", "is_dynamo_compiling", "is_exporting")


def compiling_branches(pair: Pair, recipe: Recipe) -> tuple[str, ...]:
    """``file:line`` of each place in the policy's own code that asks; what one eager call runs is looked at.

    Args:
        pair: the two sides.
        recipe: the example that differs.
    """
    frames: dict[types.CodeType, dict[str, Any]] = {}

    @contextlib.contextmanager
    def noting() -> Iterator[None]:
        before = sys.getprofile()
        sys.setprofile(lambda frame, event, argument: _note(frames, frame))
        try:
            yield
        finally:
            sys.setprofile(before)

    pair.run(pair.eager, recipe, under=noting)
    lines = (line for code, scope in frames.items() for line in _lines(code, scope))
    return tuple(dict.fromkeys(lines))


def _note(frames: dict[types.CodeType, dict[str, Any]], frame: types.FrameType) -> None:
    own = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)
    if not frame.f_code.co_filename.startswith(own):
        frames.setdefault(frame.f_code, frame.f_globals)


def _lines(code: types.CodeType, scope: dict[str, Any]) -> Iterator[str]:
    """The lines of a function that name one of the questions, as an attribute or under a global name."""
    asking = {getattr(torch.compiler, name) for name in _QUESTIONS}
    line = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = instruction.starts_line or line
        name = instruction.argval
        if not isinstance(name, str):
            continue
        as_global = "GLOBAL" in instruction.opname or "NAME" in instruction.opname
        if name in _QUESTIONS or (as_global and _is_one_of(scope.get(name), asking)):
            yield line_of(code.co_filename, line)


def _is_one_of(value: Any, functions: set[Any]) -> bool:
    return isinstance(value, types.FunctionType) and value in functions
