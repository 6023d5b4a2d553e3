"""Examples as plain data.

Drawing a board element by element costs a tenth of a second and minutes to shrink. A `Recipe` holds
a few numbers instead: a seed for the bulk of each tensor, the window of it that is kept, and some
single elements set by hand. Hypothesis draws and shrinks those; ``tensors.build`` turns them into
tensors, the same ones each time, so that both sides of a check get inputs of their own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from pytest_torchcompile import spaces, trees
from pytest_torchcompile.spaces import Spec

LARGE = 1e4
"""The standard deviation of the fixed example with large values."""

TIMES = (5, 3, 1, 8)
"""Lengths of a ``"T"`` in the fixed examples."""

NEAR_CONSTANT = 0.75
"""A tensor is near-constant if its bulk fill covers less than this share of it."""

DWARFING = 100.0
"""An element dwarfs the others from this many standard deviations on."""


@dataclasses.dataclass(frozen=True)
class Fill:
    """The content of one tensor.

    Args:
        seed: of the bulk fill.
        scale: standard deviation of unbounded bulk values.
        start: first flat element (C order) that the bulk fills.
        stop: first flat element after them; None is all.
        rest: the value of the elements outside, where the spec admits it.
        edits: single elements set afterwards, as (flat index, value), in the spec's own terms.
        layout: ``contiguous``, ``strided`` or ``channels_last`` (4-d tensors only).
    """

    seed: int = 0
    scale: float = 1.0
    start: int = 0
    stop: int | None = None
    rest: float = 0.0
    edits: tuple[tuple[int, float], ...] = ()
    layout: str = "contiguous"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All inputs of one example, as plain hashable data.

    Args:
        batch: the batch size.
        time: the length of every ``"T"``.
        seed: of whatever the policy draws while it is called.
        fills: the content of each leaf of the spec tree, in its order.
    """

    batch: int
    time: int
    seed: int
    fills: tuple[Fill, ...]

    @property
    def shape(self) -> str:
        """What a compiler may make a graph of its own for: ``batch 4, strided``."""
        layouts = dict.fromkeys(fill.layout for fill in self.fills if fill.layout != "contiguous")
        return ", ".join([f"batch {self.batch}", *layouts])


def uses_time(tree: Any) -> bool:
    """Whether a shape in the tree has a ``"T"``."""
    return any(
        spec.per_step or spaces.TIME in (getattr(spec, "shape", None) or (getattr(spec, "length", None),))
        for _, spec in trees.leaves(tree)
    )


def shape_of(spec: Spec, batch: int, time: int) -> tuple[int, ...]:
    """The shape of the tensor that `spec` describes."""
    tail: tuple[Any, ...]
    match spec:
        case spaces.MultiDiscrete():
            tail = (len(spec.nvec),)
        case spaces.OneHot() | spaces.LegalMask():
            tail = (spec.n,)
        case spaces.Tokens():
            tail = (spec.length,)
        case spaces.Discrete() | spaces.Flag() | spaces.LegalAction():
            tail = ()
        case _:
            tail = getattr(spec, "shape", ())
    sizes = [time if size == spaces.TIME else int(size) for size in tail]
    sizes.insert(getattr(spec, "batch_dim", 0), batch * time if spec.per_step else batch)
    return tuple(sizes)


def equal_terms(tree: Any, recipe: Recipe) -> int:
    """How many elements the largest degenerate input has, 0 if none is.

    A numeric input is degenerate if it is near-constant or has an element that dwarfs the others:
    sums over it round systematically, and normalisations divide by next to nothing.
    """
    most = 0
    for (_, spec), fill in zip(trees.leaves(tree), recipe.fills, strict=True):
        if isinstance(spec, (spaces.Box, spaces.Image, spaces.State, spaces.MultiBinary)):
            elements = math.prod(shape_of(spec, recipe.batch, recipe.time))
            filled = (elements if fill.stop is None else fill.stop) - fill.start
            dwarfing = any(abs(value) > DWARFING * fill.scale for _, value in fill.edits)
            if filled < NEAR_CONSTANT * elements or dwarfing:
                most = max(most, elements)
    return most


def ladder(tree: Any, sizes: Sequence[int], *, nonfinite: bool, seed: int) -> list[Recipe]:
    """The examples that every check begins with.

    First each batch size, because the compiler makes a graph of its own for some; then contents that
    random fills don't reach; memory layouts last, because each may add a graph.

    Args:
        tree: the specs.
        sizes: batch sizes in the order in which to meet them.
        nonfinite: whether to include a NaN and an infinity.
        seed: of the first example; the others count on from it.
    """
    first, second = sizes[0], sizes[min(1, len(sizes) - 1)]
    steps = [(first, Fill()), *((size, Fill()) for size in (first, *sizes[1:]))]
    steps += [(second, Fill(stop=0)), (first, Fill(stop=0, rest=1.0)), (first, Fill(stop=0, rest=-1.0))]
    steps += [(second, Fill(scale=LARGE)), (second, Fill())]
    steps += [(first, Fill(layout=layout)) for layout in layouts(tree)]
    found = [
        random_recipe(tree, size, seed + number, TIMES[number % len(TIMES)], fill)
        for number, (size, fill) in enumerate(steps)
    ]
    if nonfinite and _floats(tree):
        # Among shapes that are known by then, and before the layouts.
        place = len(found) - len(layouts(tree))
        found[place:place] = [_with_one(tree, found[0], math.nan), _with_one(tree, found[2], math.inf)]
    return found


def random_recipe(tree: Any, batch: int, seed: int, time: int = TIMES[0], like: Fill = Fill()) -> Recipe:
    """An example whose tensors are filled alike, each from a seed of its own."""
    leaves = enumerate(trees.leaves(tree))
    fills = tuple(dataclasses.replace(like, seed=1000 * seed + i) for i, _ in leaves)
    return Recipe(batch, time, seed, fills)


def _with_one(tree: Any, recipe: Recipe, value: float) -> Recipe:
    """The recipe with one element in the middle of the first float input set to `value`."""
    leaf = _floats(tree)[0]
    spec = [spec for _, spec in trees.leaves(tree)][leaf]
    middle = math.prod(shape_of(spec, recipe.batch, recipe.time)) // 2
    fills = list(recipe.fills)
    fills[leaf] = dataclasses.replace(fills[leaf], edits=((middle, value),))
    return dataclasses.replace(recipe, fills=tuple(fills))


def _floats(tree: Any) -> list[int]:
    """Positions of the leaves that can hold a NaN."""
    return [
        i for i, (_, spec) in enumerate(trees.leaves(tree)) if isinstance(spec, spaces.Box) and spec.is_float
    ]


def layouts(tree: Any) -> list[str]:
    """The layouts in which some leaf differs from contiguous."""
    dims = [len(shape_of(spec, 1, 1)) for _, spec in trees.leaves(tree)]
    found = ["strided"] if any(dim > 1 for dim in dims) else []
    return found + (["channels_last"] if 4 in dims else [])
