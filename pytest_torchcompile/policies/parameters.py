"""What determines a distribution: its parameters, and the distributions and transforms that it is made of.

A library's own class keeps more on the object: caches, flags, transforms that it sets otherwise while
compiling. None of that says what is drawn.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.distributions import AffineTransform, ComposeTransform, Distribution, Transform

from pytest_torchcompile import internals

_VALUES = (torch.Tensor, np.ndarray, Distribution, Transform, float, int, list, tuple, Mapping)

_SETTINGS = frozenset({"self", "validate_args", "cache_size"})
"""Arguments of constructors that say nothing about what is made."""


def parameters_of(value: Any) -> dict[str, Any]:
    """What determines a distribution or a transform, by name.

    Args:
        value: a distribution of torch's or one derived from it, or a transform.

    Returns:
        Tensors and numbers that the constructors of its class and bases take, or that ``arg_constraints``
        names; the distributions that it is made of; its transforms in their plainest form.
    """
    if isinstance(value, ComposeTransform):
        return {"parts": _plainest(value)}
    held = vars(value)
    parts = {name: _number(held[at]) for name in _names(type(value)) for at in _places(name, held)}
    parts |= {name.lstrip("_"): part for name, part in held.items() if isinstance(part, Distribution)}
    if isinstance(value, Transform):
        inverted = internals.inverted_transform(value)
        return parts if inverted is None else {"inverse of": inverted}
    if "transforms" in held:
        parts["transforms"] = _plainest(held["transforms"])
    _keep_one_form(value, parts, held)
    if not parts:
        parts = {name: _number(part) for name, part in held.items() if _is_value(part)}
    return parts


_known: weakref.WeakKeyDictionary[type, tuple[str, ...]] = weakref.WeakKeyDictionary()


def _names(kind: type) -> tuple[str, ...]:
    """The names of what a class of distributions or transforms and its bases are made with."""
    if kind not in _known:
        _known[kind] = tuple(_read_names(kind))
    return _known[kind]


def _read_names(kind: type) -> Iterator[str]:
    names: list[str] = []
    for base in kind.__mro__[:-1]:
        constraints = base.__dict__.get("arg_constraints")
        names += constraints if isinstance(constraints, Mapping) else ()
        if "__init__" in base.__dict__:
            names += inspect.signature(base.__dict__["__init__"]).parameters
    return (name for name in dict.fromkeys(names) if name not in _SETTINGS)


def _places(name: str, held: Mapping[str, Any]) -> list[str]:
    """Where an object keeps what its constructor was given: under its name, or as a private attribute."""
    return [at for at in (name, f"_{name}") if at in held and _is_value(held[at])][:1]


def _is_value(part: Any) -> bool:
    return isinstance(part, _VALUES) and not isinstance(part, torch.Size)


def _number(part: Any) -> Any:
    """A float as a tensor, which it is in a class that makes tensors of numbers on one side only."""
    return torch.tensor(part) if type(part) is float else part


def _keep_one_form(value: Any, parts: dict[str, Any], held: Mapping[str, Any]) -> None:
    """Drop what is another form of the same parameter, computed when somebody asks for it."""
    if "logits" in parts and "probs" in parts:
        given = held.get("_param", parts["logits"])
        parts.pop("logits" if given is parts["probs"] else "probs")
    if "scale_tril" in _names(type(value)):
        parts.pop("covariance_matrix", None)
        parts.pop("precision_matrix", None)
        parts["scale_tril"] = value.scale_tril


def _plainest(transforms: Any) -> list[Transform]:
    """Transforms one after the other, without compositions and without those that change nothing."""
    if isinstance(transforms, ComposeTransform):
        transforms = transforms.parts
    flat: list[Transform] = []
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            flat += _plainest(transform)
        elif not _is_identity(transform):
            flat.append(transform)
    return flat


def _is_identity(transform: Transform) -> bool:
    if not isinstance(transform, AffineTransform):
        return False
    shift, factor = torch.as_tensor(transform.loc), torch.as_tensor(transform.scale)
    return not bool(shift.any()) and bool((factor == 1).all())
