"""A check from its declaration to a `CheckResult` for each method and phase.

Nothing raises for a failing verdict here: that is up to the caller.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from pytest_torchcompile.capture import Progress, silent
from pytest_torchcompile.declaration import Declaration
from pytest_torchcompile.isolation import isolated
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.policy import Method, as_methods
from pytest_torchcompile.protocol import CheckProtocol
from pytest_torchcompile.results import CheckResult, Speedup, raised_text
from pytest_torchcompile.speed import NotTimed, seconds_to_time, time_pair
from pytest_torchcompile.twins import Factory


def check_equivalence(
    factory: Factory,
    *,
    observation: Any = None,
    inputs: Mapping[str, Any] | None = None,
    methods: Any = "forward",
    observe: Callable[[Any], Any] | None = None,
    reset: Callable[[Any], Any] | None = None,
    **options: Any,
) -> list[CheckResult]:
    """Check every method of a policy in every phase; compiled must compute what eager does.

    Args:
        factory: makes the policy, a module or an object that holds some, and is run twice; or a
            module, which is copied.
        observation: spec of the first argument of every method, batch left out; None takes the
            policy's ``observation_space``. A function is given the built policy.
        inputs: specs of further arguments by parameter name, given to the methods that take them.
        methods: a name, an adapter ``f(model, **inputs)``, or several.
        observe: given the policy after a call, returns what else to compare, such as a distribution
            that the policy keeps.
        reset: called with the policy before each call, to put back what the check can't.
        options: see `CheckOptions`.

    Returns:
        A `CheckResult` for each method and phase. Nothing is raised for a failing verdict.

    Raises:
        UsageError: if the declaration and the module don't fit, before anything is compiled.

    Example:
        >>> from torch import nn
        >>> results = check_equivalence(
        ...     lambda: nn.Linear(8, 2), observation=Box((8,)), backend="aot_eager", phases="rollout"
        ... )
        >>> [str(result.verdict) for result in results]
        ['equal']
    """
    merged = CheckOptions.merge(("check_equivalence()", options))
    declaration = Declaration(
        observation=observation, inputs=inputs, methods=methods, observe=observe, reset=reset
    )
    return check_methods(factory, declaration, merged)


def check_methods(factory: Factory, declaration: Declaration, options: CheckOptions) -> list[CheckResult]:
    """`check_equivalence` with options that have been merged."""
    named = as_methods(declaration.methods)
    seconds = seconds_to_time(options, default=0.0)
    return [
        check_case(
            factory,
            method,
            phase,
            declaration=declaration,
            options=options,
            time=functools.partial(time_pair, options=options, seconds=seconds) if seconds else None,
        )
        for method in named
        for phase in options.phases
    ]


def check_case(
    factory: Factory,
    method: Method,
    phase: str,
    *,
    declaration: Declaration,
    options: CheckOptions,
    name: str = "",
    progress: Progress = silent,
    time: Callable[[Pair], Speedup] | None = None,
) -> CheckResult:
    """Check one method in one phase.

    Args:
        factory: see `check_equivalence`.
        method: the method of this case.
        phase: ``rollout`` or ``update``.
        declaration: what was said of the policy; its inputs are shared out among its methods.
        options: see `check_equivalence`.
        name: tells this case apart in Hypothesis' database.
        progress: told when a compile begins and ends.
        time: times the two sides if they were found equal.
    """
    with isolated(options.threads):
        pair = Pair(
            factory,
            method,
            phase,
            declaration=declaration,
            options=options,
            progress=progress,
        )
        try:
            result = CheckProtocol(pair, options).run(name or method.name)
            return _timed(result, pair, time) if time is not None and result.verdict.passed else result
        finally:
            pair.restore()


def _timed(result: CheckResult, pair: Pair, time: Callable[[Pair], Speedup]) -> CheckResult:
    try:
        return dataclasses.replace(result, speedup=time(pair))
    except NotTimed as reason:
        return dataclasses.replace(result, untimed=str(reason))
    except Exception as error:
        return dataclasses.replace(result, untimed=f"timing raised {raised_text(error)}")
