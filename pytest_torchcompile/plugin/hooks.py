"""The hooks of the pytest plugin.

No module that is imported here imports torch at its top. A project that has the plugin installed and checks
nothing must not wait for that import. For the same reason the plugin's functions import the results, the
reports and the specs where they use them: these consist of dataclasses, which are slow to make.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Generator
from typing import Any

import pytest

from pytest_torchcompile.errors import CompileFailed, UsageError
from pytest_torchcompile.plugin import (
    benchmark,
    cases,
    died,
    endings,
    gate,
    isolate,
    models,
    options,
    reporting,
    selection,
    start,
    steps,
    torch_version,
    tracebacks,
    turns,
)
from pytest_torchcompile.plugin.fixtures import (
    CURRENT_ITEM,
    assert_equivalent,
    compile_check,
    compile_policy,
    observations,
    record_speedup,
)
from pytest_torchcompile.runtime.code_cache import removed_text
from pytest_torchcompile.specs.deferral import errors_deferred
from pytest_torchcompile.texts import shortest

__all__ = ["assert_equivalent", "compile_check", "compile_policy", "observations", "record_speedup"]

_NOT_ENABLED = "compiled against eager: run with --compile-check"
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", options.MARKER_HELP)
    config.pluginmanager.register(_CompileFailures(), "torchcompile-failures")
    config.pluginmanager.register(_Entries(config), "torchcompile-entries")
    try:
        if options.enabled(config):
            torch_version.require_supported()
        options.merged(config, "", {})
        reporting.configure(config)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    if isolate.is_single_case():
        config.pluginmanager.register(isolate.OnlyCase(), "torchcompile-only-case")
    models.add_tables_to_testpaths(config)
    options.set_compile_cache(config)
    try:
        options.prepare_cache(config)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    if not benchmark.why_not_timed(config):
        turns.begin(config)


def pytest_collect_file(file_path: pathlib.Path, parent: pytest.Collector) -> pytest.Collector | None:
    return models.collector(file_path, parent)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Read the baseline, after pytest-benchmark has its storage and before pytest-xdist starts workers.

    The settings that torch does not know are reported here too: a worker can't end the session.
    """
    try:
        gate.open_gate(session.config)
        if not hasattr(session.config, "workerinput") and not isolate.is_single_case():
            start.require_known_settings(session.config)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    died.begin(session.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    died.end(config)
    turns.end(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    gate.send(node.config, node.workerinput)
    turns.expect(node.config, node.workerinput)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport) -> None:
    endings.note_crash(crashitem, report)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    selection.receive(node.config, getattr(node, "workeroutput", {}))


def pytest_report_header(config: pytest.Config) -> str | None:
    if not options.enabled(config):
        return None
    merged = options.merged(config, "", {})
    unrecorded = benchmark.why_not_recorded(config) if merged.benchmark_seconds != 0 else ""
    parts = [f"backend {merged.backend_name}", *options.profile_text(merged)]
    if merged.backend == "inductor" and options.CACHE in os.environ:
        parts.append(f"its code is kept in {shortest(os.environ[options.CACHE])}")
    if unrecorded:
        parts.append(f"speedups are measured but not recorded: {unrecorded}")
    removed = config.stash.get(options.REMOVED, ())
    parts += filter(None, (torch_version.note(), removed_text(removed) if removed else ""))
    return f"compile check: {'; '.join(parts)}"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Keep the error of a wrong spec for the test that uses it, and shorten tracebacks of other errors."""
    with errors_deferred():
        report = yield
    excinfo = getattr(getattr(report, "call", None), "excinfo", None)
    if report.failed and excinfo is not None and tracebacks.concerns_us(excinfo, collector.config):
        shown = collector.repr_failure(tracebacks.shortened(excinfo))
        if not isinstance(shown, str):
            report.longrepr = shown
    return report


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker(options.MARKER) is None:
        return
    found = cases.cases_of(metafunc.definition, metafunc.config)
    metafunc.fixturenames.append(cases.CASE)
    metafunc.parametrize(cases.CASE, found, ids=[case.id for case in found])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    items += models.named_on_the_command_line(session)
    if not options.enabled(config):
        skip = pytest.mark.skip(reason=_NOT_ENABLED)
        for item in items:
            if item.get_closest_marker(options.MARKER) is not None:
                item.add_marker(skip)
    before = list(items)
    with benchmark.counted_as_benchmarks(config, items):
        result = yield
    if options.enabled(config):
        selection.record(config, before, items)
        _require_known_backend(config, items)
    return result


def _require_known_backend(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Return unless the session's backend is misspelt. By now test files have registered their own."""
    if hasattr(config, "workerinput") or isolate.is_single_case():
        return
    if any(item.get_closest_marker(options.MARKER) is not None for item in items):
        try:
            start.require_known_backend(config)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say once how many tests were skipped because the check is not enabled."""
    if options.enabled(config):
        return
    skipped = sum(_NOT_ENABLED in str(report.longrepr) for report in terminalreporter.getreports("skipped"))
    if skipped:
        tests = "1 compiled-equivalence test" if skipped == 1 else f"{skipped} compiled-equivalence tests"
        terminalreporter.write_line(f"{tests} skipped: run with --compile-check")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with turns.running(item.config):
        steps.note(item.config, item.nodeid, steps.BEFORE if cases.case_of(item) else "")
        try:
            return (yield)
        finally:
            steps.note(item.config, f"what ran after {item.nodeid}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    cases.forget(item)
    benchmark.forget(item)
    item.config.stash[CURRENT_ITEM] = item
    if options.enabled(item.config):
        sentence = cases.misuse(item) or selection.misspelt_marker(item)
        if sentence:
            pytest.fail(sentence, pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    case = cases.case_of(pyfuncitem)
    if case is None:
        return None
    cases.run_test(pyfuncitem, case)
    return True


class _Entries:
    """Receives what workers recorded, and interrupts.

    A plugin of its own, because it needs the config and these hooks are not passed one.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        benchmark.receive(self._config, report)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        endings.note_interrupt(self._config, excinfo.value)


class _CompileFailures:
    """Turns a `CompileFailed` raised by a test or fixture into a skip, and shortens other tracebacks.

    A plugin of its own, because the wrapper below is too early: pytest's unittest plugin puts the exception
    of a TestCase into `call` only after wrappers have begun.
    """

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        if call.excinfo is None:
            return
        if isinstance(call.excinfo.value, CompileFailed):
            cases.conclude_compile_failure(item, call, call.excinfo.value)
        elif tracebacks.concerns_us(call.excinfo, item.config):
            call.excinfo = tracebacks.shortened(call.excinfo)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    endings.note(item, call, report)
    benchmark.send(item, report)
    reporting.attach(item, report)
    # pytest reports a skip at the line that raised it, which is in this package. Report the test's line.
    if report.skipped and isinstance(report.longrepr, tuple) and str(report.longrepr[0]).startswith(_HERE):
        path, line, _ = item.reportinfo()
        report.longrepr = (str(path), (line or 0) + 1, report.longrepr[2])
    return report
