"""The record of a correct policy: its class, its inputs, and what is hard about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correct:
    """A correct policy.

    Args:
        name: tells it apart from all others.
        model: its class, which takes no arguments.
        declaration: the arguments of `check_equivalence` that say what it is called with.
        sensitive: whether rounding moves it far, or moves a choice that it makes, so that a check that
            allows too little accuses it.
        long: whether a compiler needs minutes for it, because a loop of hundreds of steps is unrolled.
        miscompiled: what torch 2.13's inductor makes of it on the CPU, if that is wrong; a check that reports
            it there is right.
    """

    name: str
    model: type[nn.Module]
    declaration: Mapping[str, Any]
    sensitive: bool = False
    long: bool = False
    miscompiled: str = ""


def correct(
    name: str, model: type[nn.Module], *, sensitive: bool = False, long: bool = False, **declaration: Any
) -> Correct:
    """The record of `model`, called with what `declaration` says."""
    return Correct(
        name=name,
        model=model,
        declaration=MappingProxyType(declaration),
        sensitive=sensitive,
        long=long,
    )
