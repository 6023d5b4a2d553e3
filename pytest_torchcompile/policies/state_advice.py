"""Says what to write if eager raises because a declared `State` does not fit a recurrent layer.

Each reader takes the exception, the declared inputs and the policy, as those of `input_advice` do, and
returns nothing rather than guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pytest_torchcompile.policies.reachable import Reachable
from pytest_torchcompile.specs import conventions, spaces, trees
from pytest_torchcompile.texts import line_that_raised

_SIZES = r"Expected hidden(?:\[(?P<part>[01])\])? size \((?P<need>[\d, ]+)\), got \[(?P<got>[\d, ]+)\]"
_DIMENSIONS = r"For batched 3-D input, hx (?:and cx )?should also be 3-D but got \(?2-D"
_UNPACKED = r"(not enough|too many) values to unpack \(expected 2"


def of_wrong_shape(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    """Read what ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` say of a state with other dimensions."""
    sizes = re.search(_SIZES, str(error))
    if sizes is None and not re.search(_DIMENSIONS, str(error)):
        return ""
    states = [_parts(state) for state in conventions.own_states(policy.modules.values())]
    states = [parts for parts in states if parts[0].batch_dim == 1]
    first = 0
    if sizes is not None:
        need, got = ([int(n) for n in sizes[name].split(",")] for name in ("need", "got"))
        if len(need) != 3:
            return ""
        first = int(sizes["part"] or 0)
        states = [p for p in states if len(p) > first and p[first].shape == (need[0], need[2])]
    if len(states) != 1:
        return ""
    right = states[0][first:]
    leaves = dict(trees.leaves(tree))
    if sizes is not None:
        leaves = {path: spec for path, spec in leaves.items() if _is_drawn_as(spec, got, need[1])}
        named = {path: spec for path, spec in leaves.items() if isinstance(spec, spaces.State)} or leaves
    else:
        named = {
            path: spec
            for path, spec in leaves.items()
            if isinstance(spec, spaces.State) and spec.shape == right[0].shape[1:]
        }
    if not named or len(named) > len(right):
        return ""
    lines = trees.redeclared(tree, dict(zip(named, right, strict=False)))
    layers, hidden = right[0].shape
    return f"the state of a recurrent layer is ({layers}, batch, {hidden}): write {lines}"


def of_one_instead_of_two(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    """Read the exceptions of a policy with an LSTM, whose state is ``(h, c)``, that is given one tensor."""
    states = conventions.own_states(policy.modules.values())
    given = [(path, spec) for path, spec in trees.leaves(tree) if isinstance(spec, spaces.State)]
    if len(states) != 1 or not isinstance(states[0], tuple) or len(given) != 1:
        return ""
    ((path, spec),) = given
    text, line = str(error), line_that_raised(error)
    names = [name for name in path if isinstance(name, str)]
    is_named = any(re.search(rf"\b{re.escape(name)}\b", line) for name in [*names, "hx"])
    by_index = isinstance(error, IndexError) and "index 1 is out of bounds for dimension 0" in text
    if (
        "argument 'hx' (position 2) must be tuple of Tensors, not Tensor" in text
        or (len(spec.shape) == 2 and re.search(_DIMENSIONS, text))
        or (by_index and is_named and "[1]" in line)
        or (re.search(_UNPACKED, text) and is_named)
    ):
        lines = trees.redeclared(tree, {path: states[0]})
        return f"the state of an LSTM is a tuple of two tensors, (h, c): write {lines}"
    return ""


def _parts(state: Any) -> tuple[spaces.State, ...]:
    return state if isinstance(state, tuple) else (state,)


def _is_drawn_as(spec: Any, sizes: list[int], batch: int) -> bool:
    """Whether tensors of `spec` have these sizes, for a batch of this size."""
    shape = getattr(spec, "shape", ())
    position = getattr(spec, "batch_dim", 0)
    return [*shape[:position], batch, *shape[position:]] == sizes
