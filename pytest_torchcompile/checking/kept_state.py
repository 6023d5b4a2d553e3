"""Finds the state that a policy keeps from one call of eager to the next and that the check can't restore.

It looks at what the policy's functions refer to when they are called: globals, variables of the functions
around them, and attributes. What has another value when the same call begins again was kept.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_torchcompile.backports import profiled
from pytest_torchcompile.texts import is_users_code, line_of, shortened

_MOST_ELEMENTS = 10_000
"""Larger tensors are not looked at."""


class _Place(NamedTuple):
    """Where a function finds a value: the function, ``global``, ``closure`` or ``self``, and the name."""

    code: types.CodeType
    kind: str
    name: str


_Seen = dict[_Place, str]


def kept_state(rerun: Callable[[], object]) -> list[str]:
    """Return the names that have other values when a call begins again, each with both values.

    Args:
        rerun: calls eager on one example, after restoring what can be restored.
    """
    before, after = _seen(rerun), _seen(rerun)
    found: dict[str, str] = {}
    for place, value in before.items():
        again = after.get(place, value)
        if again != value:
            code = place.code
            line = line_of(code.co_filename, code.co_firstlineno)
            values = f"{shortened(value, 40)}, then {shortened(again, 40)}"
            found.setdefault(_named(place), f"{_named(place)} is {values} (in {code.co_name}, {line})")
    return list(found.values())


def _named(place: _Place) -> str:
    if place.kind == "self":
        return f"self.{place.name}"
    return f"the global {place.name}" if place.kind == "global" else f"{place.name} of the function around it"


def _seen(rerun: Callable[[], object]) -> _Seen:
    """Return the values that the user's functions refer to, at the first call of each."""
    seen: _Seen = {}
    codes: set[types.CodeType] = set()
    inner: set[types.CodeType] = set()

    def on_event(frame: types.FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code not in codes and is_users_code(code.co_filename):
            codes.add(code)
            inner.update(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
            named = (pair for place, value in _referred(frame) for pair in _parts(place, value))
            # What is around a function that this call defines was made in this call.
            kept = ((p, value) for p, value in named if p.kind != "closure" or code not in inner)
            seen.update((place, text) for place, value in kept if (text := _text(value)))

    with profiled(on_event):
        rerun()
    return seen


def _referred(frame: types.FrameType) -> Iterator[tuple[_Place, Any]]:
    code, local = frame.f_code, frame.f_locals
    for name in code.co_names:
        if name in frame.f_globals:
            yield _Place(code, "global", name), frame.f_globals[name]
    for name in code.co_freevars:
        if name in local:
            yield _Place(code, "closure", name), local[name]
    owner = local.get("self")
    held = getattr(owner, "__dict__", {})
    for name in code.co_names:
        if name in held:
            yield _Place(code, "self", name), held[name]


_STATELESS = (nn.Module, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)


def _parts(place: _Place, value: Any) -> Iterator[tuple[_Place, Any]]:
    """Yield a value and, if it is an object, the values of its attributes."""
    yield place, value
    if not isinstance(value, (*_STATELESS, torch.Tensor)):
        for name, held in list(getattr(value, "__dict__", {}).items()):
            yield place._replace(name=f"{place.name}.{name}"), held


def _text(value: Any) -> str:
    """Return a text that changes if the value does; empty for what holds no state of its own."""
    if isinstance(value, _STATELESS):
        return ""
    try:
        if isinstance(value, torch.Tensor):
            return str(value.detach().tolist()) if value.numel() <= _MOST_ELEMENTS else ""
        return "" if getattr(value, "__dict__", None) else repr(value)
    except Exception:  # the user's own __repr__ may raise anything
        return ""
