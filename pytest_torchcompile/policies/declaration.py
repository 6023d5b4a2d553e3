"""The declaration of a policy: its inputs, its methods, and its state that the check can't find by itself."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pytest_torchcompile.errors import UsageError

CALL_ITSELF = "methods=lambda policy, observation: policy(observation)"
"""The line to write for an object that is called and is no module."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declaration:
    """The arguments of the marker and of `check_equivalence` that are no options.

    Args:
        observation: spec of the first argument of every method, without the batch dimension; None uses the
            policy's own ``observation_space``.
        inputs: specs of further arguments by parameter name, given to the methods that take them.
        methods: a name, an adapter ``f(model, **inputs)``, or several.
        observe: given the policy after a call, returns what else to compare: a cached distribution, the
            state of an object that the check does not inspect.
        reset: called with the policy before each call, to restore state that the check can't restore.
        act: the methods, among `methods`, by which the policy acts in its lifecycle; None means all.
        learn: the methods by which it learns; None means all whose outputs require grad.
        loss: ``loss(policy, batch)``, which returns the scalar to minimise in the lifecycle; `policy` is the
            one whose methods are compiled, `batch` a dict of the inputs by name. None uses PPO's loss of
            whatever a method returns.

    Raises:
        UsageError: if `methods` is not what `named_methods` accepts, `observe`, `reset` or `loss` is no
            function, or `act` or `learn` is not among `methods`.
    """

    observation: Any = None
    inputs: Mapping[str, Any] | None = None
    methods: Any = "forward"
    observe: Callable[[Any], Any] | None = None
    reset: Callable[[Any], Any] | None = None
    act: Any = None
    learn: Any = None
    loss: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        named_methods(self.methods)
        for name, of in (("observe", "policy"), ("reset", "policy"), ("loss", "policy and a batch")):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise UsageError(f"{name}={function!r}; accepted: a function of the {of}")
        for name in ("act", "learn"):
            if any(method not in _listed(self.methods) for method in _listed(getattr(self, name))):
                raise UsageError(
                    f"{name}={getattr(self, name)!r}; accepted: some of methods={self.methods!r}"
                )
        if self.act is not None and not _listed(self.act):
            raise UsageError(f"act={self.act!r}; accepted: at least one method; leave it out for all methods")
        if self.loss is not None and self.learn is not None:
            raise UsageError(f"learn={self.learn!r} can't be combined with a loss; drop one of them")

    @property
    def acting(self) -> list[Any]:
        """The methods by which the policy acts in its lifecycle."""
        return _listed(self.methods if self.act is None else self.act)

    @property
    def learning(self) -> list[Any]:
        """The methods by which it may learn; none if the user gives a loss."""
        every = [] if self.loss else self.methods
        return _listed(every if self.learn is None else self.learn)

    @property
    def living(self) -> list[Any]:
        """The methods of the lifecycle, each once."""
        return [*self.acting, *(method for method in self.learning if method not in self.acting)]


def _listed(methods: Any) -> list[Any]:
    """Return one method or several as a list, without checking that they are methods."""
    if methods is None:
        return []
    return list(methods) if isinstance(methods, (list, tuple)) else [methods]


def named_methods(methods: Any) -> dict[str, Callable[..., Any] | None]:
    """Return methods by name: for an adapter the function, for a method of the policy None.

    Args:
        methods: a name such as ``forward`` or ``actor.log_prob``, an adapter ``f(model, **inputs)``, or a
            list or tuple of these. Whether the policy has a method of that name is not checked.

    Raises:
        UsageError: if an entry is neither a name nor an adapter, or a name occurs twice.
    """
    several = [methods] if isinstance(methods, str) or callable(methods) else methods
    if not isinstance(several, (list, tuple)) or not several:
        raise UsageError(f"methods={methods!r}; accepted: method names and functions f(model, **inputs)")
    found: dict[str, Callable[..., Any] | None] = {}
    for method in several:
        if isinstance(method, str):
            name, adapter = method, None
            accepted = name != "" and not name.rpartition(".")[2].startswith("__")
        else:
            name = getattr(method, "__name__", "adapter").replace("<lambda>", "adapter")
            adapter = method
            accepted = callable(method) and not isinstance(method, type) and not _is_module(method)
        if not accepted:
            instead = f"; instead write {CALL_ITSELF}" if name == "__call__" else ""
            raise UsageError(
                f"{method!r} among methods; accepted: method names and functions f(model, **inputs){instead}"
            )
        if name in found:
            raise UsageError(f"{name!r} twice among methods; give each adapter a name of its own (def)")
        found[name] = adapter
    return found


def _is_module(value: Any) -> bool:
    """Return whether a value is a module. This file must not import torch; before torch is, there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


ARGUMENTS = tuple(field.name for field in dataclasses.fields(Declaration))
"""The names of the fields of `Declaration`."""
