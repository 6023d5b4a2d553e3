"""What a user says about a policy: what it is called with, what of it is called, what it keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pytest_torchcompile.results import UsageError


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

    Raises:
        UsageError: if `observe` or `reset` is no function.
    """

    observation: Any = None
    inputs: Mapping[str, Any] | None = None
    methods: Any = "forward"
    observe: Callable[[Any], Any] | None = None
    reset: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("observe", "reset"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise UsageError(f"{name}={function!r}; accepted: a function of the policy")


ARGUMENTS = tuple(field.name for field in dataclasses.fields(Declaration))
"""Their names."""
