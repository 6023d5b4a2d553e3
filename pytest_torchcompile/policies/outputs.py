"""Flattens whatever a policy returns into named tensors.

An unknown type raises an error, which says how to register it. If it were ignored, a wrong policy could pass.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.distributions import Distribution, Transform

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.ordinary import described, ordinary
from pytest_torchcompile.policies.parameters import parameters_of
from pytest_torchcompile.specs.conversion import class_names

_PLAIN = (
    type(None),
    bool,
    int,
    str,
    bytes,
    enum.Enum,
    np.generic,
    torch.Size,
    torch.dtype,
    torch.device,
    torch.memory_format,
    torch.layout,
)
_MAX_DEPTH = 32
_registered: dict[type, Callable[[Any], Any]] = {}


@dataclasses.dataclass
class NamedValues:
    """A nest of values, flattened.

    Args:
        tensors: tensors by path; numpy arrays and Python floats are converted to tensors.
        plain: other values by path, which are compared by ``==``.
        kinds: the type of every value and container by path, so that structures can be compared.
    """

    tensors: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    plain: dict[str, Any] = dataclasses.field(default_factory=dict)
    kinds: dict[str, str] = dataclasses.field(default_factory=dict)


def register_output(type_: type, unpack: Callable[[Any], Any]) -> None:
    """Register how to unpack a type that policies return, so that it can be compared.

    Args:
        type_: the type. Subclasses use the registration of their nearest registered base.
        unpack: given a value, returns its parts as a dict or tuple: tensors, numbers, distributions or
            further containers.

    Raises:
        UsageError: if `type_` is no class or `unpack` no function.

    Example:
        >>> class Action:
        ...     def __init__(self, move):
        ...         self.move = move
        >>> register_output(Action, lambda action: {"move": action.move})
    """
    if not isinstance(type_, type) or not callable(unpack):
        raise UsageError(
            f"register_output({type_!r}, {unpack!r}): give a class and a function that returns "
            f"its parts, such as register_output(Action, lambda a: {{'move': a.move}})"
        )
    _registered[type_] = unpack


def named_values(value: Any, name: str = "output") -> NamedValues:
    """Return `value` flattened. Paths begin with `name` and use Python's syntax: ``output[0]['logits'].loc``.

    Raises:
        UsageError: for an unknown type; the message has the line that registers it.
    """
    found = NamedValues()
    _walk(value, name, found, 0)
    return found


def _walk(value: Any, path: str, found: NamedValues, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise UsageError(f"{path} nests deeper than {_MAX_DEPTH} levels, or contains itself")
    found.kinds[path] = _kind(value)
    if isinstance(value, torch.Tensor) and _unpack(value) is None:
        found.tensors |= ordinary(value, path)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "SU":
        found.plain[path] = value.tolist()
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        found.tensors |= ordinary(torch.from_numpy(_known_to_torch(value)), path)
    elif isinstance(value, (float, np.floating)):
        found.tensors[path] = torch.tensor(float(value), dtype=torch.float64)
    elif isinstance(value, _PLAIN):
        found.plain[path] = value
    else:
        for accessor, part in _parts(value, path):
            _walk(part, path + accessor, found, depth + 1)


def _kind(value: Any) -> str:
    kind = type(value)
    # dynamo may return a plain tensor for a parameter, or a parameter for a plain tensor.
    name = "Tensor" if kind is torch.nn.Parameter else kind.__qualname__
    if isinstance(value, torch.Tensor):
        special = described(value)
        return f"{name} ({special})" if special else name
    if isinstance(value, (list, tuple)) and not is_namedtuple(value):
        return f"{name} of {len(value)}"
    return name


_CONSTANTS = frozenset({type(None), bool, int, float, complex, str, bytes})


def is_constant(value: Any) -> bool:
    """Return whether `value` is a scalar, a string or a tuple of these: it holds no tensor and can't change.

    Most attributes of a policy are the numbers of its layers, so this is asked first.
    """
    return type(value) in _CONSTANTS or (type(value) is tuple and all(map(is_constant, value)))


def is_namedtuple(value: Any) -> bool:
    """Return whether the class of `value` was made by `collections.namedtuple`.

    The class is inspected, because an object may return something for any attribute
    (``__getattr__ = dict.get``).
    """
    return isinstance(value, tuple) and hasattr(type(value), "_fields")


def _known_to_torch(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a numeric array in a layout and dtype that torch accepts: no float has more than 64 bits."""
    wide = {"f": np.float64, "c": np.complex128}.get(array.dtype.kind)
    if wide is not None and array.dtype.itemsize > np.dtype(wide).itemsize:
        array = array.astype(wide)
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))


def _unpack(value: Any) -> Callable[[Any], Any] | None:
    """Return the function registered for the type of `value` or its nearest base; None if there is none."""
    return next((_registered[base] for base in type(value).__mro__ if base in _registered), None)


def _parts(value: Any, path: str) -> list[tuple[str, Any]]:
    """Return the parts of a container, each with its accessor: ``[0]``, ``.loc``."""
    unpack = _unpack(value)
    if unpack is not None:
        unpacked = unpack(value)
        return [("", unpacked)] if isinstance(unpacked, torch.Tensor) else _parts(unpacked, path)
    if isinstance(value, (Distribution, Transform)) or _is_one_of(value, _DISTRIBUTIONS):
        parts = [(f".{name}", part) for name, part in _distribution_parts(value).items()]
        # A transform may have no parameters, a distribution has some.
        if parts or isinstance(value, Transform):
            return parts
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return [(f".{field.name}", getattr(value, field.name)) for field in fields]
    if is_namedtuple(value):
        return [(f".{name}", getattr(value, name)) for name in value._fields]
    if is_mapping(value):
        parts = [(f"[{key!r}]", value[key]) for key in keys(value)]
        return [*parts, (".batch_size", value.batch_size)] if hasattr(type(value), "batch_size") else parts
    if isinstance(value, (list, tuple, collections.deque)):
        return [(f"[{i}]", part) for i, part in enumerate(value)]
    name = type(value).__name__
    raise UsageError(
        f"{path} is a {type(value).__module__}.{name}, which the comparison can't unpack; register it: "
        f"pytest_torchcompile.register_output({name}, lambda value: {{'name': value.tensor, ...}})"
    )


def is_mapping(value: Any) -> bool:
    """Return whether `value` has keys and items; a TensorDict or a tianshou Batch is not a `Mapping`."""
    kind = type(value)
    has_keys = hasattr(kind, "keys") or _is_one_of(value, _ATTRIBUTES_ARE_ITEMS)
    return isinstance(value, Mapping) or (has_keys and hasattr(kind, "__getitem__"))


def keys(mapping: Any) -> list[Any]:
    """Return the keys of a value for which `is_mapping` is true."""
    return list(mapping.keys() if hasattr(type(mapping), "keys") else vars(mapping))


# Types of other libraries are recognised by name, so that the libraries are not imported.
_ATTRIBUTES_ARE_ITEMS = frozenset({"tianshou.data.batch.Batch"})

# Distributions that don't derive from torch's.
_DISTRIBUTIONS = frozenset(
    {
        "stable_baselines3.common.distributions.Distribution",
        "sb3_contrib.common.maskable.distributions.MaskableDistribution",
        "ray.rllib.models.distributions.Distribution",
        "ray.rllib.core.distribution.distribution.Distribution",
    }
)


def _is_one_of(value: Any, names: frozenset[str]) -> bool:
    return not names.isdisjoint(class_names(value))


def _distribution_parts(distribution: Any) -> dict[str, Any]:
    """Return what determines a distribution or transform, which may be another library's own class."""
    if isinstance(distribution, (Distribution, Transform)):
        return parameters_of(distribution)
    known = (torch.Tensor, np.ndarray, Distribution, Transform, float, int, list, tuple, Mapping)
    held = vars(distribution).items()
    return {n: part for n, part in held if isinstance(part, known) and not isinstance(part, torch.Size)}
