"""Tells of an earlier session that died without a report.

`os._exit(0)` in a policy ends pytest with status 0 and no report. So each session that checks keeps a file in
the folder of the failures, from its start to its end. The file says what the session is doing. A file without
a living session belongs to one that died. A living session holds a lock on its file, and the system releases
the lock when the process ends. Where there are no such locks (Windows), an open file can't be deleted, which
tells the same. A process that a session forked off keeps the lock for as long as it lives.

Under pytest-xdist the controller has a file. Workers and the processes of single cases have none: when they
die, the report has a row for it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import time
from typing import IO

import pytest

from pytest_torchcompile.plugin import isolate, lost, steps, turns
from pytest_torchcompile.plugin.options import PROOFS, enabled, merged

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".running"
"""What the names of these files end with."""
_IGNORE = "*\n"
_MOST_BYTES = 10_000
_TIME = "%Y-%m-%d %H:%M:%S"
_FOLDER = pytest.StashKey[pathlib.Path]()


def begin(config: pytest.Config) -> None:
    """Begin to note in a file what this process is doing, if it checks anything."""
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
    """Make and lock the session's file. A folder that can't be written is no failure."""
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
    """An empty file in the folder, which is made."""
    _make(folder)
    try:
        number, name = tempfile.mkstemp(prefix="session-", suffix=SUFFIX, dir=folder)
    except FileNotFoundError:
        # Another session has just deleted it.
        _make(folder)
        number, name = tempfile.mkstemp(prefix="session-", suffix=SUFFIX, dir=folder)
    return pathlib.Path(name), open(number, "wb", buffering=0)


def end(config: pytest.Config) -> None:
    """Remove this process's file, and its folder if nothing else is in it."""
    steps.end(config)
    folder = config.stash.get(_FOLDER, None)
    if folder is not None:
        with contextlib.suppress(OSError):
            _remove_unused(folder)


def told(config: pytest.Config) -> list[str]:
    """A sentence on the sessions that died, whose files are removed; empty if none did."""
    if _FOLDER not in config.stash:
        return []
    dead: list[tuple[float, bytes]] = []
    for path in config.stash[_FOLDER].glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            at = path.stat().st_mtime
            text = _claimed(path)
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
        f"{', '.join(filter(None, (where, step)))}{advice if lost.is_case(where) else ''}"
    )


def _folder(config: pytest.Config) -> pathlib.Path:
    """The folder of the scripts that show failures; the default one with ``--compile-proof=none``."""
    return pathlib.Path(merged(config, "", {}).proof or config.rootpath / PROOFS).absolute()


def _make(folder: pathlib.Path) -> None:
    """Make a folder that git leaves alone, unless there is one."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text(_IGNORE, encoding="utf-8")


def _remove_unused(folder: pathlib.Path) -> None:
    """Delete a folder of `_make` in which nothing else is."""
    ignore = folder / ".gitignore"
    if [path.name for path in folder.iterdir()] == [ignore.name] and ignore.read_text("utf-8") == _IGNORE:
        ignore.unlink()
        try:
            folder.rmdir()
        except OSError:
            # Another session has begun in between.
            ignore.write_text(_IGNORE, "utf-8")


def _lock(file: IO[bytes], *, wait: bool) -> None:
    """Hold a file until it is closed.

    Raises:
        OSError: if somebody else holds it and this is not to `wait`, or files can't be locked there.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _claimed(path: pathlib.Path) -> bytes:
    """What a session that died has left; empty for one that begins.

    Raises:
        OSError: if it lives.
    """
    with path.open("rb") as file:
        _lock(file, wait=False)
        text = file.read(_MOST_BYTES)
        if text and fcntl is not None:
            path.unlink()
    if text and fcntl is None:
        path.unlink()
    return text
