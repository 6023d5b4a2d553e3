"""Runs checks, from the declaration to a `CheckResult` for each method and phase.

No function here raises for a failing verdict; the caller decides what to do with it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pytest_torchcompile import internals
from pytest_torchcompile.beyond.remarks import Beyond, concluded, look_beyond, look_beyond_life
from pytest_torchcompile.checking.case import CheckProtocol
from pytest_torchcompile.checking.freshness import unlike_as_deployed
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.sampling import compare_samples
from pytest_torchcompile.compiling.budgets import exceeded
from pytest_torchcompile.compiling.toolchain import repeat_without_broken_files
from pytest_torchcompile.explaining.explanation import (
    explain,
    explain_draws,
    explain_rejection,
    explain_story,
)
from pytest_torchcompile.lifecycle.protocol import LifecycleProtocol
from pytest_torchcompile.lifecycle.sides import LifecycleSides
from pytest_torchcompile.options import LIFECYCLE, PHASES, CheckOptions
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.methods import Method, as_methods
from pytest_torchcompile.policies.twins import Factory
from pytest_torchcompile.results import CheckResult, Difference, Explanation, Speedup, Verdict
from pytest_torchcompile.runtime.code_cache import removed_text
from pytest_torchcompile.runtime.isolation import isolated
from pytest_torchcompile.runtime.progress import Progress, silent
from pytest_torchcompile.texts import raised_text
from pytest_torchcompile.timing.speed import NotTimed, timing_if_asked

MAKING = "making the policy"
BEYOND = "what was not declared"
EXPLAINING = "explaining what differs"


class Timed(NamedTuple):
    """The speedup of a case, or why it could not be timed."""

    speedup: Speedup | None = None
    untimed: str = ""


def check_equivalence(
    factory: Factory,
    *,
    observation: Any = None,
    inputs: Mapping[str, Any] | None = None,
    methods: Any = None,
    observe: Callable[[Any], Any] | None = None,
    reset: Callable[[Any], Any] | None = None,
    act: Any = None,
    learn: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    **options: Any,
) -> list[CheckResult]:
    """Check that compiled computes what eager does, for every method and phase of a policy and its lifecycle.

    Args:
        factory: makes the policy, a module or an object that holds some, and is called twice; or a
            module, which is copied.
        observation: spec of the first argument of every method, without the batch dimension; None uses the
            policy's ``observation_space``. A function is called with the built policy and returns the spec.
        inputs: specs of further arguments by parameter name, given to the methods that take them.
        methods: a name, an adapter ``f(model, **inputs)``, or several; None means ``forward``, and a note
            names the methods of the policy that training loops call too.
        observe: given the policy after a call, returns what else to compare, such as a distribution
            that the policy stores.
        reset: called with the policy before each call, to restore state that the check can't restore.
        act: the methods, among `methods`, by which the policy acts in its lifecycle; None means all.
        learn: the methods by which it learns; None means all whose outputs require grad.
        loss: ``loss(policy, batch)``, which returns the scalar to minimise in the lifecycle; `policy` is the
            one whose methods are compiled, `batch` a dict of the inputs by name. None uses PPO's loss of
            what the methods in `learn` return.
        options: see `CheckOptions`.

    Returns:
        A `CheckResult` for each method and phase, and one for the lifecycle. A failing verdict does not
        raise.

    Raises:
        UsageError: if the declaration does not fit the module; raised before anything is compiled.

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
    return check_methods(factory, declaration, merged, time=timing_if_asked(merged))


def check_methods(
    factory: Factory,
    declaration: Declaration,
    options: CheckOptions,
    *,
    time: Callable[[Pair], Speedup] | None,
) -> list[CheckResult]:
    """Run `check_equivalence` with merged options; `time` is that of `check_case`."""
    named = as_methods(declaration.checked)
    results = [
        check_case(
            factory,
            method,
            phase,
            declaration=declaration,
            options=options,
            time=time,
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
        declaration: the declaration of the policy; the method gets the inputs that it takes.
        options: see `check_equivalence`.
        name: identifies this case in Hypothesis' database.
        progress: notified of each step, such as a compile.
        time: times the two sides if the case passed; None for no timing.
    """
    once = functools.partial(_check_case, factory, method, phase, declaration, options, name, progress, time)
    return _mended(once)


def _check_case(
    factory: Factory,
    method: Method,
    phase: str,
    declaration: Declaration,
    options: CheckOptions,
    name: str,
    progress: Progress,
    time: Callable[[Pair], Speedup] | None,
) -> tuple[CheckResult, tuple[BaseException, ...]]:
    """Return the result of `check_case`, and the exceptions of the compiler."""
    with isolated(options.threads), internals.isolated_code_forgotten():
        progress.step(MAKING)
        pair = Pair(factory, method, phase, declaration=declaration, options=options, progress=progress)
        try:
            protocol = CheckProtocol(pair, options)
            found = protocol.run(name or method.name)
            timed = _timed(pair, time, progress) if time and found.verdict.passed else Timed()
            progress.step(BEYOND)
            beyond = look_beyond(pair, options) if found.verdict.passed else Beyond()
            progress.step(EXPLAINING)
            explanation = _why(protocol, beyond, options, name or found.case)
        finally:
            pair.restore()
    result = _result(concluded(found, beyond, options), options, timed, explanation)
    return result, pair.recorder.failures


def _mended(once: Callable[[], tuple[CheckResult, tuple[BaseException, ...]]]) -> CheckResult:
    """Return the result of a check; if it failed on broken files of inductor's cache, that without them.

    Args:
        once: runs the check; returns its result and the exceptions of the compiler.
    """
    results: list[CheckResult] = []

    def attempt() -> tuple[BaseException, ...]:
        result, failures = once()
        results.append(result)
        return failures if result.verdict is Verdict.COMPILE_FAILED else ()

    removed = repeat_without_broken_files(attempt)
    notes = (f"{removed_text(removed)}; compiled again",) if removed else ()
    return dataclasses.replace(results[-1], notes=(*results[-1].notes, *notes))


def check_lifecycle(
    factory: Factory,
    *,
    declaration: Declaration,
    options: CheckOptions,
    name: str = "",
    progress: Progress = silent,
) -> CheckResult:
    """Check one compiled policy that acts, learns and loads; the arguments are those of `check_case`."""
    return _mended(functools.partial(_check_lifecycle, factory, declaration, options, name, progress))


def _check_lifecycle(
    factory: Factory, declaration: Declaration, options: CheckOptions, name: str, progress: Progress
) -> tuple[CheckResult, tuple[BaseException, ...]]:
    with isolated(options.threads), internals.isolated_code_forgotten():
        progress.step(MAKING)
        sides = LifecycleSides(factory, declaration, options, progress)
        try:
            protocol = LifecycleProtocol(sides, options)
            found = protocol.run(name or LIFECYCLE)
            progress.step(BEYOND)
            beyond = look_beyond_life(sides, options) if found.verdict.passed else Beyond()
            progress.step(EXPLAINING)
            explanation = _why_lifecycle(sides, protocol, options, name or found.case)
        finally:
            sides.end()
    failures = [error for pair in sides.by_name.values() for error in pair.recorder.failures]
    result = dataclasses.replace(
        concluded(found, beyond, options), settings=options.settings(), explanation=explanation
    )
    return result, tuple(failures)


def _why(protocol: CheckProtocol, beyond: Beyond, options: CheckOptions, name: str) -> Explanation | None:
    """Return why a case differs; None if it does not, or with ``explain_seconds=0``."""

    def differing_draws(pair: Pair, options: CheckOptions) -> tuple[Difference, ...]:
        return compare_samples(pair, options).differences

    if not options.explain_seconds:
        return None
    if protocol.failure is not None:
        return explain(protocol.pair, protocol.failure, options, name)
    if beyond.broken is not None:
        return explain_rejection(protocol.pair, beyond.broken, options, name)
    return explain_draws(protocol.pair, differing_draws, options, name) if protocol.sampled else None


def _why_lifecycle(
    sides: LifecycleSides, protocol: LifecycleProtocol, options: CheckOptions, name: str
) -> Explanation | None:
    """Return why a lifecycle differs; None if it does not, or with ``explain_seconds=0``."""

    def as_deployed(pair: Pair, options: CheckOptions) -> tuple[Difference, ...]:
        found = unlike_as_deployed(pair, options)
        return () if found is None else (found.difference,)

    if not options.explain_seconds:
        return None
    if protocol.failure is not None:
        return explain_story(sides, protocol.failure, options, name)
    return explain_draws(protocol.unlike, as_deployed, options, name) if protocol.unlike else None


def _timed(pair: Pair, time: Callable[[Pair], Speedup], progress: Progress) -> Timed:
    """Return the speedup of a case that passed, or why it can't be timed."""
    progress.step("timing")
    try:
        return Timed(speedup=time(pair))
    except NotTimed as reason:
        return Timed(untimed=str(reason))
    except Exception as error:
        return Timed(untimed=f"timing raised {raised_text(error)}")


def _result(
    concluded: CheckResult, options: CheckOptions, timed: Timed, explanation: Explanation | None
) -> CheckResult:
    """Return the record of a case: its conclusion with the speedup, the explanation and the settings."""
    return dataclasses.replace(
        concluded,
        speedup=timed.speedup if concluded.verdict.passed else None,
        untimed=timed.untimed,
        exceeded=exceeded(concluded.capture, options),
        settings=options.settings(),
        explanation=explanation,
    )
