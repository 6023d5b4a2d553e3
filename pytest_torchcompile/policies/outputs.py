"""Whatever a policy returns, as named tensors.

A comparison that ignores what it can't take apart would pass a wrong policy, so a type that is not
known is an error that says how to make it known.
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
        tensors: path -> tensor; numpy arrays and python floats as tensors too.
        plain: path -> value, for what is compared by ``==``.
        kinds: path -> type, for every value and container, so that structures can be compared.
    """

    tensors: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    plain: dict[str, Any] = dataclasses.field(default_factory=dict)
    kinds: dict[str, str] = dataclasses.field(default_factory=dict)


def register_output(type_: type, unpack: Callable[[Any], Any]) -> None:
    """Teach the comparison a type that policies return.

    Args:
        type_: the type; subclasses count too, the nearest registered one wins.
        unpack: given a value, returns a dict or tuple of what matters in it: tensors, numbers,
            distributions or further containers.

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
    """`value` flattened; paths begin with `name` and read like Python: ``output[0]['logits'].loc``.

    Raises:
        UsageError: for a type that is not known, with the line that makes it known.
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
    # dynamo may hand back a parameter's data as a plain tensor and the other way round.
    name = "Tensor" if kind is torch.nn.Parameter else kind.__qualname__
    if isinstance(value, torch.Tensor):
        special = described(value)
        return f"{name} ({special})" if special else name
    if isinstance(value, (list, tuple)) and not is_namedtuple(value):
        return f"{name} of {len(value)}"
    return name


def is_namedtuple(value: Any) -> bool:
    """Whether its class was made by `collections.namedtuple`; asked of the class, as an object may make up
    any attribute (``__getattr__ = dict.get``)."""
    return isinstance(value, tuple) and hasattr(type(value), "_fields")


def _known_to_torch(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A numeric array in a layout and dtype that torch takes: no float longer than 64 bits."""
    wide = {"f": np.float64, "c": np.complex128}.get(array.dtype.kind)
    if wide is not None and array.dtype.itemsize > np.dtype(wide).itemsize:
        array = array.astype(wide)
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))


def _unpack(value: Any) -> Callable[[Any], Any] | None:
    """What a user has registered for the type of `value` or the nearest of its bases."""
    return next((_registered[base] for base in type(value).__mro__ if base in _registered), None)


def _parts(value: Any, path: str) -> list[tuple[str, Any]]:
    """The parts of a container, each with how it is reached."""
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
        f"{path} is a {type(value).__module__}.{name}, which the comparison can't see into; teach it: "
        f"pytest_torchcompile.register_output({name}, lambda value: {{'name': value.tensor, ...}})"
    )


def is_mapping(value: Any) -> bool:
    """Whether it has keys and an item for each: a TensorDict or a tianshou Batch is not a `Mapping`."""
    kind = type(value)
    has_keys = hasattr(kind, "keys") or _is_one_of(value, _ATTRIBUTES_ARE_ITEMS)
    return isinstance(value, Mapping) or (has_keys and hasattr(kind, "__getitem__"))


def keys(mapping: Any) -> list[Any]:
    """The keys of what `is_mapping` took for one."""
    return list(mapping.keys() if hasattr(type(mapping), "keys") else vars(mapping))


# The types of other libraries below are known by name, without importing these.
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
    """What determines a distribution or transform, of torch's or of another library's own kind."""
    if isinstance(distribution, (Distribution, Transform)):
        return parameters_of(distribution)
    known = (torch.Tensor, np.ndarray, Distribution, Transform, float, int, list, tuple, Mapping)
    held = vars(distribution).items()
    return {n: part for n, part in held if isinstance(part, known) and not isinstance(part, torch.Size)}
