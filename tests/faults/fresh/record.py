"""The record of a fault: an entry like those of the catalogue, with the correct policy that it mutates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..catalogue import ROLLOUT, UPDATE, Entry, changed, compiling, same_value
from ..correct import CORRECT, Correct

Change = Callable[..., Any]
"""``change(model, right, *inputs)``: what the method returns when compiled, `right` being the method."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault(Entry):
    """One fault.

    Args:
        twin: the correct policy that it is a mutation of.
        unsought: why nobody looks for it; empty if it has to be found.
    """

    twin: Correct
    unsought: str = ""


def fault(
    kind: str,
    name: str,
    twin: str,
    change: Change | None = None,
    *,
    method: str = "forward",
    part: type[nn.Module] | None = None,
    declared: Mapping[str, Any] | None = None,
    **values: Any,
) -> Fault:
    """A mutation of a correct policy.

    Args:
        kind: its class.
        name: what is wrong.
        twin: the name of the correct policy.
        change: what the method returns when compiled; None if the backend is at fault.
        method: the method that is wrong.
        part: the class of the submodules whose method it is; None for the policy itself.
        declared: arguments of the check beside those of the correct policy, as a range of batch sizes.
        values: further fields of the fault.
    """
    correct = CORRECT[twin]
    model: Any = correct.model
    if change is not None:
        model = changed(model, change, method) if part is None else inside(model, part, change, method)
    return Fault(
        kind=kind,
        name=f"{name} ({twin})",
        factory=model,
        declaration={**correct.declaration, **(declared or {})},
        twin=correct,
        **values,
    )


def inside(model: type[nn.Module], part: type[nn.Module], change: Change, method: str) -> type[nn.Module]:
    """`model` whose submodules of class `part` are `changed`."""
    wrong = changed(part, change, method)

    def build(self: nn.Module) -> None:
        model.__init__(self)
        for module in self.modules():
            if type(module) is part:
                module.__class__ = wrong

    return type(model.__name__, (model,), {"__init__": build})


# --- changes that many faults are made of ----------------------------------------------------------


def of_output(number: int, change: Callable[[torch.Tensor], Any]) -> Change:
    """Change one of the outputs."""

    def wrong(self: nn.Module, right: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = right(*args, **kwargs)
        if isinstance(outputs, torch.Tensor):
            return change(outputs)
        place = number % len(outputs)
        return tuple(change(output) if i == place else output for i, output in enumerate(outputs))

    return wrong


def of_value(change: Callable[[torch.Tensor], Any]) -> Change:
    """Change what the method returns, which is one tensor."""
    return lambda self, right, *args, **kwargs: change(right(*args, **kwargs))


def last_row(x: torch.Tensor) -> torch.Tensor:
    """True in the last row of the batch, in the shape of `x`."""
    row = torch.arange(len(x)) == len(x) - 1
    return row.reshape(-1, *[1] * (x.dim() - 1)).expand_as(x)


def nan_in_last_row(x: torch.Tensor) -> torch.Tensor:
    return torch.where(last_row(x), float("nan"), x)


def scaled_gradient(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same value, its gradient times `factor`."""
    return lambda x: same_value(x, factor)


__all__ = [
    "ROLLOUT",
    "UPDATE",
    "Fault",
    "compiling",
    "fault",
    "last_row",
    "nan_in_last_row",
    "of_output",
    "of_value",
    "same_value",
    "scaled_gradient",
]
