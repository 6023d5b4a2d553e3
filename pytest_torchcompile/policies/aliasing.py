"""Finds outputs that share memory with another output, an input, a parameter, a buffer or an attribute.

Comparing values can't detect this: the values are equal until one of the two tensors is written to, which
changes the other as well. A rollout buffer that stores an output has it overwritten one step later if the
output shares memory with the hidden state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

LARGEST_COMPARED = 2**20
"""Tensors with at most this many elements are compared element by element, larger ones by their ends."""

Aliases = frozenset[tuple[str, str]]
"""Pairs of paths; the first is an output's."""


def aliases(outputs: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> Aliases:
    """Return the pairs of an output and another tensor that have an element of memory in common.

    Args:
        outputs: by path, as a call returned them.
        others: inputs, parameters, buffers and attributes, by path.

    Example:
        >>> row = torch.zeros(4)
        >>> sorted(aliases({"output": row[:2]}, {"input x": row, "buffer b": row[2:]}))
        [('output', 'input x')]
    """
    mine, theirs = _by_address(outputs), _by_address(others)
    found = set()
    for address, group in mine.items():
        for place, (path, tensor) in enumerate(group):
            beside = (*group[place + 1 :], *theirs.get(address, ()))
            found |= {(path, other) for other, t in beside if overlap(tensor, t)}
    return frozenset(found)


def _by_address(tensors: Mapping[str, torch.Tensor]) -> dict[int, list[tuple[str, torch.Tensor]]]:
    """Return the tensors grouped by the address of their storage; tensors without storage are left out."""
    found: dict[int, list[tuple[str, torch.Tensor]]] = defaultdict(list)
    for path, tensor in sorted(tensors.items()):
        if tensor.numel() and _is_strided(tensor):
            found[tensor.untyped_storage().data_ptr()].append((path, tensor))
    found.pop(0, None)
    return found


def _is_strided(tensor: torch.Tensor) -> bool:
    """Return whether the strides give the memory of each element; a subclass may keep elements elsewhere."""
    return tensor.layout == torch.strided and type(tensor) in (torch.Tensor, torch.nn.Parameter)


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors of one storage have an element in common.

    Elements are compared one by one, because the byte ranges of two columns of a matrix overlap although no
    element does. The byte ranges alone decide if the tensors are large or their dtypes differ in size.
    """
    (first, last), (others_first, others_last) = _ends(one), _ends(other)
    if last < others_first or others_last < first:
        return False
    if one.element_size() != other.element_size() or max(one.numel(), other.numel()) > LARGEST_COMPARED:
        return True
    return bool(torch.isin(_places(one), _places(other)).any())


def _ends(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the offsets, in bytes, of a tensor's first and last byte in its storage."""
    size = tensor.element_size()
    begin = int(tensor.storage_offset()) * size
    steps = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (int(steps) + 1) * size - 1


def _places(tensor: torch.Tensor) -> torch.Tensor:
    """Return the offset of each element in the storage, counted in elements, in the tensor's shape."""
    places = torch.full(tensor.shape, int(tensor.storage_offset()))
    for dim, (n, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        along = [1] * tensor.ndim
        along[dim] = n
        places = places + stride * torch.arange(n).reshape(along)
    return places


def strides(outputs: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the strides of each output along the dimensions that have more than one element."""
    return {
        path: tuple(s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
        for path, tensor in outputs.items()
        if tensor.numel() and _is_strided(tensor)
    }
