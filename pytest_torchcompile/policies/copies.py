"""Deep copies of policies with compiled methods, which go on calling the original's weights.

``module.act = torch.compile(module.act)`` keeps a function of that one module in an attribute, and a deep
copy copies the attribute as it is: a target network made like that answers with the online network's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.policies.holders import Holder, policy_of
from pytest_torchcompile.texts import some


def stale_methods(policy: Any) -> list[str]:
    """The compiled methods in attributes of a policy, by path, that call another object of its class."""
    return [
        f"{path}.{name}" if path else name
        for path, owner in _objects(policy)
        for name, value in getattr(owner, "__dict__", {}).items()
        if _is_of_another(owner, internals.compiled_owner(value))
    ]


def _objects(policy: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(policy, nn.Module):
        policy = Holder(policy)
    if isinstance(policy, Holder):
        yield from policy.owners.items()
    yield from internals.uncompiled(policy).named_modules()


def _is_of_another(owner: Any, other: Any) -> bool:
    return other is not None and other is not owner and type(other) is type(owner)


def why_stale(policy: Any) -> str:
    """Why a policy that is, or holds, such a copy answers with weights that are not its own; else empty."""
    methods = stale_methods(policy)
    if not methods:
        return ""
    return (
        f"compiled methods of a deep copy go on calling the original's weights, and none of its own: "
        f"{some(methods)}; {_remedy(methods[0])}"
    )


def copied_stale(model: nn.Module) -> str:
    """What a deep copy of a policy that comes compiled does instead of its own work; empty if nothing."""
    try:
        copied = copy.deepcopy(policy_of(model))
    except Exception:
        # What can't be copied is no target network.
        return ""
    methods = stale_methods(copied)
    if not methods:
        return ""
    return (
        f"a copy.deepcopy of the policy, such as a target network, goes on calling the original's weights "
        f"through {some(methods)}; {_remedy(methods[0])}"
    )


def _remedy(method: str) -> str:
    name = method.rpartition(".")[2]
    if name == "forward":
        return "write module.compile() instead of module.forward = torch.compile(module.forward)"
    return f"write del target.{method}; target.{method} = torch.compile(target.{method}) after the copy"
