"""Makes Hypothesis strategies from input specs."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import sys
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.generation import edges, tensors
from pytest_torchcompile.generation.recipes import LARGE, LAYOUTS, TIMES, Fill, Recipe, shape_of, uses_time
from pytest_torchcompile.specs import conversion, spaces, trees
from pytest_torchcompile.specs.spaces import Spec

SCALES = (1.0, 1.0, 1.0, 1.0, 0.1, 10.0, 1e2, LARGE)
"""Standard deviations of unbounded draws: mostly 1, sometimes large. Shrinking prefers the first."""

RESTS = (0.0, 0.0, 0.0, 1.0, -1.0)
"""Values of the elements that random values don't fill."""

SEEDS = st.binary(min_size=2, max_size=2).map(lambda drawn: int.from_bytes(drawn, "big"))
"""Seeds, drawn as bytes. Hypothesis shrinks pairs of drawn integers step by step, and stops shrinking after
500 steps."""

DEFAULT_BATCH = (1, 33)
MAX_EDITS = 3


def observations(
    spec: Any, *, batch: Any = DEFAULT_BATCH, layouts: Sequence[str] = ("contiguous",)
) -> st.SearchStrategy[Any]:
    """Return a Hypothesis strategy for inputs that match `spec`, for use with ``@given``.

    Args:
        spec: an input spec, a nest of them, or a gymnasium space; see `conversion.as_spec`.
        batch: a batch size, a pair (smallest, largest), or a strategy of batch sizes.
        layouts: memory layouts to draw from: ``contiguous``, ``offset``, ``sliced``, ``expanded`` (its rows
            are equal), ``strided``, ``transposed``, ``batch_second``, ``permuted``, ``channels_last``,
            ``channels_last_3d``. A tensor with too few dimensions for a layout stays contiguous.

    Returns:
        A strategy of tensors shaped ``(batch, *shape)``, nested like `spec`. Failing examples shrink to the
        smallest batch and to few nonzero elements.

    Raises:
        UsageError: for a wrong spec, batch or layout.

    Example:
        >>> from hypothesis import given
        >>> @given(observations(Box((4,)), batch=(1, 8)))
        ... def test_finite(x):
        ...     assert x.shape[1:] == (4,)
    """
    tree = conversion.as_spec(spec)
    if not conversion.describes(tree):
        raise UsageError(
            f"observations({spec!r}) describes no tensor; accepted: a spec such as Box((8,)), a shape "
            f"such as (8,), a gymnasium space, or a dict or tuple of these"
        )
    tensors.require_drawable(tree)
    unknown = set(layouts) - set(LAYOUTS)
    if unknown or not layouts:
        raise UsageError(f"layouts={layouts!r}; accepted: {', '.join(LAYOUTS)}")
    sizes = _batch_strategy(batch)
    return recipes(tree, sizes, layouts=tuple(layouts)).map(functools.partial(tensors.build, tree))


def _batch_strategy(batch: Any) -> st.SearchStrategy[int]:
    if isinstance(batch, st.SearchStrategy):
        return batch
    try:
        low, high = batch if isinstance(batch, (tuple, list)) else (batch, batch)
        low, high = operator.index(low), operator.index(high)
    except (TypeError, ValueError):
        low, high = 0, 0
    if not 1 <= low <= high:
        raise UsageError(f"batch={batch!r}; accepted: a size, a pair (smallest, largest), a strategy")
    return st.integers(low, high)


def recipes(
    tree: Any,
    batch: st.SearchStrategy[int],
    *,
    layouts: tuple[str, ...] = ("contiguous",),
    like: Recipe | None = None,
) -> st.SearchStrategy[Recipe]:
    """Return a strategy of recipes.

    The strategies inside it are made once. Making them for each example, to fit its batch, took longer than
    drawing from them.

    Args:
        tree: the specs.
        batch: strategy of batch sizes.
        layouts: memory layouts to choose from.
        like: an example whose layouts, shared memory, and NaN or infinity the drawn examples have too; they
            may have its bounds.
    """
    leaves = [spec for _, spec in trees.leaves(tree)]
    models = like.fills if like else (None,) * len(leaves)
    rows, steps = (like.batch, like.time) if like else (0, 0)
    time = st.integers(1, max(TIMES)) if uses_time(tree) else st.just(1)
    if uses_time(tree) and steps > max(TIMES):
        time = at_most(steps)
    most = (max(rows, DEFAULT_BATCH[1]), max(steps, *TIMES))
    fills = (
        _fills(spec, math.prod(shape_of(spec, *most)), layouts, model)
        for spec, model in zip(leaves, models, strict=True)
    )
    drawn = st.tuples(*fills)

    def recipe(size: int, time: int, seed: int, fills: tuple[Fill, ...]) -> Recipe:
        cut = (_cut(fill, shape_of(spec, size, time)) for spec, fill in zip(leaves, fills, strict=True))
        return Recipe(size, time, seed, tuple(cut), like.shared if like else "")

    return st.builds(recipe, batch, time, SEEDS, drawn)


def at_most(size: int, least: int = 1) -> st.SearchStrategy[int]:
    """Return a strategy of sizes from `least` to `size`, which draws `size` half of the time and shrinks."""
    return st.integers(min(least, size), 2 * size).map(lambda drawn: min(drawn, size))


def _fills(spec: Spec, elements: int, layouts: tuple[str, ...], like: Fill | None) -> st.SearchStrategy[Fill]:
    """Return a strategy of fills of at most `elements` elements; `_cut` adapts them to the batch size."""
    if isinstance(spec, spaces.Constant):
        return st.just(Fill())
    # A range that does not depend on the batch keeps Hypothesis' choices valid while it shrinks the batch.
    # Eight times the size means that most draws fill the whole tensor, and that these still shrink.
    place = st.integers(0, 8 * elements)
    # The list comes last, because Hypothesis draws again whatever follows a list that it shortens.
    edits = st.lists(st.tuples(place, _edit_values(spec, like)), max_size=MAX_EDITS)
    rests = (like.rest, *RESTS) if like and math.isinf(like.rest) else RESTS
    return st.builds(
        Fill,
        seed=SEEDS,
        scale=st.sampled_from((like.scale, *SCALES) if like and like.fading else SCALES),
        fading=st.just(like is not None and like.fading),
        start=place,
        stop=place,
        rest=st.sampled_from(rests),
        layout=st.sampled_from((like.layout,) if like else layouts),
        edits=edits.map(tuple),
    )


def _cut(fill: Fill, shape: tuple[int, ...]) -> Fill:
    """Return a drawn fill adapted to a tensor of `shape`; its `start` was drawn as the window's length."""
    elements = math.prod(shape)
    if fill.stop is None or not elements:
        return fill
    stop = min(fill.stop, elements)
    edits = tuple((place % elements, value) for place, value in fill.edits)
    return dataclasses.replace(fill, start=stop - min(fill.start, stop), stop=stop, edits=edits)


def _edit_values(spec: Spec, like: Fill | None) -> st.SearchStrategy[float]:
    special = [value for _, value in like.edits if not math.isfinite(value)] if like else []
    if special:
        return st.sampled_from(special)
    if isinstance(spec, spaces.Box) and spec.is_float:
        # Mostly small values: a huge element hides differences in the elements next to it.
        small = _floats(8)
        return st.one_of(small, small, small, _floats(LARGE))
    if isinstance(spec, spaces.State):
        return _floats(1)
    start = spec.start if isinstance(spec, spaces.Discrete) else 0
    odd = [edge - start for edge in edges.integers(spec)]
    return st.one_of(st.integers(0, 255), st.sampled_from(odd)) if odd else st.integers(0, 255)


def _floats(most: float) -> st.SearchStrategy[float]:
    """Return a strategy of floats from -`most` to `most`.

    Hypothesis raises for subnormal numbers in a process that flushes them to zero, as it does after
    ``torch.set_flush_denormal(True)``. So this is determined when the first float is drawn.
    """
    return st.deferred(
        lambda: st.floats(-most, most, width=32, allow_subnormal=None if _has_subnormals() else False)
    )


def _has_subnormals() -> bool:
    smallest = sys.float_info.min
    return smallest / 2 > 0
