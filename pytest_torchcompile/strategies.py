"""Input specs to Hypothesis strategies."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from pytest_torchcompile import spaces, tensors
from pytest_torchcompile.recipes import LARGE, TIMES, Fill, Recipe, shape_of, uses_time
from pytest_torchcompile.results import UsageError
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


@st.composite
def recipes(
    draw: st.DrawFn,
    tree: Any,
    batch: st.SearchStrategy[int],
    *,
    layouts: tuple[str, ...] = ("contiguous",),
    like: Recipe | None = None,
) -> Recipe:
    """A strategy of recipes.

    Args:
        draw: given by Hypothesis.
        tree: the specs.
        batch: batch sizes.
        layouts: memory layouts to choose from.
        like: an example whose layouts, and NaN or infinity, those drawn are to share.
    """
    size = draw(batch)
    time = draw(st.integers(1, max(TIMES))) if uses_time(tree) else 1
    leaves = [spec for _, spec in spaces.leaves(tree)]
    models = like.fills if like else (None,) * len(leaves)
    fills = tuple(
        Fill() if isinstance(spec, spaces.Constant) else draw(_fills(spec, size, time, layouts, model))
        for spec, model in zip(leaves, models, strict=True)
    )
    return Recipe(size, time, draw(SEEDS), fills)


@st.composite
def _fills(
    draw: st.DrawFn, spec: Spec, batch: int, time: int, layouts: tuple[str, ...], like: Fill | None
) -> Fill:
    elements = math.prod(shape_of(spec, batch, time))
    # Ranges that don't depend on the batch keep Hypothesis' choices valid while it shrinks the batch,
    # and eight times the size makes the whole tensor the common case, yet one that shrinks.
    reach = 8 * math.prod(shape_of(spec, DEFAULT_BATCH[1], max(TIMES)))
    stop = min(draw(st.integers(0, reach)), elements)
    tail = min(draw(st.integers(0, reach)), stop)
    rest = draw(st.sampled_from(RESTS))
    scale = draw(st.sampled_from(SCALES))
    seed = draw(SEEDS)
    # Last, because what follows a list that shrinks is drawn anew.
    places = st.integers(0, elements - 1)
    edits = draw(st.lists(st.tuples(places, _edit_values(spec, like)), max_size=MAX_EDITS))
    return Fill(
        seed=seed,
        scale=scale,
        start=stop - tail,
        stop=stop,
        rest=rest,
        edits=tuple(edits),
        layout=like.layout if like else draw(st.sampled_from(layouts)),
    )


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
