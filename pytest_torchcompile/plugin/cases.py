"""From a marked test to its cases, and from a case to an outcome that pytest understands."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
import shlex
import unittest
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchcompile.plugin import benchmark
from pytest_torchcompile.plugin.options import MARKER, Marked, merged, takes_value
from pytest_torchcompile.plugin.progress import compiling
from pytest_torchcompile.reports.failure import failure_text, slow_text
from pytest_torchcompile.reports.terminal import PROPERTY
from pytest_torchcompile.results import CheckResult, CompileFailed, UsageError, Verdict

if TYPE_CHECKING:
    from pytest_torchcompile.policy import Method

CASE = "compiled_case"
"""The parameter under which a marked test is given its case."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One method in one phase of a marked test, or the reason why the marker is no good.

    Args:
        method: what to call; None with an error.
        phase: ``rollout`` or ``update``.
        methods: all methods of the test.
        marked: what the markers say.
        markers: how many of them there were.
        error: the sentence for the user.
    """

    method: str | Callable[..., Any] = ""
    phase: str = ""
    marked: Marked | None = None
    markers: int = 0
    error: str = ""

    @property
    def id(self) -> str:
        """``get_value-rollout``."""
        if self.error:
            return "usage-error"
        name = self.method if isinstance(self.method, str) else self.method.__name__
        return f"{name.replace('<lambda>', 'adapter')}-{self.phase}"


def cases_of(node: Any, config: pytest.Config) -> list[Case]:
    """The cases of a test that has the marker; a single one that holds the error of a wrong marker."""
    markers = len(list(node.iter_markers(MARKER)))
    try:
        marked = Marked.of(node, config)
        methods = _as_list(marked)
    except UsageError as error:
        return [Case(markers=markers, error=str(error))]
    return [
        Case(method=method, phase=phase, marked=marked, markers=markers)
        for method in methods
        for phase in marked.options.phases
    ]


def _as_list(marked: Marked) -> list[Any]:
    """The methods, checked as far as that goes without torch."""
    methods = marked.declaration.methods
    listed = [methods] if isinstance(methods, str) or callable(methods) else methods
    if not isinstance(listed, (list, tuple)) or not listed:
        raise UsageError(
            f"{marked.source} got methods={methods!r}; accepted: method names and functions "
            f"f(model, **inputs)"
        )
    for method in listed:
        if not (isinstance(method, str) and method) and not inspect.isroutine(method):
            raise UsageError(
                f"{marked.source} got {method!r} among methods; accepted: method names and "
                f"functions f(model, **inputs)"
            )
    return list(listed)


def case_of(item: pytest.Item) -> Case | None:
    """The case of an item; None if it has none."""
    callspec = getattr(item, "callspec", None)
    case = callspec.params.get(CASE) if callspec is not None else None
    return case if isinstance(case, Case) else None


def misuse(item: pytest.Item) -> str:
    """Why the marker can't work on this item; empty if it can."""
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


def run(item: pytest.Function, case: Case) -> None:
    """Check one case and tell pytest what came of it.

    Raises:
        pytest.skip.Exception: on a compile failure.
        pytest.fail.Exception: on every other verdict but equality, and on misuse.
    """
    # Under -W error a warning of torch's own imports would fail the first case.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        from pytest_torchcompile.check import check_case
        from pytest_torchcompile.isolation import deferred_warnings
        from pytest_torchcompile.policy import as_methods

        torch.compiler.reset()

    marked = case.marked
    assert marked is not None  # misuse has been reported in setup
    arguments = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}

    def factory() -> Any:
        return item.obj(**arguments)

    try:
        methods = as_methods(marked.declaration.methods)
        time, untimed = benchmark.timing_of(item, marked.options)
        with deferred_warnings() as emit_warnings, compiling(item) as progress:
            result = check_case(
                factory,
                _among(methods, case),
                case.phase,
                declaration=marked.declaration,
                options=marked.options,
                name=item.nodeid,
                progress=progress,
                time=time,
            )
    except UsageError as error:
        raise pytest.fail.Exception(f"{marked.source}: {error}", pytrace=False) from None
    if untimed and result.verdict.passed:
        result = dataclasses.replace(result, untimed=untimed)
    record(item, result)
    benchmark.record_case(item, result)
    conclude([result], strict=marked.options.strict, item=item)
    # Last, because under -W error this raises.
    emit_warnings()


def _among(methods: tuple[Method, ...], case: Case) -> Method:
    return next(m for m in methods if case.method in (m.name, m.adapter))


def forget(item: pytest.Item) -> None:
    """Drop what an earlier run of this item recorded; plugins run items again."""
    item.user_properties[:] = [p for p in item.user_properties if not str(p[0]).startswith(PROPERTY)]


def record(item: pytest.Item, result: CheckResult) -> None:
    """Put a result on the item as plain data, where JUnit, xdist and the terminal find it."""
    taken = {str(name).removeprefix(PROPERTY).rpartition(".")[0] for name, _ in item.user_properties}
    case = result.case
    for number in itertools.count(2):
        if case not in taken:
            break
        case = f"{result.case}#{number}"
    item.user_properties.extend((f"{PROPERTY}{case}.{name}", value) for name, value in result.row().items())


def conclude_compile_failure(item: pytest.Item, call: pytest.CallInfo[None], failure: CompileFailed) -> None:
    """Make a `CompileFailed` that left a test or fixture a skip, or a plain failure if that is asked for."""
    if failure.result is not None:
        record(item, failure.result)
    strict = failure.strict or merged(item.config, "", {}).strict
    outcome = pytest.fail.Exception if strict else pytest.skip.Exception
    raised = (
        outcome(f"compile failed: {failure}", pytrace=False)
        if strict
        else outcome(f"compile failed: {failure}")
    )
    call.excinfo = pytest.ExceptionInfo.from_exception(raised.with_traceback(failure.__traceback__))


def conclude(results: list[CheckResult], *, strict: bool, item: pytest.Item) -> None:
    """Return if all results passed.

    Raises:
        pytest.fail.Exception: with the texts of the failing ones.
        pytest.skip.Exception: if none fails but some could not be compiled.
    """
    skipped = [r for r in results if r.verdict is Verdict.COMPILE_FAILED and not strict]
    failed = [r for r in results if not r.verdict.passed and r not in skipped]
    slow = [r for r in results if r.speedup is not None and r.speedup.too_slow]
    if failed or slow:
        rerun = _rerun_command(item)
        texts = [failure_text(r, rerun) for r in failed] + [slow_text(r, rerun) for r in slow]
        pytest.fail("\n\n".join(texts), pytrace=False)
    if skipped:
        first = skipped[0]
        pytest.skip(f"compile failed: {first.case}: {first.reason}")


def _rerun_command(item: pytest.Item) -> str:
    """The command that runs this item alone with the compile options of this run."""
    given = item.config.invocation_params.args
    options: list[str] = []
    for position, argument in enumerate(map(str, given)):
        if argument.startswith(("--compile-", "--no-compile-")) and argument != "--compile-check":
            options.append(argument)
            following = str(given[position + 1]) if position + 1 < len(given) else "-"
            if "=" not in argument and takes_value(argument) and not following.startswith("-"):
                options.append(following)
    # From where pytest was called, which may be below its root.
    path, separator, name = item.nodeid.partition("::")
    path = os.path.relpath(item.config.rootpath / path, item.config.invocation_params.dir)
    return shlex.join(["pytest", "--compile-check", *options, f"{path}{separator}{name}"])
