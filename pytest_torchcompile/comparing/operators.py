"""Classify operators by where they round: nowhere, in the result, or in the terms that they accumulate.

The rounding floor perturbs eager's numbers only where eager rounds them. An operator that copies, selects
or compares is exact. If its inputs were perturbed, it would select another element or return another index,
which no compiler does.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch

from pytest_torchcompile import internals


class Rounds(enum.Enum):
    """Where an operator rounds."""

    NOWHERE = enum.auto()
    RESULT = enum.auto()
    """Elementwise arithmetic, and casts that narrow."""
    TERMS = enum.auto()
    """Products, convolutions, sums, means, scans, scatters: they round each partial result and the total."""


_CHOOSES = (
    *("relu", "relu6", "threshold", "threshold_backward", "hardtanh", "hardtanh_backward"),
    *("clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "fmax", "fmin"),
    *("max", "min", "amax", "amin", "aminmax", "argmax", "argmin", "sort", "argsort", "topk", "kthvalue"),
    *("median", "nanmedian", "mode", "cummax", "cummin", "unique", "unique_dim", "unique_consecutive"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "mkldnn_max_pool2d", "mkldnn_max_pool3d", "_unique2"),
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("where", "masked_select", "nonzero", "searchsorted", "bucketize", "isin", "histc", "bincount"),
    *("nan_to_num", "nan_to_num_", "heaviside", "nextafter", "equal"),
)
_COMPARES = (
    *("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "isposinf", "isneginf", "signbit"),
    *("logical_not", "logical_and", "logical_or", "logical_xor", "all", "any", "is_nonzero"),
    *("sign", "sgn", "floor", "ceil", "round", "trunc", "frac", "floor_divide"),
)
_COPIES = (
    *(
        "clone",
        "copy",
        "fill",
        "zero",
        "set",
        "resize",
        "detach",
        "alias",
        "lift",
        "lift_fresh",
        "contiguous",
    ),
    *("cat", "stack", "flip", "roll", "repeat", "repeat_interleave", "tril", "triu", "one_hot", "take"),
    *("gather", "index", "_unsafe_index", "index_select", "index_fill", "index_copy", "embedding", "scatter"),
    *("masked_fill", "masked_scatter", "select_scatter", "slice_scatter", "diagonal_scatter"),
    *("as_strided_scatter", "select_backward", "slice_backward", "diagonal_backward", "constant_pad_nd"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "im2col", "diag_embed", "_unsafe_view"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d", "pixel_shuffle", "pixel_unshuffle"),
    *("channel_shuffle", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("neg", "abs", "copysign", "complex", "view_as_complex", "view_as_real", "real", "imag", "conj"),
    *("_local_scalar_dense", "_reshape_copy", "_conj_physical", "_neg_view", "resolve_conj", "resolve_neg"),
    *("max_unpool2d", "max_unpool3d", "trace_backward", "_reshape_alias", "to_dense", "_to_dense"),
)
_EXACT = frozenset(f"aten::{name}" for name in (*_CHOOSES, *_COMPARES, *_COPIES))

# Elementwise operators that torch does not tag as such.
_ELEMENTWISE = frozenset(
    f"aten::{name}"
    for name in (
        *("prelu", "_prelu_kernel", "glu", "hardswish", "rsub", "elu_backward", "leaky_relu_backward"),
        *("softplus_backward", "log_sigmoid_forward", "log_sigmoid_backward", "hardswish_backward"),
        *("hardsigmoid_backward", "mish_backward", "glu_backward", "polar", "linspace", "logspace", "lerp"),
        *("native_dropout", "normal", "normal_functional", "addcmul", "addcdiv"),
    )
)

_ACCUMULATES_INTO = frozenset(
    f"aten::{name}"
    for name in ("index_add", "scatter_add", "scatter_reduce", "index_put", "index_reduce", "put")
)
"""Operators that add to some elements of their first argument and leave the other elements unchanged."""

_PRODUCTS = {
    "aten::mm": 0,
    "aten::bmm": 0,
    "aten::mv": 0,
    "aten::dot": 0,
    "aten::addmm": 1,
    "aten::baddbmm": 1,
}
"""Products, with the position of the argument whose last dimension is summed over."""

_REDUCES = frozenset(
    f"aten::{name}"
    for name in (
        *(
            "sum",
            "nansum",
            "mean",
            "var",
            "std",
            "var_mean",
            "std_mean",
            "prod",
            "linalg_vector_norm",
            "norm",
        ),
        *("cumsum", "cumprod", "logcumsumexp", "logsumexp"),
    )
)
_SUMS = frozenset({"aten::sum", "aten::cumsum", "aten::nansum"})

_EXACT_ON_INTEGERS = frozenset(
    f"aten::{name}"
    for name in ("add", "sub", "rsub", "mul", "div", "remainder", "fmod", "square", "pow", "addcmul")
)
"""Elementwise operators that do not round if the operands and the result are integers."""


class ExactOperand(enum.Enum):
    """An operand that makes elementwise arithmetic exact."""

    ZERO = enum.auto()
    POWER_OF_TWO = enum.auto()
    """In a division, only the divisor counts."""


_EXACT_OPERANDS = {
    **dict.fromkeys(("aten::add", "aten::sub"), ExactOperand.ZERO),
    **dict.fromkeys(("aten::mul", "aten::div"), ExactOperand.POWER_OF_TWO),
}


@functools.cache
def name_of(operator: Any) -> str:
    """Return the base name: ``aten::add`` for ``aten::add_.Tensor`` and for ``aten::_foreach_add_.List``."""
    name = str(operator.name()).partition(".")[0]
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name.replace("::_foreach_", "::")


def where_it_rounds(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rounds:
    """Return where the operator rounds when called with these arguments.

    An unknown operator is assumed to accumulate.
    """
    name = name_of(operator)
    if name in ("aten::_to_copy", "aten::copy"):
        return Rounds.RESULT if _narrows(args, kwargs) else Rounds.NOWHERE
    if name in _ACCUMULATES_INTO:
        return Rounds.TERMS if _adds(name, args, kwargs) else Rounds.NOWHERE
    if name == "aten::div" and kwargs.get("rounding_mode") is not None:
        return Rounds.NOWHERE
    rounds = _rounds(operator)
    if rounds is Rounds.TERMS and next(float_tensors((args, kwargs)), None) is None:
        return Rounds.NOWHERE
    return rounds


@functools.cache
def _rounds(operator: Any) -> Rounds:
    """Return where an operator rounds, independent of its arguments."""
    name = name_of(operator)
    if name in _ELEMENTWISE:
        return Rounds.RESULT
    if name in _EXACT or internals.returns_view(operator) or internals.draws_random_numbers(operator):
        return Rounds.NOWHERE
    return Rounds.RESULT if internals.is_pointwise(operator) else Rounds.TERMS


def accumulates_into(operator: Any) -> bool:
    """Whether the operator adds to some elements of its first argument and copies the others."""
    return name_of(operator) in _ACCUMULATES_INTO


def sums(operator: Any) -> bool:
    """Whether the operator returns plain sums of the elements of one tensor."""
    return name_of(operator) in _SUMS


def is_exact_on_integers(operator: Any) -> bool:
    """Whether an elementwise operator does not round if its operands and its result are integers."""
    return name_of(operator) in _EXACT_ON_INTEGERS


def exact_operand(operator: Any) -> ExactOperand | None:
    """Return the kind of operand that makes the operator exact; None if there is none."""
    return _EXACT_OPERANDS.get(name_of(operator))


def float_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the floating-point and complex tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, dict):
        yield from float_tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from float_tensors(item)


def terms_of(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the number of terms that are summed for one element of the result; 1 if it is unknown."""
    name = name_of(operator)
    if name in _PRODUCTS:
        return int(args[_PRODUCTS[name]].shape[-1])
    if name == "aten::convolution":
        return int(args[1][0].numel())
    if name == "aten::convolution_backward":
        # The weight's gradient has the most terms: it is summed over the batch and all positions.
        return int(args[0].numel() // max(args[0].shape[1], 1))
    first = args[0] if args and isinstance(args[0], torch.Tensor) else None
    if first is None or not first.dim() or name not in _REDUCES:
        return 1
    dims = internals.argument(operator, args, kwargs, "dim")
    if dims is None or dims == []:
        return first.numel()
    return math.prod(first.shape[dim] for dim in (dims if isinstance(dims, (list, tuple)) else [dims]))


def _narrows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a cast or a copy goes to a narrower floating-point type."""
    source = args[0] if len(args) == 1 else args[1]
    target = kwargs.get("dtype") if len(args) == 1 else getattr(args[0], "dtype", None)
    if not isinstance(source, torch.Tensor) or not isinstance(target, torch.dtype):
        return False
    if not (source.is_floating_point() and target.is_floating_point):
        return False
    return torch.promote_types(source.dtype, target) != target


def _adds(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an indexed write adds to the elements instead of replacing them."""
    if name in ("aten::index_add", "aten::scatter_add"):
        return True
    if name in ("aten::index_put", "aten::put"):
        return bool(kwargs.get("accumulate", args[3] if len(args) > 3 else False))
    reduce = kwargs.get("reduce", args[4] if len(args) > 4 else "")
    return reduce not in ("amax", "amin")
