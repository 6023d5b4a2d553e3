"""Makes specs of invalid inputs from the declared ones: another shape, another dtype, an action out of range.

Eager rejects many of them, and compiled must reject them too: a compiler that drops a check hides mistakes of
the training loop. Invalid inputs are described by specs, so they are drawn like all others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pytest_torchcompile.specs import spaces, trees
from pytest_torchcompile.specs.spaces import Spec

MOST = 6
"""The most variants tried per case. Tracing rejects some within tenths of a second; others take a compile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvalidInputs:
    """Inputs of which one is invalid.

    Args:
        what: the name of the invalid input, and what is wrong with it.
        tree: the declared specs with the spec of this input replaced.
        in_values: whether only the values are invalid, which a compiler can't detect before the graph runs.
    """

    what: str
    tree: Any
    in_values: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Variant:
    """A spec of invalid inputs, which replaces the declared one; the lowest `order` is tried first."""

    order: int
    what: str
    spec: Spec

    @property
    def in_values(self) -> bool:
        return self.order in (_BEYOND, _BELOW)


_BEYOND, _SHAPE, _DTYPE, _BELOW = range(4)


def invalid_inputs(tree: Any) -> list[InvalidInputs]:
    """Return at most `MOST` variants of the declared inputs, each with one invalid input.

    Args:
        tree: the declared specs.

    Returns:
        The variants of the first input of each spec class come first, then those of further inputs.

    Example:
        >>> [invalid.what for invalid in invalid_inputs({"action": spaces.Discrete(4)})][:2]
        ['action: index 4, one beyond the last', 'action: two numbers per row, not one']
    """
    seen: set[type[Spec]] = set()
    ranked: list[tuple[bool, int, InvalidInputs]] = []
    for path, spec in trees.leaves(tree):
        again = type(spec) in seen
        seen.add(type(spec))
        for variant in _variants(spec, tree):
            name = trees.dotted(path) or "observation"
            invalid = InvalidInputs(
                what=f"{name}: {variant.what}",
                tree=trees.with_leaf(tree, path, variant.spec),
                in_values=variant.in_values,
            )
            ranked.append((again, variant.order, invalid))
    ranked.sort(key=lambda entry: entry[:2])
    return [invalid for *_, invalid in ranked[:MOST]]


def _variants(spec: Spec, tree: Any) -> Iterator[_Variant]:
    if isinstance(spec, spaces.Constant):
        return
    yield from _out_of_range(spec, tree)
    yield from _of_another_shape(spec)
    yield from _of_another_dtype(spec)


def _of_another_shape(spec: Spec) -> Iterator[_Variant]:
    wider: Spec | None = None
    match spec:
        case spaces.Discrete() | spaces.LegalAction():
            n = getattr(spec, "n", 1)
            pair = spaces.MultiDiscrete((n, n), per_step=spec.per_step)
            yield _Variant(order=_SHAPE, what="two numbers per row, not one", spec=pair)
        case spaces.Flag():
            flags = spaces.MultiBinary((2,), spec.dtype, per_step=spec.per_step)
            yield _Variant(order=_SHAPE, what="two flags per row, not one", spec=flags)
        case spaces.OneHot() | spaces.LegalMask():
            wider = dataclasses.replace(spec, n=spec.n + 1)
        case spaces.MultiDiscrete():
            wider = dataclasses.replace(spec, nvec=(*spec.nvec, spec.nvec[-1]))
        case spaces.Box() if _widened(spec.shape):
            # Bounds given per element would not fit the new shape.
            low, high = _outermost(spec.low, np.min), _outermost(spec.high, np.max)
            wider = dataclasses.replace(spec, shape=_widened(spec.shape), low=low, high=high)
        case spaces.Image() | spaces.MultiBinary() | spaces.State() if _widened(spec.shape):
            wider = dataclasses.replace(spec, shape=_widened(spec.shape))
    if wider is not None:
        yield _Variant(order=_SHAPE, what="last dimension one too large", spec=wider)


def _widened(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the shape with the last dimension larger by 1; empty if that is a ``"T"`` or there is none."""
    return () if shape[-1:] in ((), (spaces.TIME,)) else (*shape[:-1], shape[-1] + 1)


def _of_another_dtype(spec: Spec) -> Iterator[_Variant]:
    """Yield the spec in float64, numpy's default, if it is float32; in float32 otherwise."""
    declared = "uint8" if isinstance(spec, spaces.Image) else str(getattr(spec, "dtype", "int64"))
    declared = declared.removeprefix("torch.")
    dtype = "float64" if declared == "float32" else "float32"
    changed: Spec
    match spec:
        case spaces.Box() | spaces.MultiBinary() | spaces.OneHot():
            changed = dataclasses.replace(spec, dtype=dtype)
        case spaces.LegalMask() | spaces.Flag() | spaces.State():
            changed = dataclasses.replace(spec, dtype=dtype)
        case _:
            position = getattr(spec, "batch_dim", 0)
            changed = spaces.Box(_tail(spec), 0, 1, dtype, per_step=spec.per_step, batch_dim=position)
    yield _Variant(order=_DTYPE, what=f"{dtype}, not {declared}", spec=changed)


def _tail(spec: Spec) -> tuple[Any, ...]:
    """Return the shape without the batch dimension, of a spec that has no dtype."""
    match spec:
        case spaces.MultiDiscrete():
            return (len(spec.nvec),)
        case spaces.Tokens():
            return (spec.length,)
        case spaces.Image():
            return tuple(spec.shape)
        case _:
            return ()


def _out_of_range(spec: Spec, tree: Any) -> Iterator[_Variant]:
    match spec:
        case spaces.Discrete():
            yield from _indices(spec, spec.start, spec.start + spec.n)
        case spaces.LegalAction():
            yield from _indices(spec, 0, _actions(spec, tree))
        case spaces.MultiDiscrete():
            yield from _indices(spec, 0, spec.nvec)
        case spaces.Tokens():
            yield from _indices(spec, 0, spec.vocabulary)
        case spaces.LegalMask():
            none = spaces.Box((spec.n,), 0, 0, spec.dtype, per_step=spec.per_step)
            yield _Variant(order=_BEYOND, what="no legal action", spec=none)
        case spaces.Box():
            least, greatest = _outermost(spec.low, np.min), _outermost(spec.high, np.max)
            if least is not None:
                below = dataclasses.replace(spec, low=None, high=least - 1)
                yield _Variant(order=_BELOW, what=f"values below the minimum, {least:g}", spec=below)
            if greatest is not None:
                beyond = dataclasses.replace(spec, low=greatest + 1, high=None)
                yield _Variant(order=_BEYOND, what=f"values above the maximum, {greatest:g}", spec=beyond)


def _indices(spec: Spec, first: int, end: Any) -> Iterator[_Variant]:
    """Yield the indices on both sides of ``range(first, end)``; `end` may differ by column."""
    for order, index, where in ((_BEYOND, end, "beyond the last"), (_BELOW, first - 1, "below the first")):
        only = spaces.Box(_tail(spec), index, index, "int64", per_step=spec.per_step)
        yield _Variant(order=order, what=f"index {index}, one {where}", spec=only)


def _actions(spec: spaces.LegalAction, tree: Any) -> int:
    """Return the number of actions of the mask that `spec` names."""
    mask = dict(trees.leaves(tree))[trees.mask_of(tree, spec)]
    return int(mask.n if isinstance(mask, spaces.LegalMask) else np.shape(getattr(mask, "value", [[]]))[-1])


def _outermost(bound: Any, of: Any) -> float | None:
    """Return the outermost of a box's bounds; None if there is none."""
    value = math.inf if bound is None else float(of(bound))
    return value if math.isfinite(value) else None
