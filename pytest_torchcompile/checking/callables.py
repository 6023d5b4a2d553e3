"""Makes a side of a check from a callable that the user passes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.calls import Around, Side
from pytest_torchcompile.policies.holders import Holder, is_holder
from pytest_torchcompile.policies.state import ModuleState
from pytest_torchcompile.texts import counted


class InPhase:
    """Calls a side in a phase, without resetting its state and without seeding."""

    def __init__(self, side: Side, phase: str) -> None:
        self._side = side
        self.phase = phase

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the side returns; gradients are enabled in ``update`` only."""
        if self._side.model is not None:
            self._side.model.train(self.phase == "update")
        with self._side.around(), torch.set_grad_enabled(self.phase == "update"):
            return self._side.invoke(args, kwargs)


def side_of(function: Any, around: Around) -> Side:
    """Return a side that calls `function`, with the module that it belongs to.

    Args:
        function: a module, a bound method, a function, or an `InPhase`.
        around: makes the context that each call runs in; an `InPhase` keeps its own.

    Raises:
        UsageError: if `function` is not callable.
    """
    if isinstance(function, InPhase):
        # Without names of inputs: the other side may be any callable, whose inputs are named by position.
        side = function._side
        return Side(side.function, side.model, leading=side.leading, around=side.around, cast=side.cast)
    if not callable(function):
        raise UsageError(f"{function!r} is not callable; give a module, a bound method or a function")
    model = internals.module_of(function) or _holder_of(function)
    # The module is the caller's, so its parameters are restored too.
    state = None if model is None else ModuleState(model, parameters=True)
    return Side(function, model, around=around, state=state)


def require_inputs(caller: str, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """After a `TypeError`, return if the inputs fit the parameters of a callable, or these are unknown.

    Args:
        caller: the function of this package that the user called, for the message.
        function: see `side_of`.
        args: positional inputs.
        kwargs: keyword inputs.

    Raises:
        UsageError: if they do not; it shows the signature.
    """
    called = function._side.function if isinstance(function, InPhase) else function
    called = internals.uncompiled(called) if isinstance(called, nn.Module) else called
    called = called.forward if isinstance(called, nn.Module) else called
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(called, "__name__", type(called).__name__)
        given = f"got {counted(len(args) + len(kwargs), 'input')}" if args or kwargs else "got no inputs"
        needed = ", ".join(
            str(p).partition("=")[0] for p in signature.parameters.values() if p.default is p.empty
        )
        raise UsageError(
            f"{caller}(eager, compiled) {given}, but {name}{signature} can't be called with them: {error}; "
            f"give the inputs of one call: {caller}(eager, compiled, {needed})"
        ) from None


def _holder_of(function: Any) -> Holder | None:
    """Return the object that `function` is a method of, if it holds modules and is none itself; else None."""
    owner = internals.owner_of(function)
    return Holder(owner) if is_holder(owner) else None
