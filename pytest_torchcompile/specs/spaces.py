"""Input specs: what the tensors look like that a policy is called with.

A spec describes one tensor; dicts and tuples of specs nest. The batch comes first in every tensor
and is never part of a spec's shape. Specs are plain data and import neither torch nor Hypothesis,
because test modules build them at collection time, when nothing may be slow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.texts import raised_text

TIME = "T"
"""The name of the sequence dimension in a shape; its length is drawn per example."""


@dataclasses.dataclass(frozen=True, repr=False)
class Spec:
    """Base of all input specs; shown as it is written, so that messages can be pasted.

    Args:
        per_step: whether there is a row for each step of each sequence, as PPO flattens them:
            ``(T * batch, ...)``, with the same T as in a shape.
    """

    per_step: bool = dataclasses.field(default=False, kw_only=True)

    def __repr__(self) -> str:
        given = []
        for field in sorted(dataclasses.fields(self), key=lambda field: bool(field.kw_only)):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING:
                given.append(repr(value))
            # "is" for arrays, whose comparison has no truth value.
            elif value is not field.default and str(value) != str(field.default):
                given.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(given)})"

    def _require(self, condition: bool, expected: str) -> None:
        if not condition:
            raise UsageError(f"{self!r}: {expected}")


def _is_size(size: Any) -> bool:
    return size == TIME or (_is_integer(size) and size > 0)


def _is_integer(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _shape(shape: Any) -> Any:
    """`shape` as a tuple; a single size is a shape of one dimension."""
    if _is_integer(shape) or shape == TIME:
        return (shape,)
    return tuple(shape) if isinstance(shape, (tuple, list)) else shape


@dataclasses.dataclass(frozen=True, repr=False)
class _Shaped(Spec):
    shape: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _shape(self.shape))
        self._require(
            isinstance(self.shape, tuple) and all(map(_is_size, self.shape)),
            "the shape is a tuple of positive integers, or 'T' for a sequence, without the batch",
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Box(_Shaped):
    """Real (or integer) numbers, ``(batch, *shape)``.

    Args:
        shape: sizes without the batch; ``"T"`` stands for a sequence length that varies.
        low: least value, a number or an array that broadcasts to `shape`; None is unbounded.
        high: greatest value, likewise.
        dtype: a torch dtype or its name.
        requires_grad: also compare the gradient of this input in the ``update`` phase.

    Unbounded values are mostly O(1), sometimes up to 1e4; unbounded integers also lie on each side of what
    8, 16 and 32 bits hold. Bounds are kept by every draw: a bound keeps out a NaN, and the infinity on its
    side, which a check puts into one element else (`nonfinite=False` leaves them out everywhere).

    Raises:
        UsageError: if the shape is no shape or `low` exceeds `high`.

    Example:
        >>> Box((46, 9, 9))
        Box((46, 9, 9))
    """

    low: Any = None
    high: Any = None
    dtype: Any = "float32"
    requires_grad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low is not None and self.high is not None:
            import numpy as np

            ordered = bool(np.all(np.asarray(self.low) <= np.asarray(self.high)))
            self._require(ordered, "low exceeds high")

    @property
    def is_float(self) -> bool:
        """Whether the dtype, however it is given, is a floating one."""
        return "float" in str(self.dtype)


@dataclasses.dataclass(frozen=True, repr=False)
class Image(_Shaped):
    """Pixels from 0 to 255 as uint8, ``(batch, *shape)``; put the channels where the policy has them."""


@dataclasses.dataclass(frozen=True, repr=False)
class Discrete(Spec):
    """Integers from `start` to ``start + n - 1`` as int64, ``(batch,)``."""

    n: int
    start: int = 0

    def __post_init__(self) -> None:
        self._require(_is_integer(self.n) and self.n > 0, "n is a positive integer")


@dataclasses.dataclass(frozen=True, repr=False)
class MultiDiscrete(Spec):
    """Integers, the i-th below ``nvec[i]``, ``(batch, len(nvec))``.

    Args:
        nvec: how many there are of each.
        dtype: a torch dtype or its name.
    """

    nvec: Any
    dtype: Any = "int64"

    def __post_init__(self) -> None:
        object.__setattr__(self, "nvec", tuple(int(n) for n in self.nvec))
        self._require(bool(self.nvec) and all(n > 0 for n in self.nvec), "nvec holds positive integers")


@dataclasses.dataclass(frozen=True, repr=False)
class MultiBinary(_Shaped):
    """Zeros and ones of the given dtype, ``(batch, *shape)``."""

    dtype: Any = "float32"


@dataclasses.dataclass(frozen=True, repr=False)
class OneHot(Spec):
    """One 1 among `n` elements of each row, ``(batch, n)``."""

    n: int
    dtype: Any = "float32"

    def __post_init__(self) -> None:
        self._require(_is_integer(self.n) and self.n > 0, "n is a positive integer")


@dataclasses.dataclass(frozen=True, repr=False)
class LegalMask(Spec):
    """Which of `n` actions are legal, ``(batch, n)``; each row has at least one legal action."""

    n: int
    dtype: Any = "bool"

    def __post_init__(self) -> None:
        self._require(
            _is_integer(self.n) and self.n > 0,
            "n is a positive integer: a mask without a legal action leaves nothing to choose",
        )


@dataclasses.dataclass(frozen=True, repr=False)
class LegalAction(Spec):
    """The index of an action that is legal under the input named `mask`, as int64, ``(batch,)``.

    Args:
        mask: the name of the mask among the inputs (``"legal_mask"``), or its path inside a nested
            observation (``"observation.legal_mask"``).
    """

    mask: str

    def __post_init__(self) -> None:
        self._require(isinstance(self.mask, str) and bool(self.mask), "mask is the name of an input")


@dataclasses.dataclass(frozen=True, repr=False)
class Flag(Spec):
    """One yes or no a row, such as an episode start, ``(batch,)``."""

    dtype: Any = "bool"


@dataclasses.dataclass(frozen=True, repr=False)
class State(_Shaped):
    """A recurrent state: zeros (an episode's start) or O(1) numbers.

    Args:
        shape: sizes without the batch, such as ``(layers, hidden)``.
        batch_dim: where the batch goes: ``State((1, 64), batch_dim=1)`` is ``(1, batch, 64)``.
        dtype: a torch dtype or its name.
    """

    batch_dim: int = 0
    dtype: Any = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            _is_integer(self.batch_dim) and 0 <= self.batch_dim <= len(self.shape),
            f"batch_dim lies between 0 and {len(self.shape)}",
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Tokens(Spec):
    """Token ids below `vocabulary` as int64, ``(batch, length)``; `length` may be ``"T"``."""

    vocabulary: int
    length: Any = TIME

    def __post_init__(self) -> None:
        self._require(
            _is_integer(self.vocabulary) and self.vocabulary > 0, "vocabulary is a positive integer"
        )
        self._require(_is_size(self.length), "length is a positive integer or 'T'")


@dataclasses.dataclass(frozen=True, repr=False)
class Constant(Spec):
    """A value handed to the policy as it is (tensors as a fresh copy each time)."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """Tensors handed to the policy in a container of its library's own, made anew for each call.

    Args:
        spec: a spec, or a dict or tuple of them.
        wrap: given the tensors, nested like `spec`, returns what the policy takes.

    Raises:
        UsageError: if `wrap` is no function; when called, if `wrap` raises.

    Example:
        >>> masked = Wrapped({"board": Box((9,)), "mask": LegalMask(9)}, lambda t: Batch(**t))
        >>> masked.spec["mask"]
        LegalMask(9)
    """

    spec: Any
    wrap: Callable[[Any], Any]

    def __post_init__(self) -> None:
        if not callable(self.wrap):
            raise UsageError(
                f"Wrapped(..., {self.wrap!r}): wrap is a function that is given the tensors and returns "
                f"what the policy takes, such as lambda x: Batch(obs=x)"
            )

    def __repr__(self) -> str:
        return f"Wrapped({self.spec!r}, {getattr(self.wrap, '__name__', self.wrap)})"

    def __call__(self, tensors: Any) -> Any:
        """The container.

        Raises:
            UsageError: if `wrap` raises.
        """
        try:
            return self.wrap(tensors)
        except Exception as error:
            raise UsageError(f"{self!r}: wrap raised {raised_text(error)}") from error


def are_equal(one: Spec, other: Spec) -> bool:
    """Whether two specs describe the same tensors; bounds may be arrays."""
    import numpy as np

    return type(one) is type(other) and all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(one)
    )


def as_spec(value: Any, where: str = "observation") -> Any:
    """`value` as a tree whose leaves are specs.

    Args:
        value: a spec; a tuple of sizes (a `Box`); a dict, tuple or list of such, or one `Wrapped`; a
            gymnasium or gym space; anything else is a constant, an empty tuple or dict too.
        where: names the input in messages.

    Raises:
        UsageError: for a spec class that was not called, a function (they need the module, see
            `resolve`) and a space of a kind that is not known.

    Example:
        >>> as_spec({"board": (46, 9, 9), "turn": Discrete(2)})["turn"]
        Discrete(2)
    """
    if isinstance(value, Spec):
        return value
    if isinstance(value, Wrapped):
        return Wrapped(as_spec(value.spec, where), value.wrap)
    if isinstance(value, type) and issubclass(value, (Spec, Wrapped)):
        raise UsageError(f"{where}={value.__name__} is a class; write {value.__name__}(...)")
    if _is_space(value):
        return _from_space(value, where)
    if _is_shape(value):
        return Box(value)
    if isinstance(value, Mapping):
        return {key: as_spec(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [as_spec(item, f"{where}.{i}") for i, item in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    if callable(value) and not hasattr(value, "shape"):
        raise UsageError(
            f"{where} is a function; a function of the built module must return a spec such as "
            f"Box((8,)), and only a whole input may be one"
        )
    return Constant(value)


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and bool(value)
        and not hasattr(value, "_fields")
        and all(map(_is_size, value))
    )


def resolve(value: Any, model: Any, where: str) -> Any:
    """`value` as a tree of specs; a function is called with the built module first.

    Raises:
        UsageError: if the function raises, or as `as_spec` does.
    """
    if not isinstance(value, (type, Wrapped)) and callable(value) and not hasattr(value, "shape"):
        try:
            value = value(model)
        except Exception as error:
            raise UsageError(
                f"{where} is a function that raised {type(error).__name__} when given the built "
                f"{type(model).__name__}: {error}"
            ) from error
    return as_spec(value, where)


def is_description(value: Any) -> bool:
    """Whether `value` is a space, a spec, a shape, or a dict or tuple of them."""
    if _is_shape(value):
        return True
    if isinstance(value, Mapping):
        return bool(value) and all(map(is_description, value.values()))
    if isinstance(value, tuple):
        return bool(value) and all(map(is_description, value))
    return isinstance(value, (Spec, Wrapped)) or _is_space(value)


def class_names(value: Any) -> list[str]:
    """The full names of a value's class and its bases, by which other libraries' types are known."""
    return [f"{base.__module__}.{base.__qualname__}" for base in type(value).__mro__]


def _is_space(value: Any) -> bool:
    """Whether `value` is a gymnasium or gym space, told without importing either."""
    return any(base.__name__ == "Space" for base in type(value).__mro__) and any(
        base.__module__.split(".")[0] in ("gymnasium", "gym", "gymnax", "shimmy")
        for base in type(value).__mro__
    )


def _from_space(space: Any, where: str) -> Any:
    kinds = [base.__name__ for base in type(space).__mro__]
    if "Box" in kinds:
        return _from_box(space)
    if "Discrete" in kinds:
        return Discrete(int(space.n), int(getattr(space, "start", 0)))
    if "MultiDiscrete" in kinds:
        return MultiDiscrete(space.nvec.reshape(-1).tolist())
    if "MultiBinary" in kinds:
        return MultiBinary(tuple(space.shape), "int8")
    if "Dict" in kinds:
        return {key: as_spec(item, f"{where}.{key}") for key, item in space.spaces.items()}
    if "Tuple" in kinds:
        return tuple(as_spec(item, f"{where}.{i}") for i, item in enumerate(space.spaces))
    raise UsageError(
        f"{where}: a space of type {type(space).__name__} has no spec; describe the tensor yourself, "
        f"for example {where}=Box((8,))"
    )


def _from_box(space: Any) -> Spec:
    import numpy as np

    dtype = np.dtype(space.dtype)
    if dtype == np.uint8 and np.all(space.low == 0) and np.all(space.high == 255):
        return Image(tuple(space.shape))
    # CartPole and its like write the largest float for "unbounded".
    unbounded = np.finfo(np.float32).max if dtype.kind == "f" else np.inf
    low = np.where(space.low <= -unbounded, -np.inf, space.low) if dtype.kind == "f" else space.low
    high = np.where(space.high >= unbounded, np.inf, space.high) if dtype.kind == "f" else space.high
    return Box(tuple(space.shape), _bound(low, -np.inf), _bound(high, np.inf), dtype.name)


def _bound(bound: Any, unbounded: float) -> Any:
    """A space's bounds as short as they can be written: None, a number, or the array."""
    values = set(bound.reshape(-1).tolist())
    if values == {unbounded}:
        return None
    return values.pop() if len(values) == 1 else bound
