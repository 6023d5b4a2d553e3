"""The declaration of a policy: its inputs, its methods, and its state that the check can't find by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
        methods: a name, an adapter ``f(model, **inputs)``, or several; None means ``forward``.
        observe: given the policy after a call, returns what else to compare: a cached distribution, the
            state of an object that the check does not inspect.
        reset: called with the policy before each call, to restore state that the check can't restore.
        act: the methods, among `methods`, by which the policy acts in its lifecycle; None means all.
        learn: the methods by which it learns; None means all whose outputs require grad.
        loss: ``loss(policy, batch)``, which returns the scalar to minimise in the lifecycle; `policy` is the
            one whose methods are compiled, `batch` a dict of the inputs by name. None uses PPO's loss of
            whatever a method returns.

    Raises:
        UsageError: if `observe`, `reset` or `loss` is no function, `act` or `learn` not among `methods`, or
            from `named_methods`.
    """

    observation: Any = None
    inputs: Mapping[str, Any] | None = None
    methods: Any = None
    observe: Callable[[Any], Any] | None = None
    reset: Callable[[Any], Any] | None = None
    act: Any = None
    learn: Any = None
    loss: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        named_methods(self.checked)
        for name, of in (("observe", "policy"), ("reset", "policy"), ("loss", "policy and a batch")):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise UsageError(f"{name}={function!r}; accepted: a function of the {of}")
        for name in ("act", "learn"):
            unknown = [method for method in listed(getattr(self, name)) if method not in listed(self.checked)]
            if unknown:
                raise UsageError(
                    f"{name}={getattr(self, name)!r}; accepted: some of methods={self.checked!r}"
                )
        if self.act is not None and not listed(self.act):
            raise UsageError(f"act={self.act!r}; accepted: at least one method; leave it out for all methods")
        if self.loss is not None and self.learn is not None:
            raise UsageError(f"learn={self.learn!r} can't be combined with a loss; drop one of them")

    @property
    def checked(self) -> Any:
        """The methods that are checked."""
        return "forward" if self.methods is None else self.methods

    @property
    def acting(self) -> list[Any]:
        """The methods by which the policy acts in its lifecycle."""
        return listed(self.checked if self.act is None else self.act)

    @property
    def learning(self) -> list[Any]:
        """The methods by which it may learn; none if the user gives a loss."""
        every = [] if self.loss else self.checked
        return listed(every if self.learn is None else self.learn)

    @property
    def living(self) -> list[Any]:
        """The methods of the lifecycle, each once."""
        return [*self.acting, *(method for method in self.learning if method not in self.acting)]


def named_methods(methods: Any) -> dict[str, Callable[..., Any] | None]:
    """Return the methods by name: for an adapter its function, for a method of the policy None.

    Whether the policy has the methods is not checked.

    Args:
        methods: a name, an adapter ``f(model, **inputs)``, or several.

    Raises:
        UsageError: if an entry is neither a name nor an adapter, or a name occurs twice.

    Example:
        >>> named_methods(["get_value", max])
        {'get_value': None, 'max': <built-in function max>}
    """
    if isinstance(methods, str) or callable(methods):
        methods = [methods]
    if not isinstance(methods, Sequence) or not methods:
        raise UsageError(f"methods={methods!r}; accepted: method names and functions f(model, **inputs)")
    found: dict[str, Callable[..., Any] | None] = {}
    for method in methods:
        name, adapter = _named(method)
        if name in found:
            raise UsageError(f"{name!r} twice among methods; give each adapter a name of its own (def)")
        found[name] = adapter
    return found


def _named(method: Any) -> tuple[str, Callable[..., Any] | None]:
    if isinstance(method, str) and method and not method.rpartition(".")[2].startswith("__"):
        return method, None
    if callable(method) and not isinstance(method, type) and not _is_module(method):
        return getattr(method, "__name__", "adapter").replace("<lambda>", "adapter"), method
    instead = f"; instead write {CALL_ITSELF}" if method == "__call__" else ""
    raise UsageError(
        f"{method!r} among methods; accepted: method names and functions f(model, **inputs){instead}"
    )


def _is_module(value: Any) -> bool:
    """Whether `value` is a ``torch.nn.Module``, told without an import of torch."""
    return any(base.__module__ == "torch.nn.modules.module" for base in type(value).__mro__)


def listed(methods: Any) -> list[Any]:
    """Return one method or several as a list, without checking that they are methods."""
    if methods is None:
        return []
    return list(methods) if isinstance(methods, (list, tuple)) else [methods]


ARGUMENTS = tuple(field.name for field in dataclasses.fields(Declaration))
"""The names of the fields of `Declaration`."""
