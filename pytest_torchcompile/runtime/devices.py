"""Synchronize the device that a policy runs on, and measure its memory.

The accelerator paths (CUDA, MPS, XPU) are tested against a fake `torch.accelerator`; they have not been run
on hardware.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Protocol

import torch

_STATM = "/proc/self/statm"


class Device(Protocol):
    """The interface that timing uses; the device runs one side at a time."""

    memory_kind: str
    """What `watch_memory` measures, in the words of the report."""

    def synchronize(self) -> None:
        """Wait until all submitted work is done."""

    def watch_memory(self) -> Callable[[], int | None]:
        """Start to measure; the returned function returns the bytes used since then, None if unknown."""


class Cpu:
    """The CPU. Its memory is that of the whole process, and is known on Linux only."""

    memory_kind = "resident growth"

    def synchronize(self) -> None:
        """Do nothing: CPU work is synchronous."""

    def watch_memory(self) -> Callable[[], int | None]:
        """Measure the growth of the process's resident memory."""
        before = _resident()
        return lambda: None if before is None else max(0, (_resident() or 0) - before)


class Accelerator:
    """The device of `torch.accelerator`."""

    memory_kind = "peak allocated"

    def synchronize(self) -> None:
        """Wait until all work of the current device is done."""
        torch.accelerator.synchronize()

    def watch_memory(self) -> Callable[[], int | None]:
        """Measure the peak of the bytes in torch's allocator above those at the start."""
        try:
            torch.accelerator.reset_peak_memory_stats()
            before = torch.accelerator.memory_allocated()
        except RuntimeError:  # some allocators have no such statistics, such as that of MPS
            return lambda: None
        return lambda: max(0, torch.accelerator.max_memory_allocated() - before)


def device_of(tensors: Iterable[torch.Tensor]) -> Device:
    """Return the accelerator if one of `tensors` is on it, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None and any(t.device.type == accelerator.type for t in tensors):
        return Accelerator()
    return Cpu()


def _resident() -> int | None:
    try:
        with open(_STATM, encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
