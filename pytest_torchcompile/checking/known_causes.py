"""Differences that torch intends: what is said of them, and the remedy.

Of each only what has been shown is told, because a sentence that excuses any difference would excuse a
miscompile.
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
    "known cause: the random numbers, if nothing else. It was compiled before, where inductor draws others "
    "than eager from one seed by design; to see what else differs, hand over what has not been called yet, "
    "so that it is compiled to draw eager's, or compare distributions by check_equivalence(..., samples=1000)"
)
"""Of what draws other random numbers and was not compiled by us."""


def rounding_causes(options: CheckOptions, passes: Callable[[CheckOptions], bool], rerun: Rerun) -> list[str]:
    """What to say of a difference under ``reference="eager"``, if ``"float64"`` excuses it.

    Args:
        options: how the two sides were compared.
        passes: whether the example passes under other options; may raise `Stop`.
        rerun: calls eager again on the example.
    """
    with contextlib.suppress(Stop):
        if options.reference == "eager" and passes(dataclasses.replace(options, reference="float64")):
            return [rounding_cause(rerun)]
    return []


def rounding_cause(rerun: Rerun) -> str:
    """What to say of a difference that rounding explains.

    Args:
        rerun: calls eager again on the example.
    """
    low = _LowPrecision()
    rerun(lambda: low)
    dtype = " and ".join(sorted(low.found))
    where = (
        f"eager rounds to {dtype} after each operator, where inductor keeps float32 inside of a loop, by "
        f"design; compile with options={{'emulate_precision_casts': True}}, or accept it by "
        if dtype
        else "both are as far from float64 as the order of their sums takes them; accept that by "
    )
    return f"known cause: rounding. {where}reference='float64', the default, under which this example passes"


class _LowPrecision(internals.DispatchMode):
    """Notes which of the floating-point types of 16 bits operators return."""

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
