"""Finds everything reachable from a policy's attributes: modules, leaves, objects and plain data, each once.

A module's own ``named_parameters()`` does not search plain lists, dicts and objects. Policies keep target
networks, learnt temperatures, hidden states and running statistics in them.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributions import Distribution

from pytest_torchcompile import internals
from pytest_torchcompile.policies.holders import DEEPEST, Holder, fields, has_slots, is_object
from pytest_torchcompile.policies.outputs import is_constant, is_namedtuple

_MODULE_FIELDS = frozenset(vars(nn.Module())) | internals.COMPILED_MARKS

LARGEST_ARRAY = 2**24
"""Numpy arrays of at most this many bytes count as state."""

_CONSTANTS = (bytes, complex, enum.Enum, torch.dtype, torch.device, torch.Size)

Space = MutableMapping[Any, Any]
"""The attributes of a module or an object, or the items of a container, as a mapping."""

Place = tuple[str, Any]
"""The path of a space, and a name in it: an attribute, a key or an index."""


def path_of(place: Place) -> str:
    """Return the path of what lies at a place.

    Example:
        >>> path_of(("actor.scales", 0)), path_of(("", "actor"))
        ('actor.scales.0', 'actor')
    """
    path, name = place
    return f"{path}.{name}" if path else str(name)


def is_plain(value: Any) -> bool:
    """Return whether `value` is a scalar, a tensor but no parameter, a distribution, or a nest of these."""
    if is_constant(value) or isinstance(value, (bool, int, float, str, Distribution, *_CONSTANTS)):
        return True
    if isinstance(value, torch.Tensor):
        return not isinstance(value, nn.Parameter)
    if isinstance(value, np.ndarray):
        # A larger array is likely a replay buffer, which a forward does not change; copying it is slow.
        return value.nbytes <= LARGEST_ARRAY
    if isinstance(value, dict):
        return all(map(_is_plain_item, value.values()))
    if type(value) is set:
        return all(map(is_plain, value)) and not any(map(holds_tensors, value))
    # Other sequences are not plain data, such as the lists in which RNNs keep their parameters.
    is_sequence = type(value) in (list, tuple, collections.deque) or is_namedtuple(value)
    return is_sequence and all(map(_is_plain_item, value))


def _is_plain_item(value: Any) -> bool:
    """Return whether a copy may replace this item of a container; a leaf must stay the same object."""
    return is_plain(value) and not is_leaf(value)


def is_leaf(value: Any) -> bool:
    """Return whether `value` is a leaf tensor that requires grad."""
    return isinstance(value, torch.Tensor) and value.requires_grad and value.is_leaf


def holds_tensors(value: Any) -> bool:
    """Return whether a plain value is a tensor, a numeric array or a distribution, or contains one."""
    if is_constant(value):
        return False
    if isinstance(value, Mapping):
        return any(map(holds_tensors, value.values()))
    if isinstance(value, (list, tuple, collections.deque)):
        return any(map(holds_tensors, value))
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc"
    return isinstance(value, (torch.Tensor, Distribution))


def _is_frozen(value: Any) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


class Items(MutableMapping[int, Any]):
    """The items of a list, deque or tuple as a mapping by index; those of a tuple are read-only."""

    def __init__(self, sequence: Any) -> None:
        self.sequence = sequence

    def __getitem__(self, index: int) -> Any:
        try:
            return self.sequence[index]
        except IndexError:
            raise KeyError(index) from None

    def __setitem__(self, index: int, value: Any) -> None:
        self.sequence[index] = value

    def __delitem__(self, index: int) -> None:
        del self.sequence[index]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.sequence)))

    def __len__(self) -> int:
        return len(self.sequence)


class Slots(MutableMapping[str, Any]):
    """The attributes of an object whose class has ``__slots__``, as a mapping."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._owner, name)
        except AttributeError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        # A frozen dataclass forbids `setattr`.
        object.__setattr__(self._owner, name, value)

    def __delitem__(self, name: str) -> None:
        object.__delattr__(self._owner, name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in fields(self._owner))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Reachable:
    """Everything reachable from a policy's attributes, at the time of construction.

    Args:
        model: the policy, or the `Holder` around it.

    Attributes:
        modules: by path, the registered ones first; a path consists of attributes, keys and indices.
        parameters: by path, each once; includes those of modules in plain lists and objects.
        buffers: by path, each once.
        leaves: by path, the other leaf tensors that require grad, buffers among them.
        owners: by path, the modules and objects whose attributes are spaces.
        spaces: by path, the modules, objects and containers that hold any of these, as mappings.
        containers: the paths of the spaces that are lists, tuples, deques or dicts.
        held: by place, the values that are not plain: modules, parameters, objects, containers.
        values: by place, the plain values.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.parameters: dict[str, torch.Tensor] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self.leaves: dict[str, torch.Tensor] = {}
        self.owners: dict[str, Any] = {}
        self.spaces: dict[str, Space] = {}
        self.containers: set[str] = set()
        self.held: dict[Place, Any] = {}
        self.values: dict[Place, Any] = {}
        self._seen: set[int] = set()
        self._add_module(internals.uncompiled(model), "", 0)
        if isinstance(model, Holder):
            self._add_other(model.policy, "", 0)

    def tensors(self) -> dict[Place, Any]:
        """Return the plain values that hold tensors, arrays or distributions, by place."""
        return {place: value for place, value in self.values.items() if holds_tensors(value)}

    def frozen(self) -> set[str]:
        """Return the paths of the objects whose attributes can't be assigned: frozen dataclasses."""
        return {path_of(place) for place, value in self.held.items() if _is_frozen(value)}

    def shared_with(self, other: Reachable) -> set[Place]:
        """Return the places of the plain values that lie in an object that both hold, or are one tensor."""
        theirs = {id(value) for value in other.held.values()}
        tensors = {id(value) for value in other.values.values() if isinstance(value, torch.Tensor)}
        common = [path_of(place) for place, value in self.held.items() if id(value) in theirs]
        return {
            place
            for place, value in self.values.items()
            if (isinstance(value, torch.Tensor) and id(value) in tensors)
            or any(place[0] == path or place[0].startswith(f"{path}.") for path in common)
        }

    def put(self, place: Place, value: Any) -> None:
        """Store a value at its place, even in a dict that forbids it; does nothing for items of a tuple."""
        path, name = place
        space = self.spaces[path]
        if isinstance(space, Items) and isinstance(space.sequence, tuple):
            return
        if isinstance(space, dict):
            dict.__setitem__(space, name, value)
        else:
            space[name] = value

    def _add_module(self, module: nn.Module, path: str, depth: int) -> None:
        """Add a module and its submodules, then everything reachable from their other attributes."""
        new = [(p, m) for p, m in module.named_modules(prefix=path) if id(m) not in self._seen]
        for name, one in new:
            self._seen.add(id(one))
            self.modules[name] = one
            for own, tensor in one.named_parameters(name, recurse=False):
                if self._is_new(tensor):
                    self.parameters[own] = tensor
            for own, tensor in one.named_buffers(name, recurse=False):
                if self._is_new(tensor):
                    self.buffers[own] = tensor
                    if is_leaf(tensor):
                        self.leaves[own] = tensor
        for name, one in new:
            if not isinstance(one, Holder):
                self.owners[name] = one
                self._add_space(name, vars(one), depth, _MODULE_FIELDS)

    def _add_space(self, path: str, space: Space, depth: int, beside: frozenset[str] = frozenset()) -> None:
        self.spaces[path] = space
        for name, value in list(space.items()):
            if name in beside:
                continue
            inside = path_of((path, name))
            if is_plain(value):
                self.values[path, name] = value
                if is_leaf(value) and self._is_new(value):
                    self.leaves[inside] = value
            elif depth < DEEPEST:
                self._add_held(path, name, value, inside, depth + 1)

    def _add_held(self, path: str, name: Any, value: Any, inside: str, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            self.held[path, name] = value
            if self._is_new(value):
                self.parameters[inside] = value
        elif isinstance(value, nn.Module):
            self.held[path, name] = value
            self._add_module(value, inside, depth)
        elif isinstance(value, (dict, list, tuple, collections.deque)):
            self.held[path, name] = value
            if self._is_new(value):
                self.containers.add(inside)
                self._add_space(inside, value if isinstance(value, dict) else Items(value), depth)
        elif is_object(value):
            self.held[path, name] = value
            self._add_other(value, inside, depth)

    def _add_other(self, value: Any, path: str, depth: int) -> None:
        """Add an object that is neither module nor container."""
        if self._is_new(value):
            self.owners[path] = value
            space = Slots(value) if has_slots(value) else getattr(value, "__dict__", {})
            self._add_space(path, space, depth)

    def _is_new(self, value: Any) -> bool:
        if id(value) in self._seen:
            return False
        self._seen.add(id(value))
        return True
