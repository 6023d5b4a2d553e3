"""Records a case that ended without a result, from pytest's report of it, before the report is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_torchcompile.plugin import cases, gate, isolate, lost, reporting, steps, turns
from pytest_torchcompile.plugin.fixtures import CURRENT_ITEM
from pytest_torchcompile.plugin.options import enabled
from pytest_torchcompile.texts import visible

if TYPE_CHECKING:
    from pytest_torchcompile.results import CheckResult


def note(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Record a case that an exception ended, unless it has a result. Escape control characters in its report.

    Args:
        item: any item.
        call: the phase of the item that was run.
        report: pytest's report of that phase; changed in place.
    """
    case = cases.case_of(item)
    if case is None or call.excinfo is None or not enabled(item.config):
        return
    # A test with a wrong marker has no case. The report lists it among the tests that were not checked.
    if not reporting.has_result(item) and not cases.misuse(item):
        _record(item, lost.result_of(case, call.excinfo.value), report)
    _escape_control_characters(report)


def _record(item: pytest.Item, result: CheckResult, report: pytest.TestReport) -> None:
    from pytest_torchcompile.reports.failure import regression_text

    if isolate.is_single_case():
        message = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        isolate.hand_over(
            isolate.Ending(
                result=result, outcome=report.outcome, message=str(message).removeprefix("Skipped: ")
            )
        )
        return
    compared = gate.compare_with_baseline(item, result.case, result, lambda: result)
    cases.record(item, compared)
    report.user_properties = list(item.user_properties)
    if report.skipped and compared.regressions and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = regression_text(compared)


def _escape_control_characters(report: pytest.TestReport) -> None:
    if isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        report.longrepr = (path, line, visible(reason))
    elif report.longrepr is not None and visible(report.longreprtext) != report.longreprtext:
        report.longrepr = visible(report.longreprtext)


def note_crash(nodeid: str, report: pytest.TestReport) -> None:
    """Record the case that a worker of pytest-xdist was running when it died.

    Args:
        nodeid: the id of the item, which may be no case.
        report: pytest-xdist's report of it; changed in place.
    """
    from pytest_torchcompile.reports.document import record_of
    from pytest_torchcompile.reports.failure import failure_text

    worker = report.node  # pytest-xdist adds it
    step = steps.last_of(turns.worker_file_of(worker.workerinput), nodeid)
    result = lost.result_of_process(nodeid, lost.status_of_worker(worker), step)
    if result is None or not enabled(worker.config):
        return
    record = record_of(result, result.case)
    setattr(report, reporting.ATTRIBUTE, [record])
    report.longrepr = f"{failure_text(result)}\n\n{report.longrepr}"


def note_interrupt(config: pytest.Config, error: BaseException) -> None:
    """Record the case that an interrupt ended. pytest makes no report of it."""
    from pytest_torchcompile.reports.document import record_of

    item = config.stash.get(CURRENT_ITEM, None)
    case = None if item is None else cases.case_of(item)
    if item is None or case is None or case.error or not enabled(config) or reporting.has_result(item):
        return
    result = lost.result_of(case, error)
    reporting.keep_interrupted(config, item, record_of(result, result.case))
