"""Lists the integers and sizes at which the behaviour of code changes. Random draws rarely contain them.

Integers: those at which a narrower dtype overflows. Sizes: those at which compilers generate other code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from pytest_torchcompile.specs import spaces
from pytest_torchcompile.specs.spaces import Spec

BATCHES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 1024)
"""Batch sizes on each side of those at which compilers generate other code: dynamo specialises 1, inductor
vectorises by 8 or 16 elements and divides loops among threads by multiples of these."""

LENGTHS = (1, 2, 7, 8, 16, 33, 64)
"""Lengths of a ``"T"`` on each side of such sizes."""

MAGNITUDES = (2**7, 2**8, 2**15, 2**16, 2**31)
"""The smallest integers that signed and unsigned integers of 8, 16 and 32 bits can't hold."""

TOGETHER = (2**8 + 1, 2**16 + 1, 2**31 + 1)
"""Edges up to each of these share an example. Next to 2^31, a difference at 128 would be lost in rounding."""

EXACT = 2**53
"""Each integer below has a float64 of its own."""

_ALIASES = {"short": "int16", "int": "int32", "long": "int64"}


def integers(spec: Spec) -> tuple[int, ...]:
    """Return the integers on each side of the limits of narrower dtypes that `spec` allows, smallest first.

    Example:
        >>> integers(spaces.Discrete(200))
        (127, 128)
    """
    least, most = _range(spec)
    found = (edge for n in MAGNITUDES for edge in (n - 1, n, 1 - n, -n, -n - 1))
    return tuple(sorted((edge for edge in found if least <= edge <= most), key=abs))


def _range(spec: Spec) -> tuple[float, float]:
    """Return the least and the greatest integer of a spec; an empty range if it has no integers."""
    match spec:
        case spaces.Discrete():
            return spec.start, spec.start + spec.n - 1
        case spaces.MultiDiscrete():
            return 0, max(spec.nvec) - 1
        case spaces.Tokens():
            return 0, spec.vocabulary - 1
        case spaces.Box():
            return _range_of_box(spec)
        case _:
            return math.inf, -math.inf


def _range_of_box(spec: spaces.Box) -> tuple[float, float]:
    import numpy as np

    name = str(spec.dtype).removeprefix("torch.")
    dtype = re.search(r"(u?)int(8|16|32|64)", _ALIASES.get(name, name))
    if dtype is None:
        return math.inf, -math.inf
    unsigned, bits = bool(dtype[1]), int(dtype[2])
    least, most = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    low = least if spec.low is None else float(np.min(spec.low))
    high = most if spec.high is None else float(np.max(spec.high))
    return max(least, low), min(most, high)


def has_bound(spec: Spec, sign: float) -> bool:
    """Return whether a spec has a bound that zeros, ones and minus ones do not reach.

    Args:
        spec: the spec of a tensor.
        sign: positive for the upper bound, negative for the lower one.
    """
    if isinstance(spec, spaces.Box):
        bound = spec.high if sign > 0 else spec.low
        if bound is None:
            return False
        import numpy as np

        # Larger integers have no exact float, and a clipped one would overflow.
        sizes = np.asarray(bound, np.float64) * np.sign(sign)
        most = math.inf if spec.is_float else EXACT
        return bool(np.any((sizes > 1) & (sizes < most)) and np.all((sizes < most) | np.isinf(sizes)))
    ends = (spaces.Image, spaces.Discrete, spaces.MultiDiscrete, spaces.Tokens, spaces.OneHot)
    return sign > 0 and isinstance(spec, (*ends, spaces.LegalMask, spaces.LegalAction))


def lacks_bound(spec: Spec) -> bool:
    """Return whether a spec has floats with an element that lacks a bound, which a scale applies to."""
    if not isinstance(spec, spaces.Box) or not spec.is_float:
        return False
    import numpy as np

    return any(bound is None or bool(np.isinf(bound).any()) for bound in (spec.low, spec.high))


def places(spec: Spec, value: float, row: tuple[int, ...]) -> list[int]:
    """Return the elements of a row, shaped `row`, that may hold `value`; NaN only where there is no bound."""
    elements = range(math.prod(row))
    if isinstance(spec, spaces.MultiDiscrete):
        return [i for i in elements if 0 <= value < spec.nvec[i]]
    if not isinstance(spec, spaces.Box) or (spec.low is None and spec.high is None):
        return list(elements)
    import numpy as np

    low, high = (
        np.broadcast_to(np.asarray(beside if bound is None else bound, np.float64), row).reshape(-1)
        for bound, beside in ((spec.low, -math.inf), (spec.high, math.inf))
    )
    unbounded = np.isinf(low) & np.isinf(high)
    fitting = unbounded if math.isnan(value) else (low <= value) & (value <= high)
    return [int(index) for index in np.flatnonzero(fitting)]


def in_groups(values: Iterable[int]) -> list[list[int]]:
    """Return the edges grouped by size; each group may share an example."""
    values = list(values)
    bounds = zip((0, *TOGETHER), TOGETHER, strict=False)
    groups = [[value for value in values if low < abs(value) <= high] for low, high in bounds]
    return [group for group in groups if group]


def between(sizes: Iterable[int], low: Any, high: Any) -> list[int]:
    """Return those of `sizes` that lie between `low` and `high`, ends included."""
    return [size for size in sizes if low <= size <= high]
