"""Limits the seconds that a case may take before it stops trying more."""

from __future__ import annotations

import time


class Budget:
    """The seconds of one case, from its beginning: compiling, drawing and calls of both sides.

    Args:
        seconds: how many; infinity for no limit.

    Example:
        >>> Budget(0.0).spent()
        'the case took more than max_seconds=0'
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds since the case began."""
        return time.monotonic() - self._began

    def spent(self) -> str:
        """Return why nothing more is tried; empty while there are seconds left."""
        return (
            f"the case took more than max_seconds={self._seconds:g}" if self.seconds > self._seconds else ""
        )
