"""Mixed precision: the context that a policy runs in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals


def autocasting(dtype: str | None, model: nn.Module) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Makes autocast to `dtype` on the model's device; what does nothing for None."""
    if dtype is None:
        return contextlib.nullcontext
    device = next((p.device.type for p in internals.uncompiled(model).parameters() if not p.is_meta), "cpu")
    return lambda: torch.autocast(device, dtype=getattr(torch, dtype))
