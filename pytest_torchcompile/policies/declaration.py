"""What a user says about a policy: what it is called with, what of it is called, what it keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pytest_torchcompile.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declaration:
    """The arguments of the marker and of `check_equivalence` that are no options.

    Args:
        observation: spec of the first argument of every method, batch left out; None takes what the
            policy says of itself.
        inputs: specs of further arguments by parameter name, given to the methods that take them.
        methods: a name, an adapter ``f(model, **inputs)``, or several.
        observe: given the policy after a call, returns what else to compare: a cached distribution, the
            state of an object that the check does not look into.
        reset: called with the policy before each call, to put back what the check can't.
        act: those of `methods` by which the policy acts in its lifecycle; None is all.
        learn: those by which it learns; None is all whose outputs require grad.
        loss: ``loss(policy, batch)``, a scalar to learn by in the lifecycle; `policy` is the one whose
            methods are compiled, `batch` a dict of the inputs by name. None is PPO's loss of whatever a
            method returns.

    Raises:
        UsageError: if `observe`, `reset` or `loss` is no function, or `act` or `learn` not among `methods`.
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
        for name, of in (("observe", "policy"), ("reset", "policy"), ("loss", "policy and a batch")):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise UsageError(f"{name}={function!r}; accepted: a function of the {of}")
        for name in ("act", "learn"):
            unknown = [method for method in listed(getattr(self, name)) if method not in listed(self.methods)]
            if unknown:
                raise UsageError(
                    f"{name}={getattr(self, name)!r}; accepted: some of methods={self.methods!r}"
                )
        if self.act is not None and not listed(self.act):
            raise UsageError(f"act={self.act!r}; a policy acts by one method at least: leave it out for all")
        if self.loss is not None and self.learn is not None:
            raise UsageError(f"learn={self.learn!r} beside a loss, which says how to learn; drop one of them")

    @property
    def acting(self) -> list[Any]:
        """The methods by which the policy acts in its lifecycle."""
        return listed(self.methods if self.act is None else self.act)

    @property
    def learning(self) -> list[Any]:
        """The methods by which it may learn; none where the user says how."""
        every = [] if self.loss else self.methods
        return listed(every if self.learn is None else self.learn)

    @property
    def living(self) -> list[Any]:
        """The methods of the lifecycle, each once."""
        return [*self.acting, *(method for method in self.learning if method not in self.acting)]


def listed(methods: Any) -> list[Any]:
    """One method or several as a list; whether they are methods is looked at later."""
    if methods is None:
        return []
    return list(methods) if isinstance(methods, (list, tuple)) else [methods]


ARGUMENTS = tuple(field.name for field in dataclasses.fields(Declaration))
"""Their names."""
