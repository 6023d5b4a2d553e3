"""What calls change in a module: buffers, tensor attributes, now and then a parameter.

It is compared after each call and put back before the next, so that examples don't depend on each
other and a module that both sides share, or that the user made, ends as it began.
"""

from __future__ import annotations

import collections
import functools
import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.holders import is_object
from pytest_torchcompile.policies.ordinary import same_values
from pytest_torchcompile.policies.outputs import NamedValues, named_values
from pytest_torchcompile.policies.reachable import Items, Place, Reachable, Space, holds_tensors, is_plain
from pytest_torchcompile.policies.snapshots import (
    copied,
    has_history,
    map_tensors,
    put_back,
    refill,
    version,
    write,
)


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


Counters = dict[Place, Any]
"""Plain numbers and words among a policy's attributes, by place."""

_SCALARS = (bool, int, float, str)
_CONTAINERS = (dict, list, tuple, set, collections.deque)


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
        self.unrepeatable: set[str] = set()
        """Paths of Python values that eager does not repeat, such as times; they are not compared."""
        self.watched: set[str] = set()
        """Names of the parameters that a call was seen to write to, though their versions did not move."""
        found = Reachable(model)
        self._found = found
        self._training = [(module, module.training) for module in found.modules.values()]
        self._asking = [(t, t.requires_grad) for t in (*found.parameters.values(), *found.leaves.values())]
        self._grads = [(t, t.grad, None if t.grad is None else copied(t.grad)) for t, _ in self._asking]
        self._parameters = found.parameters
        self._versions = {name: version(p) for name, p in self._parameters.items()}
        self._protected: dict[str, torch.Tensor] = {}
        self._accepted: set[str] = set()
        if parameters:
            self.protect(self._parameters, model)
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in found.modules.values()
            for name, buffer in module.named_buffers(recurse=False)
            if not is_lazy(buffer)
        ]
        self._names = {path: dict(space) for path, space in found.spaces.items()}
        self._values = {place: (value, map_tensors(copied, value)) for place, value in found.values.items()}
        # What has a graph behind it, which a reset cuts off.
        self._linked = {
            place: (value, map_tensors(lambda tensor: tensor, value))
            for place, value in found.values.items()
            if has_history(value)
        }
        self._generators = Generators(
            value for space in found.spaces.values() for value in list(space.values())
        )

    def values(self) -> NamedValues:
        """Buffers, plain attributes, flags, and parameters that were written to, as they are now."""
        now = Reachable(self.model)
        found = NamedValues()
        for name, buffer in now.buffers.items():
            found.tensors |= named_values(buffer, f"buffer {name}").tensors
        for name in self.written():
            found.tensors |= named_values(self._parameters[name].detach(), f"parameter {name}").tensors
        for (owner, name), value in now.values.items():
            path = f"attribute {owner}.{name}" if owner else f"attribute {name}"
            if path not in self.unrepeatable:
                _add_value(found, path, value, exactly=_is_torchs(now.modules.get(owner)))
        found.plain |= {f"training of {name or 'the module'}": m.training for name, m in now.modules.items()}
        asking = now.parameters | now.leaves
        found.plain |= {f"requires_grad of {name}": tensor.requires_grad for name, tensor in asking.items()}
        return found

    def leaves(self) -> dict[str, torch.Tensor]:
        """What gradients can be taken of, by name, as it is now: parameters and other tensors that ask."""
        now = Reachable(self.model)
        return {n: t for n, t in (now.parameters | now.leaves).items() if t.requires_grad}

    def left_gradients(self) -> dict[str, torch.Tensor | None]:
        """What the leaves have in ``.grad``, by name, of those that have or had something there."""
        found = {id(tensor) for tensor, grad, _ in self._grads if grad is not None}
        leaves = self._parameters | self._found.leaves
        return {n: t.grad for n, t in leaves.items() if t.grad is not None or id(t) in found}

    def written(self) -> list[str]:
        """The names of the parameters written to; of those that are put back, since the last reset.

        Writes through ``.data`` move no version: once seen by value, they are named after each call.
        """
        moved = (n for n, p in self._parameters.items() if version(p) != self._versions[n])
        return list(dict.fromkeys((*moved, *sorted(self.watched))))

    def parameters(self) -> dict[str, torch.Tensor]:
        """All parameters by name, as they are now."""
        return self._parameters

    def changed(self) -> bool:
        """Whether a tensor of the policy, or one left in ``.grad``, is not what it was remembered as."""
        buffers = any(not same(getattr(module, n, None), value) for module, n, _, value in self._buffers)
        if buffers or self.written() or any(g is not None for g in self.left_gradients().values()):
            return True
        now = Reachable(self.model).tensors()
        if now.keys() != {place for place, (old, _) in self._values.items() if holds_tensors(old)}:
            return True
        return any(_tensors_differ(value, self._values[place][1]) for place, value in now.items())

    def accept(self) -> None:
        """Take the parameters as they are now for unwritten; the next reset still puts them back."""
        self._accepted.update(self.written())
        self._versions |= {name: version(p) for name, p in self._parameters.items()}

    def remembered(self) -> dict[str, torch.Tensor]:
        """The parameters that are put back, by name, as they were found."""
        return self._protected

    def protect(self, names: Iterable[str], source: nn.Module) -> None:
        """Remember the named parameters by their values in `source`, a module not yet called."""
        originals = Reachable(source).parameters
        self._protected |= {name: originals[name].detach().clone() for name in names}

    @torch.no_grad()
    def reset(self) -> None:
        """Put back all but the counters and the flags of training, which the phase sets: the very objects."""
        for module, name, buffer, value in self._buffers:
            _set_buffer(module, name, buffer if write(buffer, value) else copied(value))
        for name, value in self._protected.items():
            moved = version(self._parameters[name]) != self._versions[name]
            if name in self._accepted or moved or not same(self._parameters[name], value):
                self._parameters[name].copy_(value)
                self._versions[name] = version(self._parameters[name])
        self._accepted.clear()
        self._generators.reset()
        self._reset_gradients()
        self._reset_spaces()

    def _reset_gradients(self) -> None:
        for tensor, asks in self._asking:
            if tensor.requires_grad is not asks:
                tensor.requires_grad_(asks)
        for tensor, grad, value in self._grads:
            if tensor.grad is not grad:
                tensor.grad = grad
            if grad is not None and value is not None:
                grad.copy_(value)

    def _reset_spaces(self) -> None:
        """Put attributes and items back, and drop those that were made by a call."""
        for path, space in self._found.spaces.items():
            names = self._names[path]
            if path in self._found.containers:
                _refill(space, names)
            for name in [name for name in space if name not in names]:
                # What can't be looked into, such as a function made by the call, stays.
                if is_plain(space[name]) or is_object(space[name]) or isinstance(space[name], _CONTAINERS):
                    del space[name]
        for place, value in self._found.held.items():
            if self._found.spaces[place[0]].get(place[1]) is not value:
                self._found.put(place, value)
        for (path, name), (original, saved) in self._values.items():
            space = self._found.spaces[path]
            if path not in self._found.containers and _are_counters(original, space.get(name)):
                continue
            value = put_back(original, saved)
            if space.get(name, self) is not value:
                self._found.put((path, name), value)

    def counters(self) -> Counters:
        """The plain numbers and words among the attributes as they are now; `reset` leaves them alone."""
        attributes = (place for place in self._values if place[0] not in self._found.containers)
        now = {(path, name): self._found.spaces[path].get(name) for path, name in attributes}
        return {place: value for place, value in now.items() if isinstance(value, _SCALARS)}

    def own_floats(self) -> dict[Place, float]:
        """The finite floats among the attributes of modules that are not torch's, as they are now."""
        modules = self._found.modules
        return {
            place: value
            for place, value in self.counters().items()
            if type(value) is float
            and math.isfinite(value)
            and place[0] in modules
            and not _is_torchs(modules[place[0]])
        }

    def set_counters(self, counters: Counters) -> None:
        """Set plain numbers and words."""
        for (path, name), value in counters.items():
            space = self._found.spaces[path]
            if space.get(name) is not value:
                space[name] = value

    def restore(self) -> None:
        """Leave the module as it was found: state, counters, and train and eval flags."""
        self.reset()
        found = {place: old for place, (old, _) in self._values.items() if isinstance(old, _SCALARS)}
        self.set_counters(
            {place: old for place, old in found.items() if place[0] not in self._found.containers}
        )
        for place, (value, items) in self._linked.items():
            is_container = isinstance(value, (list, dict, set, collections.deque))
            self._found.put(place, refill(value, items) if is_container else value)
        for module, training in self._training:
            module.training = training


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two tensors hold the same values; what can't be compared is taken for the same."""
    if one is None or other is None:
        return one is other
    try:
        return same_values(one, other)
    except (NotImplementedError, RuntimeError, UsageError):
        return True


def _tensors_differ(one: Any, other: Any) -> bool:
    mine, theirs = named_values(one).tensors, named_values(other).tensors
    return mine.keys() != theirs.keys() or any(not same(mine[path], theirs[path]) for path in mine)


def _are_counters(original: Any, now: Any) -> bool:
    return isinstance(original, _SCALARS) and isinstance(now, _SCALARS)


def _is_torchs(module: nn.Module | None) -> bool:
    """Whether it is a layer of torch's, whose numbers are settings that a call rounds in no way."""
    return module is not None and type(module).__module__.startswith("torch.nn")


def _refill(space: Space, items: Mapping[Any, Any]) -> None:
    """Give a container the items that it had, in their order."""
    if list(space) == list(items) and all(space[name] is item for name, item in items.items()):
        return
    if not isinstance(space, Items):
        refill(space, items)
    elif not isinstance(space.sequence, tuple):
        refill(space.sequence, items.values())


def _add_value(found: NamedValues, path: str, value: Any, *, exactly: bool) -> None:
    """Add a plain attribute to what is compared: numbers within a tolerance unless `exactly` is asked."""
    if isinstance(value, float) and exactly:
        found.plain[path] = value
    elif isinstance(value, (float, np.floating)) or holds_tensors(value):
        nested = named_values(value, path)
        found.tensors |= nested.tensors
        found.plain |= nested.plain
        found.kinds |= nested.kinds
    elif _is_numeric(value):
        found.tensors[path] = torch.tensor(list(value), dtype=torch.float64)
    elif not isinstance(value, np.ndarray):
        # A container may be written to by the next call.
        found.plain[path] = value if isinstance(value, _SCALARS) else map_tensors(copied, value)


def _is_numeric(value: Any) -> bool:
    """Whether it is a sequence of numbers some of which may be rounded."""
    is_sequence = isinstance(value, (list, tuple, collections.deque))
    return is_sequence and {float} <= {*map(type, value)} <= {float, int, bool}


def unequal_numbers(mine: NamedValues, theirs: NamedValues) -> list[str]:
    """The paths of attributes that are no tensors and differ between two calls of one side."""
    plain = {p for p in mine.plain.keys() | theirs.plain.keys() if mine.plain.get(p) != theirs.plain.get(p)}
    floats = {path for path, kind in mine.kinds.items() if kind == float.__name__}
    moved = {p for p in floats if p not in theirs.tensors or _moved(mine.tensors[p], theirs.tensors[p])}
    return sorted(path for path in plain | moved if path.startswith("attribute "))


def _moved(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.allclose(one, other, equal_nan=True)
