"""Copies the values of attributes, and restores them in the original objects.

A value that did not change is not written: a dict may forbid writing, and autograd may have saved a tensor.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from pytest_torchcompile.policies.ordinary import is_ordinary, same_values
from pytest_torchcompile.policies.outputs import is_constant, is_mapping, is_namedtuple, keys


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Return a copy of a nest of containers with `function` applied to its tensors; arrays are copied."""
    if is_constant(value):
        return value
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        mapped = {key: map_tensors(function, item) for key, item in value.items()}
        return type(value)(mapped)  # type: ignore[call-arg]
    if is_mapping(value):
        return _filled(value, {key: map_tensors(function, value[key]) for key in keys(value)})
    if isinstance(value, (list, tuple)):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if is_namedtuple(value) else type(value)(items)
    if isinstance(value, collections.deque):
        return collections.deque((map_tensors(function, item) for item in value), value.maxlen)
    if isinstance(value, set):
        return set(value)
    return value.copy() if isinstance(value, np.ndarray) else value


def _filled(mapping: Any, items: dict[Any, Any]) -> Any:
    """Return a copy of a mapping with these items; `items` itself if copying or writing raises."""
    try:
        other = copy.copy(mapping)
        for key, item in items.items():
            other[key] = item
    except Exception:
        return items
    return other


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a detached copy with the layout and ``requires_grad`` of the original."""
    found = tensor.detach().clone()
    if is_ordinary(tensor) and found.stride() != tensor.stride():
        # `clone` makes a tensor with gaps or overlaps dense.
        found = copy.deepcopy(tensor.detach())
    return found.requires_grad_(tensor.requires_grad)


def version(tensor: torch.Tensor) -> int:
    """Return the version counter of a tensor, which each write increments.

    Returns 0 for a tensor without one: made in inference mode, or not yet initialised.
    """
    return 0 if is_lazy(tensor) or tensor.is_inference() else tensor._version


@torch.no_grad()
def write(tensor: torch.Tensor, values: torch.Tensor) -> bool:
    """Write `values` to a tensor; return whether it holds them now."""
    if tensor.is_meta:
        return True
    plain = is_ordinary(tensor) and 0 not in tensor.stride()
    if not plain and same_values(tensor, values):
        return True
    try:
        tensor.detach().copy_(values)
    except RuntimeError:
        return False
    return True


def has_history(value: Any) -> bool:
    """Return whether a plain value is a tensor with an autograd graph, or holds one."""
    found = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.grad_fn is not None)
        return tensor

    map_tensors(look, value)
    return any(found)


def put_back(original: Any, saved: Any) -> Any:
    """Return the original object with the content of its copy `saved`, or a copy if it can't be written to.

    A tensor with an autograd graph is replaced by a leaf with the values of `saved`, because a backward
    frees its graph.
    """
    if isinstance(original, torch.Tensor):
        if not _is_written(original, saved):
            return copied(saved)
    elif isinstance(original, np.ndarray):
        if original.flags.writeable:
            original[...] = saved
    elif isinstance(original, (list, dict, set, collections.deque)):
        return original if _holds(original, saved) else refill(original, map_tensors(copied, saved))
    elif isinstance(original, tuple):
        items = [put_back(item, kept) for item, kept in zip(original, saved, strict=True)]
        if any(item is not old for item, old in zip(items, original, strict=True)):
            return type(original)(*items) if is_namedtuple(original) else type(original)(items)
    return original


def _is_written(original: torch.Tensor, saved: torch.Tensor) -> bool:
    """Write `saved` to the original; return False if that fails, or the original has an autograd graph."""
    if original.grad_fn is not None or (is_ordinary(original) and original.shape != saved.shape):
        return False
    return write(original, saved)


def refill(container: Any, items: Any) -> Any:
    """Return the list, set, deque or dict `container`, refilled with `items`.

    The methods of the base class are used, because a subclass may forbid writing.
    """
    if isinstance(container, collections.deque):
        container.clear()
        container.extend(items)
    elif isinstance(container, set):
        set.clear(container)
        set.update(container, items)
    elif isinstance(container, list):
        list.__setitem__(container, slice(None), items)
    else:
        base = collections.OrderedDict if isinstance(container, collections.OrderedDict) else dict
        base.clear(container)
        for key, item in items.items():
            base.__setitem__(container, key, item)
    return container


def _holds(original: Any, saved: Any) -> bool:
    """Return whether a nest of containers still holds what was saved, comparing other objects by ``is``."""
    if isinstance(original, torch.Tensor) or isinstance(saved, torch.Tensor):
        both = isinstance(original, torch.Tensor) and isinstance(saved, torch.Tensor)
        return both and original.grad_fn is None and same_values(original, saved)
    if isinstance(original, np.ndarray):
        return isinstance(saved, np.ndarray) and np.array_equal(original, saved)
    if isinstance(original, Mapping) and isinstance(saved, Mapping):
        return list(original) == list(saved) and all(_holds(original[key], saved[key]) for key in original)
    if isinstance(original, (list, tuple, collections.deque)) and type(original) is type(saved):
        return len(original) == len(saved) and all(map(_holds, original, saved))
    if isinstance(original, set):
        return type(original) is type(saved) and original == saved
    if isinstance(original, (bool, int, float, str, type(None))):
        return type(original) is type(saved) and original == saved
    return original is saved
