"""Input specs to tensors, by way of recipes that Hypothesis can draw and shrink.

Drawing a board element by element costs a tenth of a second and minutes to shrink. A `Recipe` holds
a few numbers instead: a seed for the bulk of each tensor, the window of it that is kept, and some
single elements set by hand. Hypothesis draws and shrinks those; `build` turns them into tensors in
microseconds, the same ones each time, so that both sides of a check get inputs of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from pytest_torchcompile import spaces
from pytest_torchcompile.results import UsageError
from pytest_torchcompile.spaces import Spec

SCALES = (1.0, 1.0, 1.0, 1.0, 0.1, 10.0, 1e2, 1e4)
"""Standard deviations of unbounded draws: mostly O(1), sometimes large. The first is the simplest."""

LAYOUTS = ("contiguous", "strided", "channels_last")
DEFAULT_BATCH = (1, 33)
TIMES = (5, 3, 1, 8)
MAX_EDITS = 3


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
    check_tree(tree)
    unknown = set(layouts) - set(LAYOUTS)
    if unknown or not layouts:
        raise UsageError(f"layouts={layouts!r}; accepted: {', '.join(LAYOUTS)}")
    sizes = _batch_strategy(batch)
    return recipes(tree, sizes, layouts=tuple(layouts)).map(functools.partial(build, tree))


def _batch_strategy(batch: Any) -> st.SearchStrategy[int]:
    if isinstance(batch, st.SearchStrategy):
        return batch
    low, high = (batch, batch) if isinstance(batch, int) else batch
    if not 1 <= low <= high:
        raise UsageError(f"batch={batch!r}; accepted: a size, a pair (smallest, largest), a strategy")
    return st.integers(low, high)


def check_tree(tree: Any) -> None:
    """Return if every leaf can be drawn.

    Raises:
        UsageError: for a `LegalAction` whose mask is not among the inputs, an unknown dtype, bounds
            that don't fit the shape.
    """
    for path, spec in spaces.leaves(tree):
        if isinstance(spec, spaces.LegalAction):
            spaces.mask_of(tree, spec)
        else:
            try:
                _sample(spec, np.random.default_rng(0), 1, 1, 1.0)
                torch_dtype(getattr(spec, "dtype", "float32"))
            except (ValueError, TypeError) as error:
                raise UsageError(f"{spaces.dotted(path) or 'observation'}: {spec!r}: {error}") from None


def torch_dtype(dtype: Any) -> torch.dtype:
    """The torch dtype that `dtype` names: a torch or numpy dtype, or a name such as ``'float32'``."""
    if isinstance(dtype, torch.dtype):
        return dtype
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise UsageError(f"{dtype!r} is no torch dtype; accepted: 'float32', torch.float32 ...")
    return found


# --- drawing -------------------------------------------------------------------------------------


@st.composite
def recipes(
    draw: st.DrawFn,
    tree: Any,
    batch: st.SearchStrategy[int],
    *,
    layouts: tuple[str, ...] = ("contiguous",),
) -> Recipe:
    """A strategy of recipes for `tree`."""
    size = draw(batch)
    time = draw(st.integers(1, max(TIMES))) if uses_time(tree) else 1
    fills = tuple(
        Fill() if isinstance(spec, spaces.Constant) else draw(_fills(spec, size, time, layouts))
        for _, spec in spaces.leaves(tree)
    )
    return Recipe(size, time, draw(st.integers(0, 2**32 - 1)), fills)


def uses_time(tree: Any) -> bool:
    """Whether a shape in the tree has a ``"T"``."""
    return any(
        spaces.TIME in (getattr(spec, "shape", None) or (getattr(spec, "length", None),))
        for _, spec in spaces.leaves(tree)
    )


@st.composite
def _fills(draw: st.DrawFn, spec: Spec, batch: int, time: int, layouts: tuple[str, ...]) -> Fill:
    shape = shape_of(spec, batch, time)
    elements = math.prod(shape)
    # Ranges that don't depend on the batch keep Hypothesis' choices valid while it shrinks the batch,
    # and eight times the size makes the whole tensor the common case, yet one that shrinks.
    reach = 8 * math.prod(shape_of(spec, DEFAULT_BATCH[1], max(TIMES)))
    stop = min(draw(st.integers(0, reach)), elements)
    tail = min(draw(st.integers(0, reach)), stop)
    scale = draw(st.sampled_from(SCALES))
    seed = draw(st.integers(0, 2**32 - 1))
    edits = draw(st.lists(st.tuples(st.integers(0, elements - 1), _edit_values(spec)), max_size=MAX_EDITS))
    layout = draw(st.sampled_from(layouts)) if len(layouts) > 1 else layouts[0]
    return Fill(seed=seed, scale=scale, start=stop - tail, stop=stop, edits=tuple(edits), layout=layout)


def _edit_values(spec: Spec) -> st.SearchStrategy[float]:
    if isinstance(spec, spaces.Box) and torch_dtype(spec.dtype).is_floating_point:
        return st.floats(-1e4, 1e4, width=32)
    return st.integers(0, 255)


def near_constant(tree: Any, recipe: Recipe) -> bool:
    """Whether more than a quarter of some numeric input has a single value.

    On such inputs sums round systematically and normalisations divide by next to nothing.
    """
    for (_, spec), fill in zip(spaces.leaves(tree), recipe.fills, strict=True):
        if isinstance(spec, (spaces.Box, spaces.Image, spaces.State, spaces.MultiBinary)):
            elements = math.prod(shape_of(spec, recipe.batch, recipe.time))
            filled = (elements if fill.stop is None else fill.stop) - fill.start
            if filled < 0.75 * elements:
                return True
    return False


# --- building ------------------------------------------------------------------------------------


def build(tree: Any, recipe: Recipe) -> Any:
    """The inputs of a recipe: new tensors, nested like `tree`, equal each time."""
    paths = [path for path, _ in spaces.leaves(tree)]
    fills = dict(zip(paths, recipe.fills, strict=True))
    specs = dict(spaces.leaves(tree))
    built: dict[tuple[Any, ...], Any] = {}

    def value_of(path: tuple[Any, ...]) -> Any:
        if path not in built:
            built[path] = _tensor(specs[path], path)
        return built[path]

    def _tensor(spec: Spec, path: tuple[Any, ...]) -> Any:
        fill = fills[path]
        if isinstance(spec, spaces.Constant):
            return copy_constant(spec.value)
        if isinstance(spec, spaces.LegalAction):
            return _legal_action(value_of(spaces.mask_of(tree, spec)), fill, spec)
        array = _array(spec, fill, recipe.batch, recipe.time)
        tensor = torch.from_numpy(array).to(torch_dtype(getattr(spec, "dtype", "int64")))
        if isinstance(spec, spaces.Image):
            tensor = tensor.to(torch.uint8)
        tensor = _laid_out(tensor, fill.layout)
        if isinstance(spec, spaces.Box) and spec.requires_grad:
            tensor.requires_grad_()
        return tensor

    return spaces.rebuild(tree, value_of)


def copy_constant(value: Any) -> Any:
    """A constant, tensors and arrays inside it copied, so that no call can change the user's own."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, np.ndarray):
        return value.copy()
    return value


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
    sizes.insert(getattr(spec, "batch_dim", 0), batch)
    return tuple(sizes)


def _array(spec: Spec, fill: Fill, batch: int, time: int) -> np.ndarray[Any, Any]:
    """The values of one tensor in the dtype they are drawn in."""
    generator = np.random.default_rng(fill.seed)
    sampled = _sample(spec, generator, batch, time, fill.scale)
    array = _simplest(spec, sampled.shape, fill.rest).astype(sampled.dtype)
    flat, bulk = array.reshape(-1), sampled.reshape(-1)
    flat[fill.start : fill.stop] = bulk[fill.start : fill.stop]
    for index, value in fill.edits:
        flat[index] = _admitted(spec, value, index, sampled.shape)
    return _consistent(spec, flat.reshape(sampled.shape), generator)


def _sample(
    spec: Spec, generator: np.random.Generator, batch: int, time: int, scale: float
) -> np.ndarray[Any, Any]:
    """Bulk values; a longer tensor of the same seed starts with the same ones."""
    shape = shape_of(spec, batch, time)
    match spec:
        case spaces.Box():
            return _sample_box(spec, generator, shape, scale)
        case spaces.Image():
            return generator.integers(0, 256, shape, np.uint8)
        case spaces.State():
            return generator.standard_normal(shape, np.float32)
        case spaces.Discrete():
            return generator.integers(spec.start, spec.start + spec.n, shape)
        case spaces.MultiDiscrete():
            return generator.integers(0, np.broadcast_to(np.asarray(spec.nvec), shape))
        case spaces.Tokens():
            return generator.integers(0, spec.vocabulary, shape)
        case spaces.OneHot():
            return np.eye(spec.n, dtype=np.float32)[generator.integers(0, spec.n, batch)]
        case spaces.LegalMask():
            # How much is legal differs by row, from nearly nothing to nearly all.
            legal = generator.random((batch, 1)) ** 2
            return generator.random(shape) < legal
        case spaces.MultiBinary() | spaces.Flag():
            return generator.random(shape) < 0.5
        case _:
            return np.zeros(shape, np.float32)


def _sample_box(
    spec: spaces.Box, generator: np.random.Generator, shape: tuple[int, ...], scale: float
) -> np.ndarray[Any, Any]:
    dtype = torch_dtype(spec.dtype)
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype) if dtype != torch.bool else None
        least = max(-int(scale), limits.min) if limits else 0
        most = min(int(scale), limits.max) if limits else 1
        low = np.asarray(least if spec.low is None else np.ceil(spec.low), np.int64)
        high = np.asarray(most if spec.high is None else np.floor(spec.high), np.int64)
        low = np.minimum(low, high) if spec.low is None else low
        high = np.maximum(low, high) if spec.high is None else high
        return generator.integers(low, high, shape, endpoint=True)
    wide = np.float64 if dtype == torch.float64 else np.float32
    if spec.low is not None and spec.high is not None:
        low, high = np.asarray(spec.low, np.float64), np.asarray(spec.high, np.float64)
        both = np.isfinite(low) & np.isfinite(high)
        if both.all():
            unit = generator.random(shape, np.float32)
            return _clipped(spec, (low + unit * (high - low)).astype(wide))
    normal = generator.standard_normal(shape, np.float32) * np.float32(scale)
    if spec.low is not None and spec.high is None:
        normal = np.asarray(spec.low) + np.abs(normal)
    elif spec.high is not None and spec.low is None:
        normal = np.asarray(spec.high) - np.abs(normal)
    return _clipped(spec, normal.astype(wide))


def _clipped(spec: spaces.Box, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`array` within the bounds, which are rounded inwards to its dtype."""
    if spec.low is not None or spec.high is not None:
        array = np.clip(array, spec.low, spec.high).astype(array.dtype)
    return array


def _simplest(spec: Spec, shape: tuple[int, ...], rest: float = 0.0) -> np.ndarray[Any, Any]:
    """What elements are that neither the bulk nor an edit has set: `rest`, or what comes nearest."""
    match spec:
        case spaces.Box():
            return np.asarray(_clipped(spec, np.full(shape, rest, np.float64)))
        case spaces.Image() | spaces.MultiBinary() | spaces.Flag():
            return np.full(shape, rest)
        case spaces.Discrete():
            return np.full(shape, spec.start)
        case spaces.LegalMask():
            return np.ones(shape, bool)
        case spaces.OneHot():
            return np.broadcast_to(np.eye(spec.n)[0], shape)
        case _:
            return np.zeros(shape)


def _admitted(spec: Spec, value: float, index: int, shape: tuple[int, ...]) -> float:
    """An edit's value made one that the spec admits; NaN and infinities pass."""
    match spec:
        case spaces.Box():
            if not math.isfinite(value):
                return value
            bounds = [
                bound
                if bound is None
                else np.broadcast_to(np.asarray(bound), shape[1:]).reshape(-1)[
                    index % max(1, math.prod(shape[1:]))
                ]
                for bound in (spec.low, spec.high)
            ]
            if bounds[0] is not None or bounds[1] is not None:
                value = float(np.clip(value, bounds[0], bounds[1]))
            return value
        case spaces.Discrete():
            return spec.start + int(value) % spec.n
        case spaces.MultiDiscrete():
            return int(value) % spec.nvec[index % len(spec.nvec)]
        case spaces.Tokens():
            return int(value) % spec.vocabulary
        case spaces.Image():
            return int(value) % 256
        case spaces.State():
            return value
        case _:
            return int(value) % 2


def _consistent(
    spec: Spec, array: np.ndarray[Any, Any], generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """`array` with whole rows repaired: one legal action at least, exactly one 1."""
    if isinstance(spec, spaces.LegalMask):
        rows = np.flatnonzero(~array.any(axis=1))
        array[rows, generator.integers(0, spec.n, len(rows))] = True
    elif isinstance(spec, spaces.OneHot):
        array = np.eye(spec.n, dtype=array.dtype)[array.argmax(axis=1)]
    return array


def _legal_action(mask: Any, fill: Fill, spec: spaces.LegalAction) -> torch.Tensor:
    """For each row an action that its mask allows; the first legal one outside the bulk's window."""
    legal = torch.as_tensor(mask) != 0
    if legal.dim() != 2 or not bool(legal.any(dim=1).all()):
        raise UsageError(
            f"{spec!r}: the mask, shaped {tuple(legal.shape)}, needs two dimensions (batch, actions) "
            f"and a legal action in each row"
        )
    allowed = legal.numpy()
    actions = allowed.argmax(axis=1)
    order = np.random.default_rng(fill.seed).random(allowed.shape)
    random = np.where(allowed, order, -1.0).argmax(axis=1)
    actions[fill.start : fill.stop] = random[fill.start : fill.stop]
    for row, value in fill.edits:
        choices = np.flatnonzero(allowed[row])
        actions[row] = choices[int(value) % len(choices)]
    return torch.from_numpy(actions)


def _laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """`tensor` with the same values in another memory layout."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "strided" and tensor.dim() > 1:
        return torch.stack([tensor, tensor], dim=-1)[..., 0]
    return tensor


# --- the fixed examples ----------------------------------------------------------------------------


def ladder(tree: Any, sizes: Sequence[int], *, nonfinite: bool, seed: int) -> list[tuple[str, Recipe]]:
    """The examples that every check begins with, each with a name.

    First each batch size, because the compiler makes a graph of its own for some; then contents that
    random fills don't reach; memory layouts last, because each may add a graph.
    """
    first, second = sizes[0], sizes[min(1, len(sizes) - 1)]
    steps: list[tuple[str, int, Fill]] = [("random", first, Fill()), ("random", first, Fill())]
    steps += [("random", size, Fill()) for size in sizes[1:]]
    steps += [
        ("zeros", second, Fill(stop=0)),
        ("ones", first, Fill(stop=0, rest=1.0)),
        ("large values", second, Fill(scale=SCALES[-1])),
    ]
    if nonfinite and _floats(tree):
        steps += [("one NaN", first, Fill()), ("one infinity", second, Fill())]
    steps += [("random", second, Fill())]
    steps += [(f"{layout} layout", first, Fill(layout=layout)) for layout in _layouts(tree)]
    return [
        (name, _rung(tree, name, size, fill, seed + number, TIMES[number % len(TIMES)]))
        for number, (name, size, fill) in enumerate(steps)
    ]


def random_recipe(tree: Any, batch: int, seed: int, time: int = TIMES[0], like: Fill = Fill()) -> Recipe:
    """An example whose tensors are filled alike, each from a seed of its own."""
    leaves = enumerate(spaces.leaves(tree))
    fills = tuple(dataclasses.replace(like, seed=1000 * seed + i) for i, _ in leaves)
    return Recipe(batch, time, seed, fills)


def _rung(tree: Any, name: str, batch: int, fill: Fill, seed: int, time: int) -> Recipe:
    recipe = random_recipe(tree, batch, seed, time, fill)
    if name in ("one NaN", "one infinity"):
        leaf = _floats(tree)[0]
        spec = [spec for _, spec in spaces.leaves(tree)][leaf]
        middle = math.prod(shape_of(spec, batch, time)) // 2
        value = math.nan if name == "one NaN" else math.inf
        fills = list(recipe.fills)
        fills[leaf] = dataclasses.replace(fills[leaf], edits=((middle, value),))
        recipe = dataclasses.replace(recipe, fills=tuple(fills))
    return recipe


def _floats(tree: Any) -> list[int]:
    """Positions of the leaves that can hold a NaN."""
    return [
        i
        for i, (_, spec) in enumerate(spaces.leaves(tree))
        if isinstance(spec, spaces.Box) and torch_dtype(spec.dtype).is_floating_point
    ]


def _layouts(tree: Any) -> list[str]:
    """The layouts in which some leaf differs from contiguous."""
    dims = [len(shape_of(spec, 1, 1)) for _, spec in spaces.leaves(tree)]
    found = ["strided"] if any(dim > 1 for dim in dims) else []
    return found + (["channels_last"] if 4 in dims else [])


# --- telling a person -------------------------------------------------------------------------------


def describe(tree: Any, recipe: Recipe) -> str:
    """One line: ``batch 1; observation: zeros, [0, 3, 1, 2] = -6.0``."""
    parts = [f"batch {recipe.batch}"] + ([f"T = {recipe.time}"] if uses_time(tree) else [])
    inputs = build(tree, recipe)
    for (path, spec), fill in zip(spaces.leaves(tree), recipe.fills, strict=True):
        value = inputs
        for key in path:
            value = value[key]
        if not isinstance(spec, spaces.Constant):
            parts.append(f"{spaces.dotted(path) or 'observation'}: {_describe_leaf(spec, fill, value)}")
    return "; ".join(parts)


def _describe_leaf(spec: Spec, fill: Fill, tensor: torch.Tensor) -> str:
    layout = "" if fill.layout == "contiguous" else f", {fill.layout}"
    if isinstance(spec, spaces.LegalAction):
        return f"{_elements(tensor.reshape(-1)[:8].tolist())}{' ...' if len(tensor) > 8 else ''}"
    base = torch.from_numpy(_simplest(spec, tuple(tensor.shape)).astype(np.float64))
    values = tensor.detach().to(torch.float64)
    different = torch.nonzero((values != base).reshape(-1)).reshape(-1)
    first = float(values.reshape(-1)[0]) if values.numel() else 0.0
    if len(different) <= 4:
        simplest = "all legal" if isinstance(spec, spaces.LegalMask) else "zeros"
        if isinstance(spec, spaces.OneHot) or (base.numel() and float(base.reshape(-1)[-1]) not in (0, 1)):
            simplest = "the simplest values"
        return f"{simplest}{_listed(values, different)}{layout}"
    if bool((values == first).all()):
        return f"all {first:.9g}{layout}"
    scale = f", scale {fill.scale:g}" if isinstance(spec, spaces.Box) and fill.scale != 1 else ""
    odd = torch.nonzero(~torch.isfinite(values).reshape(-1)).reshape(-1)
    return f"random (seed {fill.seed}{scale}){_listed(values, odd[:4])}{layout}"


def _listed(values: torch.Tensor, flat: torch.Tensor) -> str:
    texts = []
    for position in flat.tolist():
        index = [int(i) for i in np.unravel_index(position, tuple(values.shape))]
        texts.append(f", {index} = {float(values.reshape(-1)[position]):.9g}")
    return "".join(texts)


def _elements(values: list[Any]) -> str:
    return ", ".join(map(str, values))
