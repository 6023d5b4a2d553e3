"""Try a case at more batch sizes, and at more lengths of a ``"T"``, than its first examples have.

Compilers generate different code at certain widths, and training uses minibatches of hundreds. In a batch
that is as large as a layer, a tensor may be broadcast along the wrong dimension without an error. Usually one
graph serves every size, and a size costs one call of each side. If each size is compiled separately, the
sizes are not tried and a note says so.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from pytest_torchcompile import internals
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.trial import Failure, Trial
from pytest_torchcompile.generation import edges, recipes
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.options import CheckOptions

CHEAP = 129
"""Sizes up to this one are tried regardless of the time."""

SHARE = 0.1
LEAST_S = 2.0
"""Larger sizes may take this share of the case's time so far, or at least this many seconds."""

MOST_BYTES = 2**31
"""A size is not tried if a call would allocate more than this."""

MOST_OWN = 8
"""At most this many sizes of the policy's parameters are tried as batch sizes."""

IN_A_ROW = 2
"""After this many consecutive sizes that compile again, every size is assumed to."""


class Sizes:
    """Tries the sizes in increasing order, up to the first failure.

    Args:
        pair: the two sides.
        trial: tries an example on them.
        options: the options, among them the declared sizes.
        met: the examples that were tried before.
    """

    def __init__(self, pair: Pair, trial: Trial, options: CheckOptions, met: Sequence[Recipe]) -> None:
        self.each_compiles = options.dynamic is False
        """Whether each new batch size is compiled separately."""
        self._pair = pair
        self._trial = trial
        self._options = options
        self._met = met
        # By kind of size and reason.
        self._not_tried: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
        self._compiled_again: dict[str, list[int]] = collections.defaultdict(list)

    @property
    def notes(self) -> list[str]:
        """Sentences on the sizes that were not tried, and on those that compiled again."""
        found = [
            f"{kind} {_listed(sorted(sizes))} not tried: {reason}"
            for (kind, reason), sizes in self._not_tried.items()
            if sizes
        ]
        again = (
            f"compiled again for {kind} {_listed(sizes)}" for kind, sizes in self._compiled_again.items()
        )
        return [*found, *again]

    def first_failure(self) -> Failure | None:
        """Try each size once and return the first failure; None if there is none."""
        return self._try_batches() or (self._try_lengths() if recipes.uses_time(self._pair.tree) else None)

    def _try_batches(self) -> Failure | None:
        met = {recipe.batch for recipe in self._met}
        at_edges = [size for size in self.declared() if size not in met]
        own = self._own_sizes({*met, *at_edges})
        budget = _Budget(self._pair, self._options)
        failure, separately = self._try("batch", at_edges, self._recipe_of_batch, budget)
        self.each_compiles = bool(separately)
        if separately:
            self._leave_out("batch", own, separately)
        elif failure is None:
            # Code that depends on one of these sizes compiles for it, which says nothing of other sizes.
            failure, separately = self._try("batch", own, self._recipe_of_batch, budget)
            self.each_compiles = bool(separately) and not at_edges
        return failure

    def _try_lengths(self) -> Failure | None:
        lengths = [n for n in edges.LENGTHS if n not in {recipe.time for recipe in self._met}]
        failure, separately = self._try("T =", lengths, self._recipe_of_length, None)
        return failure or self._try_square(each_length_compiles=bool(separately))

    def _try_square(self, *, each_length_compiles: bool) -> Failure | None:
        """Try one batch that is as large as T, with a batch size or a length that is already compiled."""
        sizes = list(self._options.batch)
        if not self.each_compiles:
            low, high = self._range()
            sizes = [*edges.between((recipe.time for recipe in self._met), low, high), *sizes]
        elif each_length_compiles:
            self._leave_out("T = batch =", sizes[:1], "each is compiled separately")
            return None
        fitting = [size for size in sizes if 1 < size <= max(edges.LENGTHS)]
        failure, _ = self._try("T = batch =", fitting[:1], self._square_recipe, None)
        return failure

    def _range(self) -> tuple[int, int]:
        """Return the smallest and the largest batch size to try."""
        sizes = self._options.batch if self._options.is_set("batch") else edges.BATCHES
        return min(sizes), max(sizes)

    def _own_sizes(self, others: set[int]) -> list[int]:
        """Return the most frequent sizes of the policy's parameters in the range, without `others` and 1."""
        state = self._pair.eager.state
        held = {} if state is None else state.parameters()
        sizes = (size for parameter in held.values() for size in parameter.shape)
        within = edges.between(sizes, *self._range())
        counts = collections.Counter(size for size in within if size not in {1, *others})
        return sorted(size for size, _ in counts.most_common(MOST_OWN))

    def declared(self) -> list[int]:
        """Return the sizes in the declared range at which code changes; all of them if none is declared."""
        return edges.between(edges.BATCHES, *self._range())

    def _recipe_of_batch(self, size: int) -> Recipe:
        return recipes.random_recipe(self._pair.tree, size, self._options.seed + size)

    def _recipe_of_length(self, length: int) -> Recipe:
        options = self._options
        return recipes.random_recipe(self._pair.tree, options.batch[0], options.seed + length, length)

    def _square_recipe(self, size: int) -> Recipe:
        return recipes.random_recipe(self._pair.tree, size, self._options.seed + size, size)

    def _try(
        self, kind: str, sizes: list[int], recipe_of: Callable[[int], Recipe], budget: _Budget | None
    ) -> tuple[Failure | None, str]:
        """Return the first failure, and, if each size compiles again, why the others are not tried."""
        if self._options.dynamic is False:
            reason = "dynamic=False compiles for each size"
            self._leave_out(kind, sizes, reason)
            return None, reason
        compiled: list[int] = []
        in_a_row = 0
        for number, size in enumerate(sizes):
            reason = self._pair.out_of_seconds() or (budget.exceeded_by(size) if budget else "")
            if reason:
                self._leave_out(kind, sizes[number:], reason)
                break
            begun = time.monotonic()
            failure = self._trial(recipe_of(size))
            if failure is not None:
                return failure, ""
            again = bool(self._pair.recorder.compiled_in_last_call)
            compiled += [size] * again
            in_a_row = in_a_row + 1 if again else 0
            if budget is not None:
                budget.spend(size, time.monotonic() - begun, compiled=again)
            if in_a_row == IN_A_ROW:
                reason = f"each is compiled separately, as {_listed(compiled)} were"
                self._leave_out(kind, sizes[number + 1 :], reason)
                return None, reason
        if compiled:
            self._compiled_again[kind] += compiled
        return None, ""

    def _leave_out(self, kind: str, sizes: list[int], reason: str) -> None:
        self._not_tried[kind, reason] += sizes


class _Budget:
    """Limits the time and memory that large sizes may take."""

    def __init__(self, pair: Pair, options: CheckOptions) -> None:
        self._pair = pair
        self._options = options
        self._spent_s = 0.0
        self._per_row_s = 0.0
        self._per_row_bytes: float | None = None

    def exceeded_by(self, size: int) -> str:
        """Return why a size is not tried; empty if it is."""
        if size > max(self._options.batch) and size * self._bytes_of_a_row() > MOST_BYTES:
            return f"a call would hold more than {MOST_BYTES / 2**30:.0f} GiB"
        allowed = max(LEAST_S, SHARE * self._pair.budget.spent)
        if size > CHEAP and self._spent_s + size * self._per_row_s > allowed:
            return f"they would take more than {SHARE:.0%} of the case's time"
        return ""

    def spend(self, size: int, seconds: float, *, compiled: bool) -> None:
        """Record the time that a size took."""
        self._spent_s += seconds if size > CHEAP else 0.0
        if not compiled:
            self._per_row_s = seconds / size

    def _bytes_of_a_row(self) -> float:
        """Return the memory of an eager call per row of the batch."""
        if self._per_row_bytes is None:
            few, many = min(self._options.batch), max(*self._options.batch, min(self._options.batch) + 8)
            held = [self._bytes_at(size) for size in (few, many)]
            self._per_row_bytes = max(0.0, held[1] - held[0]) / (many - few)
        return self._per_row_bytes

    def _bytes_at(self, size: int) -> int:
        recipe = recipes.random_recipe(self._pair.tree, size, self._options.seed)
        memory = _Memory()
        self._pair.begin(recipe)
        self._pair.run(self._pair.eager, recipe, under=lambda: memory)
        return memory.bytes


class _Memory(internals.DispatchMode):
    """Adds up the memory of the tensors of a call; memory that is freed and used again counts once."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """The bytes that the call has allocated."""
        return sum(self._held.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else (result,):
            if type(value) is torch.Tensor and value.layout is torch.strided:
                storage = value.untyped_storage()
                address, size = storage.data_ptr(), storage.nbytes()
                self._held[address] = max(size, self._held.get(address, 0))
        return result


def _listed(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))
