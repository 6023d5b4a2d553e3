"""Converts tensors of every layout and dtype to ordinary ones: dense numbers that can be compared.

Most operators that a comparison needs do not support sparse, nested and quantised tensors, and some do not
support complex numbers, 8-bit floats and bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pytest_torchcompile import internals
from pytest_torchcompile.errors import UsageError

_PLAIN_DTYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint16, torch.uint32, torch.uint64),
    }
)

_TORCH_CLASSES = (torch.Tensor, torch.nn.Parameter)

LARGEST_DENSE = 2**26
"""Sparse tensors with at most this many elements are made dense; larger ones are compared by entries."""


def is_ordinary(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is torch's own, dense, not on the meta device, and of a common dtype."""
    return (
        type(tensor) in _TORCH_CLASSES
        and tensor.dtype in _PLAIN_DTYPES
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_meta)
    )


def described(tensor: torch.Tensor) -> str:
    """Return why a tensor is not ordinary, such as ``sparse_coo`` or ``float8_e5m2``; empty if it is."""
    words = []
    if tensor.is_meta:
        words.append(f"meta, {_short(tensor.dtype)} {tuple(tensor.shape)}")
    if tensor.is_nested:
        words.append("nested")
    elif tensor.layout is not torch.strided:
        words.append(_short(tensor.layout))
    if tensor.dtype not in _PLAIN_DTYPES and not tensor.is_meta:
        words.append(_short(tensor.dtype))
    return ", ".join(words)


def ordinary(tensor: torch.Tensor, path: str) -> dict[str, torch.Tensor]:
    """Return ordinary tensors with the content of `tensor`, by path. The conversion is differentiable.

    A tensor on the meta device has no elements; the result is then empty.

    Raises:
        UsageError: if the tensor can't be converted; the message says what to do.
    """
    if tensor.is_meta:
        return {}
    if is_ordinary(tensor):
        return {path: tensor}
    try:
        found: dict[str, torch.Tensor] = {}
        for name, part in _parts(tensor).items():
            found |= ordinary(part, path + name)
        return found
    except UsageError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        kind = type(tensor)
        name = ", ".join(filter(None, [f"{kind.__module__}.{kind.__qualname__}", described(tensor)]))
        if kind in _TORCH_CLASSES:
            cure = "use an adapter that returns a dense one: methods=lambda model, x: model(x).to_dense()"
        else:
            cure = (
                f"register it: pytest_torchcompile.register_output({kind.__name__}, lambda value: "
                f"{{'name': value.tensor, ...}})"
            )
        raise UsageError(
            f"{path} is a tensor ({name}) that the comparison can't convert ({reason:.120}); {cure}"
        ) from error


def _parts(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the parts of a tensor that is not ordinary. A part may need further conversion."""
    if tensor.is_nested:
        return {f"[{i}]": part for i, part in enumerate(tensor.unbind())}
    if type(tensor) not in _TORCH_CLASSES:
        return _of_subclass(tensor)
    if tensor.is_quantized:
        return {"": tensor.dequantize()}
    if tensor.layout is torch.sparse_coo and tensor.numel() > LARGEST_DENSE:
        entries = tensor.coalesce()
        return {".indices()": entries.indices(), ".values()": entries.values()}
    if tensor.layout is not torch.strided:
        return {"": tensor.to_dense()}
    return {"": _as_numbers(tensor)(tensor)}


def _of_subclass(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors inside an instance of a tensor subclass, or the instance as a plain tensor."""
    inner = internals.inner_tensors(tensor)
    if inner is not None:
        return {f".{name}": part for name, part in inner.items()}
    if internals.hides_elements(tensor):
        raise TypeError(f"{type(tensor).__name__} handles every operator by itself")
    return {"": tensor.as_subclass(torch.Tensor)}


def _as_numbers(tensor: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that converts a dense tensor of an uncommon dtype to a common dtype."""
    if tensor.is_complex():
        return lambda numbers: torch.view_as_real(numbers.resolve_conj())
    if tensor.is_floating_point() and tensor.dtype is not torch.float4_e2m1fn_x2:
        return torch.Tensor.float
    return lambda bits: bits.view(torch.uint8)


def _short(name: object) -> str:
    return str(name).removeprefix("torch.")


def is_finite(value: Any) -> bool:
    """Return whether no element of a tensor or array is a NaN or an infinity; true for other values.

    Raises:
        UsageError: if a tensor can't be converted to ordinary ones.
    """
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "fc" or bool(np.isfinite(value).all())
    parts = ordinary(value, "") if isinstance(value, torch.Tensor) else {}
    return all(bool(torch.isfinite(part).all()) for part in parts.values())


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors of any layout and dtype hold equal values; NaN equals NaN.

    Raises:
        UsageError: if one can't be converted to ordinary tensors.
    """
    if described(one) != described(other):
        return False
    mine, theirs = ordinary(one, ""), ordinary(other, "")
    return mine.keys() == theirs.keys() and all(equal_values(mine[path], theirs[path]) for path in mine)


def equal_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two strided tensors have one shape and hold equal values; NaN equals NaN."""
    if torch.equal(one, other):
        return True
    if not one.is_floating_point() or one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
