"""Reads specs from text, for configuration files and the command line.

The text uses the syntax of a test: specs and literals. It is parsed and never evaluated.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.specs import conversion, spaces
from pytest_torchcompile.specs.deferral import errors_raised

SPECS: dict[str, type[spaces.Spec]] = {
    kind.__name__: kind
    for kind in (
        *(spaces.Box, spaces.Constant, spaces.Discrete, spaces.Flag, spaces.Image, spaces.LegalAction),
        *(spaces.LegalMask, spaces.MultiBinary, spaces.MultiDiscrete, spaces.OneHot, spaces.State),
        spaces.Tokens,
    )
}
"""The spec classes by name, without `Wrapped`, which takes a function and can't be written as a literal."""


def read_spec(written: Any, where: str) -> Any:
    """Return the spec, or the dict or tuple of specs, written in a file or an option.

    Args:
        written: text such as ``46,9,9`` or ``Box((8,), low=0)``; a list of sizes; a table of these.
        where: its name in messages.

    Raises:
        UsageError: if it is none of these.

    Example:
        >>> read_spec({"board": "46,9,9", "turn": "Discrete(2)"}, "observation")
        {'board': Box((46, 9, 9)), 'turn': Discrete(2)}
    """
    if isinstance(written, Mapping):
        return {name: read_spec(item, f"{where}.{name}") for name, item in written.items()}
    text = ",".join(map(str, written)) if isinstance(written, list) else str(written)
    try:
        # Whoever reads the text says where it is written; a deferred error would name a line of this module.
        with errors_raised():
            value = _value(ast.parse(text.strip(), mode="eval").body)
    except UsageError as error:
        raise UsageError(f"{where}={written!r}: {error}") from None
    except (SyntaxError, ValueError, TypeError) as error:
        problem = str(error).removeprefix("malformed node or string on line 1: ")
        raise UsageError(
            f"{where}={written!r} is no spec ({problem}); accepted: sizes such as 46,9,9, or an expression "
            f"such as Box((8,), low=0), with {', '.join(SPECS)}, dicts, tuples and literals"
        ) from None
    return conversion.as_spec((value,) if isinstance(value, int) else value, where)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            if name not in SPECS:
                raise ValueError(f"there is no spec {name}")
            given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords}
            return SPECS[name](*map(ast.literal_eval, args), **given)
        case ast.Dict(keys=keys, values=values):
            names = [ast.literal_eval(key) if key is not None else None for key in keys]
            return dict(zip(names, map(_value, values), strict=True))
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(map(_value, elements))
    return ast.literal_eval(node)
