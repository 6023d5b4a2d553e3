"""A callable that a user hands over, as one side of a check."""

from __future__ import annotations

from typing import Any

import torch

from pytest_torchcompile import internals
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.calls import Around, Side
from pytest_torchcompile.policies.holders import Holder, is_holder
from pytest_torchcompile.policies.state import ModuleState


class InPhase:
    """A side, called as its users call it: no reset, no seed."""

    def __init__(self, side: Side, phase: str) -> None:
        self._side = side
        self.phase = phase

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the side returns in this phase: gradients are on in ``update`` only."""
        if self._side.model is not None:
            self._side.model.train(self.phase == "update")
        with self._side.around(), torch.set_grad_enabled(self.phase == "update"):
            return self._side.invoke(args, kwargs)


def side_of(function: Any, around: Around) -> Side:
    """A side made of a bare callable, with the module it belongs to.

    Raises:
        UsageError: if it can't be called.
    """
    if isinstance(function, InPhase):
        # By position, as the other side may be any callable.
        side = function._side
        return Side(side.function, side.model, leading=side.leading, around=side.around, cast=side.cast)
    if not callable(function):
        raise UsageError(f"{function!r} is not callable; give a module, a bound method or a function")
    model = internals.module_of(function) or _holder_of(function)
    # The caller's own weights are at stake, whoever writes to them.
    state = None if model is None else ModuleState(model, parameters=True)
    return Side(function, model, around=around, state=state)


def _holder_of(function: Any) -> Holder | None:
    """The policy whose method `function` is, compiled or not, if it holds modules but is none."""
    owner = internals.owner_of(function)
    return Holder(owner) if is_holder(owner) else None
