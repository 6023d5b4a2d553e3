"""Monte Carlo arithmetic: run eager with its numbers perturbed where its operators round.

The result of each operator that rounds, and the terms that it accumulates, are perturbed by a few units in
the last place (Parker 1997, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic";
Denis, de Oliveira Castro, Petit 2016, "Verificarlo"). The perturbation is a hash of the value's bits, so
that equal values are perturbed equally. The difference of equal numbers stays zero and a tie stays a tie,
as with any compiler.
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
"""The largest relative perturbation of a float32 or float64 number, in units of its dtype's eps."""

HALF_SHIFT = 0.6
"""The same for 16-bit floating-point numbers: at most to a neighbour of the rounded number."""

TERMS_AT_SHIFT = 256
"""Sums of more terms than this are perturbed more, by the factor sqrt(terms / TERMS_AT_SHIFT).

The error of partial sums grows faster than that of the terms (Higham 2002, "Accuracy and Stability of
Numerical Algorithms", chapter 4). See ``benchmarks/rounding_floor.py``.
"""

_BLOCK = 2**17
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_SAMPLE = 2**12
_MOST_GAPS = 8
"""A view is copied with its gaps if it spans at most this many times its number of elements."""


class MonteCarlo(internals.DispatchMode):
    """Runs every operator in its body with different rounding.

    Args:
        run: the seed of the perturbation; the same number gives the same perturbation.
        scale: factor on every perturbation of numbers of 32 bits and more.
        apart: whether each operator perturbs with a seed of its own, so that equal values are perturbed
            equally only within one operator. Two operators that return the same number in eager may
            return different ones if the order of their sums changes.
    """

    def __init__(self, run: int, scale: float = 1.0, *, apart: bool = False) -> None:
        super().__init__()
        self.half = False
        """Whether an operator returned 16-bit floating-point numbers."""
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
        """Run elementwise arithmetic and perturb the elements of its result that were rounded."""
        given = _operands(args, kwargs)
        written = _written(func, args, kwargs)
        if written and (operators.is_exact_on_integers(func) or operators.exact_operand(func) is not None):
            # Keep the operands' values: the call overwrites these tensors.
            given = [v.clone() if any(v is other for other in written) else v for v in given]
        result = func(*args, **kwargs)
        for target in _results(func, args, kwargs, result):
            self._perturb(target, self._scale, _exact_elements(func, given, target))
        return result

    def _accumulated(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator that accumulates, with its terms and its result perturbed."""
        if all(map(_all_integers, operators.float_tensors((args, kwargs)))):
            result = func(*args, **kwargs)
            for target in _results(func, args, kwargs, result):
                self._perturb(target, self._scale, _exact_integers(target))
            return result
        before = args[0].clone() if operators.accumulates_into(func) else None
        exact = _integer_sums(func, args, kwargs) if operators.sums(func) else None
        aliased, names = internals.aliased_arguments(func)
        scale = self._scale * self._long_sum_factor(func, args, kwargs)
        perturbed = functools.partial(self._perturbed, scale=scale)
        first = frozenset({0}) if before is not None else frozenset()
        result = func(
            *(a if i in aliased | first else perturbed(a) for i, a in enumerate(args)),
            **{n: a if n in names else perturbed(a) for n, a in kwargs.items()},
        )
        for target in _results(func, args, kwargs, result):
            kept = None if before is None else target == before
            if exact is not None:
                target.copy_(torch.where(exact[0], exact[1], target))
                kept = exact[0]
            self._perturb(target, self._scale, kept)
        return result

    @staticmethod
    def _long_sum_factor(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """Return the factor on the perturbation of the terms of a long sum; see `TERMS_AT_SHIFT`."""
        terms = operators.terms_of(func, args, kwargs)
        return max(1.0, math.sqrt(terms / TERMS_AT_SHIFT))

    def _perturbed(self, value: Any, scale: float) -> Any:
        """Return nested values with a perturbed copy of each floating-point tensor, with the same strides."""
        if isinstance(value, (list, tuple)):
            return type(value)(self._perturbed(item, scale) for item in value)
        if not isinstance(value, torch.Tensor) or not _can_perturb(value):
            return value
        memory, copy = _copy_in_layout(value)
        self._perturb(memory, scale, None)
        return copy

    def _perturb(self, value: torch.Tensor, scale: float, kept: torch.Tensor | None) -> None:
        """Perturb the elements of a tensor in place, except where the mask `kept` is True."""
        if not _can_perturb(value):
            return
        if value.is_complex():
            kept = None if kept is None else torch.stack([kept, kept], dim=-1)
            value = torch.view_as_real(value)
        if value.numel() > _BLOCK and kept is None and _is_dense(value):
            # In memory order, in blocks that fit into the processor's cache.
            for block in torch.split(_in_memory(value), _BLOCK):
                self._perturb_block(block, scale, None)
        else:
            self._perturb_block(value, scale, kept)

    def _perturb_block(self, block: torch.Tensor, scale: float, kept: torch.Tensor | None) -> None:
        info = torch.finfo(block.dtype)
        half = block.element_size() < 4
        self.half |= half
        wide = block.float() if half else block
        step = (HALF_SHIFT if half else SHIFT * scale) * info.eps * 2.0**-31
        noise = self._noise(block).to(wide.dtype)
        low, high = wide.aminmax()
        # NaN, infinities and numbers close to the largest one of their dtype are not perturbed.
        if not max(-float(low), float(high)) < info.max / 2:
            noise.masked_fill_(~(wide.abs() < info.max / 2), 0.0)
            kept = ~torch.isfinite(wide) if kept is None else kept | ~torch.isfinite(wide)
        if kept is None:
            torch.addcmul(wide, wide, noise, value=step, out=block)
        else:
            block.copy_(torch.where(kept, wide, torch.addcmul(wide, wide, noise, value=step)))

    def _noise(self, value: torch.Tensor) -> torch.Tensor:
        """Return an integer in [-2^31, 2^31) for each element: a hash of its bits.

        It is the part of murmur3's finaliser that mixes the high bits, which matter most here.
        """
        bits = value.view(_BITS[value.element_size()])
        if bits.dtype == torch.int64:
            bits = bits ^ (bits >> 32)
        mixed = bits.to(torch.int32) * self._salt
        mixed ^= mixed >> 16
        mixed *= -0x3D4D51CB
        return mixed


def _odd(number: int) -> int:
    """Return an odd number of 31 bits. A product with an odd number is invertible, so it loses no bit."""
    return number % 2**31 | 1


def _can_perturb(value: torch.Tensor) -> bool:
    return (
        value.layout == torch.strided
        and value.numel() > 0
        and value.device.type != "meta"
        and type(value) in (torch.Tensor, torch.nn.Parameter)
        and (value.is_floating_point() or value.is_complex())
        and value.element_size() // (2 if value.is_complex() else 1) in _BITS
    )


def _operands(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the tensors and numbers among the arguments."""
    flat = [*args, *kwargs.values()]
    return [value for value in flat if isinstance(value, (torch.Tensor, int, float))]


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return the floating-point tensors that an operator writes to."""
    positions, names = internals.written_arguments(func)
    if not positions and not names:
        return []
    written = [args[i] for i in sorted(positions) if i < len(args)]
    return list(operators.float_tensors([*written, *(kwargs[n] for n in names if n in kwargs)]))


def _results(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[torch.Tensor]:
    """Return the floating-point tensors that an operator returned or wrote to, each once."""
    found = [*operators.float_tensors(result), *_written(func, args, kwargs)]
    return list({id(tensor): tensor for tensor in found}.values())


def _exact_elements(func: Any, given: list[Any], result: torch.Tensor) -> torch.Tensor | None:
    """Return a mask of the elements that elementwise arithmetic did not round; None if it rounded all."""
    if operators.name_of(func) in ("aten::_to_copy", "aten::copy"):
        source: torch.Tensor = given[-1]
        return result.to(source.dtype) == source
    unrounded = _unrounded(func, given, result)
    integers = None
    if operators.is_exact_on_integers(func) and _has_integers(result):
        integers = _integers_of_integers(given, result)
    return integers if unrounded is None else unrounded if integers is None else integers | unrounded


def _unrounded(func: Any, given: list[Any], result: torch.Tensor) -> torch.Tensor | None:
    """Return a mask of the elements that were added to zero, or multiplied or divided by a power of two.

    Such operands are common: a new bias is zero, and the weight of a new normalisation layer is 1.
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


def _integers_of_integers(given: list[Any], result: torch.Tensor) -> torch.Tensor | None:
    """Return a mask of the elements that are integers and were computed from integers."""
    exact = _exact_integers(result)
    for value in given:
        if isinstance(value, torch.Tensor):
            exact = exact & _integer_elements(value)
        elif not float(value).is_integer():
            return None
    return exact


def _integer_elements(value: torch.Tensor) -> torch.Tensor:
    """Return a mask of the elements that are integers."""
    if value.is_complex():
        return torch.zeros_like(value, dtype=torch.bool)
    return value.trunc() == value if value.is_floating_point() else torch.ones_like(value, dtype=torch.bool)


def _exact_integers(value: torch.Tensor) -> torch.Tensor:
    """Return a mask of the elements that are integers in the range in which the dtype has every integer."""
    if value.is_complex():
        return torch.zeros_like(value, dtype=torch.bool)
    return (value.trunc() == value) & (value.abs() <= 1 / torch.finfo(value.dtype).eps)


def _has_integers(value: torch.Tensor) -> bool:
    """Whether a sample of the tensor has integers other than zero, which no perturbation changes."""
    if value.is_complex() or value.layout != torch.strided:
        return False
    integers = _sample(value).trunc()
    return bool(((integers == _sample(value)) & (integers != 0)).any())


def _all_integers(value: torch.Tensor) -> bool:
    """Whether all elements of a tensor are integers."""
    if value.is_complex() or value.layout != torch.strided:
        return False
    few = _sample(value)
    return bool((few.trunc() == few).all()) and (
        few.numel() == value.numel() or bool(_integer_elements(value).all())
    )


def _sample(value: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor, or the first elements of a large one."""
    if value.numel() <= _SAMPLE or value.layout != torch.strided:
        return value
    while value.dim() > 1 and value[0].numel() >= _SAMPLE:
        value = value[0]
    return value[: max(1, _SAMPLE * len(value) // value.numel())]


def _integer_sums(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return a mask of the sums of integers, and all sums; None if a sample of the terms has no integers."""
    value = args[0]
    if not _has_integers(value):
        return None
    others = func((~_integer_elements(value)).to(value.dtype), *args[1:], **kwargs)
    total = func(*args, **kwargs)
    return (others == 0) & _exact_integers(total), total


def _is_dense(value: torch.Tensor) -> bool:
    """Whether the elements occupy memory without gaps and without overlap."""
    expected = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _in_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements of a dense tensor as one dimension in memory order."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _copy_in_layout(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return new memory and a copy in it that has the strides of the original, with its gaps and overlaps."""
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
