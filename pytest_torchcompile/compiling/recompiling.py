"""Whether call after call compiles again what was compiled for the same: no training could afford it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable


class Recompiling:
    """Counts calls in a row that compile code again for what they were called on before.

    A branch on data compiles the code behind it when it is first taken, whatever came before it: that is a
    code object that has not been compiled for the like, and does not count.

    Args:
        most: so many calls in a row are no coincidence.

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
        """Add a call; whether it is the last of too many.

        Args:
            seen_by_guards: what it has in common with other calls for which no compile is needed again.
            frames: the code objects that it compiled.
        """
        if seen_by_guards in self._compiled:
            again = not self._compiled[seen_by_guards].isdisjoint(frames)
            self.in_a_row = self.in_a_row + 1 if again else 0
        self._compiled[seen_by_guards].update(frames)
        return self.in_a_row >= self._most
