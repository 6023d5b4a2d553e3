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
from pytest_torchcompile.policies.calls import Rerun
from pytest_torchcompile.policies.outcome import Outcome

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
    values = eager.elementwise() | eager.differentiated()
    seen = _Operands({path: comparable(values[path]) for path in paths})
    rerun(lambda: seen)
    return seen.largest


class _Operands(internals.DispatchMode):
    """Looks for small tensors among the results of additions, and for their largest operands.

    Args:
        values: the tensors to look for, by path. A result is one of them if it has the same elements, in any
            order and shape.
    """

    def __init__(self, values: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.largest = dict.fromkeys(values, 0.0)
        """The largest operand of the results that are the tensor with this path; 0 if none is."""
        self._values = values
        self._magnitudes = {path: _largest(value) for path, value in values.items()}

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
        for path, value in self._values.items():
            # Sorting takes most of the time, so a result is told apart by size and magnitude first.
            alike = result.numel() == value.numel()
            alike = alike and value.new_tensor(magnitude).item() == self._magnitudes[path]
            if alike and torch.equal(_sorted(result.to(value)), _sorted(value)):
                self.largest[path] = max(self.largest[path], operand)


def _sorted(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).sort().values


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() and tensor.layout == torch.strided else 0.0
