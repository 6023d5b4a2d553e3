"""Converts values of options, from Python, a command line or a file, to the type of the option.

Each function returns the converted value, or a function that converts. These raise ValueError or TypeError
for a value that the option does not accept.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from typing import Any

LARGEST_SEED = 2**63 - 1
"""The largest seed that torch.manual_seed accepts without conversion."""

LEAST_SAMPLES = 100
"""With fewer draws, the tests could hardly ever find a difference."""


def boolean(value: Any) -> bool:
    """Return a bool; as text, ``true``, ``yes``, ``on``, ``1`` or ``false``, ``no``, ``off``, ``0``."""
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(value)


def integer(at_least: int) -> Callable[[Any], int]:
    """Return a function that accepts integers from `at_least` to `LARGEST_SEED`."""

    def accept(value: Any) -> int:
        if isinstance(value, bool) or (not isinstance(value, str) and int(value) != value):
            raise ValueError(value)
        if not at_least <= int(value) <= LARGEST_SEED:
            raise ValueError(value)
        return int(value)

    return accept


def number(at_least: float, at_most: float = float("inf")) -> Callable[[Any], float]:
    """Return a function that accepts numbers between two bounds, inclusive."""

    def accept(value: Any) -> float:
        if isinstance(value, bool) or not at_least <= float(value) <= at_most:
            raise ValueError(value)
        return float(value)

    return accept


def samples(value: Any) -> int:
    """Return a number of draws: 0, or at least `LEAST_SAMPLES`."""
    count = integer(0)(value)
    if 0 < count < LEAST_SAMPLES:
        raise ValueError(value)
    return count


def optional(accept: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that accepts what `accept` does, and None; as text, this is empty or ``none``."""

    def accept_or_none(value: Any) -> Any:
        unset = value is None or (isinstance(value, str) and value.lower() in ("", "none"))
        return None if unset else accept(value)

    return accept_or_none


def choices(names: tuple[str, ...]) -> Callable[[Any], str]:
    """Return a function that accepts one of `names`."""

    def accept(value: Any) -> str:
        if value not in names:
            raise ValueError(value)
        return str(value)

    return accept


def several(accept: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that accepts one or more values for `accept`; as text, with commas or spaces between.

    The function returns a tuple without repeated values.
    """

    def accept_all(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = value.replace(",", " ").split()
        elif not isinstance(value, Iterable):
            value = (value,)
        items = tuple(accept(item) for item in value)
        if not items:
            raise ValueError(value)
        return tuple(dict.fromkeys(items))

    return accept_all


def text(value: Any) -> str:
    """Return a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def backend(value: Any) -> Any:
    """Return the name of a backend of `torch.compile`, or a backend function."""
    return value if callable(value) else text(value)


def mapping(value: Any) -> dict[str, Any]:
    """Return a dict with strings as keys; as text, ``name=value name=value``."""
    if isinstance(value, str):
        pairs = (pair.partition("=") for pair in value.replace(",", " ").split())
        parsed = {name: literal(written) for name, equals, written in pairs if equals}
        if len(parsed) != len(value.replace(",", " ").split()):
            raise ValueError(value)
        return parsed
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(value)
    return dict(value)


def literal(written: str) -> Any:
    """Return the value of a Python literal, or of ``true``, ``false`` or ``none``; other text unchanged."""
    words = {"true": True, "false": False, "none": None}
    if written.lower() in words:
        return words[written.lower()]
    try:
        return ast.literal_eval(written)
    except (ValueError, SyntaxError):
        return written
