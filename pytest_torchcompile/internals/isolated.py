"""Compile a function apart from others that share its code: graphs, guards and the count of recompiles.

Dynamo keeps the graphs of a code object together. Two policies of one class share the code of ``forward``, so
one would run the graphs of the other, and the recompiles of both would count towards one limit.
"""

from __future__ import annotations

import contextlib
import inspect
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

_compiled: list[weakref.ref[types.CodeType]] = []
"""The code that was compiled for isolated functions, where torch can't isolate them itself."""


def isolated_compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return ``torch.compile(function, **options)``, which shares no graph with other compiled functions.

    torch 2.13 has an argument for it. Before that dynamo reuses a graph only for a backend that equals the
    one that the graph was compiled with, so each function gets a backend that equals nothing else. Dynamo
    then still counts recompiles together, so calls have to be made under `raised_recompile_limit`.
    """
    if _torch_isolates():
        return _torch_compile(function, **options, isolate_recompiles=True)
    with contextlib.ExitStack() as stack:
        for name in ("_TorchCompileInductorWrapper", "_TorchCompileWrapper"):
            stack.enter_context(mock.patch.object(torch, name, _equals_nothing_else(getattr(torch, name))))
        return _torch_compile(function, **options)


@contextlib.contextmanager
def isolated_code_forgotten() -> Iterator[None]:
    """Forget at the end what the body compiled for isolated functions, so that it counts towards no limit.

    Nothing to do since torch 2.13. A function that is used after it is compiled again by its next call.
    """
    from torch._C._dynamo.eval_frame import reset_code

    before = len(_compiled)
    try:
        yield
    finally:
        for reference in _compiled[before:]:
            code = reference()
            if code is not None:
                reset_code(code)
        del _compiled[before:]


def _torch_compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    # The stubs of the torch that is installed may know fewer or more arguments.
    compile_: Callable[..., Callable[..., Any]] = torch.compile
    return compile_(function, **options)


def _torch_isolates() -> bool:
    """Whether torch.compile has the argument."""
    return "isolate_recompiles" in inspect.signature(torch.compile).parameters


def _equals_nothing_else(backend: type) -> type:
    """Return a subclass of torch's wrapper of a backend whose objects equal themselves only.

    They keep the code that they compile for `isolated_code_forgotten`.
    """

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        _compiled.append(weakref.ref(InstructionTranslator.current_tx().output.root_tx.f_code))
        return backend.__call__(self, *args, **kwargs)

    methods = {"__call__": call, "__eq__": object.__eq__, "__hash__": object.__hash__}
    return type(backend.__name__, (backend,), methods)
