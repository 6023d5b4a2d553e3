"""Read the schema and the tags of operators: arguments, which of them are written to, random numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch


@functools.cache
def decomposition(operator: Any) -> Callable[..., Any] | None:
    """Return the decomposition of an operator for normalisations and softmax; None for all others.

    These operators are fused on CPU, so perturbing their inputs would miss the rounding inside them.
    """
    from torch._decomp import decomposition_table

    fused = ("batch_norm", "layer_norm", "group_norm", "softmax", "logsumexp")
    if not any(name in operator.name() for name in fused):
        return None
    return decomposition_table.get(operator)


@functools.cache
def aliased_arguments(operator: Any) -> tuple[frozenset[int], frozenset[str]]:
    """Return positions and names of the arguments that the operator writes to or returns views of."""
    aliased = [
        (position, argument.name)
        for position, argument in enumerate(operator._schema.arguments)
        if argument.alias_info is not None
    ]
    return frozenset(p for p, _ in aliased), frozenset(n for _, n in aliased)


def argument(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
    """Return the value of an operator's argument, positional or not; if absent its default, or None."""
    for position, declared in enumerate(operator._schema.arguments):
        if declared.name == name:
            given = args[position] if position < len(args) else kwargs.get(name)
            return declared.default_value if given is None and declared.has_default_value() else given
    return None


def returns_view(operator: Any) -> bool:
    """Whether the operator returns a view of an argument without writing to it."""
    return any(
        returned.alias_info is not None and not returned.alias_info.is_write
        for returned in operator._schema.returns
    )


@functools.cache
def written_arguments(operator: Any) -> tuple[frozenset[int], frozenset[str]]:
    """Return positions and names of the arguments that the operator writes to."""
    written = [
        (position, argument.name)
        for position, argument in enumerate(operator._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return frozenset(p for p, _ in written), frozenset(n for _, n in written)


def is_pointwise(operator: Any) -> bool:
    """Whether each element of the result is computed from one element of each argument."""
    if torch.Tag.pointwise in operator.tags:
        return True
    if "_foreach_" not in operator.name():
        return False
    # Operators on lists have no tags, so use those of the operator on tensors.
    on_tensors = getattr(
        torch.ops.aten, operator.name().partition("_foreach_")[2].partition(".")[0].rstrip("_"), None
    )
    return on_tensors is not None and any(
        torch.Tag.pointwise in getattr(on_tensors, overload).tags for overload in on_tensors.overloads()
    )


def draws_random_numbers(operator: Any) -> bool:
    """Whether the operator takes numbers from a random generator."""
    return torch.Tag.nondeterministic_seeded in operator.tags
