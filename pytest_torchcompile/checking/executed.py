"""Finds out what a policy's own code does in one eager call: which functions run, where it draws numbers.

For a difference that appears in dynamo the reason is in the policy's Python code, not in a later stage.
"""

from __future__ import annotations

import contextlib
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pytest_torchcompile.backports import profiled
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.texts import is_users_code, line_of


def functions_run(pair: Pair, recipe: Recipe) -> dict[types.CodeType, dict[str, Any]]:
    """Return the code of the user's functions that one eager call runs, with their globals.

    Args:
        pair: the two sides.
        recipe: the example to call eager on.
    """
    frames: dict[types.CodeType, dict[str, Any]] = {}

    def record(frame: types.FrameType, event: str, argument: Any) -> None:
        if is_users_code(frame.f_code.co_filename):
            frames.setdefault(frame.f_code, frame.f_globals)

    pair.run(pair.eager, recipe, under=lambda: profiled(record))
    return frames


_STATES: dict[str, Callable[[], Any]] = {
    "python": random.getstate,
    "numpy": lambda: np.random.get_state(legacy=False)["state"],
}
"""The generators besides torch's, by the names that differences use."""


def drawing_lines(pair: Pair, recipe: Recipe, generator: str) -> tuple[str, ...]:
    """Return ``file:line`` of the user's lines at which one eager call draws from a generator.

    Args:
        pair: the two sides.
        recipe: the example to call eager on.
        generator: ``python`` or ``numpy``.
    """
    state_of = _STATES[generator]
    lines: dict[str, None] = {}
    last: list[Any] = ["", state_of()]

    def look(line: str) -> None:
        state = state_of()
        if last[0] and str(state) != str(last[1]):
            lines[last[0]] = None
        last[:] = [line, state]

    def trace(frame: types.FrameType, event: str, argument: Any) -> Any:
        if not is_users_code(frame.f_code.co_filename):
            return None
        # A line ends where the next one starts, where it calls a function of the user, and at a return.
        look("" if event == "return" else line_of(frame.f_code.co_filename, frame.f_lineno))
        if event == "return" and frame.f_back is not None:
            caller = frame.f_back
            if is_users_code(caller.f_code.co_filename):
                last[0] = line_of(caller.f_code.co_filename, caller.f_lineno)
        return trace

    @contextlib.contextmanager
    def tracing() -> Iterator[None]:
        before = sys.gettrace()
        last[:] = ["", state_of()]
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)

    pair.run(pair.eager, recipe, under=tracing)
    return tuple(lines)
