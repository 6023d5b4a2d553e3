"""A case in a process of its own, so that a crash of compiled code ends that case and not the session.

The process is a pytest run of the one item, with the arguments of this run. A fork would be quicker, and
hangs: GNU OpenMP does not survive one once torch has computed something in parallel.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile

import pytest

from pytest_torchcompile.plugin.lost import result_of_process
from pytest_torchcompile.plugin.steps import last_of, note
from pytest_torchcompile.reports.failure import failure_text
from pytest_torchcompile.results import CheckResult
from pytest_torchcompile.texts import visible

_HAND_OVER = "PYTEST_TORCHCOMPILE_RESULT"
"""The environment variable that names the file for the result; set in the process of a single case."""
_CASE = "PYTEST_TORCHCOMPILE_CASE"
"""The one that names the item to run."""

# Read once, before a policy can empty the environment; what it starts itself is not such a process.
_FILE = os.environ.pop(_HAND_OVER, "")
_ITEM = os.environ.pop(_CASE, "")

_STEPS = ".steps"
"""What comes after the name of the file for the result, for what the process was doing last."""

_MOST = 15
"""Lines of what the process said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """What the process of a single case tells the session.

    Args:
        result: of the case.
        outcome: pytest's, where an exception ended the case: ``skipped`` or ``failed``; else empty.
        message: what pytest says of it.
    """

    result: CheckResult
    outcome: str = ""
    message: str = ""


def is_single_case() -> bool:
    """Whether this is the process of a single case, whose session has the reports."""
    return bool(_FILE)


def is_wanted(item: pytest.Item, isolate: bool) -> bool:
    """Whether an item is to be checked elsewhere; pytest-xdist's workers are processes already."""
    return isolate and not is_single_case() and not hasattr(item.config, "workerinput")


def hand_over(ending: Ending) -> bool:
    """In the process of a single case, leave what came of it where the session finds it.

    Returns:
        Whether this is such a process, which has no more to do.
    """
    if not _FILE:
        return False
    file = pathlib.Path(_FILE)
    if not file.exists():
        file.write_bytes(pickle.dumps(ending))
    return True


def steps_file() -> pathlib.Path:
    """In the process of a single case, where the session looks for what it was doing last."""
    return pathlib.Path(_FILE + _STEPS)


class OnlyCase:
    """The plugin of a single case's process, whose item stays whatever ``--lf`` or a shard leaves out."""

    def __init__(self) -> None:
        self._kept: list[pytest.Item] = []

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Keep the item."""
        if item.nodeid == _ITEM:
            self._kept.append(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Run it and nothing else."""
        session.items[:] = self._kept or [item for item in session.items if item.nodeid == _ITEM]


def check_elsewhere(item: pytest.Item) -> CheckResult:
    """The result of an item, checked in a process of its own.

    Raises:
        pytest.skip.Exception: if it was skipped there.
        pytest.fail.Exception: if an exception ended it there, or the process died; with the result of the
            case as its `compile_result`.
    """
    note(item.config, item.nodeid, "in a process of its own")
    with tempfile.TemporaryDirectory(prefix="compile-isolate-") as folder:
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
    raise _as_exception(_died(item, done, step))


def _as_exception(ending: Ending) -> BaseException:
    skipped = ending.outcome == "skipped"
    raised: BaseException = (
        pytest.skip.Exception(visible(ending.message))
        if skipped
        else pytest.fail.Exception(visible(ending.message), pytrace=False)
    )
    raised.compile_result = ending.result  # type: ignore[attr-defined]  # `lost` looks for it
    return raised


def _died(item: pytest.Item, done: subprocess.CompletedProcess[str], step: str) -> Ending:
    """What is told of a process that left nothing."""
    result = result_of_process(item.nodeid, done.returncode, step)
    assert result is not None  # only cases are isolated
    said = "\n".join(f"  {line}" for line in _telling(done.stdout.strip().splitlines()))
    return Ending(result=result, outcome="failed", message=f"{failure_text(result)}\n\nit said:\n\n{said}")


def _command(item: pytest.Item, folder: pathlib.Path) -> list[str]:
    """Pytest with the arguments of this run, of which only the item to run is another one."""
    config = item.config
    given = [str(argument) for argument in config.invocation_params.args]
    paths = set(config.known_args_namespace.file_or_dir)
    path, separator, name = item.nodeid.partition("::")
    own = [*(argument for argument in given if argument not in paths), "-o", f"cache_dir={folder}"]
    # A model of the command line belongs to no file.
    one = [f"{config.rootpath / path}{separator}{name}"] if separator else []
    return [sys.executable, "-m", "pytest", *own, "--compile-check", *one]


def _telling(lines: list[str]) -> list[str]:
    """The lines that tell most: the innermost frames of a crash, which come first, or the last lines."""
    crash = next((i for i, line in enumerate(lines) if "Fatal Python error" in line), None)
    return lines[-_MOST:] if crash is None else lines[crash:][:_MOST]
