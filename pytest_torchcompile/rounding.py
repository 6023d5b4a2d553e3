"""How much of a difference rounding explains, and which side is closer to the truth.

The *rounding floor* is how far eager itself moves when each operator's float inputs are moved by a
few units in the last place: Monte Carlo arithmetic (Parker 1997, "Monte Carlo Arithmetic: exploiting
randomness in floating-point arithmetic"; Denis, de Oliveira Castro, Petit 2016, "Verificarlo"). A
fixed multiple of float64's distance does not work as a gate, because eager is sometimes exact.

The *float64 reference* redoes the eager computation in float64, with the same random draws. It is
shown to the user; it decides nothing.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pytest_torchcompile import internals
from pytest_torchcompile.calls import Outcome, Side
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.state import PlainAttributes, map_tensors

Rerun = Callable[..., Outcome]
"""Calls eager again on the same example, under the context made by its first argument; ``wide=True``
hands it float64 inputs."""

RUNS = 8
SHIFT = 4.0
"""The largest relative shift of an operator's input, in units of its dtype's eps."""

KINK_RUNS = 8
KINK_FACTOR = 4.0
"""Further runs under a wider shift, for gradients alone: one activation of many thousands that rounding
moves across the kink of a ReLU changes a gradient at once, and is seldom hit by a run."""

LARGEST_SHIFT = 128.0
EQUAL_TERMS_PER_EPS = 16
"""Sums of n equal terms round the same way each time, so that their error grows with n and not with its
root (Higham 2002, "Accuracy and Stability of Numerical Algorithms", chapter 4). On such inputs the
shift is n / 16 eps, within `SHIFT` and `LARGEST_SHIFT`: three times or more what inductor was seen to
need on BatchNorm networks, see ``benchmarks/rounding_floor.py``."""

_BLOCK = 2**17
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Exact operators: moving what they are given would turn an equality or an index into another one.
_EXACT = ("eq", "ne", "lt", "le", "gt", "ge", "floor", "ceil", "round", "trunc", "sign", "isfinite")
_EXACT_OPERATORS = frozenset(f"aten::{name}" for name in (*_EXACT, "isnan", "isinf", "argmax", "argmin"))


@dataclasses.dataclass(kw_only=True)
class Floor:
    """How far eager moved.

    Args:
        movement: by path, the largest movement of an element of the tensor.
        rows: by path of an output or input, the same for each row of the batch.
        flipped: by path, the elements of integer outputs and of NaN or infinity patterns that changed.
        plain: paths of plain values that changed.
        runs: how many runs counted towards `movement`; those in which an integer flipped do not.
    """

    movement: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))
    rows: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    flipped: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    plain: set[str] = dataclasses.field(default_factory=set)
    runs: int = 0


def shift_for(equal_terms: int) -> float:
    """The shift for an example whose largest degenerate input has so many elements (0 for none)."""
    return min(max(SHIFT, equal_terms / EQUAL_TERMS_PER_EPS), LARGEST_SHIFT)


def rounding_floors(eager: Outcome, rerun: Rerun, shift: float = SHIFT) -> Iterator[Floor]:
    """How far `eager` moves under Monte Carlo arithmetic: the same floor, higher after each run.

    Most differences of correct models are explained by the first, and then no other is computed.

    Args:
        eager: the outcome without any shift.
        rerun: calls eager again on the same example.
        shift: the largest relative shift, in eps.
    """
    floor = Floor()
    for run in range(RUNS + KINK_RUNS):
        at_kinks = run >= RUNS
        jittered = rerun(functools.partial(_Jitter, run, KINK_FACTOR * shift if at_kinks else shift))
        if jittered.error is None:
            _take(floor, eager, jittered, gradients_only=at_kinks)
        yield floor


def distance_to_float64(eager: Outcome, side: Side, rerun: Rerun) -> Floor | None:
    """How far `eager` is from its float64 reference, as a floor; None where that does not run."""
    reference = float64_reference(side, rerun)
    if reference is None:
        return None
    floor = Floor()
    _take(floor, eager, reference, gradients_only=False)
    floor.rows.clear()
    return floor


def _is_exact(tensor: torch.Tensor) -> bool:
    """Whether its elements are integers or booleans, which don't round."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def _take(floor: Floor, eager: Outcome, jittered: Outcome, *, gradients_only: bool) -> None:
    """Add one run to the floor."""
    if gradients_only:
        eager = Outcome(gradients=eager.gradients)
    moved = jittered.elementwise() | jittered.differentiated()
    pairs = {
        path: (base, moved[path])
        for path, base in (eager.elementwise() | eager.differentiated()).items()
        if path in moved and moved[path].shape == base.shape
    }
    flips = False
    movement: dict[str, float] = {}
    rows: dict[str, torch.Tensor] = {}
    for path, (base, other) in pairs.items():
        if _is_exact(base):
            odd = base != other
            flips = flips or (path in eager.outputs.tensors and bool(odd.any()))
            _flip(floor, path, odd)
            continue
        if not base.numel():
            continue
        movement[path] = largest_distance(base, other)
        if not math.isfinite(movement[path]):
            _flip(floor, path, torch.isfinite(base) != torch.isfinite(other))
            movement[path] = float(_finite_distances(base, other).max())
        if path.startswith(("output", "input")) and base.dim() > 0:
            rows[path] = _finite_distances(base, other).reshape(len(base), -1).amax(dim=1)
    changed = {path for path, value in eager.plain().items() if jittered.plain().get(path) != value}
    floor.plain |= changed
    if not flips and not changed:
        floor.runs += 1
        for path, largest in movement.items():
            floor.movement[path] = max(floor.movement[path], largest)
        for path, each in rows.items():
            floor.rows[path] = torch.maximum(floor.rows.get(path, each), each)


def largest_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest distance between elements of two tensors; NaN or infinite if one of them is.

    By blocks, because to allocate the distances of a large gradient takes longer than to compute them.
    """
    blocks = zip(*(torch.split(tensor.reshape(-1), _BLOCK) for tensor in (one, other)), strict=True)
    return float(torch.stack([(mine - theirs).abs_().max() for mine, theirs in blocks]).max())


def _finite_distances(base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The distances between elements, 0 where one is not finite."""
    return (other - base).abs_().nan_to_num_(0.0, 0.0, 0.0)


def _flip(floor: Floor, path: str, odd: torch.Tensor) -> None:
    floor.flipped[path] = floor.flipped.get(path, torch.zeros_like(odd)) | odd


class _Jitter(internals.DispatchMode):
    """Moves every operator's float inputs by up to `shift` eps, equal values equally."""

    def __init__(self, run: int, shift: float) -> None:
        super().__init__()
        self._shift = shift
        # Odd, so that the product loses no bit.
        self._salt = ((run + 1) * 0x9E3779B1 % 2**31) | 1

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
        if func.name().partition(".")[0] in _EXACT_OPERATORS or _makes_integers(func, args, kwargs):
            return func(*args, **kwargs)
        positions, names = internals.aliased_arguments(func)
        moved = tuple(a if i in positions else self._moved(a) for i, a in enumerate(args))
        named = {n: a if n in names else self._moved(a) for n, a in kwargs.items()}
        return func(*moved, **named)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._moved(item) for item in value)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
            return value
        if value.element_size() not in _BITS:
            return value
        moved = torch.empty_like(value)
        if moved.stride() != value.stride():
            # With gaps or overlaps: a copy of its own, laid out as `moved` is.
            value = torch.empty_like(value).copy_(value)
        # Element for element in the order in memory, and by blocks that stay in the processor's cache.
        blocks, targets = (torch.split(_in_memory(tensor), _BLOCK) for tensor in (value, moved))
        step = self._shift * torch.finfo(value.dtype).eps * 2.0**-31
        for block, target in zip(blocks, targets, strict=True):
            wide = block if block.element_size() >= 4 else block.float()
            torch.addcmul(wide, wide, self._noise(block).to(wide.dtype), value=step, out=target)
        return moved

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


def _in_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a tensor without gaps, in the order in which they lie in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _makes_integers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the operator converts to an integer dtype."""
    dtype = kwargs.get("dtype")
    return (
        func.name().startswith("aten::_to_copy")
        and dtype is not None
        and not dtype.is_floating_point
        and bool(args)
    )


# --- the float64 reference ------------------------------------------------------------------------


def float64_reference(eager: Side, rerun: Rerun) -> Outcome | None:
    """The eager call redone in float64 with the same random draws; None where that doesn't run.

    It doesn't run if the call raises, or if an output that is floating in eager does not come out as
    float64: the module then casts where it can't be seen.
    """
    tape: list[Any] = []
    narrow = rerun(lambda: _Record(tape))
    if narrow.error is not None:
        return None
    floating = {path: tensor.is_floating_point() for path, tensor in narrow.outputs.tensors.items()}
    # Its gradients are as large as the module.
    del narrow
    try:
        wide = rerun(lambda: _in_float64(eager, tape), wide=True)
    except UsageError:
        # What the user wraps inputs with, or observes, insists on another dtype.
        return None
    if wide.error is not None:
        return None
    for path, is_floating in floating.items():
        other = wide.outputs.tensors.get(path)
        if other is None or (is_floating and other.dtype != torch.float64):
            return None
    return wide


class _Record(internals.DispatchMode):
    """Keeps what each operator drew."""

    def __init__(self, tape: list[Any]) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if internals.draws_random_numbers(func) and isinstance(result, torch.Tensor):
            self._tape.append(result.detach().clone())
        return result


class _Replay(internals.DispatchMode):
    """Hands out what was drawn before, in the dtype that is asked for now."""

    def __init__(self, tape: list[Any]) -> None:
        super().__init__()
        self._tape = collections.deque(tape)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not internals.draws_random_numbers(func) or not isinstance(result, torch.Tensor):
            return result
        drawn = self._tape.popleft()
        if 0 in internals.aliased_arguments(func)[0]:
            return result.copy_(drawn)
        return drawn.to(torch.float64) if drawn.is_floating_point() else drawn


class _Widen(TorchFunctionMode):
    """Turns casts to a narrower float, and tensors made in one, into float64."""

    _CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)
    _NARROW = (torch.float32, torch.float16, torch.bfloat16)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self._CASTS:
            return args[0].double()
        widened = tuple(self._widened(a) for a in args)
        return func(*widened, **{name: self._widened(a) for name, a in (kwargs or {}).items()})

    def _widened(self, value: Any) -> Any:
        return torch.float64 if isinstance(value, torch.dtype) and value in self._NARROW else value


@contextlib.contextmanager
def _in_float64(side: Side, tape: list[Any]) -> Iterator[None]:
    """Run the body with the module's tensors and every cast in float64; buffers come back at reset."""
    narrow: dict[torch.nn.Parameter, torch.Tensor] = {}
    dtype = torch.get_default_dtype()
    try:
        if side.model is not None:
            for parameter in side.model.parameters():
                if parameter.is_floating_point():
                    narrow[parameter] = parameter.data
                    parameter.data = parameter.data.double()
            _widen_state(side.model)
        torch.set_default_dtype(torch.float64)
        with _Widen(), _Replay(tape):
            yield
    finally:
        torch.set_default_dtype(dtype)
        for parameter, data in narrow.items():
            parameter.data = data


def _widen_state(model: torch.nn.Module) -> None:
    """Replace the float buffers and tensor attributes; `ModuleState.reset` puts the originals back."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._buffers[name] = buffer.double()
    attributes = PlainAttributes(model)
    for (owner, name), value in attributes.tensors().items():
        vars(attributes.owners[owner])[name] = map_tensors(widened, value)


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """A float tensor in float64, a leaf that asks for gradients as the original does; others as they are."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().double().requires_grad_(tensor.requires_grad)
