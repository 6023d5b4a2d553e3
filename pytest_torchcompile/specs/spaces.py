"""Input specs, which describe the tensors that a policy is called with.

A spec describes one tensor; dicts and tuples of specs nest. The batch is the first dimension of a tensor and
is not part of a spec's shape. Specs are plain data. This module imports neither torch nor Hypothesis,
because test modules build specs during collection, which has to be fast.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.specs.deferral import FailedSpec, reported_once
from pytest_torchcompile.texts import raised_text

TIME = "T"
"""The name of the sequence dimension in a shape; its length is drawn per example."""


class _Made(type):
    """Ends the traceback of a wrong spec at the line that makes it, or keeps its error for later."""

    if not TYPE_CHECKING:  # it would hide the specs' own signatures

        def __call__(cls, *args, **kwargs):
            __tracebackhide__ = True
            return reported_once(functools.partial(super().__call__, *args, **kwargs))

        @property
        def __signature__(cls):
            """The parameters of the class, which `inspect` would otherwise read from `__call__`."""
            own = inspect.signature(cls.__init__)
            return own.replace(parameters=list(own.parameters.values())[1:])


@dataclasses.dataclass(frozen=True, repr=False)
class Spec(metaclass=_Made):
    """Base of all input specs. The repr of a spec is the expression that creates it.

    Args:
        per_step: whether the tensor has a row for each step of each sequence, as PPO flattens them:
            ``(T * batch, ...)``, with the same T as in a shape.
    """

    per_step: bool = dataclasses.field(default=False, kw_only=True)

    def __repr__(self) -> str:
        given = []
        for field in sorted(dataclasses.fields(self), key=lambda field: bool(field.kw_only)):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING:
                given.append(repr(value))
            # "is" first, because comparing arrays gives no single truth value.
            elif value is not field.default and str(value) != str(field.default):
                given.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(given)})"

    def _require(self, condition: bool, expected: str) -> None:
        if not condition:
            raise UsageError(f"{self!r}: {expected}")


def is_size(size: Any) -> bool:
    """Whether `size` is valid in a shape: a positive integer or `TIME`."""
    return size == TIME or (_is_integer(size) and size > 0)


def _is_integer(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _shape(shape: Any) -> Any:
    """Return `shape` as a tuple; a single size is a shape of one dimension."""
    if _is_integer(shape) or shape == TIME:
        return (shape,)
    return tuple(shape) if isinstance(shape, (tuple, list)) else shape


@dataclasses.dataclass(frozen=True, repr=False)
class _Shaped(Spec):
    shape: Any
    batch_dim: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _shape(self.shape))
        self._require(
            isinstance(self.shape, tuple) and all(map(is_size, self.shape)),
            "the shape must be a tuple of positive integers, or 'T' for a sequence, without the batch",
        )
        self._require(
            _is_integer(self.batch_dim) and 0 <= self.batch_dim <= len(self.shape),
            f"batch_dim must lie between 0 and {len(self.shape)}",
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Box(_Shaped):
    """Real (or integer) numbers, ``(batch, *shape)``.

    Args:
        shape: sizes without the batch; ``"T"`` is a sequence length, which varies between examples.
        low: the smallest value, a number or an array that broadcasts to `shape`; None is unbounded.
        high: the largest value, a number or an array that broadcasts to `shape`; None is unbounded.
        dtype: a torch dtype or its name.
        requires_grad: also compare the gradient of this input in the ``update`` phase.
        batch_dim: the position of the batch, for time-major inputs: ``Box(("T", 8), batch_dim=1)`` is
            ``(T, batch, 8)``.

    Unbounded values are mostly of order 1, sometimes of order 1e4, and once from 1e-2 to 1e-6. Unbounded
    integers also include values next to the limits of 8, 16 and 32 bits. Every drawn value is within the
    bounds, and a check tries all elements at each bound. A bound excludes NaN, and the infinity on its side.
    Otherwise a check also tries NaN and infinities in one element, unless `nonfinite=False`.

    Raises:
        UsageError: if `shape` is not a valid shape, `low` exceeds `high`, or a bound of integers is infinite.

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
        self._require_bound("low")
        self._require_bound("high")
        if self.low is not None and self.high is not None:
            import numpy as np

            ordered = bool(np.all(np.asarray(self.low) <= np.asarray(self.high)))
            self._require(ordered, "low exceeds high")
        if self.batch_dim:
            import numpy as np

            fits = all(np.ndim(bound) <= len(self.shape) - self.batch_dim for bound in (self.low, self.high))
            self._require(fits, "bounds must be numbers, or arrays of the dimensions after batch_dim")

    def _require_bound(self, name: str) -> None:
        """Return if a bound is None, a number that the dtype may have, or an array that broadcasts."""
        bound = getattr(self, name)
        if bound is None or (isinstance(bound, (int, float)) and self.is_float):
            return
        import numpy as np

        array = np.asarray(bound)
        self._require(array.dtype.kind in "biuf", f"{name} must be a number or an array of numbers")
        sizes = self.shape[len(self.shape) - array.ndim :]
        fits = array.ndim <= len(self.shape) and all(
            size in (1, declared) for size, declared in zip(array.shape, sizes, strict=True)
        )
        self._require(fits, f"{name} has the shape {array.shape}, which does not broadcast to {self.shape}")
        finite = self.is_float or bool(np.isfinite(array).all())
        self._require(finite, f"{name} must be finite, because {self.dtype} is; write None for unbounded")

    @property
    def is_float(self) -> bool:
        """Whether the dtype is a floating-point one."""
        return "float" in str(self.dtype)


@dataclasses.dataclass(frozen=True, repr=False)
class Image(_Shaped):
    """Pixels from 0 to 255 as uint8, ``(batch, *shape)``, with the channels where the policy expects them.

    Args:
        shape: sizes without the batch.
        batch_dim: the position of the batch, as for `Box`.
    """


@dataclasses.dataclass(frozen=True, repr=False)
class Discrete(Spec):
    """Integers from `start` to ``start + n - 1`` as int64, ``(batch,)``."""

    n: int
    start: int = 0

    def __post_init__(self) -> None:
        self._require(_is_integer(self.n) and self.n > 0, "n must be a positive integer")


@dataclasses.dataclass(frozen=True, repr=False)
class MultiDiscrete(Spec):
    """Integers from 0 to ``nvec[i] - 1`` in column i, ``(batch, len(nvec))``.

    Args:
        nvec: the number of values of each column.
        dtype: a torch dtype or its name.
    """

    nvec: Any
    dtype: Any = "int64"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "nvec", tuple(int(n) for n in self.nvec))
        except (TypeError, ValueError):
            self._require(False, "nvec must be a list of positive integers, such as [3, 2]")
        self._require(bool(self.nvec) and all(n > 0 for n in self.nvec), "nvec must hold positive integers")


@dataclasses.dataclass(frozen=True, repr=False)
class MultiBinary(_Shaped):
    """Zeros and ones of the given dtype, ``(batch, *shape)``.

    Args:
        shape: sizes without the batch.
        dtype: a torch dtype or its name.
        batch_dim: the position of the batch: ``MultiBinary(("T",), "bool", batch_dim=1)`` is ``(T, batch)``.
    """

    dtype: Any = "float32"


@dataclasses.dataclass(frozen=True, repr=False)
class OneHot(Spec):
    """One 1 among `n` elements of each row, ``(batch, n)``."""

    n: int
    dtype: Any = "float32"

    def __post_init__(self) -> None:
        self._require(_is_integer(self.n) and self.n > 0, "n must be a positive integer")


@dataclasses.dataclass(frozen=True, repr=False)
class LegalMask(Spec):
    """A mask of the legal ones among `n` actions, ``(batch, n)``; each row has at least one legal action."""

    n: int
    dtype: Any = "bool"

    def __post_init__(self) -> None:
        self._require(
            _is_integer(self.n) and self.n > 0,
            "n must be a positive integer: a mask without a legal action leaves nothing to choose",
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
        self._require(isinstance(self.mask, str) and bool(self.mask), "mask must be the name of an input")


@dataclasses.dataclass(frozen=True, repr=False)
class Flag(Spec):
    """One true or false value per row, such as an episode start, ``(batch,)``."""

    dtype: Any = "bool"


@dataclasses.dataclass(frozen=True, repr=False)
class State(_Shaped):
    """A recurrent state: zeros, as at the start of an episode, or numbers of order 1.

    Args:
        shape: sizes without the batch, such as ``(layers, hidden)``.
        batch_dim: the position of the batch: ``State((1, 64), batch_dim=1)`` is ``(1, batch, 64)``.
        dtype: a torch dtype or its name.
    """

    batch_dim: int = dataclasses.field(default=0, kw_only=False)
    dtype: Any = "float32"


@dataclasses.dataclass(frozen=True, repr=False)
class Tokens(Spec):
    """Token ids from 0 to ``vocabulary - 1`` as int64, ``(batch, length)``; `length` may be ``"T"``."""

    vocabulary: int
    length: Any = TIME

    def __post_init__(self) -> None:
        self._require(
            _is_integer(self.vocabulary) and self.vocabulary > 0, "vocabulary must be a positive integer"
        )
        self._require(is_size(self.length), "length must be a positive integer or 'T'")


@dataclasses.dataclass(frozen=True, repr=False)
class Constant(Spec):
    """A value that is passed to the policy unchanged; tensors and arrays are copied for each call."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Wrapped(metaclass=_Made):
    """Tensors that are passed to the policy in a library's own container, created for each call.

    Args:
        spec: a spec, or a dict or tuple of specs.
        wrap: takes the tensors, nested like `spec`, and returns what the policy takes.

    Raises:
        UsageError: if `wrap` is not callable; and in a call, if `wrap` raises.

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
        """Return the container.

        Raises:
            UsageError: if `wrap` raises.
        """
        try:
            return self.wrap(tensors)
        except Exception as error:
            raise UsageError(f"{self!r}: wrap raised {raised_text(error)}") from error


def spec_names() -> list[str]:
    """Return the names of the classes by which users describe inputs."""
    kinds: list[type] = [*Spec.__subclasses__(), *_Shaped.__subclasses__(), Wrapped]
    return [kind.__name__ for kind in kinds if not kind.__name__.startswith("_")]


def require_made(value: Any) -> None:
    """Return if no spec in `value`, a spec or a nest of them, is wrong.

    Raises:
        UsageError: with the error that was kept when the spec was made; see `deferral`.
    """
    if isinstance(value, FailedSpec):
        raise UsageError(value.sentence)
    inner = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, Wrapped):
        require_made(value.spec)
    elif isinstance(value, (Mapping, tuple, list)):
        for item in inner:
            require_made(item)


def are_equal(one: Spec, other: Spec) -> bool:
    """Whether two specs describe the same tensors; bounds may be arrays."""
    import numpy as np

    return type(one) is type(other) and all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(one)
    )
