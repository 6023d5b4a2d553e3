"""Mixed precision: the context that a policy runs in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals


def autocasting(dtype: str | None, model: nn.Module) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return a function that makes an autocast context for the model's device.

    Args:
        dtype: the name of a torch dtype, such as ``bfloat16``; None for a context that does nothing.
        model: the model, see `device_type`.
    """
    if dtype is None:
        return contextlib.nullcontext
    device = device_type(model)
    return lambda: torch.autocast(device, dtype=getattr(torch, dtype))


def device_type(model: nn.Module) -> str:
    """Return the type of device of the model's first parameter that holds numbers; ``cpu`` if none does."""
    parameters = internals.uncompiled(model).parameters()
    return next((p.device.type for p in parameters if not p.is_meta), "cpu")
