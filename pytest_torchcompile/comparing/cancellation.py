"""How large the numbers were that cancelled to a small result.

A divergence of a policy from its frozen copy is zero, or a few 1e-7: the difference of numbers of size
1, which rounds by their size and not by its own.
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
"""Results with a larger element than this cancelled to nothing small."""

_ADDS = frozenset(
    f"aten::{name}" for name in ("add", "sub", "rsub", "sum", "mean", "addcmul", "lerp", "cumsum")
)
_MULTIPLIES_AND_ADDS = frozenset(f"aten::{name}" for name in ("mm", "bmm", "addmm", "baddbmm", "mv", "dot"))


def largest_operands(eager: Outcome, rerun: Rerun, paths: Collection[str]) -> dict[str, float]:
    """The largest number that was added to another to make each of these tensors, 0 if none was.

    Args:
        eager: the outcome of the call.
        rerun: calls eager again on the same example.
        paths: of the tensors, outputs or gradients.
    """
    seen = _Operands()
    rerun(lambda: seen)
    values = eager.elementwise() | eager.differentiated()
    return {path: seen.largest(comparable(values[path])) for path in paths}


class _Operands(internals.DispatchMode):
    """Keeps what is small, with the largest number that it is the sum of."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[tuple[torch.Tensor, float]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operators.name_of(func)
        magnitudes = [_largest(value) for value in operators.float_tensors((args, kwargs))]
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        if name in _ADDS and magnitudes and _largest(result) < _SMALL:
            self._found.append((result.clone(), max(magnitudes)))
        elif name in _MULTIPLIES_AND_ADDS and _largest(result) < _SMALL:
            self._found.append((result.clone(), math.prod(magnitudes[-2:])))
        return result

    def largest(self, value: torch.Tensor) -> float:
        """The largest operand of what has these values, in whatever shape and order of dimensions."""
        flat = value.reshape(-1).sort().values
        return max(
            (
                operand
                for result, operand in self._found
                if result.numel() == flat.numel()
                and torch.equal(result.reshape(-1).to(flat).sort().values, flat)
            ),
            default=0.0,
        )


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() and tensor.layout == torch.strided else 0.0
