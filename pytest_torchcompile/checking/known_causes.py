"""Notes on differences that torch intends, with the remedy.

A note is added only after a rerun has confirmed its cause. Otherwise it could explain a miscompile away.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from pytest_torchcompile import internals
from pytest_torchcompile.checking.stops import Stop
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Rerun

OTHER_NUMBERS = (
    "known cause: the random numbers, and possibly more. The policy was compiled before the check, and by "
    "design inductor draws other random numbers than eager from the same seed. To see what else differs, "
    "pass a policy that has not been called yet, so that it is compiled to draw eager's numbers, or compare "
    "distributions with check_equivalence(..., samples=1000)"
)
"""The note on a policy that draws random numbers and was compiled before the check."""


def rounding_causes(options: CheckOptions, passes: Callable[[CheckOptions], bool], rerun: Rerun) -> list[str]:
    """Return the note on a difference under ``reference="eager"`` that ``"float64"`` passes as rounding.

    Args:
        options: the options under which the example differs.
        passes: whether the example passes under other options; may raise `Stop`.
        rerun: calls eager again on the example.

    Returns:
        One note, or none if the example differs under ``"float64"`` too.
    """
    with contextlib.suppress(Stop):
        if options.reference == "eager" and passes(dataclasses.replace(options, reference="float64")):
            return [rounding_cause(rerun)]
    return []


def rounding_cause(rerun: Rerun) -> str:
    """Return the note on a difference that rounding explains.

    Args:
        rerun: calls eager again on the example.
    """
    low = _LowPrecision()
    rerun(lambda: low)
    dtype = " and ".join(sorted(low.found))
    where = (
        f"Eager rounds to {dtype} after each operator; by design inductor keeps float32 inside a fused loop. "
        f"Compile with options={{'emulate_precision_casts': True}} (on CPU since torch 2.13), or accept the "
        f"difference with "
        if dtype
        else "The difference is no larger than another order of sums explains; accept it with "
    )
    return f"known cause: rounding. {where}reference='float64', the default, under which this example passes"


class _LowPrecision(internals.DispatchMode):
    """Records which 16-bit floating-point dtypes the operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16):
                self.found.add(str(value.dtype).removeprefix("torch."))
        return result
