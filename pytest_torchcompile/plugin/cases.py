"""Makes cases from a marked test, checks a case, and turns its result into a pass, a failure or a skip."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import os
import shlex
import unittest
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchcompile.errors import CompileFailed, UsageError
from pytest_torchcompile.options import LIFECYCLE
from pytest_torchcompile.plugin import benchmark, gate, isolate, reporting, start
from pytest_torchcompile.plugin.options import MARKER, Marked, merged, takes_value
from pytest_torchcompile.plugin.progress import watched
from pytest_torchcompile.policies.declaration import named_methods
from pytest_torchcompile.texts import one_line, visible

if TYPE_CHECKING:
    from pytest_torchcompile.results import CheckResult
    from pytest_torchcompile.runtime.progress import Progress

PROPERTY = "compile_check."
"""Prefix of the names of report properties; ``method-phase.field`` follows."""

CASE = "compiled_case"
"""Name of the parameter that holds the case of a marked test."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A case of a marked test: one method in one phase, or its lifecycle. Also stands for a wrong marker.

    Args:
        methods: the names of the methods to call: one, or all those of a lifecycle.
        phase: ``rollout``, ``update`` or ``lifecycle``.
        marked: the merged arguments of the markers; None if they are wrong.
        markers: the number of markers.
        error: the message for the user if the markers are wrong, else empty.
    """

    methods: tuple[str, ...] = ()
    phase: str = ""
    marked: Marked | None = None
    markers: int = 0
    error: str = ""

    @property
    def id(self) -> str:
        """The id of the parametrized item, such as ``get_value-rollout``."""
        if self.error:
            return "usage-error"
        return f"{'+'.join(self.methods)}-{self.phase}"


def cases_of(node: Any, config: pytest.Config) -> list[Case]:
    """Return the cases of a marked test. If a marker is wrong, return a single case that holds the error."""
    markers = len(list(node.iter_markers(MARKER)))
    return cases_from(lambda: Marked.of(node, config), config, markers=markers)


def cases_from(read: Callable[[], Marked], config: pytest.Config, *, markers: int) -> list[Case]:
    """Return the cases that the arguments ask for.

    Args:
        read: returns the arguments. If it raises a `UsageError`, the one case returned holds its message.
        config: pytest's config.
        markers: the number of markers on the test.
    """
    try:
        marked = read()
        start.require_known_in(marked.source, marked.options, config)
    except UsageError as error:
        return [Case(markers=markers, error=str(error))]
    single = [
        Case(methods=(name,), phase=phase, marked=marked, markers=markers)
        for name in named_methods(marked.declaration.checked)
        for phase in marked.options.phases
        if phase != LIFECYCLE
    ]
    loss = ["loss"] if marked.declaration.loss else []
    living = (*named_methods(marked.declaration.living), *loss)
    whole = [Case(methods=living, phase=LIFECYCLE, marked=marked, markers=markers)]
    return single + (whole if LIFECYCLE in marked.options.phases else [])


def case_of(item: pytest.Item) -> Case | None:
    """Return the case of an item; None if it has none."""
    callspec = getattr(item, "callspec", None)
    case = callspec.params.get(CASE) if callspec is not None else getattr(item, "case", None)
    return case if isinstance(case, Case) else None


def misuse(item: pytest.Item) -> str:
    """Return why the marker can't work on this item; empty if it can, or the item has no marker."""
    if item.get_closest_marker(MARKER) is None:
        return ""
    where = f"@pytest.mark.{MARKER} on {item.nodeid}"
    case = case_of(item)
    function = getattr(item, "obj", None)
    if getattr(function, "is_hypothesis_test", False):
        return f"{where}: drop @given; the check draws its own examples from the declared specs"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return f"{where}: the test is async; make it a plain function that returns the module"
    if case is not None and len(list(item.iter_markers(MARKER))) == case.markers:
        return case.error
    if getattr(item, "callspec", None) is not None:
        return f"{where}: the marker came through pytest.param(marks=...); put it on the function itself"
    if issubclass(getattr(item, "cls", None) or object, unittest.TestCase):
        return (
            f"{where}: a method of unittest.TestCase can't return the module; "
            f"move it to a plain class or a function"
        )
    if isinstance(item, pytest.Function):
        return f"{where}: the marker was added after collection; put it on the function itself"
    return f"{where}: only test functions and methods can be factories"


def run_test(item: pytest.Function, case: Case) -> None:
    """Check one case of a marked test. Its function is the factory. See `run`."""
    arguments = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}
    run(item, case, functools.partial(item.obj, **arguments))


def run(item: pytest.Item, case: Case, factory: Callable[[], Any]) -> None:
    """Check one case, and return if it passed.

    Raises:
        pytest.skip.Exception: if it could not be compiled, unless the session is strict.
        pytest.fail.Exception: if it failed, or an argument is wrong.
    """
    marked = case.marked
    assert marked is not None  # setup has reported wrong markers
    if isolate.is_wanted(item, marked.options.isolate):
        elsewhere = functools.partial(isolate.check_elsewhere, item)
        conclude([finish(item, elsewhere(), elsewhere)], strict=marked.options.strict, item=item)
        return
    # With -W error, a warning from torch's own imports would fail the first case.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        from pytest_torchcompile.runtime.isolation import deferred_warnings

        torch.compiler.reset()

    try:
        with deferred_warnings() as emit_warnings, watched(item) as progress:
            check = functools.partial(_checked, item, case, marked, factory, progress)
            result = check()
            is_handed_over = isolate.hand_over(isolate.Ending(result=result))
            if not is_handed_over:
                result = finish(item, result, check)
    except UsageError as error:
        raise pytest.fail.Exception(f"{marked.source}: {error}", pytrace=False) from None
    if not is_handed_over:
        conclude([result], strict=marked.options.strict, item=item)
    # Last, because with -W error this raises.
    emit_warnings()


def _checked(
    item: pytest.Item, case: Case, marked: Marked, factory: Callable[[], Any], progress: Progress
) -> CheckResult:
    from pytest_torchcompile.check import check_case, check_lifecycle
    from pytest_torchcompile.policies.methods import as_methods
    from pytest_torchcompile.timing.speed import SECONDS

    declaration, options, name = marked.declaration, marked.options, item.nodeid
    if case.phase == LIFECYCLE:
        return check_lifecycle(
            factory, declaration=declaration, options=options, name=name, progress=progress
        )
    return check_case(
        factory,
        next(m for m in as_methods(declaration.checked) if m.name in case.methods),
        case.phase,
        declaration=declaration,
        options=options,
        name=name,
        progress=progress,
        time=benchmark.timing_of(item, options, default=SECONDS),
    )


def forget(item: pytest.Item) -> None:
    """Remove what an earlier run of this item recorded. Plugins may run an item several times."""
    reporting.forget(item)
    item.user_properties[:] = [p for p in item.user_properties if not str(p[0]).startswith(PROPERTY)]


def finish(item: pytest.Item, result: CheckResult, again: Callable[[], CheckResult]) -> CheckResult:
    """Compare a result with the baseline, and record it for the reports and in pytest-benchmark.

    Args:
        item: the item of the case.
        result: the result of the check.
        again: checks and times the case once more.
    """
    compared = gate.compare_with_baseline(item, _unused_name(item, result), result, again)
    record(item, compared)
    benchmark.record_case(item, compared)
    return compared


def _unused_name(item: pytest.Item, result: CheckResult) -> str:
    """Return a name for the result that no other result of the item has. A test may check a case twice."""
    taken = {str(name).removeprefix(PROPERTY).rpartition(".")[0] for name, _ in item.user_properties}
    numbered = (f"{result.case}#{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([result.case], numbered) if name not in taken)


def record(item: pytest.Item, result: CheckResult) -> None:
    """Put a result on the item as plain data, for the reports and as properties for JUnit."""
    case = _unused_name(item, result)
    reporting.keep(item, result, case)
    item.user_properties.extend((f"{PROPERTY}{case}.{name}", value) for name, value in result.row().items())


def conclude_compile_failure(item: pytest.Item, call: pytest.CallInfo[None], failure: CompileFailed) -> None:
    """Turn a `CompileFailed` raised by a test or fixture into a skip, or into a failure if strict."""
    if failure.result is not None:
        record(item, failure.result)
    strict = failure.strict or merged(item.config, "", {}).strict
    outcome = pytest.fail.Exception if strict else pytest.skip.Exception
    text = visible(f"compile failed: {failure}")
    raised = outcome(text, pytrace=False) if strict else outcome(text)
    call.excinfo = pytest.ExceptionInfo.from_exception(raised.with_traceback(failure.__traceback__))


def conclude(results: list[CheckResult], *, strict: bool, item: pytest.Item) -> None:
    """Return if all results passed.

    Raises:
        pytest.fail.Exception: if any failed, with the text of each.
        pytest.skip.Exception: if none failed and some could not be compiled.
    """
    from pytest_torchcompile.reports.failure import budget_text, failure_text, regression_text, slow_text
    from pytest_torchcompile.results import Verdict

    skipped = [r for r in results if r.verdict is Verdict.COMPILE_FAILED and not strict]
    failed = [r for r in results if not r.verdict.passed and r not in skipped]
    slow = [r for r in results if r.speedup is not None and r.speedup.too_slow]
    costly = [r for r in results if r.verdict.passed and r.exceeded]
    worse = [r for r in results if r.regressions and r not in failed]
    if failed or slow or costly or worse:
        rerun = _rerun_command(item)
        texts = [failure_text(r, rerun) for r in failed] + [slow_text(r, rerun) for r in slow]
        texts += [budget_text(r, rerun) for r in costly]
        texts += [regression_text(r, rerun) for r in worse]
        pytest.fail(visible("\n\n".join(texts)), pytrace=False)
    if skipped:
        first = skipped[0]
        pytest.skip(one_line(f"compile failed: {first.case}: {first.reason}"))


def _rerun_command(item: pytest.Item) -> str:
    """Return the command that runs this item alone, with this run's compile options except its reports."""
    given = item.config.invocation_params.args
    options: list[str] = []
    for position, argument in enumerate(map(str, given)):
        if argument == "--compile-check" or argument.startswith("--compile-report"):
            continue
        if argument.startswith(("--compile-", "--no-compile-")):
            options.append(argument)
            following = str(given[position + 1]) if position + 1 < len(given) else "-"
            if "=" not in argument and takes_value(argument) and not following.startswith("-"):
                options.append(following)
    # Node ids are relative to pytest's root. The path must be relative to where pytest was called.
    path, separator, name = item.nodeid.partition("::")
    if not separator:
        return shlex.join(["pytest", "--compile-check", *options, "-k", item.name])
    path = os.path.relpath(item.config.rootpath / path, item.config.invocation_params.dir)
    return shlex.join(["pytest", "--compile-check", *options, f"{path}{separator}{name}"])
