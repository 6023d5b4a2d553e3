"""Recognize what `torch.compile` returns, and find its eager original."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch

COMPILED_MARKS = frozenset({"_is_torch_compile"})
"""Attributes that `torch.compile` sets on the module that it wraps."""


def is_compiled(value: Any) -> bool:
    """Whether `value` is a compiled module or function, so that a call of it runs compiled code."""
    from torch._dynamo import OptimizedModule

    # Not `isinstance`, because a mock can pretend to be of any class.
    if issubclass(type(value), OptimizedModule):
        return True
    if issubclass(type(value), torch.nn.Module):
        return value._compiled_call_impl is not None
    return _original_callable(value) is not None and not _is_disabled(value)


def _is_disabled(value: Any) -> bool:
    """Whether `value` was made by `torch.compiler.disable`; it looks like a compiled function otherwise."""
    return getattr(value, "_torchdynamo_disable", False) is True


def _original_callable(value: Any) -> Any:
    """Return the callable that torch.compile was given to make `value`; None if it did not make it.

    Reads ``__dict__`` directly, because ``__getattr__`` of an object may return something for every name.
    """
    function = value.__func__ if type(value) is types.MethodType else value
    try:
        held = object.__getattribute__(function, "__dict__")
    except AttributeError:
        return None
    return (
        held.get("_torchdynamo_orig_callable") if isinstance(held, (dict, types.MappingProxyType)) else None
    )


def constant_results(codes: Mapping[types.CodeType, Mapping[str, Any]]) -> list[types.FunctionType]:
    """Return the functions with one of these codes whose result dynamo takes for a constant.

    ``torch._dynamo.assume_constant_result`` marks them.
    """
    return [function for function in _functions(codes) if vars(function).get(_CONSTANT)]


def _functions(codes: Mapping[types.CodeType, Mapping[str, Any]]) -> list[types.FunctionType]:
    """Return the functions with one of these codes, among the globals of each code and in the classes there.

    A function that `functools.wraps` wraps around another counts with the code of the other.
    """
    found: dict[types.FunctionType, None] = {}
    for scope in {id(scope): scope for scope in codes.values()}.values():
        for value in list(scope.values()):
            for one in list(vars(value).values()) if isinstance(value, type) else [value]:
                if type(one) is types.FunctionType and code_of(one) in codes:
                    found[one] = None
    return list(found)


def code_of(function: types.FunctionType) -> types.CodeType:
    """Return the code of a function, or that of the function that it wraps."""
    inner = inspect.unwrap(function)
    return inner.__code__ if type(inner) is types.FunctionType else function.__code__


def functions_in_graph(codes: Mapping[types.CodeType, Mapping[str, Any]]) -> list[types.FunctionType]:
    """Return the functions with one of these codes that dynamo puts into the graph without looking into them.

    ``torch.compiler.allow_in_graph`` and ``torch.compiler.nonstrict_trace`` register them.
    """
    from torch._dynamo import trace_rules

    return [
        function
        for function in _functions(codes)
        if trace_rules.is_callable_allowed(function) or trace_rules.is_nonstrict_trace_callable(function)
    ]


@contextlib.contextmanager
def without_functions_in_graph(functions: Iterable[types.FunctionType]) -> Iterator[None]:
    """In the body, dynamo looks into these functions, or into what they wrap."""
    from torch._dynamo import trace_rules

    ids = {id(function) for function in functions}

    def among_others(is_registered: Callable[[Any], bool]) -> Callable[[Any], bool]:
        return lambda value: id(value) not in ids and is_registered(value)

    with contextlib.ExitStack() as stack:
        for name in ("is_callable_allowed", "is_nonstrict_trace_callable"):
            changed = among_others(getattr(trace_rules, name))
            stack.enter_context(mock.patch.object(trace_rules, name, changed))
        yield


@contextlib.contextmanager
def without_constant_results(functions: Iterable[types.FunctionType]) -> Iterator[None]:
    """In the body, dynamo traces these functions."""
    for function in functions:
        setattr(function, _CONSTANT, False)
    try:
        yield
    finally:
        for function in functions:
            setattr(function, _CONSTANT, True)


_CONSTANT = "_dynamo_marked_constant"


def uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module inside ``torch.compile(module)``; any other module unchanged."""
    from torch._dynamo import OptimizedModule

    while isinstance(module, OptimizedModule):
        module = module._orig_mod
    return module


def eager_call(module: torch.nn.Module) -> Callable[..., Any]:
    """Return a function that calls the module eagerly, with its hooks, and ignores `set_compiled_call`.

    ``module.compile()`` compiles ``_call_impl`` without a function around it. Dynamo skips that without a
    warning if the module's ``forward`` is torch's own, as in ``nn.Sequential``.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    return call


def set_compiled_call(module: torch.nn.Module, call: Callable[..., Any] | None) -> None:
    """Make calls of the module run `call`, which copies and pickles do not keep; None undoes it."""
    module._compiled_call_impl = call


def module_of(function: Any) -> torch.nn.Module | None:
    """Return the module whose method `function` is, compiled or not; None if it is no module's method."""
    owner = owner_of(function)
    return uncompiled(owner) if issubclass(type(owner), torch.nn.Module) else None


def owner_of(function: Any) -> Any:
    """Return the object whose method `function` is, compiled or not; the function itself if it is none."""
    original = _original_callable(function) or function
    return original.__self__ if type(original) is types.MethodType else original


def compiled_owner(value: Any) -> Any:
    """Return the object whose method a compiled function calls; None for anything else."""
    original = _original_callable(value)
    # Dynamo wraps methods of torch's own modules in another function.
    while isinstance(original, types.FunctionType) and "__wrapped__" in vars(original):
        original = vars(original)["__wrapped__"]
    return original.__self__ if isinstance(original, types.MethodType) else None
