"""Counts the seconds that a case, or the explanation of one, may take."""

from __future__ import annotations

import time


class OutOfTime(Exception):
    """The seconds of a budget are up."""


class Budget:
    """A number of seconds, which begin when the object is made.

    Example:
        >>> Budget(0.0).left <= 0
        True
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = time.monotonic()

    @property
    def spent(self) -> float:
        """The seconds since the beginning."""
        return time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """The seconds that are left; negative after the end."""
        return self._seconds - self.spent

    def require(self) -> None:
        """Raise `OutOfTime` if no time is left."""
        if self.left <= 0:
            raise OutOfTime
