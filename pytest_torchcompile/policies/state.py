"""Records and restores what calls change in a module: buffers, attributes, and sometimes parameters.

The state is compared after each call and restored before the next. Examples are then independent of each
other, and a module that both sides share, or that the user made, is unchanged after the check.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pytest_torchcompile import internals
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.counters import SCALARS, Counters, is_torch_layer
from pytest_torchcompile.policies.generators import Generators, GeneratorState
from pytest_torchcompile.policies.holders import is_object
from pytest_torchcompile.policies.ordinary import same_values
from pytest_torchcompile.policies.outputs import NamedValues, named_values
from pytest_torchcompile.policies.reachable import Items, Reachable, Space, holds_tensors, is_plain
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
    """Assign the original buffer, if another object replaced it."""
    if isinstance(module, torch.jit.ScriptModule):
        setattr(module, name, buffer)
    elif module._buffers.get(name) is not buffer:
        module._buffers[name] = buffer


_CONTAINERS = (dict, list, tuple, set, collections.deque)


class ModuleState:
    """What calls change in a module, recorded at construction so that it can be compared and restored.

    Args:
        model: the module.
        parameters: whether to copy the parameters too. Without these copies, a check of a large module
            needs at most three times its size; `protect` then copies those that a call writes to.
    """

    def __init__(self, model: nn.Module, *, parameters: bool = False) -> None:
        self.model = model
        self.unrepeatable: set[str] = set()
        """Paths of Python values that differ between two eager calls, such as times; not compared."""
        self.watched: set[str] = set()
        """Names of the parameters that a call writes to without increasing their versions."""
        found = Reachable(model)
        self._found = found
        self._keeps_parameters = parameters
        self.counters = Counters(model, found)
        self._training = [(module, module.training) for module in found.modules.values()]
        self._required_grad = [
            (t, t.requires_grad) for t in (*found.parameters.values(), *found.leaves.values())
        ]
        self._grads = [
            (t, t.grad, None if t.grad is None else copied(t.grad)) for t, _ in self._required_grad
        ]
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
        # A buffer that is None may become a tensor in the first call.
        self._empty_buffers = [
            (module._buffers, name)
            for module in found.modules.values()
            if not isinstance(module, torch.jit.ScriptModule)
            for name, buffer in module._buffers.items()
            if buffer is None
        ]
        self._names = {path: dict(space) for path, space in found.spaces.items()}
        self._values = {place: (value, map_tensors(copied, value)) for place, value in found.values.items()}
        # Values with an autograd graph, which `reset` replaces by leaves.
        self._with_graphs = {
            place: (value, map_tensors(lambda tensor: tensor, value))
            for place, value in found.values.items()
            if has_history(value)
        }
        self._generators = Generators(
            {
                f"{path}.{name}" if path else str(name): value
                for path, space in found.spaces.items()
                for name, value in list(space.items())
            }
        )

    def values(self) -> NamedValues:
        """Return the present buffers, plain attributes, flags, and parameters that were written to."""
        now = Reachable(self.model)
        found = NamedValues()
        for name, buffer in now.buffers.items():
            found.tensors |= named_values(buffer, f"buffer {name}").tensors
        for name in self.written():
            found.tensors |= named_values(self._parameters[name].detach(), f"parameter {name}").tensors
        for (owner, name), value in now.values.items():
            path = f"attribute {owner}.{name}" if owner else f"attribute {name}"
            if path not in self.unrepeatable:
                _add_value(found, path, value, exactly=is_torch_layer(now.modules.get(owner)))
        found.plain |= {f"training of {name or 'the module'}": m.training for name, m in now.modules.items()}
        asking = now.parameters | now.leaves
        found.plain |= {f"requires_grad of {name}": tensor.requires_grad for name, tensor in asking.items()}
        return found

    def followed(self) -> dict[str, torch.Tensor]:
        """Return the tensors among the present buffers and attributes that a loss can be computed from."""
        now = Reachable(self.model)
        found = NamedValues()
        for (owner, name), value in now.values.items():
            if holds_tensors(value):
                path = f"attribute {owner}.{name}" if owner else f"attribute {name}"
                found.tensors |= named_values(value, path).tensors
        buffers = {f"buffer {name}": buffer for name, buffer in now.buffers.items()}
        return {path: t for path, t in (found.tensors | buffers).items() if internals.has_history(t)}

    def leaves(self) -> dict[str, torch.Tensor]:
        """Return the present leaves that require grad, by name: parameters and other tensors."""
        now = Reachable(self.model)
        return {n: t for n, t in (now.parameters | now.leaves).items() if t.requires_grad}

    def generators(self) -> dict[str, GeneratorState]:
        """Return the present states of the random generators among the attributes, by path."""
        return self._generators.now()

    def left_gradients(self) -> dict[str, torch.Tensor | None]:
        """Return the ``.grad`` of each leaf that has one now or had one at construction, by name."""
        found = {id(tensor) for tensor, grad, _ in self._grads if grad is not None}
        leaves = self._parameters | self._found.leaves
        return {n: t.grad for n, t in leaves.items() if t.grad is not None or id(t) in found}

    def written(self) -> list[str]:
        """Return the names of the parameters written to, since the last reset for those that it restores.

        A write through ``.data`` does not increase the version. The parameters in `watched` are always
        included.
        """
        moved = (n for n, p in self._parameters.items() if version(p) != self._versions[n])
        return list(dict.fromkeys((*moved, *sorted(self.watched))))

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return all parameters by name, with their present values."""
        return self._parameters

    def changed(self) -> bool:
        """Return whether a tensor of the policy, or its ``.grad``, differs from the recorded one."""
        changed = any(not same(getattr(module, n, None), value) for module, n, _, value in self._buffers)
        filled = any(buffers.get(name) is not None for buffers, name in self._empty_buffers)
        if changed or filled or self.written() or any(g is not None for g in self.left_gradients().values()):
            return True
        now = Reachable(self.model).tensors()
        if now.keys() != {place for place, (old, _) in self._values.items() if holds_tensors(old)}:
            return True
        return any(_tensors_differ(value, self._values[place][1]) for place, value in now.items())

    def accept(self) -> None:
        """Treat the parameters as unwritten from now on; the next reset still restores them."""
        self._accepted.update(self.written())
        self._versions |= {name: version(p) for name, p in self._parameters.items()}

    def remembered(self) -> dict[str, torch.Tensor]:
        """Return the recorded values of the parameters that `reset` restores, by name."""
        return self._protected

    def protect(self, names: Iterable[str], source: nn.Module) -> None:
        """Record the values that the named parameters have in `source`, a module not yet called."""
        originals = Reachable(source).parameters
        self._protected |= {name: originals[name].detach().clone() for name in names}

    @torch.no_grad()
    def reset(self) -> None:
        """Restore everything but the counters and the training flags, which the phase sets.

        The original objects are restored, not replaced by equal ones.
        """
        if self.counters.left_to_modes and self._keeps_parameters:
            # A layer may change its weights in `train()` and `eval()`; those recorded are of this mode.
            self.model.train(self._training[0][1])
        for module, name, buffer, value in self._buffers:
            _set_buffer(module, name, buffer if write(buffer, value) else copied(value))
        for buffers, name in self._empty_buffers:
            buffers[name] = None
        for name, value in self._protected.items():
            moved = version(self._parameters[name]) != self._versions[name]
            if name in self._accepted or moved or not same(self._parameters[name], value):
                self._parameters[name].copy_(value)
                self._versions[name] = version(self._parameters[name])
        self._accepted.clear()
        self._generators.reset()
        self.counters.reset_modes()
        self._reset_gradients()
        self._reset_spaces()

    def _reset_gradients(self) -> None:
        for tensor, asks in self._required_grad:
            if tensor.requires_grad is not asks:
                tensor.requires_grad_(asks)
        for tensor, grad, value in self._grads:
            if tensor.grad is not grad:
                tensor.grad = grad
            if grad is not None and value is not None:
                grad.copy_(value)

    def _reset_spaces(self) -> None:
        """Restore attributes and items, and delete those that a call added."""
        for path, space in self._found.spaces.items():
            names = self._names[path]
            if path in self._found.containers:
                _refill(space, names)
            for name in [name for name in space if name not in names]:
                if not self.counters.keeps((path, name), None, space[name]) and _can_go(space[name]):
                    del space[name]
        for place, value in self._found.held.items():
            if self._found.spaces[place[0]].get(place[1]) is not value:
                self._found.put(place, value)
        for (path, name), (original, saved) in self._values.items():
            space = self._found.spaces[path]
            if self.counters.keeps((path, name), original, space.get(name)):
                continue
            value = put_back(original, saved)
            if space.get(name, self) is not value:
                self._found.put((path, name), value)

    def restore(self) -> None:
        """Restore the module as it was at construction: state, counters and training flags."""
        self.model.train(self._training[0][1])
        self.reset()
        self.counters.restore()
        for place, (value, items) in self._with_graphs.items():
            is_container = isinstance(value, (list, dict, set, collections.deque))
            self._found.put(place, refill(value, items) if is_container else value)
        for module, training in self._training:
            module.training = training


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Return whether two tensors hold the same values; True if they can't be compared."""
    if one is None or other is None:
        return one is other
    try:
        return same_values(one, other)
    except (NotImplementedError, RuntimeError, UsageError):
        return True


def _tensors_differ(one: Any, other: Any) -> bool:
    mine, theirs = named_values(one).tensors, named_values(other).tensors
    return mine.keys() != theirs.keys() or any(not same(mine[path], theirs[path]) for path in mine)


def _can_go(value: Any) -> bool:
    """Whether `reset` deletes a value that a call added. A function, which can't be inspected, stays."""
    return is_plain(value) or is_object(value) or isinstance(value, _CONTAINERS)


def _refill(space: Space, items: Mapping[Any, Any]) -> None:
    """Restore the items of a container, in their order."""
    if list(space) == list(items) and all(space[name] is item for name, item in items.items()):
        return
    if not isinstance(space, Items):
        refill(space, items)
    elif not isinstance(space.sequence, tuple):
        refill(space.sequence, items.values())


def _add_value(found: NamedValues, path: str, value: Any, *, exactly: bool) -> None:
    """Add a plain attribute to what is compared: floats within a tolerance unless `exactly`."""
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
        found.plain[path] = value if isinstance(value, SCALARS) else map_tensors(copied, value)


def _is_numeric(value: Any) -> bool:
    """Return whether a value is a sequence of numbers that contains a float."""
    is_sequence = isinstance(value, (list, tuple, collections.deque))
    return is_sequence and {float} <= {*map(type, value)} <= {float, int, bool}


def unequal_numbers(mine: NamedValues, theirs: NamedValues) -> list[str]:
    """Return the paths of the Python values in attributes that differ between two calls of one side."""
    plain = {p for p in mine.plain.keys() | theirs.plain.keys() if mine.plain.get(p) != theirs.plain.get(p)}
    floats = {path for path, kind in mine.kinds.items() if kind == float.__name__}
    moved = {
        p for p in floats if p not in theirs.tensors or _floats_differ(mine.tensors[p], theirs.tensors[p])
    }
    return sorted(path for path in plain | moved if path.startswith("attribute "))


def _floats_differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.allclose(one, other, equal_nan=True)
