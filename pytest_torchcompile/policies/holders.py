"""Handles policies that are no modules but hold some, such as an agent with an actor and a critic."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

DEEPEST = 6
"""The most objects, dicts and lists that may lie between a policy and a module that it holds."""

# Instances of these are not part of a policy, or are handled elsewhere.
_NOT_OBJECTS = (
    *(type, types.ModuleType, types.FunctionType, types.MethodType),
    *(Mapping, list, tuple, torch.Tensor, nn.Module),
)
# Packages whose objects are not inspected. `types.SimpleNamespace` and `argparse.Namespace` hold the user's
# attributes, so these two modules are not among them.
_NOT_INSPECTED = (sys.stdlib_module_names | {"torch", "numpy", "gymnasium", "gym"}) - {
    "types",
    "argparse",
    "__main__",
}


class Holder(nn.Module):
    """A module around a policy that is no module, which gives it ``named_parameters()`` and ``train()``.

    Args:
        policy: an object with modules or parameters among its attributes, or among those of the objects,
            dicts and lists that it holds. Names are the paths of attributes: ``models.actor.weight``.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        self.owners: dict[str, Any] = {}
        for path, held in _walk(policy, "", set(), 0):
            # `add_module` refuses names that the module already has as attributes.
            if isinstance(held, nn.Module):
                self._modules[path] = held
            elif isinstance(held, torch.Tensor):
                self._parameters[path] = held  # type: ignore[assignment]  # a leaf that asks for gradients
            else:
                self.owners[path] = held

    def train(self, mode: bool = True) -> Holder:
        """Switch the mode of the modules, and set ``training`` of the objects that have this flag."""
        super().train(mode)
        for owner in self.owners.values():
            if isinstance(getattr(owner, "__dict__", {}).get("training"), bool):
                # A frozen dataclass of settings may have a field of this name.
                with contextlib.suppress(dataclasses.FrozenInstanceError):
                    owner.training = mode
        return self


def is_holder(policy: Any) -> bool:
    """Return whether `policy` is an object of a user's class that holds modules."""
    return is_object(policy) and any(isinstance(held, nn.Module) for _, held in _walk(policy, "", set(), 0))


def policy_of(model: Any) -> Any:
    """Return the policy inside a `Holder`; any other module unchanged."""
    return model.policy if isinstance(model, Holder) else model


def is_object(value: Any) -> bool:
    """Return whether `value` is an instance of a user's class, and no module."""
    kind = type(value)
    has_fields = hasattr(kind, "__slots__") or hasattr(value, "__dict__")
    return (
        has_fields
        and not isinstance(value, _NOT_OBJECTS)
        and kind.__module__.split(".")[0] not in _NOT_INSPECTED
    )


def _walk(value: Any, path: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the modules, parameters and objects reachable from `value`, with their paths, each once."""
    if id(value) in seen or depth > DEEPEST:
        return
    if isinstance(value, torch.Tensor):
        if value.is_leaf and value.requires_grad:
            seen.add(id(value))
            yield path, value
        return
    if isinstance(value, nn.Module):
        seen.add(id(value))
        yield path, value
    elif isinstance(value, (Mapping, list, tuple)):
        seen.add(id(value))
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _walk(item, f"{path}.{key}" if path else str(key), seen, depth + 1)
    elif is_object(value):
        seen.add(id(value))
        yield path, value
        for name, item in fields(value):
            yield from _walk(item, f"{path}.{name}" if path else name, seen, depth + 1)


def has_slots(value: Any) -> bool:
    """Return whether some attributes of an object are not in its ``__dict__``."""
    return any(base.__dict__.get("__slots__") for base in type(value).__mro__)


def fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an object, those in ``__slots__`` included."""
    yield from getattr(value, "__dict__", {}).items()
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                yield name, getattr(value, name)
