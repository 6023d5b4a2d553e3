"""A check from its declaration to a `CheckResult` for each method and phase.

Nothing raises for a failing verdict here: that is up to the caller.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from pytest_torchcompile.budgets import exceeded
from pytest_torchcompile.capture import Progress, silent
from pytest_torchcompile.declaration import Declaration
from pytest_torchcompile.explain import explain, explain_draws, explain_story
from pytest_torchcompile.freshness import frozen
from pytest_torchcompile.isolation import isolated
from pytest_torchcompile.lifecycle import LifecycleProtocol
from pytest_torchcompile.lives import Lives
from pytest_torchcompile.options import LIFECYCLE, PHASES, CheckOptions
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.policy import Method, as_methods
from pytest_torchcompile.protocol import CheckProtocol
from pytest_torchcompile.rejection import with_rejection
from pytest_torchcompile.results import CheckResult, Difference, Explanation, Speedup
from pytest_torchcompile.sampling import compare_samples
from pytest_torchcompile.speed import NotTimed, seconds_to_time, time_pair
from pytest_torchcompile.texts import raised_text
from pytest_torchcompile.twins import Factory


def check_equivalence(
    factory: Factory,
    *,
    observation: Any = None,
    inputs: Mapping[str, Any] | None = None,
    methods: Any = "forward",
    observe: Callable[[Any], Any] | None = None,
    reset: Callable[[Any], Any] | None = None,
    act: Any = None,
    learn: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    **options: Any,
) -> list[CheckResult]:
    """Check every method of a policy in every phase, and its lifecycle; compiled must do what eager does.

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
        act: those of `methods` by which the policy acts in its lifecycle; None is all.
        learn: those by which it learns; None is all whose outputs require grad.
        loss: ``loss(policy, batch)`` to learn by there, a scalar; `policy` is the one whose methods are
            compiled, `batch` a dict of the inputs by name. None is PPO's loss of what `learn` returns.
        options: see `CheckOptions`.

    Returns:
        A `CheckResult` for each method and phase, and one for the lifecycle. Nothing is raised for a
        failing verdict.

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
        observation=observation,
        inputs=inputs,
        methods=methods,
        observe=observe,
        reset=reset,
        act=act,
        learn=learn,
        loss=loss,
    )
    return check_methods(factory, declaration, merged)


def check_methods(factory: Factory, declaration: Declaration, options: CheckOptions) -> list[CheckResult]:
    """`check_equivalence` with options that have been merged."""
    named = as_methods(declaration.methods)
    seconds = seconds_to_time(options, default=0.0)
    results = [
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
        if phase in PHASES
    ]
    if LIFECYCLE in options.phases:
        results.append(check_lifecycle(factory, declaration=declaration, options=options))
    return results


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
        protocol = CheckProtocol(pair, options)
        try:
            result = protocol.run(name or method.name)
            if time is not None and result.verdict.passed:
                result = _timed(result, pair, time)
            if phase == "rollout" and result.verdict.passed:
                result = with_rejection(result, pair, options)
            result = _with_context(result, options)
            return dataclasses.replace(result, explanation=_why(pair, protocol, options, name or result.case))
        finally:
            pair.restore()


def check_lifecycle(
    factory: Factory,
    *,
    declaration: Declaration,
    options: CheckOptions,
    name: str = "",
    progress: Progress = silent,
) -> CheckResult:
    """Check one compiled object through acting, learning and loading; the arguments are `check_case`'s."""
    with isolated(options.threads):
        lives = Lives(factory, declaration, options, progress)
        try:
            protocol = LifecycleProtocol(lives, options)
            result = dataclasses.replace(protocol.run(name or LIFECYCLE), settings=options.settings())
            return dataclasses.replace(
                result, explanation=_why_lifecycle(lives, protocol, options, name or result.case)
            )
        finally:
            lives.end()


def _why(pair: Pair, protocol: CheckProtocol, options: CheckOptions, name: str) -> Explanation | None:
    """Why a case differs, if it does and somebody asks."""

    def unlike(pair: Pair, options: CheckOptions) -> tuple[Difference, ...]:
        return compare_samples(pair, options).differences

    if not options.explain_seconds:
        return None
    if protocol.failure is not None:
        return explain(pair, protocol.failure, options, name)
    return explain_draws(pair, unlike, options, name) if protocol.sampled else None


def _why_lifecycle(
    lives: Lives, protocol: LifecycleProtocol, options: CheckOptions, name: str
) -> Explanation | None:
    """Why a lifecycle differs, if it does and somebody asks."""

    def still(pair: Pair, options: CheckOptions) -> tuple[Difference, ...]:
        found = frozen(pair, options)
        return () if found is None else (found,)

    if not options.explain_seconds:
        return None
    if protocol.failure is not None:
        return explain_story(lives, protocol.failure, options, name)
    return explain_draws(protocol.frozen, still, options, name) if protocol.frozen else None


def _with_context(result: CheckResult, options: CheckOptions) -> CheckResult:
    """The result with the budgets that it exceeds, and the settings that it was found under."""
    return dataclasses.replace(
        result, exceeded=exceeded(result.capture, options), settings=options.settings()
    )


def _timed(result: CheckResult, pair: Pair, time: Callable[[Pair], Speedup]) -> CheckResult:
    try:
        return dataclasses.replace(result, speedup=time(pair))
    except NotTimed as reason:
        return dataclasses.replace(result, untimed=str(reason))
    except Exception as error:
        return dataclasses.replace(result, untimed=f"timing raised {raised_text(error)}")
