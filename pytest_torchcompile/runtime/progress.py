"""The interface for reporting what a check is doing, to a terminal or to a file."""

from __future__ import annotations


class Progress:
    """Receives what a check is doing; this base class ignores it."""

    def compiling(self, begins: bool) -> None:
        """A compile begins, or has ended if `begins` is False."""

    def step(self, what: str) -> None:
        """The check starts `what`, such as ``example 3, compiled call``."""


silent = Progress()
