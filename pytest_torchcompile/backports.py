"""What the standard library lacks in the older versions of Python that are supported."""

from __future__ import annotations

import contextlib
import enum
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

if sys.version_info >= (3, 11):
    from enum import StrEnum

    import tomllib
else:
    import tomli as tomllib

    class StrEnum(str, enum.Enum):
        """An enum whose members are strings."""

        def __str__(self) -> str:
            return str(self.value)


@contextlib.contextmanager
def profiled(on_event: Callable[[types.FrameType, str, Any], None]) -> Iterator[None]:
    """Call `on_event` for each event of `sys.setprofile` in the body; then the profiler before goes on.

    Before Python 3.12 that may be a ``cProfile.Profile``, which `sys.setprofile` rejects.
    """
    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        yield
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:
            before.enable()


__all__ = ["StrEnum", "profiled", "tomllib"]
