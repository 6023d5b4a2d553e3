"""Monte Carlo arithmetic: eager's numbers, moved where eager rounds them.

Each operator that rounds has its result, and what it accumulates, moved by a few units in the last
place (Parker 1997, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic"; Denis,
de Oliveira Castro, Petit 2016, "Verificarlo"). The movement is a hash of the value's bits, so that equal
values move equally: a difference of equal numbers stays zero and a tie stays a tie, as in any compiler.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from pytest_torchcompile import internals
from pytest_torchcompile.comparing import operators
from pytest_torchcompile.comparing.operators import Rounds

SHIFT = 4.0
"""The largest relative movement of a float32 or float64 number, in units of its dtype's eps."""

HALF_SHIFT = 0.6
"""The same for floating-point numbers of 16 bits: to a neighbour of the rounded number, and no further."""

TERMS_AT_SHIFT = 256
"""Terms of a sum from which on they move further, by the root of their number over this one: the error of
partial sums grows faster than that of the terms themselves (Higham 2002, "Accuracy and Stability of
Numerical Algorithms", chapter 4). See ``benchmarks/rounding_floor.py``."""

_BLOCK = 2**17
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_SAMPLE = 2**12
_MOST_GAPS = 8
"""A view is moved with its gaps if it spans at most so many times its elements."""


class MonteCarlo(internals.DispatchMode):
    """Runs every operator in its body rounded otherwise.

    Args:
        run: its number; each moves otherwise, and the same number moves alike.
        scale: multiplies every movement of numbers of 32 bits and more.
        apart: whether equal values move equally only within what one operator computes. Two operators that
            come to the same number in eager need not do so in another order of their sums.
    """

    def __init__(self, run: int, scale: float = 1.0, *, apart: bool = False) -> None:
        super().__init__()
        self.half = False
        """Whether an operator returned floating-point numbers of 16 bits."""
        self._scale = scale
        self._apart = apart
        self._salt = _odd((run + 1) * 0x9E3779B1)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        smaller = internals.decomposition(func)
        if smaller is not None:
            with self:
                result = smaller(*args, **kwargs)
            if result is not NotImplemented:
                return result
        rounds = operators.where_it_rounds(func, args, kwargs)
        if rounds is Rounds.NOWHERE:
            return func(*args, **kwargs)
        if self._apart:
            self._salt = _odd(self._salt * 0x85EBCA6B + 0xC2B2AE35)
        if rounds is Rounds.RESULT:
            return self._elementwise(func, args, kwargs)
        return self._accumulated(func, args, kwargs)

    def _elementwise(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of elementwise arithmetic, moved where it is not exact."""
        given = _operands(args, kwargs)
        written = _written(func, args, kwargs)
        if written and (operators.keeps_whole(func) or operators.exact_operand(func) is not None):
            # What is written to is another number afterwards.
            given = [v.clone() if any(v is other for other in written) else v for v in given]
        result = func(*args, **kwargs)
        for target in _results(func, args, kwargs, result):
            self._move(target, self._scale, _exact_elements(func, given, target))
        return result

    def _accumulated(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of what accumulates, both its terms and itself moved."""
        if all(map(_is_whole, operators.float_tensors((args, kwargs)))):
            result = func(*args, **kwargs)
            for target in _results(func, args, kwargs, result):
                self._move(target, self._scale, _whole(target))
            return result
        before = args[0].clone() if operators.accumulates_into(func) else None
        exact = _sums_of_whole(func, args, kwargs) if operators.sums(func) else None
        aliased, names = internals.aliased_arguments(func)
        moved = functools.partial(self._moved, scale=self._scale * self._further(func, args, kwargs))
        first = frozenset({0}) if before is not None else frozenset()
        result = func(
            *(a if i in aliased | first else moved(a) for i, a in enumerate(args)),
            **{n: a if n in names else moved(a) for n, a in kwargs.items()},
        )
        for target in _results(func, args, kwargs, result):
            kept = None if before is None else target == before
            if exact is not None:
                target.copy_(torch.where(exact[0], exact[1], target))
                kept = exact[0]
            self._move(target, self._scale, kept)
        return result

    @staticmethod
    def _further(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """How much further the terms of a long sum move."""
        terms = operators.terms_of(func, args, kwargs)
        return max(1.0, math.sqrt(terms / TERMS_AT_SHIFT))

    def _moved(self, value: Any, scale: float) -> Any:
        """A nest of values whose floating-point tensors are moved copies, laid out as they are."""
        if isinstance(value, (list, tuple)):
            return type(value)(self._moved(item, scale) for item in value)
        if not isinstance(value, torch.Tensor) or not _can_move(value):
            return value
        memory, copy = _copy_in_layout(value)
        self._move(memory, scale, None)
        return copy

    def _move(self, value: torch.Tensor, scale: float, kept: torch.Tensor | None) -> None:
        """Move the elements of a tensor in place, but those `kept`."""
        if not _can_move(value):
            return
        if value.is_complex():
            kept = None if kept is None else torch.stack([kept, kept], dim=-1)
            value = torch.view_as_real(value)
        if value.numel() > _BLOCK and kept is None and _is_dense(value):
            # Element for element in the order in memory, and by blocks that stay in the processor's cache.
            for block in torch.split(_in_memory(value), _BLOCK):
                self._move_block(block, scale, None)
        else:
            self._move_block(value, scale, kept)

    def _move_block(self, block: torch.Tensor, scale: float, kept: torch.Tensor | None) -> None:
        info = torch.finfo(block.dtype)
        half = block.element_size() < 4
        self.half |= half
        wide = block.float() if half else block
        step = (HALF_SHIFT if half else SHIFT * scale) * info.eps * 2.0**-31
        noise = self._noise(block).to(wide.dtype)
        low, high = wide.aminmax()
        # A NaN, an infinity, and what is next to the largest number of its type stay what they are.
        if not max(-float(low), float(high)) < info.max / 2:
            noise.masked_fill_(~(wide.abs() < info.max / 2), 0.0)
            kept = ~torch.isfinite(wide) if kept is None else kept | ~torch.isfinite(wide)
        if kept is None:
            torch.addcmul(wide, wide, noise, value=step, out=block)
        else:
            block.copy_(torch.where(kept, wide, torch.addcmul(wide, wide, noise, value=step)))

    def _noise(self, value: torch.Tensor) -> torch.Tensor:
        """An integer in [-2^31, 2^31) for each element: a hash of its bits.

        As much of murmur3's finaliser as it takes to mix the high bits, which count most here.
        """
        bits = value.view(_BITS[value.element_size()])
        if bits.dtype == torch.int64:
            bits = bits ^ (bits >> 32)
        mixed = bits.to(torch.int32) * self._salt
        mixed ^= mixed >> 16
        mixed *= -0x3D4D51CB
        return mixed


def _odd(number: int) -> int:
    """An odd number of 31 bits, so that a product with it loses no bit."""
    return number % 2**31 | 1


def _can_move(value: torch.Tensor) -> bool:
    return (
        value.layout == torch.strided
        and value.numel() > 0
        and value.device.type != "meta"
        and type(value) in (torch.Tensor, torch.nn.Parameter)
        and (value.is_floating_point() or value.is_complex())
        and value.element_size() // (2 if value.is_complex() else 1) in _BITS
    )


def _operands(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Tensors and numbers that elementwise arithmetic is given."""
    flat = [*args, *kwargs.values()]
    return [value for value in flat if isinstance(value, (torch.Tensor, int, float))]


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The floating-point tensors that an operator writes to."""
    positions, names = internals.written_arguments(func)
    if not positions and not names:
        return []
    written = [args[i] for i in sorted(positions) if i < len(args)]
    return list(operators.float_tensors([*written, *(kwargs[n] for n in names if n in kwargs)]))


def _results(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[torch.Tensor]:
    """The floating-point tensors that an operator made or wrote to, each once."""
    found = [*operators.float_tensors(result), *_written(func, args, kwargs)]
    return list({id(tensor): tensor for tensor in found}.values())


def _exact_elements(func: Any, given: list[Any], result: torch.Tensor) -> torch.Tensor | None:
    """The elements that elementwise arithmetic did not round; None if there are none for sure."""
    if operators.name_of(func) in ("aten::_to_copy", "aten::copy"):
        source: torch.Tensor = given[-1]
        return result.to(source.dtype) == source
    unrounded = _unrounded(func, given, result)
    whole = _whole_of_whole(given, result) if operators.keeps_whole(func) and _has_whole(result) else None
    return whole if unrounded is None else unrounded if whole is None else whole | unrounded


def _unrounded(func: Any, given: list[Any], result: torch.Tensor) -> torch.Tensor | None:
    """The elements to which zero was added, or that were multiplied or divided by a power of two.

    A new bias is zero, a new norm's weight 1, and the halves behind a division by four are exact.
    """
    kind = operators.exact_operand(func)
    if kind is None:
        return None
    found = None
    for value in given[1 if operators.name_of(func) == "aten::div" else 0 : 2]:
        tensor = torch.as_tensor(value, dtype=result.dtype) if isinstance(value, (int, float)) else value
        if bool(_is_exact_operand(kind, _sample(tensor)).any()):
            exact = _is_exact_operand(kind, tensor).expand_as(result)
            found = exact if found is None else found | exact
    return found


def _is_exact_operand(kind: operators.ExactOperand, value: torch.Tensor) -> torch.Tensor:
    if kind is operators.ExactOperand.ZERO or not value.is_floating_point():
        return value == (0 if kind is operators.ExactOperand.ZERO else 1)
    return torch.frexp(value).mantissa.abs() == 0.5


def _whole_of_whole(given: list[Any], result: torch.Tensor) -> torch.Tensor | None:
    """The elements that are whole numbers made of whole numbers."""
    exact = _whole(result)
    for value in given:
        if isinstance(value, torch.Tensor):
            exact = exact & _whole_elements(value)
        elif not float(value).is_integer():
            return None
    return exact


def _whole_elements(value: torch.Tensor) -> torch.Tensor:
    """Where a tensor holds whole numbers."""
    if value.is_complex():
        return torch.zeros_like(value, dtype=torch.bool)
    return value.trunc() == value if value.is_floating_point() else torch.ones_like(value, dtype=torch.bool)


def _whole(value: torch.Tensor) -> torch.Tensor:
    """Where a result holds whole numbers so small that its dtype has all of them."""
    if value.is_complex():
        return torch.zeros_like(value, dtype=torch.bool)
    return (value.trunc() == value) & (value.abs() <= 1 / torch.finfo(value.dtype).eps)


def _has_whole(value: torch.Tensor) -> bool:
    """Whether a tensor holds whole numbers other than zero, which moves nowhere, as far as a sample tells."""
    if value.is_complex() or value.layout != torch.strided:
        return False
    whole = _sample(value).trunc()
    return bool(((whole == _sample(value)) & (whole != 0)).any())


def _is_whole(value: torch.Tensor) -> bool:
    """Whether all elements of a tensor are whole numbers."""
    if value.is_complex() or value.layout != torch.strided:
        return False
    few = _sample(value)
    return bool((few.trunc() == few).all()) and (
        few.numel() == value.numel() or bool(_whole_elements(value).all())
    )


def _sample(value: torch.Tensor) -> torch.Tensor:
    """All elements of a tensor, or the first ones of a large one."""
    if value.numel() <= _SAMPLE or value.layout != torch.strided:
        return value
    while value.dim() > 1 and value[0].numel() >= _SAMPLE:
        value = value[0]
    return value[: max(1, _SAMPLE * len(value) // value.numel())]


def _sums_of_whole(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Which elements of a sum are of whole numbers alone, and the sum; None if few can be."""
    value = args[0]
    if not _has_whole(value):
        return None
    others = func((~_whole_elements(value)).to(value.dtype), *args[1:], **kwargs)
    total = func(*args, **kwargs)
    return (others == 0) & _whole(total), total


def _is_dense(value: torch.Tensor) -> bool:
    """Whether the elements lie in memory one after the other, each once."""
    expected = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _in_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a dense tensor in the order in which they lie in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _copy_in_layout(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """New memory, and a copy in it with the strides of the original, its gaps and overlaps too."""
    value = value.detach()
    if _is_dense(value):
        memory = value.clone()
        return memory, memory
    span = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    if span > _MOST_GAPS * value.numel():
        memory = value.contiguous()
        return memory, memory
    memory = value.as_strided((span,), (1,)).clone()
    return memory, memory.as_strided(value.shape, value.stride())
