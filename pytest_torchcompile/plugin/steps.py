"""What this process is doing, in a file that outlives it.

A process that dies makes no report. What it did last is read from here by the session that started it or,
if it was a session itself, by the next one. Three short lines are written over one another, which costs
microseconds; nothing is flushed to disk, because the system keeps what a process wrote when it dies.
"""

from __future__ import annotations

import contextlib
import pathlib
from typing import IO

import pytest

from pytest_torchcompile.texts import one_line

_STEPS = pytest.StashKey["Steps"]()
_MOST_CHARACTERS = 500


class Steps:
    """The file of one process.

    Args:
        path: of the file.
        file: it, open for writing and unbuffered.
        head: its first line: which process it is.
    """

    def __init__(self, path: pathlib.Path, file: IO[bytes], head: str = "") -> None:
        self._path = path
        self._file = file
        self._head = head

    def note(self, where: str, step: str) -> None:
        """Write what is being done; see `note`. A full disk keeps nothing from being checked."""
        text = f"{self._head}\n{one_line(where)}\n{step}\n"
        with contextlib.suppress(OSError):
            self._file.seek(0)
            self._file.write(text.encode())
            self._file.truncate()

    def remove(self) -> None:
        """The process has come to its end: nobody needs to know what it did last."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def begin(config: pytest.Config, steps: Steps) -> None:
    """Write to these from now on."""
    config.stash[_STEPS] = steps


def begin_in(config: pytest.Config, path: pathlib.Path) -> None:
    """Write to this file from now on; to none if it can't be made."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        begin(config, Steps(path, path.open("wb", buffering=0)))


def note(config: pytest.Config, where: str, step: str = "") -> None:
    """Note what this process is doing, if it has a file for that.

    Args:
        config: pytest's.
        where: the id of the item, or what else is going on.
        step: of its check; empty before and after.
    """
    steps = config.stash.get(_STEPS, None)
    if steps is not None:
        steps.note(where, step)


def end(config: pytest.Config) -> None:
    """Remove the file of this process."""
    steps = config.stash.get(_STEPS, None)
    if steps is not None:
        del config.stash[_STEPS]
        steps.remove()


def read(text: bytes) -> tuple[str, str, str]:
    """The three lines of such a file: which process, where, and at which step it was.

    Args:
        text: what it holds, whoever wrote it.
    """
    lines = [one_line(line)[:_MOST_CHARACTERS] for line in text.decode(errors="replace").split("\n")]
    head, where, step = (*lines, "", "", "")[:3]
    return head, where, step


def last_of(path: pathlib.Path, nodeid: str) -> str:
    """The last step that a process noted of an item; empty if it noted none that can be read here."""
    try:
        _, where, step = read(path.read_bytes())
    except OSError:
        return ""
    return step if where == one_line(nodeid)[:_MOST_CHARACTERS] else ""
