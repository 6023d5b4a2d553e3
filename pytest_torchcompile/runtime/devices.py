"""What timing has to know about the device that a policy runs on: when it is done, and its memory.

The accelerator paths (CUDA, MPS, XPU) are tested against a fake `torch.accelerator`; they have not
been run on hardware.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Protocol

import torch

_STATM = "/proc/self/statm"


class Device(Protocol):
    """A device that runs one side at a time."""

    memory_kind: str
    """What `memory` measures, in the words of the report."""

    def synchronize(self) -> None:
        """Wait until everything that was asked for has been computed."""

    def watch_memory(self) -> Callable[[], int | None]:
        """Begin to watch; the returned function gives the bytes used since then, None if unknown."""


class Cpu:
    """The host. Its memory is that of the whole process, and only Linux tells it."""

    memory_kind = "resident growth"

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def watch_memory(self) -> Callable[[], int | None]:
        """The growth of the process's resident memory."""
        before = _resident()
        return lambda: None if before is None else max(0, (_resident() or 0) - before)


class Accelerator:
    """What `torch.accelerator` names."""

    memory_kind = "peak allocated"

    def synchronize(self) -> None:
        """Wait for the current stream's device."""
        torch.accelerator.synchronize()

    def watch_memory(self) -> Callable[[], int | None]:
        """The most that torch's allocator held beyond what it held before."""
        try:
            torch.accelerator.reset_peak_memory_stats()
            before = torch.accelerator.memory_allocated()
        except RuntimeError:  # an allocator without such statistics, such as that of MPS
            return lambda: None
        return lambda: max(0, torch.accelerator.max_memory_allocated() - before)


def device_of(tensors: Iterable[torch.Tensor]) -> Device:
    """The accelerator if one of `tensors` is on it, else the host."""
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
