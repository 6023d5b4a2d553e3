"""What pytest reports of a case that ended without a result becomes a row, before the report is sent."""

from __future__ import annotations

import pytest

from pytest_torchcompile.plugin import cases, gate, isolate, lost, reporting, steps, turns
from pytest_torchcompile.plugin.fixtures import CURRENT_ITEM
from pytest_torchcompile.plugin.options import enabled
from pytest_torchcompile.reports.document import record_of
from pytest_torchcompile.reports.failure import failure_text, regression_text
from pytest_torchcompile.results import CheckResult
from pytest_torchcompile.texts import visible


def note(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Record a case that an exception ended, unless it has a result; show nothing of it that terminals obey.

    Args:
        item: any item.
        call: what was run of it.
        report: pytest's of that, which is changed.
    """
    case = cases.case_of(item)
    if case is None or call.excinfo is None or not enabled(item.config):
        return
    # A test whose marker can't work has no case, and is told among the unchecked.
    if not reporting.has_result(item) and not cases.misuse(item):
        _record(item, lost.result_of(case, call.excinfo.value), report)
    _show_escaped(report)


def _record(item: pytest.Item, result: CheckResult, report: pytest.TestReport) -> None:
    if isolate.is_single_case():
        message = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        isolate.hand_over(
            isolate.Ending(
                result=result, outcome=report.outcome, message=str(message).removeprefix("Skipped: ")
            )
        )
        return
    judged = gate.judged(item, result.case, result, lambda: result)
    cases.record(item, judged)
    report.user_properties = list(item.user_properties)
    if report.skipped and judged.regressions and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = regression_text(judged)


def _show_escaped(report: pytest.TestReport) -> None:
    if isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        report.longrepr = (path, line, visible(reason))
    elif report.longrepr is not None and visible(report.longreprtext) != report.longreprtext:
        report.longrepr = visible(report.longreprtext)


def note_crash(nodeid: str, report: pytest.TestReport) -> None:
    """Record the case that a worker of pytest-xdist died of.

    Args:
        nodeid: of the item, a case or not.
        report: pytest-xdist's, which is changed.
    """
    worker = report.node  # pytest-xdist adds it
    step = steps.last_of(turns.worker_file_of(worker.workerinput), nodeid)
    result = lost.result_of_process(nodeid, lost.status_of_worker(worker), step)
    if result is None or not enabled(worker.config):
        return
    record = record_of(result, result.case)
    setattr(report, reporting.ATTRIBUTE, [record])
    report.longrepr = f"{failure_text(result)}\n\n{report.longrepr}"


def note_interrupt(config: pytest.Config, error: BaseException) -> None:
    """Record the case that an interrupt ended, of which pytest makes no report."""
    item = config.stash.get(CURRENT_ITEM, None)
    case = None if item is None else cases.case_of(item)
    if item is None or case is None or case.error or not enabled(config) or reporting.has_result(item):
        return
    result = lost.result_of(case, error)
    reporting.keep_interrupted(config, item, record_of(result, result.case))
