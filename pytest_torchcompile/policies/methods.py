"""Finds the methods of a policy by their names."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.declaration import CALL_ITSELF, named_methods
from pytest_torchcompile.policies.holders import Holder, policy_of


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of a policy, or an adapter: what is compiled and called.

    Args:
        name: ``forward``, ``get_value``, ``actor.log_prob``; for an adapter the name of the function.
        adapter: the function ``f(model, **inputs)``; None for a method.
    """

    name: str
    adapter: Callable[..., Any] | None = None

    def of(self, model: nn.Module) -> Callable[..., Any]:
        """Return the callable of `model`; for ``forward`` the module itself, so that its hooks run."""
        if self.adapter is not None:
            return self.adapter
        return model if self._is_call(model) else self._attribute(model)

    def _is_call(self, model: nn.Module) -> bool:
        return self.name == "forward" and not isinstance(model, Holder)

    def _attribute(self, model: nn.Module) -> Callable[..., Any]:
        owner: Any = policy_of(model)
        name = type(policy_of(internals.uncompiled(model))).__name__
        for part in self.name.split("."):
            parent = owner
            try:
                owner = getattr(owner, part)
            except AttributeError:
                raise UsageError(f"{name} has no method {self.name!r}{_suggestion(owner, part)}") from None
        if not callable(owner):
            raise UsageError(
                f"{self.name!r} of {name} is a {type(owner).__name__}, which can't be "
                f"called{_suggestion(parent, part)}"
            )
        return owner  # type: ignore[no-any-return]

    def signature(self, model: nn.Module) -> inspect.Signature | None:
        """Return the signature without ``self`` or the adapter's model; None if there is none."""
        inner = internals.uncompiled(model)
        if self._is_call(inner) and self.adapter is None and _lacks_forward(inner):
            raise UsageError(_without_forward(inner))
        function = self.adapter or (inner.forward if self._is_call(inner) else self._attribute(inner))
        if isinstance(function, nn.Module):
            function = internals.uncompiled(function).forward
        try:
            signature = inspect.signature(function)
        except (ValueError, TypeError):
            return None
        if self.adapter is not None:
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        return signature


_MOST_METHODS = 12


def _own_methods(owner: Any) -> list[str]:
    names = [n for n in dir(type(owner)) if not n.startswith("_") and n not in dir(nn.Module)]
    return [n for n in names if callable(getattr(owner, n, None))]


def _lacks_forward(model: Any) -> bool:
    """Whether `model` is a module that does not define ``forward``."""
    return (
        isinstance(model, nn.Module)
        and type(model).forward is nn.Module.forward
        and "forward" not in vars(model)
    )


def _without_forward(model: nn.Module) -> str:
    named = _own_methods(model)[:_MOST_METHODS]
    example = f"methods={named!r}" if named else "an adapter, methods=lambda model, x: ..."
    return f"{type(model).__name__} has no forward; name what to check: {example}"


def _suggestion(owner: Any, name: str) -> str:
    has_forward = callable(getattr(owner, "forward", None)) and not _lacks_forward(owner)
    public = [*_own_methods(owner), *(["forward"] if has_forward else [])]
    # The closest first, and the others too: 'get_vaule' may be meant for either of two methods.
    near = difflib.get_close_matches(name, public, n=3)
    shown = list(dict.fromkeys([*near, *public]))[:_MOST_METHODS]
    if not shown and callable(owner):
        return f"; to call the object itself, write {CALL_ITSELF}"
    return f"; it has: {', '.join(shown)}" if shown else ""


_CALLED_BY_LOOPS = (
    "act",
    "act_inference",
    "action_log_prob",
    "compute_values",
    "evaluate",
    "evaluate_actions",
    "forward_exploration",
    "forward_inference",
    "forward_train",
    "get_action",
    "get_action_and_value",
    "get_actions_log_prob",
    "get_value",
    "get_values",
    "predict_action_chunk",
    "predict_values",
    "select_action",
)
"""Methods by which training loops act and learn: those of the libraries in ``docs/libraries.md``."""


def beside_forward(model: nn.Module) -> list[str]:
    """Return the policy's methods that training loops call by name and that ``forward`` does not call.

    Example:
        >>> class Policy(nn.Linear):
        ...     def get_value(self, x): return self(x)
        ...     def render(self): ...
        >>> beside_forward(Policy(2, 1))
        ['get_value']
    """
    owner = type(policy_of(internals.uncompiled(model)))
    mentioned = _mentioned_by("forward", owner)
    named = [name for name in _CALLED_BY_LOOPS if callable(getattr(owner, name, None))]
    return [name for name in named if name not in mentioned]


def _mentioned_by(name: str, owner: type) -> set[str]:
    """Return the names that occur in a method, and in the methods that occur in it."""
    mentioned, waiting = set[str](), [name]
    while waiting:
        function = getattr(owner, waiting.pop(), None)
        code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
        new = (_names_in(code) if code else set()) - mentioned
        mentioned |= new
        waiting += new
    return mentioned


def _names_in(code: types.CodeType) -> set[str]:
    """Return the names of globals and attributes in a function, and in the functions inside it."""
    inner = (_names_in(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*inner)


def as_methods(methods: Any) -> tuple[Method, ...]:
    """Return `methods`, which is a name, an adapter or several of these, as `Method` records.

    Raises:
        UsageError: from `named_methods`.
    """
    return tuple(Method(name, adapter) for name, adapter in named_methods(methods).items())
