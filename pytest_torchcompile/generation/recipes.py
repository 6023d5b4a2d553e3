"""Describes examples as plain data, which Hypothesis can draw and shrink quickly.

Drawing the board of a game element by element takes a tenth of a second, and shrinking it takes minutes. A
`Recipe` holds a few numbers instead: for each tensor a seed for random values, the window of elements that
they fill, and edits of single elements. ``tensors.build`` makes equal tensors from it each time, so that each
side of a check gets inputs of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from pytest_torchcompile.generation import edges
from pytest_torchcompile.specs import spaces, trees
from pytest_torchcompile.specs.spaces import Spec

LARGE = 1e4
"""The standard deviation of the fixed example with large values."""

SMALL, SMALLEST = 1e-2, 1e-6
"""The standard deviations of the first and the last row of the fixed example with small values. Between them
lie the constants by which normalisations avoid a division by 0."""

TIMES = (5, 3, 1, 8)
"""Lengths of a ``"T"`` in the fixed examples."""

NEAR_CONSTANT = 0.75
"""A tensor is near-constant if random values fill less than this share of it."""

DOMINANT = 100.0
"""An element larger than this many standard deviations dominates the others."""

LAYOUTS = (
    "contiguous",
    "offset",  # begins one element into a larger tensor, so that it is not aligned
    "sliced",  # all rows of a larger tensor but its first
    "expanded",  # one row repeated with stride 0
    "strided",  # with gaps between the elements
    "transposed",  # the last two dimensions swapped in memory
    "batch_second",  # the first two dimensions swapped in memory, as for sequences stored time first
    "permuted",  # all dimensions in reverse order in memory
    "channels_last",
    "channels_last_3d",
)
"""Memory layouts of a tensor. The first few rarely add a graph; each of the others adds one."""

ONE_TENSOR, VIEWS = "one tensor", "views of one tensor"
"""How inputs with equal specs may share memory."""


@dataclasses.dataclass(frozen=True)
class Fill:
    """The content of one tensor.

    Args:
        seed: seed of the random values.
        scale: standard deviation of the random values, if they are unbounded.
        start: first flat element (C order) that random values fill.
        stop: first flat element after the filled ones; None means the end of the tensor.
        rest: the value of the other elements, if the spec allows it; an infinity is the declared bound.
        edits: single elements set afterwards, as (flat index, value). For `Discrete` the value is relative
            to ``start``.
        fading: whether the scale falls from row to row, from `scale` to `SMALLEST`.
        layout: one of `LAYOUTS`; a tensor with too few dimensions for it stays contiguous.
    """

    seed: int = 0
    scale: float = 1.0
    start: int = 0
    stop: int | None = None
    rest: float = 0.0
    edits: tuple[tuple[int, float], ...] = ()
    fading: bool = False
    layout: str = "contiguous"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All inputs of one example, as plain hashable data.

    Args:
        batch: the batch size.
        time: the length of every ``"T"``.
        seed: seed of the random generators while the policy is called.
        fills: the content of each leaf of the spec tree, in its order.
        shared: how inputs with equal specs share memory: `ONE_TENSOR`, `VIEWS`, or empty if they don't.
    """

    batch: int
    time: int
    seed: int
    fills: tuple[Fill, ...]
    shared: str = ""

    @property
    def shape(self) -> str:
        """The properties for which a compiler may make a separate graph: ``batch 4, strided``."""
        layouts = dict.fromkeys(fill.layout for fill in self.fills if fill.layout != "contiguous")
        return ", ".join([f"batch {self.batch}", *layouts, *filter(None, [self.shared])])

    @property
    def is_finite(self) -> bool:
        """Whether no drawn element is a NaN or an infinity; only edits can be one."""
        return all(math.isfinite(value) for fill in self.fills for _, value in fill.edits)


def uses_time(tree: Any) -> bool:
    """Return whether a shape in the tree has a ``"T"``."""
    return any(
        spec.per_step or spaces.TIME in (getattr(spec, "shape", None) or (getattr(spec, "length", None),))
        for _, spec in trees.leaves(tree)
    )


def shape_of(spec: Spec, batch: int, time: int) -> tuple[int, ...]:
    """Return the shape of the tensor that `spec` describes."""
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
    """Return the number of elements of the largest degenerate input; 0 if no input is degenerate.

    A numeric input is degenerate if it is near-constant, or an element dominates the others. Its sums
    have systematic rounding errors, and normalisations divide it by a value near 0.
    """
    most = 0
    for (_, spec), fill in zip(trees.leaves(tree), recipe.fills, strict=True):
        if isinstance(spec, (spaces.Box, spaces.Image, spaces.State, spaces.MultiBinary)):
            elements = math.prod(shape_of(spec, recipe.batch, recipe.time))
            filled = (elements if fill.stop is None else fill.stop) - fill.start
            dominated = any(abs(value) > DOMINANT * fill.scale for _, value in fill.edits)
            alike = fill.layout == "expanded" and recipe.batch > 1
            if filled < NEAR_CONSTANT * elements or dominated or alike:
                most = max(most, elements)
    return most


def ladder(tree: Any, sizes: Sequence[int], *, nonfinite: bool, seed: int) -> list[Recipe]:
    """Return the fixed examples that every check begins with.

    The first ones have each batch size once, because the compiler makes separate graphs for some. The others
    have contents that random values rarely have, in shapes that are already compiled.

    Args:
        tree: the specs.
        sizes: batch sizes, in the order of the examples.
        nonfinite: whether to include a NaN and an infinity.
        seed: seed of the first example; each further example adds 1.
    """
    first, second = sizes[0], sizes[min(1, len(sizes) - 1)]
    steps = [(first, Fill()), *((size, Fill()) for size in (first, *sizes[1:]))]
    steps += [(second, Fill(stop=0)), (first, Fill(stop=0, rest=1.0)), (first, Fill(stop=0, rest=-1.0))]
    steps += [(second, Fill(scale=LARGE)), (second, Fill())]
    if any(edges.lacks_bound(spec) for _, spec in trees.leaves(tree)):
        steps += [(second, Fill(scale=SMALL, fading=True))]
    found = [
        random_recipe(tree, size, seed + number, TIMES[number % len(TIMES)], fill)
        for number, (size, fill) in enumerate(steps)
    ]
    if nonfinite:
        nan = _with_one(tree, found[0], math.nan)
        infinite = _with_one(tree, found[2], math.inf) or _with_one(tree, found[2], -math.inf)
        found += [example for example in (nan, infinite) if example is not None]
    found += _at_bounds(tree, first, seed + len(found))
    return found + _at_integer_edges(tree, max(sizes), seed + len(found))


def in_other_memory(tree: Any, sizes: Sequence[int], seed: int) -> tuple[list[Recipe], list[Recipe]]:
    """Return examples in other memory layouts. Each layout may add a graph, so these examples come last.

    Args:
        tree: the specs.
        sizes: batch sizes; each layout is combined with the first two, which are already compiled.
        seed: seed of the first example; each further example adds 1.

    Returns:
        Two lists: the examples in other layouts, or with one tensor for several inputs; and the examples
        whose inputs are views of one tensor.
    """
    met = (sizes[0], sizes[min(1, len(sizes) - 1)])
    steps = [(size, layout, "") for layout in layouts(tree) for size in met]
    if equal_specs(tree):
        steps += [(met[0], "contiguous", shared) for shared in (ONE_TENSOR, VIEWS)]
    found = [
        dataclasses.replace(random_recipe(tree, size, seed + i, like=Fill(layout=layout)), shared=shared)
        for i, (size, layout, shared) in enumerate(steps)
    ]
    return [r for r in found if r.shared != VIEWS], [r for r in found if r.shared == VIEWS]


def random_recipe(tree: Any, batch: int, seed: int, time: int = TIMES[0], like: Fill = Fill()) -> Recipe:
    """Return an example whose tensors are all filled like `like`, each with its own seed."""
    leaves = enumerate(trees.leaves(tree))
    fills = tuple(dataclasses.replace(like, seed=1000 * seed + i) for i, _ in leaves)
    return Recipe(batch, time, seed, fills)


def _with_one(tree: Any, recipe: Recipe, value: float) -> Recipe | None:
    """Return the recipe with one element set to the nonfinite `value`; None if no input allows it.

    The element is near the middle of the first float input that has an element without a bound for it.
    """
    for leaf, (_, spec) in enumerate(trees.leaves(tree)):
        if isinstance(spec, spaces.Box) and spec.is_float:
            shape = shape_of(spec, recipe.batch, recipe.time)
            places = edges.places(spec, value, shape[1:])
            if places:
                row, place = divmod(math.prod(shape) // 2, math.prod(shape[1:]))
                edit = (row * math.prod(shape[1:]) + places[place % len(places)], value)
                return _with_edits(recipe, {leaf: (edit,)})
    return None


def _at_bounds(tree: Any, batch: int, seed: int) -> list[Recipe]:
    """Return examples whose bounded inputs are all at their upper bound, or all at their lower one.

    Masks are then all legal, so that a legal action is the last one. Other inputs are random.
    """
    specs = [spec for _, spec in trees.leaves(tree)]
    found: list[Recipe] = []
    for bound in (math.inf, -math.inf):
        bounded = [edges.has_bound(spec, bound) for spec in specs]
        # A mask that is all legal is among the other examples.
        if any(at and not isinstance(s, spaces.LegalMask) for s, at in zip(specs, bounded, strict=True)):
            recipe = random_recipe(tree, batch, seed + len(found))
            fills = tuple(
                dataclasses.replace(fill, stop=0, rest=bound) if at else fill
                for fill, at in zip(recipe.fills, bounded, strict=True)
            )
            found.append(dataclasses.replace(recipe, fills=fills))
    return found


def _at_integer_edges(tree: Any, batch: int, seed: int) -> list[Recipe]:
    """Return examples whose integer inputs hold numbers at the limits of narrower dtypes, one in each row."""
    specs = [spec for _, spec in trees.leaves(tree)]
    groups = [edges.in_groups(edges.integers(spec)) for spec in specs]
    found: list[Recipe] = []
    for group in range(max(map(len, groups), default=0)):
        values = [each[group] if group < len(each) else [] for each in groups]
        for begin in range(0, max(map(len, values)), batch):
            recipe = random_recipe(tree, batch, seed + len(found))
            chunks = [each[begin : begin + batch] for each in values]
            found.append(_with_edits(recipe, _edits(specs, recipe, chunks)))
    return found


def _edits(
    specs: list[Spec], recipe: Recipe, values: list[list[int]]
) -> dict[int, tuple[tuple[int, float], ...]]:
    """Return the edits that write each value of a leaf to a separate row, by leaf."""
    found: dict[int, tuple[tuple[int, float], ...]] = {}
    for leaf, (spec, own) in enumerate(zip(specs, values, strict=True)):
        row = shape_of(spec, recipe.batch, recipe.time)[1:]
        start = spec.start if isinstance(spec, spaces.Discrete) else 0
        edits = []
        for number, value in enumerate(own):
            places = edges.places(spec, value, row)
            if places:
                edits.append((number * math.prod(row) + places[number % len(places)], value - start))
        if edits:
            found[leaf] = tuple(edits)
    return found


def _with_edits(recipe: Recipe, edits: dict[int, tuple[tuple[int, float], ...]]) -> Recipe:
    """Return the recipe with the given edits, by leaf."""
    fills = (
        dataclasses.replace(fill, edits=edits[leaf]) if leaf in edits else fill
        for leaf, fill in enumerate(recipe.fills)
    )
    return dataclasses.replace(recipe, fills=tuple(fills))


def layouts(tree: Any) -> list[str]:
    """Return the layouts that some leaf of the tree can have, without ``contiguous``."""
    drawn = [spec for _, spec in trees.leaves(tree) if is_laid_out(spec)]
    dims = {len(shape_of(spec, 1, 1)) for spec in drawn}
    admitted = {
        "offset": bool(dims),
        "sliced": bool(dims),
        "expanded": bool(dims),
        "strided": bool(dims),
        "transposed": any(dim > 1 for dim in dims),
        "batch_second": any(dim > 2 for dim in dims) and uses_time(tree),
        "permuted": any(dim > 2 for dim in dims),
        "channels_last": 4 in dims,
        "channels_last_3d": 5 in dims,
    }
    return [layout for layout in LAYOUTS if admitted.get(layout)]


def is_laid_out(spec: Spec) -> bool:
    """Return whether tensors of a spec are made in several layouts.

    The values of a `LegalAction` depend on its mask, and a `Constant` is the user's own tensor.
    """
    return not isinstance(spec, (spaces.Constant, spaces.LegalAction))


def equal_specs(tree: Any) -> list[tuple[int, ...]]:
    """Return groups of two or more leaves that have equal specs, as positions in the tree."""
    groups: list[tuple[Spec, list[int]]] = []
    for leaf, (_, spec) in enumerate(trees.leaves(tree)):
        if is_laid_out(spec):
            group = next((members for other, members in groups if spaces.are_equal(spec, other)), None)
            if group is None:
                groups.append((spec, [leaf]))
            else:
                group.append(leaf)
    return [tuple(members) for _, members in groups if len(members) > 1]
