"""Converts what a user writes for an input to a tree of specs: shapes, spaces, dicts, functions, constants.

It recognises the spaces of other libraries by their class names and imports none of these libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.specs.spaces import (
    Box,
    Constant,
    Discrete,
    Image,
    MultiBinary,
    MultiDiscrete,
    Spec,
    Wrapped,
    is_size,
    require_made,
    spec_names,
)


def as_spec(value: Any, where: str = "observation") -> Any:
    """Return `value` as a tree whose leaves are specs.

    Args:
        value: a spec, a `Wrapped`, a tuple of sizes (a `Box`), a gymnasium or gym space, or a dict, tuple or
            list of these. Anything else is a `Constant`.
        where: names the input in messages.

    Raises:
        UsageError: if `value` is a spec class that was not called, a function (see `resolve`, which has the
            module), or an unknown kind of space.

    Example:
        >>> as_spec({"board": (46, 9, 9), "turn": Discrete(2)})["turn"]
        Discrete(2)
    """
    _require_made(value, where)
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
    return _constant(value, where)


def _require_made(value: Any, where: str) -> None:
    try:
        require_made(value)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _constant(value: Any, where: str) -> Constant:
    """Return the value as a constant, unless it is the text of a spec, such as ``"Box"``."""
    name = value.partition("(")[0].strip() if isinstance(value, str) else ""
    if name in spec_names():
        written = value if "(" in value else f"{name}(...)"
        raise UsageError(f"{where}={value!r} is a string; write {where}={written}")
    return Constant(value)


def describes(tree: Any) -> bool:
    """Whether a tree of specs has a tensor: one that is drawn, or a constant one."""
    if isinstance(tree, Constant):
        return hasattr(tree.value, "shape")
    if isinstance(tree, Wrapped):
        return describes(tree.spec)
    if isinstance(tree, Spec):
        return True
    return any(map(describes, tree.values() if isinstance(tree, Mapping) else tree))


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and bool(value)
        and not hasattr(value, "_fields")
        and all(map(is_size, value))
    )


def resolve(value: Any, model: Any, where: str) -> Any:
    """Return `value` as a tree of specs; if it is a function, that of its result for the built module.

    Raises:
        UsageError: if the function raises, or `as_spec` does.
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
    """Whether `value` is a space, a spec, a shape, or a dict or tuple of these."""
    if _is_shape(value):
        return True
    if isinstance(value, Mapping):
        return bool(value) and all(map(is_description, value.values()))
    if isinstance(value, tuple):
        return bool(value) and all(map(is_description, value))
    return isinstance(value, (Spec, Wrapped)) or _is_space(value)


def class_names(value: Any) -> list[str]:
    """Return the full names of a value's class and its bases, to recognise types of other libraries."""
    return [f"{base.__module__}.{base.__qualname__}" for base in type(value).__mro__]


def _is_space(value: Any) -> bool:
    """Whether `value` is a gymnasium or gym space, by the names of its classes."""
    return any(base.__name__ == "Space" for base in type(value).__mro__) and any(
        base.__module__.split(".")[0] in ("gymnasium", "gym", "gymnax", "shimmy")
        for base in type(value).__mro__
    )


def _from_space(space: Any, where: str) -> Any:
    kinds = [base.__name__ for base in type(space).__mro__]
    if "Box" in kinds:
        return _from_box(space)
    if "Discrete" in kinds:
        # int64 whatever the space's dtype: torch gathers by no other, so users convert them too.
        return Discrete(int(space.n), int(getattr(space, "start", 0)))
    if "MultiDiscrete" in kinds:
        return _from_multi_discrete(space)
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
    # Environments such as CartPole use the largest float for "unbounded".
    unbounded = np.finfo(np.float32).max if dtype.kind == "f" else np.inf
    low = np.where(space.low <= -unbounded, -np.inf, space.low) if dtype.kind == "f" else space.low
    high = np.where(space.high >= unbounded, np.inf, space.high) if dtype.kind == "f" else space.high
    return Box(tuple(space.shape), _bound(low, -np.inf), _bound(high, np.inf), dtype.name)


def _from_multi_discrete(space: Any) -> Spec:
    """Return a `MultiDiscrete` for columns that start at 0, and a `Box` of integers for all others."""
    import numpy as np

    dtype = np.dtype(space.dtype).name
    start = np.broadcast_to(getattr(space, "start", 0), space.nvec.shape)
    if space.nvec.ndim == 1 and not start.any():
        return MultiDiscrete(space.nvec.tolist(), dtype)
    high = start + (space.nvec - 1)
    return Box(space.nvec.shape, _bound(start, -np.inf), _bound(high, np.inf), dtype)


def _bound(bound: Any, unbounded: float) -> Any:
    """Return the bounds of a space in the shortest form: None, a number, or the array."""
    values = set(bound.reshape(-1).tolist())
    if values == {unbounded}:
        return None
    return values.pop() if len(values) == 1 else bound
