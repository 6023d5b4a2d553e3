"""Finds deep copies of policies whose compiled methods still use the original's weights.

``module.act = torch.compile(module.act)`` stores a function that is bound to `module` in an attribute. A deep
copy keeps this function: a target network copied from the module computes with the online network's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.policies.holders import Holder, policy_of
from pytest_torchcompile.policies.reachable import path_of
from pytest_torchcompile.texts import some


def stale_methods(policy: Any) -> list[str]:
    """Return the paths of a policy's attributes that are compiled methods of another object of its class."""
    return [
        path_of((path, name))
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
    """Return why a policy computes with weights that are not its own, as such a copy does; else empty."""
    methods = stale_methods(policy)
    if not methods:
        return ""
    return (
        f"compiled methods of a deep copy still use the original's weights instead of its own: "
        f"{some(methods)}; {_remedy(methods[0])}"
    )


def copied_stale(model: nn.Module) -> str:
    """Return what is wrong with a deep copy of a policy that comes compiled; empty if nothing."""
    try:
        copied = copy.deepcopy(policy_of(model))
    except Exception:
        # A policy that can't be copied can't become a target network.
        return ""
    methods = stale_methods(copied)
    if not methods:
        return ""
    return (
        f"a copy.deepcopy of the policy, such as a target network, still uses the original's weights in "
        f"{some(methods)}; {_remedy(methods[0])}"
    )


def _remedy(method: str) -> str:
    name = method.rpartition(".")[2]
    if name == "forward":
        return "write module.compile() instead of module.forward = torch.compile(module.forward)"
    return f"write del target.{method}; target.{method} = torch.compile(target.{method}) after the copy"
