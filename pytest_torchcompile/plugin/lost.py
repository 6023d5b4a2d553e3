"""Makes a result for a case that ended without one, so that the report has a row for it.

A policy may raise any exception, or end the whole process. The verdict and the reason are made from that
exception, or from the exit status of the process.
"""

from __future__ import annotations

import os
import re
import signal
import traceback
import unittest
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchcompile.options import LIFECYCLE, PHASES
from pytest_torchcompile.texts import first_line, is_of_ours, raised_text

if TYPE_CHECKING:
    from pytest_torchcompile.plugin.cases import Case
    from pytest_torchcompile.results import CheckResult, Verdict

_PHASE = "|".join((*PHASES, LIFECYCLE))
_ID = re.compile(rf"\[(?:.*-)?(?P<method>[^-\[\]]+)-(?P<phase>{_PHASE})\](?:@.*)?$")
"""Matches the end of the id of a case's item, and of others. pytest-xdist may append a group after ``@``."""


def result_of(case: Case, error: BaseException) -> CheckResult:
    """Return the result of a case that an exception ended.

    Args:
        case: the case of the item.
        error: the exception that its fixtures, its factory or its check raised.
    """
    from pytest_torchcompile.results import CheckResult

    known = getattr(error, "compile_result", None)
    if isinstance(known, CheckResult):
        return known
    verdict, reason = _verdict_and_reason(error)
    options = case.marked.options if case.marked is not None else None
    return CheckResult(
        method=case.id.removesuffix(f"-{case.phase}"),
        phase=case.phase,
        verdict=verdict,
        reason=reason,
        backend=options.backend_name if options is not None else "",
        settings=options.settings() if options is not None else {},
    )


def _verdict_and_reason(error: BaseException) -> tuple[Verdict, str]:
    from pytest_torchcompile.results import Verdict

    if isinstance(error, (pytest.skip.Exception, unittest.SkipTest)):
        return Verdict.SKIPPED, str(error) or "without a reason"
    if isinstance(error, pytest.xfail.Exception):
        return Verdict.SKIPPED, f"expected to fail: {error}"
    if isinstance(error, pytest.fail.Exception):
        return Verdict.EAGER_FAILED, str(error).partition("\n")[0] or "pytest.fail() without a reason"
    if isinstance(error, (KeyboardInterrupt, MemoryError, pytest.exit.Exception)):
        return Verdict.CRASHED, f"the check was ended by {raised_text(error)}"
    if _is_ours(error):
        return Verdict.CRASHED, f"a defect of pytest-torchcompile: {_where_of_ours(error)}"
    return Verdict.EAGER_FAILED, f"ended by {raised_text(error)}"


def _is_ours(error: BaseException) -> bool:
    """Return whether this package raised it, directly or from a call of torch, numpy or Hypothesis."""
    others = tuple(f"{os.sep}{name}{os.sep}" for name in ("torch", "numpy", "hypothesis"))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_of_ours(frame.filename):
            return not frame.filename.endswith(f"plugin{os.sep}models.py")
        if not any(name in frame.filename for name in others):
            return False
    return False


def _where_of_ours(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_of_ours(f.filename)]
    return f"{first_line(error)} (at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno})"


# --- processes ------------------------------------------------------------------------------------


def result_of_process(nodeid: str, status: int | None, step: str | None) -> CheckResult | None:
    """Return the result of a case whose process died; None if the item is no case.

    If the process wrote no step of the item, its id decides.

    Args:
        nodeid: the id of the item.
        status: the exit status as `subprocess` returns it, negative for a signal; None if unknown.
        step: the last step of the item that the process wrote, see `steps.last_of`.
    """
    from pytest_torchcompile.results import CheckResult, Verdict

    found = _ID.search(nodeid)
    if found is None or step == "":
        return None
    last = f" (last step: {step})" if step else ""
    reason = f"{ending(status)}{last}: {_cause(status, step)}"
    return CheckResult(method=found["method"], phase=found["phase"], verdict=Verdict.CRASHED, reason=reason)


def _cause(status: int | None, step: str | None) -> str:
    """Return what may have ended a process, see `result_of_process`."""
    if status is not None and _signal(status) == "SIGKILL":
        return "often the system does this when memory runs out"
    if status is not None and status >= 0 and step is None:
        return "pytest did not reach the case there"
    return "compiled code, or the policy itself, ended it"


def ending(status: int | None) -> str:
    """Describe how a process ended."""
    if status is None:
        return "the process of this case died"
    if status >= 0:
        return f"the process of this case ended with status {status} and without a result"
    return f"the process of this case was killed by {_signal(status)}"


def _signal(status: int) -> str:
    """Return the name of the signal that ended a process, from its exit status."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def status_of_worker(node: Any) -> int | None:
    """Return the exit status of a pytest-xdist worker; None if it is not a child of this process.

    execnet keeps the `Popen` of the worker in private attributes.
    """
    process = getattr(getattr(node.gateway, "_io", None), "popen", None)
    if process is None:
        return None
    try:
        return int(process.wait(timeout=5))
    except Exception:
        return None
