"""What a check is doing, for who watches it: a terminal, or a file that outlives the process."""

from __future__ import annotations


class Progress:
    """Is told what a check does; this one keeps it to itself."""

    def compiling(self, begins: bool) -> None:
        """A compile begins or, if `begins` is False, has ended."""

    def step(self, what: str) -> None:
        """The check is at `what` from now on, such as ``example 3, compiled call``."""


silent = Progress()
