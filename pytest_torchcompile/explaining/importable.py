"""Finds the names by which a script can import the user's functions."""

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


def user_paths() -> Iterator[str]:
    """Yield the folders of `sys.path` that hold the user's own modules, not installed ones."""
    installed = tuple(map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")))
    for entry in dict.fromkeys(map(os.path.abspath, sys.path)):
        if os.path.isdir(entry) and not entry.startswith(installed):
            yield entry


Origin = tuple[Callable[..., Any], dict[str, Any]]
"""A function, and the keyword arguments that `functools.partial` gives it."""


def _origin(function: Any) -> Origin:
    if isinstance(function, functools.partial):
        if function.args:
            raise CantWrite(f"{_name(function.func)} is given positional arguments; give them by keyword")
        inner, keywords = _origin(function.func)
        return inner, keywords | function.keywords
    return function, {}


def import_spec(function: Any) -> tuple[str, str, bool, dict[str, Any]]:
    """Return how a script can import a function.

    Returns:
        Its module, its qualified name, whether it is a method of a new instance of its class, and the keyword
        arguments that `functools.partial` gives it.

    Raises:
        CantWrite: if a script can't import it.
    """
    inner, keywords = _origin(function)
    if isinstance(inner, nn.Module):
        raise CantWrite("the policy was given as a module; give a function that returns it")
    module, name = getattr(inner, "__module__", "") or "", _name(inner)
    if "<" in name or module == "__main__":
        where = "a lambda" if "<lambda>" in name else "defined inside a function or a script"
        raise CantWrite(f"{name} is {where}; a script can only import a function by its name in a module")
    for keyword, value in keywords.items():
        if not _is_literal(value):
            raise CantWrite(
                f"{name} is given {keyword}, a {type(value).__name__} that can't be written in a script"
            )
    return module, name, hasattr(inner, "__self__"), keywords


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", "") or repr(function)


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False
