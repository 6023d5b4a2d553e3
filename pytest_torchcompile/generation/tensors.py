"""Makes the tensors that a recipe describes.

The same recipe always gives the same values. Thousands of examples are made, so this has to be fast; numpy
draws the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.generation.recipes import (
    ONE_TENSOR,
    SMALLEST,
    Fill,
    Recipe,
    equal_specs,
    shape_of,
)
from pytest_torchcompile.specs import spaces, trees
from pytest_torchcompile.specs.spaces import Spec

Path = tuple[Any, ...]


def require_drawable(tree: Any) -> None:
    """Raise if a leaf of the tree cannot be drawn.

    Raises:
        UsageError: if the mask of a `LegalAction` is not a `LegalMask` among the inputs, a dtype is unknown,
            or bounds do not fit the shape.
    """
    for path, spec in trees.leaves(tree):
        if isinstance(spec, spaces.LegalAction):
            mask = dict(trees.leaves(tree))[trees.mask_of(tree, spec)]
            if not isinstance(mask, (spaces.LegalMask, spaces.Constant)):
                raise UsageError(
                    f"{spec!r}: {mask!r} may leave a row without a legal action; declare the mask as "
                    f"LegalMask({math.prod(shape_of(mask, 1, 1))})"
                )
        else:
            try:
                _sample(spec, np.random.default_rng(0), 1, 1, Fill())
                torch_dtype(getattr(spec, "dtype", "float32"))
            except (ValueError, TypeError) as error:
                raise UsageError(f"{trees.dotted(path) or 'observation'}: {spec!r}: {error}") from None


def torch_dtype(dtype: Any) -> torch.dtype:
    """Return the torch dtype for a torch dtype, a numpy dtype, or a name such as ``'float32'``.

    Raises:
        UsageError: if torch has no such dtype.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise UsageError(f"{dtype!r} is no torch dtype; accepted: 'float32', torch.float32 ...")
    return found


def build(tree: Any, recipe: Recipe) -> Any:
    """Return the inputs of a recipe: new tensors, nested like `tree`.

    Raises:
        UsageError: if the function of a `Wrapped` raises.
    """
    return trees.rebuild(tree, leaves(tree, recipe).__getitem__)


def leaves(
    tree: Any, recipe: Recipe, of: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
) -> dict[Path, Any]:
    """Return the inputs of a recipe by path: new tensors, and constants of any type.

    Args:
        tree: the specs.
        recipe: the contents of the tensors, and their memory layouts.
        of: converts each tensor before its memory layout is set, so that the layout is kept.
    """
    specs = dict(trees.leaves(tree))
    fills = dict(zip(specs, recipe.fills, strict=True))
    values: dict[Path, Any] = {}
    for path, spec in specs.items():
        if isinstance(spec, spaces.Constant):
            value = copy_constant(spec.value)
            values[path] = of(value) if isinstance(value, torch.Tensor) else value
        elif not isinstance(spec, spaces.LegalAction):
            tensor = of(_content(spec, fills[path], recipe))
            values[path] = _in_layout(tensor, fills[path].layout, getattr(spec, "batch_dim", 0))
    for group in equal_specs(tree) if recipe.shared else ():
        _share(values, [[*specs][leaf] for leaf in group], recipe.shared)
    for path, spec in specs.items():
        if isinstance(spec, spaces.LegalAction):
            values[path] = of(_legal_action(values[trees.mask_of(tree, spec)], fills[path], spec))
        if isinstance(spec, spaces.Box) and spec.requires_grad:
            values[path].requires_grad_()
    return {path: values[path] for path in specs}


def _content(spec: Spec, fill: Fill, recipe: Recipe) -> torch.Tensor:
    """Return one tensor with its values, contiguous."""
    array = _array(spec, fill, recipe.batch, recipe.time)
    dtype = torch.uint8 if isinstance(spec, spaces.Image) else torch_dtype(getattr(spec, "dtype", "int64"))
    return torch.from_numpy(array).to(dtype)


def _share(values: dict[Path, Any], paths: list[Path], how: str) -> None:
    """Replace inputs with equal specs by one tensor, or by views of one tensor."""
    tensor = values[paths[-1]]
    for path in paths[:-1]:
        values[path] = tensor if how == ONE_TENSOR else tensor.view_as(tensor)


def copy_constant(value: Any) -> Any:
    """Return a copy of a tensor or array, so that no call can change the user's; other values unchanged."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, np.ndarray):
        return value.copy()
    return value


def _array(spec: Spec, fill: Fill, batch: int, time: int) -> np.ndarray[Any, Any]:
    """Return the values of one tensor, in the dtype in which they are drawn."""
    generator = np.random.default_rng(fill.seed)
    sampled = _sample(spec, generator, batch, time, fill)
    flat = sampled.reshape(-1)
    if (fill.start, fill.stop) not in ((0, None), (0, flat.size)):
        bulk, rest = flat, simplest(spec, sampled.shape, fill.rest)
        flat = rest.astype(sampled.dtype).reshape(-1)
        flat[fill.start : fill.stop] = bulk[fill.start : fill.stop]
    for index, value in fill.edits:
        flat[index] = _to_valid_value(spec, value, index, sampled.shape)
    return _with_valid_rows(spec, flat.reshape(sampled.shape), generator)


def _sample(
    spec: Spec, generator: np.random.Generator, batch: int, time: int, fill: Fill
) -> np.ndarray[Any, Any]:
    """Return the random values; a larger batch of the same seed starts with the same ones."""
    shape = shape_of(spec, batch, time)
    match spec:
        case spaces.Box():
            return _sample_box(spec, generator, shape, fill)
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
            return np.eye(spec.n, dtype=np.float32)[generator.integers(0, spec.n, shape[0])]
        case spaces.LegalMask():
            # The share of legal actions varies between rows, from almost none to almost all.
            legal = generator.random((shape[0], 1)) ** 2
            return generator.random(shape) < legal
        case spaces.MultiBinary() | spaces.Flag():
            return generator.random(shape) < 0.5
        case _:
            return np.zeros(shape, np.float32)


def _sample_box(
    spec: spaces.Box, generator: np.random.Generator, shape: tuple[int, ...], fill: Fill
) -> np.ndarray[Any, Any]:
    if spec.is_float:
        return _sample_floats(spec, generator, shape, _scales(fill, shape, spec.batch_dim))
    return _sample_integers(spec, generator, shape, fill.scale)


def _sample_integers(
    spec: spaces.Box, generator: np.random.Generator, shape: tuple[int, ...], scale: float
) -> np.ndarray[Any, Any]:
    """Return uniform integers between the bounds; without bounds, from -`scale` to `scale` in the dtype."""
    dtype = torch_dtype(spec.dtype)
    limits = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    least, most = max(-int(scale), limits[0]), min(int(scale), limits[1])
    low = np.asarray(least if spec.low is None else np.ceil(spec.low), np.int64)
    high = np.asarray(most if spec.high is None else np.floor(spec.high), np.int64)
    low = np.minimum(low, high) if spec.low is None else low
    high = np.maximum(low, high) if spec.high is None else high
    return generator.integers(low, high, shape, endpoint=True)


def _scales(fill: Fill, shape: tuple[int, ...], batch_dim: int) -> np.ndarray[Any, Any]:
    """Return the standard deviation of each row, to be broadcast to `shape`."""
    if not fill.fading:
        return np.asarray(fill.scale, np.float32)
    rows = [size if dim == batch_dim else 1 for dim, size in enumerate(shape)]
    return np.geomspace(fill.scale, SMALLEST, shape[batch_dim]).reshape(rows).astype(np.float32)


def _sample_floats(
    spec: spaces.Box, generator: np.random.Generator, shape: tuple[int, ...], scale: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return floats: uniform between two bounds; with one bound or none, normal with deviation `scale`."""
    dtype = torch_dtype(spec.dtype)
    wide = np.float64 if dtype == torch.float64 else np.float32
    lower: np.ndarray[Any, Any] = np.asarray(-np.inf if spec.low is None else spec.low, np.float64)
    upper: np.ndarray[Any, Any] = np.asarray(np.inf if spec.high is None else spec.high, np.float64)
    if np.isnan(lower).any() or np.isnan(upper).any():
        raise ValueError("a bound is NaN")
    normal = generator.standard_normal(shape, np.float32) * scale
    if np.isfinite(lower).any() or np.isfinite(upper).any():
        least, most = np.where(np.isfinite(lower), lower, 0.0), np.where(np.isfinite(upper), upper, 0.0)
        both = np.isfinite(lower) & np.isfinite(upper)
        unit = generator.random(shape, np.float32)
        beside = np.where(np.isfinite(lower), least + np.abs(normal), most - np.abs(normal))
        beside = np.where(np.isfinite(lower) | np.isfinite(upper), beside, normal)
        normal = np.where(both, least + unit * (most - least), beside)
    return _clipped(spec, normal.astype(wide))


def _clipped(spec: spaces.Box, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return `array` clipped to the bounds, in its own dtype."""
    if spec.low is not None or spec.high is not None:
        array = np.clip(array, spec.low, spec.high).astype(array.dtype)
    return array


def simplest(spec: Spec, shape: tuple[int, ...], rest: float = 0.0) -> np.ndarray[Any, Any]:
    """Return the values of elements that are neither random nor edited.

    Args:
        spec: the spec of the tensor.
        shape: the shape with the batch.
        rest: the value for a `Box` (clipped to its bounds), an `Image`, a `MultiBinary` and a `Flag`. An
            infinity is the bound of a `Box`, or 0 where it has none, and the end of a range of integers. The
            other specs have a fixed value.
    """
    last = rest == math.inf
    match spec:
        case spaces.Box():
            clipped = _clipped(spec, np.full(shape, rest, np.float64))
            return np.where(np.isinf(clipped), _clipped(spec, np.zeros(shape)), clipped)
        case spaces.Image():
            return np.full(shape, np.clip(rest, 0, 255))
        case spaces.MultiBinary() | spaces.Flag():
            return np.full(shape, rest)
        case spaces.Discrete():
            return np.full(shape, spec.start + (spec.n - 1 if last else 0))
        case spaces.MultiDiscrete() if last:
            return np.broadcast_to(np.asarray(spec.nvec) - 1, shape)
        case spaces.Tokens() if last:
            return np.full(shape, spec.vocabulary - 1)
        case spaces.LegalMask():
            return np.ones(shape, bool)
        case spaces.OneHot():
            return np.broadcast_to(np.eye(spec.n)[-1 if last else 0], shape)
        case _:
            return np.zeros(shape)


def _to_valid_value(spec: Spec, value: float, index: int, shape: tuple[int, ...]) -> float:
    """Return the value of an edit, converted to one that is valid for the spec."""
    match spec:
        case spaces.Box():
            return _clip_to_bounds(spec, value, index, shape[1:])
        case spaces.Discrete():
            return spec.start + int(value) % spec.n
        case spaces.MultiDiscrete():
            return int(value) % int(spec.nvec[index % len(spec.nvec)])
        case spaces.Tokens():
            return int(value) % spec.vocabulary
        case spaces.Image():
            return int(value) % 256
        case spaces.State():
            return value
        case _:
            return int(value) % 2


def _clip_to_bounds(spec: spaces.Box, value: float, index: int, row: tuple[int, ...]) -> float:
    """Return `value` clipped to the bounds at a flat index; a NaN with a finite bound counts as 0."""
    if spec.low is None and spec.high is None:
        return value
    low = -math.inf if spec.low is None else _bound_at(spec.low, index, row)
    high = math.inf if spec.high is None else _bound_at(spec.high, index, row)
    if math.isnan(value) and math.isinf(low) and math.isinf(high):
        return value
    return float(np.clip(0.0 if math.isnan(value) else value, low, high))


def _bound_at(bound: Any, index: int, row: tuple[int, ...]) -> float:
    """Return the bound at a flat index into the batch; `bound` is a number or broadcasts to a row."""
    values = np.broadcast_to(np.asarray(bound), row).reshape(-1)
    return float(values[index % len(values)])


def _with_valid_rows(
    spec: Spec, array: np.ndarray[Any, Any], generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Return `array` with valid rows: at least one legal action in a mask, exactly one 1 in a one-hot row."""
    if isinstance(spec, spaces.LegalMask):
        rows = np.flatnonzero(~array.any(axis=1))
        array[rows, generator.integers(0, spec.n, len(rows))] = True
    elif isinstance(spec, spaces.OneHot):
        array = np.eye(spec.n, dtype=array.dtype)[array.argmax(axis=1)]
    return array


def _legal_action(mask: Any, fill: Fill, spec: spaces.LegalAction) -> torch.Tensor:
    """Return a legal action for each row: a random one in the random range, the first legal one elsewhere.

    With an infinite `rest`, the last legal one.
    """
    legal = torch.as_tensor(mask) != 0
    if legal.dim() != 2 or not bool(legal.any(dim=1).all()):
        raise UsageError(
            f"{spec!r}: the mask, shaped {tuple(legal.shape)}, needs two dimensions (batch, actions) "
            f"and a legal action in each row"
        )
    allowed = legal.cpu().numpy()
    last = allowed.shape[1] - 1 - allowed[:, ::-1].argmax(axis=1)
    actions = last if fill.rest == math.inf else allowed.argmax(axis=1)
    rows = len(actions)
    order = np.random.default_rng(fill.seed).random(allowed.shape)
    random = np.where(allowed, order, -1.0).argmax(axis=1)
    actions[fill.start : fill.stop] = random[fill.start : fill.stop]
    for row, value in fill.edits:
        choices = np.flatnonzero(allowed[row % rows])
        actions[row % rows] = choices[int(value) % len(choices)]
    return torch.from_numpy(actions)


def _in_layout(tensor: torch.Tensor, layout: str, batch_dim: int = 0) -> torch.Tensor:
    """Return `tensor` in another memory layout with the same values; ``expanded`` repeats its first row.

    A layout that needs more dimensions returns `tensor`.
    """
    dims = tensor.dim()
    match layout:
        case "offset":
            flat = tensor.reshape(-1)
            return torch.cat([flat[:1], flat])[1:].view(tensor.shape)
        case "sliced":
            return torch.cat([tensor[:1], tensor])[1:]
        case "expanded":
            return tensor.narrow(batch_dim, 0, 1).expand_as(tensor)
        case "strided":
            return torch.stack([tensor, tensor], dim=-1)[..., 0]
        case "transposed" if dims > 1:
            return tensor.mT.contiguous().mT
        case "batch_second" if dims > 2:
            return tensor.transpose(0, 1).contiguous().transpose(0, 1)
        case "permuted" if dims > 2:
            backwards = tuple(reversed(range(dims)))
            return tensor.permute(backwards).contiguous().permute(backwards)
        case "channels_last" if dims == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        case "channels_last_3d" if dims == 5:
            return tensor.contiguous(memory_format=torch.channels_last_3d)
    return tensor
