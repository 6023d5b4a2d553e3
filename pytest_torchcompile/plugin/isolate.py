"""Checks a case in a process of its own, so that a crash of compiled code does not end the session.

The process is a pytest run of the one item, with the arguments of this run. A fork would be faster, but it
hangs: GNU OpenMP does not work in a forked process once torch has computed something in parallel.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from pytest_torchcompile.plugin.steps import last_of, note
from pytest_torchcompile.texts import visible

if TYPE_CHECKING:
    from pytest_torchcompile.results import CheckResult

_HAND_OVER = "PYTEST_TORCHCOMPILE_RESULT"
"""Environment variable with the path of the file for the result; set in the process of a single case."""
_CASE = "PYTEST_TORCHCOMPILE_CASE"
"""Environment variable with the id of the item to run."""

# Read at import, before a policy can change the environment. Removed, so that a process which the policy
# starts is not taken for the process of a single case.
_FILE = os.environ.pop(_HAND_OVER, "")
_ITEM = os.environ.pop(_CASE, "")

_STEPS = ".steps"
"""Appended to the path of the result's file, this is the path of the file for the last step."""

_MOST = 15
"""How many lines of the process's output a failure shows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """What the process of a single case sends to the session.

    Args:
        result: the result of the case.
        outcome: if an exception ended the case, pytest's outcome, ``skipped`` or ``failed``; else empty.
        message: pytest's text for that outcome.
    """

    result: CheckResult
    outcome: str = ""
    message: str = ""


def is_single_case() -> bool:
    """Return whether this is the process of a single case. It writes no reports; the session does."""
    return bool(_FILE)


def is_wanted(item: pytest.Item, isolate: bool) -> bool:
    """Return whether to check an item in a process of its own. A pytest-xdist worker is one already."""
    return isolate and not is_single_case() and not hasattr(item.config, "workerinput")


def hand_over(ending: Ending) -> bool:
    """In the process of a single case, write its ending to the session's file.

    Returns:
        Whether this is such a process. If so, nothing else is to be done for the case.
    """
    if not _FILE:
        return False
    file = pathlib.Path(_FILE)
    if not file.exists():
        file.write_bytes(pickle.dumps(ending))
    return True


def steps_file() -> pathlib.Path:
    """Return the file for the last step, in the process of a single case."""
    return pathlib.Path(_FILE + _STEPS)


class OnlyCase:
    """Runs the one item in the process of a single case, even if ``--lf`` or a shard leaves it out."""

    def __init__(self) -> None:
        self._kept: list[pytest.Item] = []

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Remember the item."""
        if item.nodeid == _ITEM:
            self._kept.append(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Run it and nothing else."""
        session.items[:] = self._kept or [item for item in session.items if item.nodeid == _ITEM]


def check_elsewhere(item: pytest.Item) -> CheckResult:
    """Return the result of an item, checked in a process of its own.

    Raises:
        pytest.skip.Exception: if it was skipped there. Its `compile_result` is the result of the case.
        pytest.fail.Exception: if an exception ended it there, or the process died. Its `compile_result` is
            the result of the case.
    """
    note(item.config, item.nodeid, "in a process of its own")
    # The case may have left files there that can't be deleted.
    with tempfile.TemporaryDirectory(prefix="compile-isolate-", ignore_cleanup_errors=True) as folder:
        file = pathlib.Path(folder, "result")
        done = subprocess.run(
            _command(item, pathlib.Path(folder)),
            cwd=item.config.invocation_params.dir,
            env={**os.environ, _HAND_OVER: str(file), _CASE: item.nodeid},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if file.exists():
            ending: Ending = pickle.loads(file.read_bytes())
            if not ending.outcome:
                return ending.result
            raise _as_exception(ending)
        step = last_of(pathlib.Path(f"{file}{_STEPS}"), item.nodeid)
    raise _as_exception(_ending_of_crash(item, done, step))


def _as_exception(ending: Ending) -> BaseException:
    skipped = ending.outcome == "skipped"
    raised: BaseException = (
        pytest.skip.Exception(visible(ending.message))
        if skipped
        else pytest.fail.Exception(visible(ending.message), pytrace=False)
    )
    raised.compile_result = ending.result  # type: ignore[attr-defined]  # read by `lost`
    return raised


def _ending_of_crash(item: pytest.Item, done: subprocess.CompletedProcess[str], step: str | None) -> Ending:
    """Return the ending of a process that wrote no result."""
    from pytest_torchcompile.plugin.lost import result_of_process
    from pytest_torchcompile.reports.failure import failure_text

    result = result_of_process(item.nodeid, done.returncode, step)
    assert result is not None  # only cases are isolated
    output = "\n".join(f"  {line}" for line in _most_useful(done.stdout.strip().splitlines()))
    message = f"{failure_text(result)}\n\noutput of the process:\n\n{output}"
    return Ending(result=result, outcome="failed", message=message)


def _command(item: pytest.Item, folder: pathlib.Path) -> list[str]:
    """Return the command for pytest with the arguments of this run, but for the item to run."""
    config = item.config
    given = [str(argument) for argument in config.invocation_params.args]
    path, separator, name = item.nodeid.partition("::")
    # The item of a --compile-model belongs to no file: the flag is among the arguments. The paths stay,
    # because without any pytest collects the whole project.
    if separator:
        paths = set(config.known_args_namespace.file_or_dir)
        given = [argument for argument in given if argument not in paths]
        given.append(f"{config.rootpath / path}{separator}{name}")
    return [sys.executable, "-m", "pytest", *given, *_own_files(config, folder), "--compile-check"]


def _own_files(config: pytest.Config, folder: pathlib.Path) -> list[str]:
    """Return the arguments with which the process writes to `folder` instead of to files of this run.

    pytest would delete this run's ``--basetemp``, and empty its log and its reports.
    """
    arguments = {
        "basetemp": f"--basetemp={folder / 'tmp'}",
        "log_file": f"--log-file={folder / 'log'}",
        "xmlpath": f"--junit-xml={folder / 'junit.xml'}",
        "report_log": f"--report-log={folder / 'report.jsonl'}",
        # pytest-cov adds the data of these processes to those of this run when it ends.
        "cov_append": "--cov-append",
    }
    # Without its plugin, pytest refuses an option.
    known = [argument for option, argument in arguments.items() if hasattr(config.option, option)]
    return ["-o", f"cache_dir={folder}", *known]


def _most_useful(lines: list[str]) -> list[str]:
    """Return the innermost frames of a crash, which faulthandler prints first, or the last lines."""
    crash = next((i for i, line in enumerate(lines) if "Fatal Python error" in line), None)
    return lines[-_MOST:] if crash is None else lines[crash:][:_MOST]
