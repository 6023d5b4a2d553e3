"""Input specs to Hypothesis strategies."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from pytest_torchcompile import spaces, tensors, trees
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.recipes import LARGE, TIMES, Fill, Recipe, shape_of, uses_time
from pytest_torchcompile.spaces import Spec

SCALES = (1.0, 1.0, 1.0, 1.0, 0.1, 10.0, 1e2, LARGE)
"""Standard deviations of unbounded draws: mostly O(1), sometimes large. The first is the simplest."""

RESTS = (0.0, 0.0, 0.0, 1.0, -1.0)
"""Values of the elements that the bulk fill leaves out."""

SEEDS = st.binary(min_size=2, max_size=2).map(lambda drawn: int.from_bytes(drawn, "big"))
"""Seeds, drawn as bytes: Hypothesis trades drawn integers off against each other, step by step, and gives
up shrinking after 500 steps."""

LAYOUTS = ("contiguous", "strided", "channels_last")
DEFAULT_BATCH = (1, 33)
MAX_EDITS = 3


def observations(
    spec: Any, *, batch: Any = DEFAULT_BATCH, layouts: Sequence[str] = ("contiguous",)
) -> st.SearchStrategy[Any]:
    """A Hypothesis strategy for inputs that match `spec`, for use with ``@given``.

    Args:
        spec: an input spec, a nest of them, or a gymnasium space; see `spaces.as_spec`.
        batch: a batch size, a pair (smallest, largest), or a strategy of batch sizes.
        layouts: memory layouts to draw from; ``strided`` and ``channels_last`` are not contiguous.

    Returns:
        A strategy of tensors shaped ``(batch, *shape)``, nested like `spec`. Failures shrink to the
        smallest batch and to few elements that are not zero.

    Raises:
        UsageError: for a wrong spec, batch or layout.

    Example:
        >>> from hypothesis import given
        >>> @given(observations(Box((4,)), batch=(1, 8)))
        ... def test_finite(x):
        ...     assert x.shape[1:] == (4,)
    """
    tree = spaces.as_spec(spec)
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
    """A strategy of recipes.

    All that is drawn is drawn from strategies that are made once: making them for each example, to
    fit its batch, took longer than drawing from them.

    Args:
        tree: the specs.
        batch: batch sizes.
        layouts: memory layouts to choose from.
        like: an example whose layouts, and NaN or infinity, those drawn are to share.
    """
    leaves = [spec for _, spec in trees.leaves(tree)]
    models = like.fills if like else (None,) * len(leaves)
    time = st.integers(1, max(TIMES)) if uses_time(tree) else st.just(1)
    drawn = st.tuples(*(_fills(spec, layouts, model) for spec, model in zip(leaves, models, strict=True)))

    def recipe(size: int, time: int, seed: int, fills: tuple[Fill, ...]) -> Recipe:
        cut = (_cut(fill, shape_of(spec, size, time)) for spec, fill in zip(leaves, fills, strict=True))
        return Recipe(size, time, seed, tuple(cut))

    return st.builds(recipe, batch, time, SEEDS, drawn)


def _fills(spec: Spec, layouts: tuple[str, ...], like: Fill | None) -> st.SearchStrategy[Fill]:
    """A strategy of fills whose places may lie beyond the end of a tensor: see `_cut`."""
    if isinstance(spec, spaces.Constant):
        return st.just(Fill())
    # Ranges that don't depend on the batch keep Hypothesis' choices valid while it shrinks the batch,
    # and eight times the size makes the whole tensor the common case, yet one that shrinks.
    place = st.integers(0, 8 * math.prod(shape_of(spec, DEFAULT_BATCH[1], max(TIMES))))
    # The list comes last, because what follows a list that shrinks is drawn anew.
    edits = st.lists(st.tuples(place, _edit_values(spec, like)), max_size=MAX_EDITS)
    return st.builds(
        Fill,
        seed=SEEDS,
        scale=st.sampled_from(SCALES),
        start=place,
        stop=place,
        rest=st.sampled_from(RESTS),
        layout=st.sampled_from((like.layout,) if like else layouts),
        edits=edits.map(tuple),
    )


def _cut(fill: Fill, shape: tuple[int, ...]) -> Fill:
    """The fill for a tensor of `shape`; what `_fills` drew for its start is the length of its window."""
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
        # Mostly small: a huge element hides what happens to those beside it.
        small = st.floats(-8, 8, width=32)
        return st.one_of(small, small, small, st.floats(-LARGE, LARGE, width=32))
    if isinstance(spec, spaces.State):
        return st.floats(-1, 1, width=32)
    return st.integers(0, 255)
