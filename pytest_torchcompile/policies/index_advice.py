"""Says what to write if eager raises because an input is no index or mask, or an index beyond the last.

Each reader takes the exception, the declared inputs and the policy, as those of `input_advice` do, and
returns nothing rather than guess.
"""

from __future__ import annotations

import dataclasses
import re
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from pytest_torchcompile.policies.advice_lines import with_line
from pytest_torchcompile.policies.reachable import Reachable
from pytest_torchcompile.specs import conventions, spaces, trees
from pytest_torchcompile.texts import line_that_raised

_EMBEDDED = "to have one of the following scalar types: Long, Int"
_INDICES = (
    "one_hot is only applicable to index tensor",
    "tensors used as indices must be",
    "Expected dtype int64 for index",
    "Expected dtype int32/int64 for index",
)
_NOT_BELOW = r"index (?P<index>-?\d+) is out of bounds for dimension \d+ with size (?P<size>\d+)"
_NO_MASK = (
    r"~ \(operator\.invert\) is only implemented|only supports boolean masks|"
    r"expected condition to be a boolean tensor|\"bitwise_\w+\" not implemented for 'Float'"
)


def of_indices(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    """Read what operators say that are given floats in place of indices."""
    what = "the policy takes whole numbers, as indices"
    if any(text in str(error) for text in _INDICES):
        line = line_that_raised(error)
        named = [path for path in _actions(tree) if _names(path, line)]
        if not named:
            return with_line(what, tree, lambda spec: _as_index(spec, "n"))
        # Of what is gathered, only the dimensions of one action are sure to be right.
        return with_line(what, tree, lambda box: box.shape in ((), (1,)) and _as_index(box, "n"), among=named)
    if _EMBEDDED not in str(error):
        return ""
    count = _embedded(policy) or "n"
    floats = [(path, spec) for path, spec in trees.leaves(tree) if _as_index(spec, count)]
    given = [path for path, spec in floats if _shape_of(spec) == _shape_embedded(error)]
    return with_line(what, tree, lambda spec: _as_index(spec, count), among=given or None)


def _as_index(spec: Any, count: int | str) -> str:
    """Return the text of a spec of indices in place of a `Box` of floats; empty for other specs."""
    if not (isinstance(spec, spaces.Box) and spec.is_float):
        return ""
    if spec.shape in ((), (count,)):  # a one-hot of as many elements as there are indices is one index
        return f"Discrete({count})"
    if len(spec.shape) == 1:
        return f"Tokens({count}, length={spec.shape[0]!r})"
    last = count - 1 if isinstance(count, int) else "n - 1"
    return f"Box({spec.shape!r}, low=0, high={last}, dtype='int64')"


def _shape_embedded(error: BaseException) -> tuple[int, ...] | None:
    """Return the shape, without the batch, of what `F.embedding` was given when it raised."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        given = frame.f_locals.get("input")
        if frame.f_code is nn.functional.embedding.__code__ and isinstance(given, torch.Tensor):
            return tuple(given.shape[1:])
    return None


def of_too_many_rows(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    """Read what embeddings and `one_hot` say of an index beyond their last."""
    if not re.search("index out of range in self|Class values must be smaller", str(error)):
        return ""
    # A one-hot has as many classes as its call says, and no embedding.
    count = _embedded(policy) if "index out of range" in str(error) else 0
    if not count:
        return "an index is larger than the table that it is looked up in: declare fewer values"
    return with_line(f"its embedding has {count} rows", tree, lambda spec: _smaller(spec, count))


def of_too_many_choices(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    """Read what `gather` and `scatter` say, and with them the ``log_prob`` of a `Categorical`."""
    found = re.search(_NOT_BELOW, str(error))
    # A Python integer that is out of bounds, which is no input, raises an `IndexError`.
    if found is None or not isinstance(error, RuntimeError):
        return ""
    index, size = int(found["index"]), int(found["size"])
    leaves = dict(trees.leaves(tree))
    if any(isinstance(spec, (spaces.MultiDiscrete, spaces.LegalAction)) for spec in leaves.values()):
        return ""
    changes = {path: _smaller(spec, size) for path, spec in leaves.items() if _contains(spec, index)}
    by_distribution = any(
        frame.f_code is torch.distributions.Categorical.log_prob.__code__
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    for path in _actions(tree):
        # `log_prob` converts floats to integers, as the line that raised may.
        is_converted = by_distribution or _names(path, line_that_raised(error))
        if is_converted and _shape_of(leaves[path]) in ((), (size,)):
            changes[path] = spaces.Discrete(size)
    wrong = {path: spec for path, spec in changes.items() if spec is not None}
    if len(wrong) != 1:
        return ""
    return f"it takes an index below {size}: write {trees.redeclared(tree, wrong)}"


def _contains(spec: Any, index: int) -> bool:
    """Whether a spec of whole numbers draws this one."""
    match spec:
        case spaces.Discrete():
            return spec.start <= index < spec.start + spec.n
        case spaces.Tokens():
            return 0 <= index < spec.vocabulary
        case spaces.Box() if not spec.is_float:
            return spec.high is None or bool((index <= np.asarray(spec.high)).any())
    return False


def _smaller(spec: Any, count: int) -> Any:
    """Return a spec of whole numbers with only those below `count`; None for other specs."""
    if isinstance(spec, spaces.Discrete) and spec.start + spec.n > count > spec.start:
        return dataclasses.replace(spec, n=count - spec.start)
    if isinstance(spec, spaces.Tokens) and spec.vocabulary > count:
        return dataclasses.replace(spec, vocabulary=count)
    if isinstance(spec, spaces.Box) and not spec.is_float and not getattr(spec.high, "shape", ()):
        return dataclasses.replace(spec, low=0, high=count - 1)
    return None


def of_masks(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    """Read the exceptions of a policy that uses floats as a mask, by ``~``, ``&``, `where`, `masked_fill`."""
    if not re.search(_NO_MASK, str(error)):
        return ""
    kinds = (spaces.MultiBinary, spaces.OneHot, spaces.Flag, spaces.LegalMask)
    line = line_that_raised(error)
    wrong = {
        path: spec
        for path, spec in trees.leaves(tree)
        if isinstance(spec, kinds) and "float" in str(spec.dtype) and _names(path, line)
    }
    if len(wrong) != 1:
        return ""
    ((path, spec),) = wrong.items()
    right: Any = dataclasses.replace(spec, dtype="bool")
    is_of_actions = re.search("action|legal", str(path[-1])) and "mask" in str(path[-1])
    if is_of_actions and isinstance(spec, spaces.MultiBinary) and len(spec.shape) == 1:
        right = spaces.LegalMask(spec.shape[0]) if isinstance(spec.shape[0], int) else right
    return f"the policy takes a mask of booleans: write {trees.redeclared(tree, {path: right})}"


def _actions(tree: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return the paths of the `Box` specs of floats that are named as an action."""
    return [
        path
        for path, spec in trees.leaves(tree)
        if path[-1] in conventions.ACTION and isinstance(spec, spaces.Box) and spec.is_float
    ]


def _shape_of(spec: Any) -> tuple[Any, ...]:
    return tuple(spec.shape)


def _names(path: tuple[Any, ...], line: str) -> bool:
    """Whether a line of code has the name of an input."""
    return re.search(rf"\b{re.escape(str(path[-1]))}\b", line) is not None


def _embedded(policy: Reachable) -> int:
    """Return the number of rows of the policy's only embedding; 0 if it has none or several sizes."""
    found = {m.num_embeddings for m in policy.modules.values() if isinstance(m, nn.Embedding)}
    return found.pop() if len(found) == 1 else 0
