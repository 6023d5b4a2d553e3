"""What `torch.compile` returns and marks: whether something is compiled, and its eager original."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch

COMPILED_MARKS = frozenset({"_is_torch_compile"})
"""Attributes that `torch.compile` gives to the module that it wraps."""


def is_compiled(value: Any) -> bool:
    """Whether calling `value` goes through torch.compile: a module or function that came compiled."""
    from torch._dynamo import OptimizedModule

    # Not `isinstance`, which believes what a mock says of its class.
    if issubclass(type(value), OptimizedModule):
        return True
    if issubclass(type(value), torch.nn.Module):
        return value._compiled_call_impl is not None
    return _original_callable(value) is not None and not _is_disabled(value)


def _is_disabled(value: Any) -> bool:
    """Whether torch.compiler.disable made `value`, which looks like a compiled one otherwise."""
    return getattr(value, "_torchdynamo_disable", False) is True


def _original_callable(value: Any) -> Any:
    """What torch.compile made `value` of; None if it made it not.

    Asked of what the object really has: an object may make up any attribute (``__getattr__ = dict.get``).
    """
    function = value.__func__ if type(value) is types.MethodType else value
    try:
        held = object.__getattribute__(function, "__dict__")
    except AttributeError:
        return None
    return (
        held.get("_torchdynamo_orig_callable") if isinstance(held, (dict, types.MappingProxyType)) else None
    )


def uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside ``torch.compile(module)``; any other module as it is."""
    from torch._dynamo import OptimizedModule

    while isinstance(module, OptimizedModule):
        module = module._orig_mod
    return module


def eager_call(module: torch.nn.Module) -> Callable[..., Any]:
    """Calling the module, hooks included, whatever `set_compiled_call` was given.

    ``module.compile()`` compiles this without a function around it, which dynamo skips in silence where the
    module's ``forward`` is torch's own, as that of ``nn.Sequential`` is.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    return call


def set_compiled_call(module: torch.nn.Module, call: Callable[..., Any] | None) -> None:
    """Let calls of the module go through `call`, which copies and pickles leave out; None undoes it."""
    module._compiled_call_impl = call


def module_of(function: Any) -> torch.nn.Module | None:
    """The module whose method `function` is, compiled or not; None for a function without one."""
    owner = owner_of(function)
    return uncompiled(owner) if issubclass(type(owner), torch.nn.Module) else None


def owner_of(function: Any) -> Any:
    """The object whose method `function` is, compiled or not; the function itself if it is no method."""
    original = _original_callable(function) or function
    return original.__self__ if type(original) is types.MethodType else original


def compiled_owner(value: Any) -> Any:
    """The object whose method a compiled function calls; None for all else."""
    original = _original_callable(value)
    # Around a method of torch's own modules dynamo puts one function more.
    while isinstance(original, types.FunctionType) and "__wrapped__" in vars(original):
        original = vars(original)["__wrapped__"]
    return original.__self__ if isinstance(original, types.MethodType) else None
