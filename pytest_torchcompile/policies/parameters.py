"""Finds what determines a distribution: its parameters, and the distributions and transforms inside it.

A distribution object also holds caches, flags, and transforms that a library sets differently while it
compiles. These don't affect what is drawn, so they are not compared.
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
"""Arguments of constructors that don't affect what is drawn."""


def parameters_of(value: Any) -> dict[str, Any]:
    """Return what determines a distribution or a transform, by name.

    Args:
        value: an instance of `torch.distributions.Distribution` or `torch.distributions.Transform`.

    Returns:
        Tensors and numbers that the constructors of its class and bases take, or that ``arg_constraints``
        names; the distributions that it contains; its transforms, flattened.
    """
    if isinstance(value, ComposeTransform):
        return {"parts": _flattened(value)}
    held = vars(value)
    parts = {name: _number(held[at]) for name in _names(type(value)) for at in _attribute_of(name, held)}
    parts |= {name.lstrip("_"): part for name, part in held.items() if isinstance(part, Distribution)}
    if isinstance(value, Transform):
        inverted = internals.inverted_transform(value)
        return parts if inverted is None else {"inverse of": inverted}
    if "transforms" in held:
        parts["transforms"] = _flattened(held["transforms"])
    _keep_one_form(value, parts, held)
    if not parts:
        parts = {name: _number(part) for name, part in held.items() if _is_value(part)}
    return parts


_known: weakref.WeakKeyDictionary[type, tuple[str, ...]] = weakref.WeakKeyDictionary()


def _names(kind: type) -> tuple[str, ...]:
    """Return the names of the constructor arguments of a class and its bases, cached by class."""
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


def _attribute_of(name: str, held: Mapping[str, Any]) -> list[str]:
    """Return the attribute that holds the constructor argument `name`: ``[name]``, ``[_name]`` or ``[]``."""
    return [at for at in (name, f"_{name}") if at in held and _is_value(held[at])][:1]


def _is_value(part: Any) -> bool:
    return isinstance(part, _VALUES) and not isinstance(part, torch.Size)


def _number(part: Any) -> Any:
    """Return a float as a tensor, other values unchanged.

    Some classes convert numbers to tensors on one of the two sides only.
    """
    return torch.tensor(part) if type(part) is float else part


def _keep_one_form(value: Any, parts: dict[str, Any], held: Mapping[str, Any]) -> None:
    """Drop the other forms of a parameter, which a distribution computes on access."""
    if "logits" in parts and "probs" in parts:
        given = held.get("_param", parts["logits"])
        parts.pop("logits" if given is parts["probs"] else "probs")
    if "scale_tril" in _names(type(value)):
        parts.pop("covariance_matrix", None)
        parts.pop("precision_matrix", None)
        parts["scale_tril"] = value.scale_tril


def _flattened(transforms: Any) -> list[Transform]:
    """Return a flat list of transforms, without compositions and identities."""
    if isinstance(transforms, ComposeTransform):
        transforms = transforms.parts
    flat: list[Transform] = []
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            flat += _flattened(transform)
        elif not _is_identity(transform):
            flat.append(transform)
    return flat


def _is_identity(transform: Transform) -> bool:
    if not isinstance(transform, AffineTransform):
        return False
    shift, factor = torch.as_tensor(transform.loc), torch.as_tensor(transform.scale)
    return not bool(shift.any()) and bool((factor == 1).all())
