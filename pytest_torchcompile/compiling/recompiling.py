"""Detect a method that compiles again on call after call, which makes training impractically slow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable


class Recompiling:
    """Counts consecutive calls that compile code again for the same kind of inputs.

    A branch on data compiles the code behind it when it is first taken. That code object was not compiled for
    these inputs before, so it does not count.

    Args:
        most: the number of consecutive calls that counts as too many.

    Example:
        >>> recompiling = Recompiling(2)
        >>> [recompiling.add("batch 4", {"frame 0"}) for _ in range(3)]
        [False, False, True]
        >>> Recompiling(1).add("batch 7", {"frame 0"})
        False
    """

    def __init__(self, most: int) -> None:
        self.in_a_row = 0
        self._most = most
        self._compiled: defaultdict[Hashable, set[str]] = defaultdict(set)

    def add(self, seen_by_guards: Hashable, frames: Collection[str]) -> bool:
        """Add a call and return whether too many consecutive calls have compiled again.

        Args:
            seen_by_guards: a key; calls with equal keys should share their compiled code.
            frames: the code objects that the call compiled.
        """
        if seen_by_guards in self._compiled:
            again = not self._compiled[seen_by_guards].isdisjoint(frames)
            self.in_a_row = self.in_a_row + 1 if again else 0
        self._compiled[seen_by_guards].update(frames)
        return self.in_a_row >= self._most
