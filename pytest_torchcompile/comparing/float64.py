"""The float64 reference: the eager computation repeated in float64 with the same random draws.

Reports show it. It decides only where the rounding floor cannot.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from pytest_torchcompile import internals
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.calls import Rerun, Side
from pytest_torchcompile.policies.outcome import GRADIENT, Outcome
from pytest_torchcompile.policies.reachable import Reachable
from pytest_torchcompile.policies.snapshots import map_tensors
from pytest_torchcompile.results import Difference

MOST_GRADIENTS = 6
"""A wrong policy has a difference in nearly every gradient, and in float64 each takes twice its memory."""


def float64_reference(eager: Side, rerun: Rerun, only: Collection[str] | None = None) -> Outcome | None:
    """Return the outcome of the eager call repeated in float64 with the same random draws.

    Args:
        eager: the side that is called; its module is in float64 meanwhile.
        rerun: repeats the call.
        only: paths of the gradients of parameters to keep, as all of them take twice the memory of the
            policy. None keeps all, which an optimizer needs.

    Returns:
        The outcome; None if the call raises, or if an output that is floating-point in eager is not float64:
        the module then contains a cast that cannot be intercepted.
    """
    tape: list[Any] = []
    narrow = rerun(lambda: _Record(tape))
    if narrow.error is not None:
        return None
    floating = {path: tensor.is_floating_point() for path, tensor in narrow.outputs.tensors.items()}
    # Free its gradients, which are as large as the module.
    del narrow
    try:
        wide = rerun(lambda: _in_float64(eager, tape, only), wide=True)
    except UsageError:
        # The user's input container or observed state accepts only another dtype.
        return None
    if wide.error is not None:
        return None
    for path, is_floating in floating.items():
        other = wide.outputs.tensors.get(path)
        if other is None or (is_floating and other.dtype != torch.float64):
            return None
    return wide


def with_float64(
    differences: tuple[Difference, ...], eager: Side, rerun: Rerun, *, learns: bool = False
) -> tuple[Difference, ...]:
    """Return the differences with the values of the float64 reference, where there is one.

    Of the gradients of a single call, only those among the first `MOST_GRADIENTS` differences get a value.

    Args:
        differences: of one call, worst first.
        eager: see `float64_reference`.
        rerun: see `float64_reference`.
        learns: whether an optimizer steps in what `rerun` repeats.
    """
    only = None if learns else [difference.path for difference in differences[:MOST_GRADIENTS]]
    reference = float64_reference(eager, rerun, only)
    if reference is None:
        return differences
    values = reference.elementwise() | reference.differentiated()
    return tuple(_with_value(difference, values.get(difference.path)) for difference in differences)


def _with_value(difference: Difference, reference: torch.Tensor | None) -> Difference:
    """`difference` with the float64 reference's value at the worst element."""
    if reference is None or difference.index is None or difference.problem != "values":
        return difference
    if reference.dtype != torch.float64 or len(difference.index) != reference.dim():
        return difference
    value = float(reference[difference.index])
    eager, compiled = abs(float(difference.eager) - value), abs(float(difference.compiled) - value)
    closer = "eager" if eager < compiled else "compiled" if compiled < eager else "neither"
    return dataclasses.replace(difference, float64=f"{value:.9g}", closer=closer)


def errors(difference: Difference) -> tuple[float, float] | tuple[None, None]:
    """How far eager's and compiled's values are from float64's; None where that did not run."""
    if difference.float64 is None:
        return None, None
    value = float(difference.float64)
    return abs(float(difference.eager) - value), abs(float(difference.compiled) - value)


class _Record(internals.DispatchMode):
    """Records the random numbers that each operator returns."""

    def __init__(self, tape: list[Any]) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if internals.draws_random_numbers(func) and isinstance(result, torch.Tensor):
            self._tape.append(result.detach().clone())
        return result


class _Replay(internals.DispatchMode):
    """Replaces the results of random operators by the recorded ones, in float64."""

    def __init__(self, tape: list[Any]) -> None:
        super().__init__()
        self._tape = collections.deque(tape)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not internals.draws_random_numbers(func) or not isinstance(result, torch.Tensor):
            return result
        drawn = self._tape.popleft()
        if 0 in internals.aliased_arguments(func)[0]:
            return result.copy_(drawn)
        return drawn.to(torch.float64) if drawn.is_floating_point() else drawn


class _Widen(TorchFunctionMode):
    """Replaces float32, float16 and bfloat16 by float64 in casts and in the creation of tensors."""

    _CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)
    _NARROW = (torch.float32, torch.float16, torch.bfloat16)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self._CASTS:
            return args[0].double()
        widened = tuple(self._widened(a) for a in args)
        return func(*widened, **{name: self._widened(a) for name, a in (kwargs or {}).items()})

    def _widened(self, value: Any) -> Any:
        return torch.float64 if isinstance(value, torch.dtype) and value in self._NARROW else value


@contextlib.contextmanager
def _in_float64(side: Side, tape: list[Any], only: Collection[str] | None) -> Iterator[None]:
    """Run the body with the module's tensors and every cast in float64; see `float64_reference`.

    Parameters are restored at the end of the body, buffers and tensor attributes by `ModuleState.reset`.
    """
    narrow: dict[torch.Tensor, torch.Tensor] = {}
    dropping: list[RemovableHandle] = []
    dtype = torch.get_default_dtype()
    try:
        if side.model is not None:
            for name, parameter in Reachable(side.model).parameters.items():
                if parameter.is_floating_point():
                    narrow[parameter] = parameter.data
                    parameter.data = parameter.data.double()
                if only is not None and f"{GRADIENT} {name}" not in only and parameter.requires_grad:
                    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                        _drop_gradient
                    )
                    dropping.append(handle)
            _widen_state(side.model)
        torch.set_default_dtype(torch.float64)
        with _Widen(), _Replay(tape):
            yield
    finally:
        torch.set_default_dtype(dtype)
        for handle in dropping:
            handle.remove()
        for parameter, data in narrow.items():
            parameter.data = data


def _drop_gradient(leaf: torch.Tensor) -> None:
    leaf.grad = None


def _widen_state(model: torch.nn.Module) -> None:
    """Replace floating-point buffers and tensor attributes by float64; `ModuleState.reset` restores them."""
    found = Reachable(model)
    for module in found.modules.values():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._buffers[name] = widened(buffer)
    for place, value in found.tensors().items():
        found.put(place, map_tensors(widened, value))


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return a floating-point tensor as a float64 leaf with the same `requires_grad`; any other unchanged."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().double().requires_grad_(tensor.requires_grad)
