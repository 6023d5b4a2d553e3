"""Writes what this process is doing to a file, which can be read after the process has died.

A process that dies makes no report. The session that started it reads its last step from the file. If the
process was a session itself, the next session reads it. Each step overwrites three short lines, which takes
microseconds. Nothing is flushed to disk: the operating system keeps what a dead process has written.
"""

from __future__ import annotations

import contextlib
import pathlib
from typing import IO

import pytest

from pytest_torchcompile.texts import one_line

_STEPS = pytest.StashKey["Steps"]()
_MOST_CHARACTERS = 500

BEFORE, AFTER = "before the check", "after the check"
"""The steps of a case in which its fixtures and its hooks run."""


class Steps:
    """The file of one process.

    Args:
        path: the path of the file.
        file: the file, open for writing and unbuffered.
        head: its first line, which names the process.
    """

    def __init__(self, path: pathlib.Path, file: IO[bytes], head: str = "") -> None:
        self._path = path
        self._file = file
        self._head = head

    def note(self, where: str, step: str) -> None:
        """Write what the process is doing; see `note`. Errors are ignored, so a full disk stops no check."""
        text = f"{self._head}\n{one_line(where)}\n{step}\n"
        with contextlib.suppress(OSError):
            self._file.seek(0)
            self._file.write(text.encode())
            self._file.truncate()

    def remove(self) -> None:
        """Delete the file, at the normal end of the process."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def begin(config: pytest.Config, steps: Steps) -> None:
    """Write to this file from now on."""
    config.stash[_STEPS] = steps


def begin_in(config: pytest.Config, path: pathlib.Path) -> None:
    """Create a file and write to it from now on. Write to none if it can't be created."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        begin(config, Steps(path, path.open("wb", buffering=0)))


def note(config: pytest.Config, where: str, step: str = "") -> None:
    """Write what this process is doing, if it has a file.

    Args:
        config: pytest's config.
        where: the id of the item, or what the session does between items.
        step: the step of the case; empty if `where` is no case.
    """
    steps = config.stash.get(_STEPS, None)
    if steps is not None:
        steps.note(where, step)


def end(config: pytest.Config) -> None:
    """Delete the file of this process."""
    steps = config.stash.get(_STEPS, None)
    if steps is not None:
        del config.stash[_STEPS]
        steps.remove()


def read(text: bytes) -> tuple[str, str, str]:
    """Return the three lines of a steps file: the process, the item and the step.

    Args:
        text: the content of the file. It may be anything: lines are cut off and missing ones are empty.
    """
    lines = [one_line(line)[:_MOST_CHARACTERS] for line in text.decode(errors="replace").split("\n")]
    head, where, step = (*lines, "", "", "")[:3]
    return head, where, step


def last_of(path: pathlib.Path, nodeid: str) -> str | None:
    """Return the last step that a process wrote for an item; empty if the item is no case.

    Returns:
        None if the process wrote nothing of the item, or the file can't be read.
    """
    try:
        _, where, step = read(path.read_bytes())
    except OSError:
        return None
    return step if where == one_line(nodeid)[:_MOST_CHARACTERS] else None
