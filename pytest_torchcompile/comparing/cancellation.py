"""Find how large the numbers were that cancelled to a small result.

Example: the divergence of a policy from its frozen copy is zero or a few 1e-7. It is a difference of numbers
near 1, and its rounding error is relative to them and not to the difference.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch

from pytest_torchcompile import internals
from pytest_torchcompile.comparing import operators
from pytest_torchcompile.comparing.rounding import comparable
from pytest_torchcompile.policies.calls import Outcome, Rerun

_SMALL = 1e-2
"""A result with an element of this size or more is not recorded as a small one."""

_ADDS = frozenset(
    f"aten::{name}" for name in ("add", "sub", "rsub", "sum", "mean", "addcmul", "lerp", "cumsum")
)
_MULTIPLIES_AND_ADDS = frozenset(f"aten::{name}" for name in ("mm", "bmm", "addmm", "baddbmm", "mv", "dot"))


def largest_operands(eager: Outcome, rerun: Rerun, paths: Collection[str]) -> dict[str, float]:
    """Return, by path, the largest operand of the additions whose result is that tensor; 0 if there is none.

    Args:
        eager: the outcome of the call.
        rerun: calls eager again on the same example.
        paths: paths of outputs or gradients.
    """
    seen = _Operands()
    rerun(lambda: seen)
    values = eager.elementwise() | eager.differentiated()
    return {path: seen.largest(comparable(values[path])) for path in paths}


class _Operands(internals.DispatchMode):
    """Records each small result of an addition together with its largest operand."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[tuple[torch.Tensor, float, float]] = []
        """Each result with its largest magnitude and its largest operand."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operators.name_of(func)
        magnitudes = [_largest(value) for value in operators.float_tensors((args, kwargs))]
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        if name in _ADDS and magnitudes:
            self._note(result, max(magnitudes))
        elif name in _MULTIPLIES_AND_ADDS:
            self._note(result, math.prod(magnitudes[-2:]))
        return result

    def _note(self, result: torch.Tensor, operand: float) -> None:
        magnitude = _largest(result)
        if magnitude < _SMALL:
            self._found.append((result.clone(), magnitude, operand))

    def largest(self, value: torch.Tensor) -> float:
        """Return the largest operand of the results with the same elements as `value`, in any order."""
        flat = value.reshape(-1)
        magnitude = _largest(flat)
        # Sorting takes most of the time, so results are told apart by size and magnitude first.
        alike = [
            (result, operand)
            for result, largest, operand in self._found
            if result.numel() == flat.numel() and flat.new_tensor(largest).item() == magnitude
        ]
        if not alike:
            return 0.0
        flat = flat.sort().values
        equal = (
            operand
            for result, operand in alike
            if torch.equal(result.reshape(-1).to(flat).sort().values, flat)
        )
        return max(equal, default=0.0)


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() and tensor.layout == torch.strided else 0.0
