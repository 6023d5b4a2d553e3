"""What calls change in a module: buffers, tensor attributes, now and then a parameter.

It is compared after each call and put back before the next, so that examples don't depend on each
other and a module that both sides share, or that the user made, ends as it began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.outputs import NamedValues, named_values

_MODULE_FIELDS = frozenset(vars(nn.Module()))


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """A nest of dicts, lists and tuples with `function` applied to its tensors."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        mapped = {key: map_tensors(function, item) for key, item in value.items()}
        return type(value)(mapped)  # type: ignore[call-arg]
    if isinstance(value, (list, tuple)):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy outside any graph that asks for gradients as the original does."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _holds_tensors(value: Any) -> bool:
    """Whether `value` is a tensor or a nest of them; parameters, kept by RNNs in lists, are no state."""
    if isinstance(value, torch.Tensor):
        return not isinstance(value, nn.Parameter)
    items: Iterable[Any] = ()
    if type(value) in (list, tuple) or hasattr(value, "_fields"):
        items = value
    elif type(value) is dict:
        items = value.values()
    items = list(items)
    return any(map(_holds_tensors, items)) and not any(isinstance(item, nn.Parameter) for item in items)


class TensorAttributes:
    """The plain attributes of all submodules that hold tensors: hidden states, normalisers, caches."""

    def __init__(self, model: nn.Module) -> None:
        self.owners = dict(internals.uncompiled(model).named_modules())
        self.values: dict[tuple[str, str], Any] = {
            (owner, name): value
            for owner, module in self.owners.items()
            for name, value in vars(module).items()
            if name not in _MODULE_FIELDS and _holds_tensors(value)
        }


class ModuleState:
    """What calls change in a module, remembered so that it can be compared and put back.

    Parameters are not copied, which keeps a check of a large module within three times its size;
    the few that a call writes to are remembered by `protect`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        inner = internals.uncompiled(model)
        self._flags = [(module, module.training) for module in inner.modules()]
        self._parameters = dict(inner.named_parameters())
        self._versions = {name: p._version for name, p in self._parameters.items()}
        self._protected: dict[str, torch.Tensor] = {}
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in inner.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._originals = TensorAttributes(model).values
        self._attributes = {place: map_tensors(copied, value) for place, value in self._originals.items()}

    def values(self) -> NamedValues:
        """Buffers, tensor attributes and parameters that were written to, as they are now."""
        inner = internals.uncompiled(self.model)
        found = NamedValues()
        found.tensors = {f"buffer {name}": buffer for name, buffer in inner.named_buffers()}
        for name in self.written():
            found.tensors[f"parameter {name}"] = self._parameters[name].detach()
        for (owner, name), value in TensorAttributes(self.model).values.items():
            path = f"attribute {owner}.{name}" if owner else f"attribute {name}"
            nested = named_values(value, path)
            found.tensors.update(nested.tensors)
            found.kinds.update(nested.kinds)
        return found

    def written(self) -> list[str]:
        """The names of the parameters that some call has written to."""
        return [n for n, p in self._parameters.items() if p._version != self._versions[n]]

    def protect(self, names: Iterable[str], source: nn.Module) -> None:
        """Remember the named parameters by their values in `source`, a module not yet called."""
        originals = dict(internals.uncompiled(source).named_parameters())
        self._protected |= {name: originals[name].detach().clone() for name in names}

    @torch.no_grad()
    def reset(self) -> None:
        """Put buffers, attributes and protected parameters back, in place where that is possible."""
        for module, name, buffer, value in self._buffers:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
            buffer.copy_(value)
        for name, value in self._protected.items():
            self._parameters[name].copy_(value)
        current = TensorAttributes(self.model)
        for place in current.values.keys() | self._attributes.keys():
            owner, name = place
            if place in self._attributes:
                setattr(current.owners[owner], name, map_tensors(copied, self._attributes[place]))
            else:
                # A cache that was empty before the first call.
                setattr(current.owners[owner], name, None)

    def restore(self) -> None:
        """Leave the module as it was found: state, the very attribute objects, train and eval flags."""
        self.reset()
        owners = dict(internals.uncompiled(self.model).named_modules())
        with torch.no_grad():
            for (owner, name), value in self._originals.items():
                old = named_values(value).tensors
                for path, tensor in named_values(self._attributes[owner, name]).tensors.items():
                    old[path].detach().copy_(tensor)
                setattr(owners[owner], name, value)
        for module, training in self._flags:
            module.training = training
