"""What calls change in a module: buffers, tensor attributes, now and then a parameter.

It is compared after each call and put back before the next, so that examples don't depend on each
other and a module that both sides share, or that the user made, ends as it began.
"""

from __future__ import annotations

import collections
import copy
import functools
import random
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributions import Distribution
from torch.nn.parameter import is_lazy

from pytest_torchcompile import internals
from pytest_torchcompile.holders import Holder, is_object
from pytest_torchcompile.outputs import NamedValues, is_mapping, keys, named_values

_MODULE_FIELDS = frozenset(vars(nn.Module()))


LARGEST_ARRAY = 2**24
"""Bytes of a numpy array that is still taken for state."""


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """A nest of containers with `function` applied to its tensors; arrays are copied."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        mapped = {key: map_tensors(function, item) for key, item in value.items()}
        return type(value)(mapped)  # type: ignore[call-arg]
    if is_mapping(value):
        other = copy.copy(value)
        for key in keys(value):
            other[key] = map_tensors(function, value[key])
        return other
    if isinstance(value, (list, tuple)):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, collections.deque):
        return collections.deque((map_tensors(function, item) for item in value), value.maxlen)
    return value.copy() if isinstance(value, np.ndarray) else value


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy outside any graph, laid out and asking for gradients as the original does."""
    found = tensor.detach().clone()
    if tensor.layout == torch.strided and found.stride() != tensor.stride():
        # What has gaps or overlaps, clone makes dense.
        found = copy.deepcopy(tensor.detach())
    return found.requires_grad_(tensor.requires_grad)


def _is_plain(value: Any) -> bool:
    """Whether `value` is a scalar, a tensor that is no parameter, a distribution, or a nest of these."""
    if value is None or isinstance(value, (bool, int, float, str, Distribution)):
        return True
    if isinstance(value, torch.Tensor):
        return not isinstance(value, nn.Parameter)
    if isinstance(value, np.ndarray):
        # A replay buffer is no state of a forward, and copying it would cost more than the check.
        return value.nbytes <= LARGEST_ARRAY
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    # RNNs keep their parameters in lists, which are no state.
    is_sequence = type(value) in (list, tuple, collections.deque) or hasattr(value, "_fields")
    return is_sequence and all(map(_is_plain, value))


def _is_record(value: Any) -> bool:
    """Whether `value` is an object of a user's class with plain data, whatever else: a running normaliser."""
    return is_object(value) and any(map(_is_plain, getattr(value, "__dict__", {}).values()))


def holds_tensors(value: Any) -> bool:
    """Whether a plain value is a tensor, a numeric array or a distribution, or has one inside."""
    if isinstance(value, Mapping):
        return any(map(holds_tensors, value.values()))
    if isinstance(value, (list, tuple, collections.deque)):
        return any(map(holds_tensors, value))
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc"
    return isinstance(value, (torch.Tensor, Distribution))


class PlainAttributes:
    """The attributes of all submodules that are plain data: hidden states, caches, counters.

    Those of plain objects that a submodule holds are among them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.owners: dict[str, Any] = dict(internals.uncompiled(model).named_modules())
        if isinstance(model, Holder):
            self.owners |= {path: o for path, o in model.owners.items() if hasattr(o, "__dict__")}
        self.values: dict[tuple[str, str], Any] = {}
        self.records: list[tuple[nn.Module, str, Any]] = []
        for path, module in list(self.owners.items()):
            for name, value in vars(module).items():
                if name in _MODULE_FIELDS:
                    continue
                if _is_plain(value):
                    self.values[path, name] = value
                elif _is_record(value):
                    self.records.append((module, name, value))
                    inside = f"{path}.{name}" if path else name
                    self.owners[inside] = value
                    fields = vars(value).items()
                    self.values |= {(inside, field): held for field, held in fields if _is_plain(held)}

    def tensors(self) -> dict[tuple[str, str], Any]:
        """Those that hold tensors or arrays, which are compared."""
        return {place: value for place, value in self.values.items() if holds_tensors(value)}


def _put_back(original: Any, saved: Any) -> Any:
    """The original object with the content of its copy: tensors, lists and dicts are written in place."""
    if isinstance(original, torch.Tensor):
        if original.shape != saved.shape:
            return map_tensors(copied, saved)
        original.detach().copy_(saved)
    elif type(original) is list:
        original[:] = map_tensors(copied, saved)
    elif isinstance(original, np.ndarray):
        if original.flags.writeable:
            original[...] = saved
    elif isinstance(original, collections.deque):
        original.clear()
        original.extend(map_tensors(copied, saved))
    elif isinstance(original, dict):
        original.clear()
        original.update(map_tensors(copied, saved))
    elif isinstance(original, tuple):
        for item, kept in zip(original, saved, strict=True):
            _put_back(item, kept)
    return original


def _set_buffer(module: nn.Module, name: str, buffer: torch.Tensor) -> None:
    """Put the very object back, if another is in its place."""
    if isinstance(module, torch.jit.ScriptModule):
        setattr(module, name, buffer)
    elif module._buffers.get(name) is not buffer:
        module._buffers[name] = buffer


class Generators:
    """Random generators that a policy keeps for itself, and where they stood."""

    def __init__(self, candidates: Iterable[Any]) -> None:
        self._kept: list[tuple[Callable[[Any], Any], Any]] = []
        for value in candidates:
            if isinstance(value, (torch.Generator, np.random.RandomState)):
                self._kept.append((value.set_state, value.get_state()))
            elif isinstance(value, np.random.Generator):
                bits = value.bit_generator
                self._kept.append((functools.partial(setattr, bits, "state"), bits.state))
            elif isinstance(value, random.Random):
                self._kept.append((value.setstate, value.getstate()))

    def reset(self) -> None:
        """Put them back to where they stood."""
        for set_state, state in self._kept:
            set_state(state)


Counters = dict[tuple[str, str], Any]
"""Plain numbers and words of a module's attributes, by owner and name."""

_SCALARS = (bool, int, float, str)


class ModuleState:
    """What calls change in a module, remembered so that it can be compared and put back.

    Args:
        model: the module.
        parameters: whether to remember the parameters too. They are not copied otherwise, which keeps
            a check of a large module within three times its size; the few that a call writes to are
            remembered by `protect`.
    """

    def __init__(self, model: nn.Module, *, parameters: bool = False) -> None:
        self.model = model
        inner = internals.uncompiled(model)
        self._flags = [(module, module.training) for module in inner.modules()]
        self._parameters = dict(inner.named_parameters())
        self._versions = {name: p._version for name, p in self._parameters.items()}
        self._protected: dict[str, torch.Tensor] = {}
        self._accepted: set[str] = set()
        if parameters:
            self.protect(self._parameters, model)
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in inner.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if not is_lazy(buffer)
        ]
        plain = PlainAttributes(model)
        self._owners = plain.owners
        self._records = plain.records
        self._other = {(owner, name) for owner, held in plain.owners.items() for name in vars(held)}
        self._attributes = {
            place: (value, map_tensors(copied, value)) for place, value in plain.values.items()
        }
        self._generators = Generators(
            value for held in plain.owners.values() for value in vars(held).values()
        )

    def values(self) -> NamedValues:
        """Buffers, tensor attributes and parameters that were written to, as they are now."""
        inner = internals.uncompiled(self.model)
        found = NamedValues()
        found.tensors = {f"buffer {name}": buffer for name, buffer in inner.named_buffers()}
        for name in self.written():
            found.tensors[f"parameter {name}"] = self._parameters[name].detach()
        for (owner, name), value in PlainAttributes(self.model).tensors().items():
            path = f"attribute {owner}.{name}" if owner else f"attribute {name}"
            nested = named_values(value, path)
            found.tensors.update(nested.tensors)
            found.kinds.update(nested.kinds)
        return found

    def written(self) -> list[str]:
        """The names of the parameters written to; of those that are put back, since the last reset."""
        return [n for n, p in self._parameters.items() if p._version != self._versions[n]]

    def accept(self) -> None:
        """Take the parameters as they are now for unwritten; the next reset still puts them back."""
        self._accepted.update(self.written())
        self._versions |= {name: p._version for name, p in self._parameters.items()}

    def remembered(self) -> dict[str, torch.Tensor]:
        """The parameters that are put back, by name, as they were found."""
        return self._protected

    def protect(self, names: Iterable[str], source: nn.Module) -> None:
        """Remember the named parameters by their values in `source`, a module not yet called."""
        originals = dict(internals.uncompiled(source).named_parameters())
        self._protected |= {name: originals[name].detach().clone() for name in names}

    @torch.no_grad()
    def reset(self) -> None:
        """Put buffers, plain attributes but counters, and protected parameters back, the very objects."""
        for module, name, buffer, value in self._buffers:
            _set_buffer(module, name, buffer)
            buffer.copy_(value)
        for name, value in self._protected.items():
            if name in self._accepted or self._parameters[name]._version != self._versions[name]:
                self._parameters[name].copy_(value)
                self._versions[name] = self._parameters[name]._version
        self._accepted.clear()
        self._generators.reset()
        for (owner, name), (original, saved) in self._attributes.items():
            held = vars(self._owners[owner])
            if not (isinstance(original, _SCALARS) and isinstance(held.get(name), _SCALARS)):
                held[name] = _put_back(original, saved)
        for holder, name, record in self._records:
            vars(holder)[name] = record
        for owner, name in PlainAttributes(self.model).values.keys() - self._attributes.keys():
            # Made by a call. One that was there before, as something that is not plain, stays.
            if owner in self._owners and (owner, name) not in self._other:
                del vars(self._owners[owner])[name]

    def counters(self) -> Counters:
        """The plain numbers and words as they are now; `reset` leaves them alone."""
        now = {(owner, name): vars(self._owners[owner]).get(name) for owner, name in self._attributes}
        return {place: value for place, value in now.items() if isinstance(value, _SCALARS)}

    def set_counters(self, counters: Counters) -> None:
        """Set plain numbers and words."""
        for (owner, name), value in counters.items():
            vars(self._owners[owner])[name] = value

    def restore(self) -> None:
        """Leave the module as it was found: state, counters, and train and eval flags."""
        self.reset()
        self.set_counters(
            {place: old for place, (old, _) in self._attributes.items() if isinstance(old, _SCALARS)}
        )
        for module, training in self._flags:
            module.training = training
