"""What the user made, by the names under which a script of its own can import it."""

from __future__ import annotations

import ast
import functools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from pytest_torchcompile.explaining.proof import CantWrite


def users_path() -> Iterator[str]:
    """Where the user's own modules are found, beside those that are installed."""
    installed = tuple(map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")))
    for entry in dict.fromkeys(map(os.path.abspath, sys.path)):
        if os.path.isdir(entry) and not entry.startswith(installed):
            yield entry


Origin = tuple[Callable[..., Any], dict[str, Any]]
"""A function, and the arguments that it is given by name."""


def _origin(function: Any) -> Origin:
    if isinstance(function, functools.partial):
        if function.args:
            raise CantWrite(f"{_name(function.func)} is given arguments by position; give them by name")
        inner, keywords = _origin(function.func)
        return inner, keywords | function.keywords
    return function, {}


def named(function: Any) -> tuple[str, str, bool, dict[str, Any]]:
    """A function as a script can import it: module, qualified name, whether a new instance has it, arguments.

    Raises:
        CantWrite: if it can't.
    """
    inner, keywords = _origin(function)
    if isinstance(inner, nn.Module):
        raise CantWrite("the policy was given as a module; give a function that makes it")
    module, name = getattr(inner, "__module__", "") or "", _name(inner)
    if "<" in name or module == "__main__":
        where = "a lambda" if "<lambda>" in name else "made inside a function or a script"
        raise CantWrite(f"{name} is {where}; a script can import what has a name in a module")
    for keyword, value in keywords.items():
        if not _is_literal(value):
            raise CantWrite(f"{name} is given {keyword}, a {type(value).__name__} that no script can have")
    return module, name, hasattr(inner, "__self__"), keywords


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", "") or repr(function)


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False
