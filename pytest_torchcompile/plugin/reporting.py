"""Collects the results of a session and writes its reports.

Under pytest-xdist, workers send their records to the controller on pytest's test reports. Only the controller
writes files, once, at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.plugin import benchmark, died, isolate, selection
from pytest_torchcompile.plugin.options import MARKER, enabled, session_option
from pytest_torchcompile.texts import first_line, one_line

if TYPE_CHECKING:
    from pytest_torchcompile.reports.document import Plain
    from pytest_torchcompile.results import CheckResult

NAME = "torchcompile-reporting"
ATTRIBUTE = "compile_check"
"""The attribute of a test report that holds the records since the item's previous report."""

_RECORDS = pytest.StashKey["list[Plain]"]()
_HAS_RESULT = pytest.StashKey[bool]()
_MOST_CHARACTERS = 4000


def keep(item: pytest.Item, result: CheckResult, case: str) -> None:
    """Keep a result for the next report of the item."""
    from pytest_torchcompile.reports.document import record_of

    record = record_of(result, case, benchmark.control_of(item.config))
    item.stash.setdefault(_RECORDS, []).append(record)
    item.stash[_HAS_RESULT] = True


def has_result(item: pytest.Item) -> bool:
    """Return whether this run of the item has a result."""
    return item.stash.get(_HAS_RESULT, False)


def forget(item: pytest.Item) -> None:
    """Remove the results of an earlier run of this item."""
    item.stash[_RECORDS] = []
    item.stash[_HAS_RESULT] = False


def attach(item: pytest.Item, report: pytest.TestReport) -> None:
    """Move the kept results to a report, which pytest-xdist sends to its controller."""
    records = item.stash.get(_RECORDS, [])
    if records:
        setattr(report, ATTRIBUTE, records)
        item.stash[_RECORDS] = []


def keep_interrupted(config: pytest.Config, item: pytest.Item, record: Plain) -> None:
    """Keep the record of an item that has no report, if this process collects records."""
    collector = config.pluginmanager.get_plugin(NAME)
    if collector is not None:
        collector.add_interrupted(item, record)


def configure(config: pytest.Config) -> None:
    """Register `Reporting`, except in pytest-xdist's workers and in the process of a single case.

    Raises:
        UsageError: if the suffix of a report is unknown, or a library that it needs is missing.
    """
    paths = session_option(config, "report")
    if paths:
        from pytest_torchcompile.reports.views import require_view

        for path, source in paths:
            require_view(path, source)
    if not hasattr(config, "workerinput") and not isolate.is_single_case():
        config.pluginmanager.register(Reporting(config, paths), NAME)


@dataclasses.dataclass
class _Test:
    """What the reports of one test say so far."""

    nodeid: str
    file: str
    line: int
    records: list[Plain] = dataclasses.field(default_factory=list)
    outcome: str = "passed"
    message: str = ""
    is_ours: bool = False

    def add(self, report: pytest.TestReport) -> None:
        """Add the report of one phase of the test."""
        self.records += getattr(report, ATTRIBUTE, [])
        self.is_ours |= MARKER in report.keywords
        outcome = _outcome(report)
        if outcome != "passed" and self.outcome not in ("failed", "error"):
            self.outcome = outcome
        if report.failed:
            self.message = report.longreprtext[-_MOST_CHARACTERS:]

    @property
    def is_unchecked(self) -> bool:
        """Whether it is a marked test that failed before it had a result."""
        return self.is_ours and not self.records and self.outcome in ("failed", "error")

    @property
    def as_plain(self) -> Plain:
        """The test's part of the document."""
        return {
            "nodeid": self.nodeid,
            "file": self.file,
            "line": self.line,
            "outcome": self.outcome,
            "message": self.message,
        }


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xpassed" if report.passed else "xfailed"
    return "error" if report.failed and report.when != "call" else str(report.outcome)


class Reporting:
    """The plugin that collects the records and writes the reports.

    Args:
        config: pytest's.
        paths: the files to write, each with the flag or setting that asked for it.
    """

    def __init__(self, config: pytest.Config, paths: list[tuple[str, str]]) -> None:
        self._config = config
        self._paths = paths
        self._tests: dict[tuple[str, str], _Test] = {}
        self._document: Plain = {}
        self._written: list[str] = []
        self._unwritten: list[str] = []
        self._is_misused = False

    def add_interrupted(self, item: pytest.Item, record: Plain) -> None:
        """Add the record of the item during which the session was interrupted."""
        path, line, _ = item.location
        test = _Test(item.nodeid, path.replace(os.sep, "/"), (line or 0) + 1, [record], "failed")
        self._tests["", item.nodeid] = test

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the records. A setup replaces the test's earlier reports, so a rerun test counts once."""
        worker = getattr(report, "node", None)
        # pytest-xdist's report of a crash has the worker but not its id.
        name = getattr(report, "worker_id", "") or (worker.gateway.id if worker is not None else "")
        key = (name, report.nodeid)
        if report.when not in ("call", "teardown") or key not in self._tests:
            path, line, _ = report.location
            self._tests[key] = _Test(report.nodeid, path.replace(os.sep, "/"), (line or 0) + 1)
        self._tests[key].add(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the files, however the session ended."""
        tests = self._tests.values()
        if not enabled(self._config) and not any(test.records or test.is_unchecked for test in tests):
            return
        from pytest_torchcompile.reports import github
        from pytest_torchcompile.reports.document import document_of
        from pytest_torchcompile.reports.views import write

        self._document = document_of(
            (record | test.as_plain for test in tests for record in test.records),
            (test.as_plain for test in tests if test.is_unchecked),
        )
        self._is_misused = session.exitstatus == pytest.ExitCode.USAGE_ERROR
        if not self._is_worth_writing():
            self._paths = []
        for path, source in self._paths:
            with self._collected_errors():
                write(self._document, path, source)
                self._written.append(path)
        if self._unwritten:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        elif not self._document["cases"] and selection.fails_without_cases(self._config):
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        if github.is_running(os.environ):
            with self._collected_errors():
                github.add_to_summary(self._document, os.environ)

    @contextlib.contextmanager
    def _collected_errors(self) -> Iterator[None]:
        """Catch an error of the body for the terminal summary, so that the other files are still written."""
        try:
            yield
        except UsageError as error:
            self._unwritten.append(one_line(str(error)))
        except Exception as error:
            self._unwritten.append(
                f"a report can't be written, a defect of pytest-torchcompile: {first_line(error)}"
            )

    def _is_worth_writing(self) -> bool:
        """Return whether this session checks. If not, its empty report must not replace an earlier one."""
        asked = enabled(self._config) and not self._config.option.collectonly and not self._is_misused
        return asked or bool(self._document["cases"])

    def _write_why_nothing_was_checked(self, terminalreporter: Any) -> None:
        if selection.fails_without_cases(self._config):
            terminalreporter.write_line(
                f"the session fails: it is strict and ran all tests, but no test is marked {MARKER}",
                red=True,
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        """Write the table and the paths of the files, after what other plugins write."""
        benchmark.hide_table_unless_asked(self._config)
        yield
        self._write_summary(terminalreporter)

    def _write_summary(self, terminalreporter: Any) -> None:
        """Write the table and the paths of the files. On GitHub, also annotate the failures."""
        if self._document and self._is_worth_writing():
            self._write_table(terminalreporter)
        for sentence in died.report_dead_sessions(self._config):
            terminalreporter.write_line(sentence, red=True)
        if self._written:
            terminalreporter.write_line(f"compile report: {', '.join(self._written)}")
        for error in self._unwritten:
            terminalreporter.write_line(error, red=True)
        if self._document:
            self._annotate(terminalreporter)

    def _write_table(self, terminalreporter: Any) -> None:
        from pytest_torchcompile.reports import terminal

        width = self._config.get_terminal_writer().fullwidth
        terminal.write_summary(terminalreporter, self._document, width)
        if not self._document["cases"]:
            self._write_why_nothing_was_checked(terminalreporter)

    def _annotate(self, terminalreporter: Any) -> None:
        """Show the failures as errors at their lines, on GitHub."""
        from pytest_torchcompile.reports import github

        if github.is_running(os.environ):
            for line in github.error_commands(self._document, self._config.rootpath, os.environ):
                terminalreporter.ensure_newline()
                terminalreporter.write_line(line)
