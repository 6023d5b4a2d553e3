"""Reports an earlier session that died without a report.

`os._exit(0)` in a policy ends pytest with status 0 and no report. So each session that checks keeps a file in
the folder of the failures, from its start to its end. The file says what the session is doing. A running
session holds a lock on its file, and the operating system releases the lock when the process ends. A file
without a lock was left by a session that died. Windows has no such locks, but there an open file can't be
deleted. A process that a session forked holds the lock until it ends too.

Under pytest-xdist only the controller has such a file. When a worker or the process of a single case dies,
the session itself reports it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import time
from typing import IO

import pytest

from pytest_torchcompile.plugin import isolate, steps, turns
from pytest_torchcompile.plugin.options import PROOFS, enabled, merged
from pytest_torchcompile.runtime.folders import make_ignored, remove_unused

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".running"
"""Suffix of the names of these files."""
_MOST_BYTES = 10_000
_TIME = "%Y-%m-%d %H:%M:%S"
_FOLDER = pytest.StashKey[pathlib.Path]()


def begin(config: pytest.Config) -> None:
    """Begin to write to a file what this process is doing, if it is to check anything."""
    if not enabled(config) or config.option.collectonly:
        return
    worker = turns.worker_file(config)
    if isolate.is_single_case():
        steps.begin_in(config, isolate.steps_file())
    elif worker is not None:
        steps.begin_in(config, worker)
    else:
        _begin_session(config)


def _begin_session(config: pytest.Config) -> None:
    """Create and lock the session's file. Go without one if the folder can't be written."""
    config.stash[_FOLDER] = folder = _folder(config)
    with contextlib.suppress(OSError):
        path, file = _new_file(folder)
        held = steps.Steps(path, file, f"process {os.getpid()}, begun {time.strftime(_TIME)}")
        try:
            _lock(file, wait=True)
        except OSError:
            held.remove()
            return
        has_workers = config.pluginmanager.has_plugin("dsession")
        held.note("the tests of pytest-xdist's workers" if has_workers else "the collection of tests", "")
        steps.begin(config, held)


def _new_file(folder: pathlib.Path) -> tuple[pathlib.Path, IO[bytes]]:
    """Create an empty file in the folder, and the folder if there is none."""
    make_ignored(folder)
    try:
        number, name = tempfile.mkstemp(prefix="session-", suffix=SUFFIX, dir=folder)
    except FileNotFoundError:
        # Another session has just deleted it.
        make_ignored(folder)
        number, name = tempfile.mkstemp(prefix="session-", suffix=SUFFIX, dir=folder)
    return pathlib.Path(name), open(number, "wb", buffering=0)


def end(config: pytest.Config) -> None:
    """Delete this process's file, and its folder if nothing else is in it."""
    steps.end(config)
    folder = config.stash.get(_FOLDER, None)
    if folder is not None:
        with contextlib.suppress(OSError):
            remove_unused(folder)


def report_dead_sessions(config: pytest.Config) -> list[str]:
    """Return a sentence about the sessions that died, and delete their files; empty if none did."""
    if _FOLDER not in config.stash:
        return []
    dead: list[tuple[float, bytes]] = []
    for path in config.stash[_FOLDER].glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            at = path.stat().st_mtime
            text = _take(path)
            if text:
                dead.append((at, text))
    return [_sentence(*max(dead), others=len(dead) - 1)] if dead else []


def _sentence(at: float, text: bytes, *, others: int) -> str:
    session, where, step = steps.read(text)
    more = f", and so did {others} before it" if others else ""
    seen = time.strftime(_TIME, time.localtime(at))
    advice = (
        "; --compile-isolate checks each case in a process of its own and reports one that dies as crashed"
    )
    return (
        f"an earlier session died without a report{more} ({session}, last seen {seen}): it was at "
        f"{', '.join(filter(None, (where, step)))}{advice if step else ''}"
    )


def _folder(config: pytest.Config) -> pathlib.Path:
    """Return the folder of the scripts that show failures; the default one with ``--compile-proof=none``."""
    return pathlib.Path(merged(config, "", {}).proof or config.rootpath / PROOFS).absolute()


def _lock(file: IO[bytes], *, wait: bool) -> None:
    """Lock a file until it is closed. With `wait`, wait for another process to release it.

    Raises:
        OSError: if another process holds it and `wait` is false, or the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _take(path: pathlib.Path) -> bytes:
    """Return the text of a dead session's file, and delete the file; empty for a session that just began.

    Raises:
        OSError: if the session is running.
    """
    with path.open("rb") as file:
        _lock(file, wait=False)
        text = file.read(_MOST_BYTES)
        if text and fcntl is not None:
            path.unlink()
    if text and fcntl is None:
        path.unlink()
    return text
