"""A case in a process of its own, so that a crash of compiled code ends that case and not the session.

The process is a pytest run of the one item, with the arguments of this run. A fork would be quicker, and
hangs: GNU OpenMP does not survive one once torch has computed something in parallel.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile

import pytest

from pytest_torchcompile.results import CheckResult

_HAND_OVER = "PYTEST_TORCHCOMPILE_RESULT"
"""The environment variable that names the file for the result; set in the process of a single case."""

_MOST = 15
"""Lines of what the process said."""


def is_single_case() -> bool:
    """Whether this is the process of a single case, whose session has the reports."""
    return _HAND_OVER in os.environ


def is_wanted(item: pytest.Item, isolate: bool) -> bool:
    """Whether an item is to be checked elsewhere; pytest-xdist's workers are processes already."""
    return isolate and not is_single_case() and not hasattr(item.config, "workerinput")


def hand_over(result: CheckResult) -> bool:
    """In the process of a single case, leave the result where the session finds it.

    Returns:
        Whether this is such a process, which has no more to do.
    """
    file = os.environ.get(_HAND_OVER)
    if file is None:
        return False
    pathlib.Path(file).write_bytes(pickle.dumps(result))
    return True


def check_elsewhere(item: pytest.Item) -> CheckResult:
    """The result of an item, checked in a process of its own.

    Raises:
        pytest.fail.Exception: if that ends without a result: it crashed, or the test went wrong before
            there was anything to check.
    """
    with tempfile.TemporaryDirectory(prefix="compile-isolate-") as folder:
        file = pathlib.Path(folder, "result")
        done = subprocess.run(
            _command(item, pathlib.Path(folder)),
            cwd=item.config.invocation_params.dir,
            env={**os.environ, _HAND_OVER: str(file)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if file.exists():
            result: CheckResult = pickle.loads(file.read_bytes())
            return result
    said = "\n".join(f"  {line}" for line in _telling(done.stdout.strip().splitlines()))
    raise pytest.fail.Exception(f"{_ending(done.returncode)}; it said:\n\n{said}", pytrace=False)


def _command(item: pytest.Item, folder: pathlib.Path) -> list[str]:
    """Pytest with the arguments of this run, of which only the item to run is another one."""
    config = item.config
    given = [str(argument) for argument in config.invocation_params.args]
    paths = set(config.known_args_namespace.file_or_dir)
    path, separator, name = item.nodeid.partition("::")
    own = [*(argument for argument in given if argument not in paths), "-o", f"cache_dir={folder}"]
    one = f"{config.rootpath / path}{separator}{name}"
    return [sys.executable, "-m", "pytest", *own, "--compile-check", one]


def _ending(status: int) -> str:
    if status >= 0:
        return f"the process of this case ended with status {status} and without a result"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"the process of this case was killed by {name}: compiled code, or the policy itself, crashed"


def _telling(lines: list[str]) -> list[str]:
    """The lines that tell most: the innermost frames of a crash, which come first, or the last lines."""
    crash = next((i for i, line in enumerate(lines) if "Fatal Python error" in line), None)
    return lines[-_MOST:] if crash is None else lines[crash:][:_MOST]
