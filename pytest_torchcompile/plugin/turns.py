"""Makes pytest-xdist's workers on one host wait for each other: while one times, the others run no test.

Timings of tests that run at the same time are not comparable. So each worker holds a lock of its own while it
runs a test, and a worker that times first acquires the locks of all others. The locks are empty files in a
temporary folder of the run, so workers on different hosts don't wait for each other. The operating system
releases the locks of a worker that crashes. The controller deletes the folder on its own host at the end.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from filelock import FileLock


class Turns:
    """The locks of one worker.

    Args:
        directory: the folder with the locks of this run.
        own: the name of this worker.
    """

    def __init__(self, directory: pathlib.Path, own: str) -> None:
        # torch depends on filelock, so it is installed whenever there is something to time.
        from filelock import FileLock

        directory.mkdir(parents=True, exist_ok=True)
        self._gate = FileLock(directory / "gate")
        self._own = FileLock(directory / f"{own}{_TEST}")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the body, a test, at the same time as the tests of other workers."""
        # Without the gate, a worker that waits to time might wait until all tests have run.
        with self._gate:
            self._own.acquire()
        try:
            yield
        finally:
            self._own.release()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside `running`: run the body while no other worker on this host runs a test."""
        # Released first, or two workers that want to time would wait for each other's lock forever.
        self._own.release()
        try:
            with self._gate, contextlib.ExitStack() as held:
                for other in self._others():
                    held.enter_context(other)
                yield
        finally:
            self._own.acquire()

    def _others(self) -> list[FileLock]:
        """Return the other workers' locks. A worker without one can't begin a test while the gate is held."""
        files = pathlib.Path(self._own.lock_file).parent.glob(f"*{_TEST}")
        return [type(self._own)(path) for path in files if str(path) != self._own.lock_file]


_TEST = ".test"
"""Suffix of the names of the locks that workers hold during a test."""
_TURNS = pytest.StashKey[Turns]()
_EXPECTED = pytest.StashKey[pathlib.Path]()


def begin(config: pytest.Config) -> None:
    """Create the locks of this process, if it is a worker of pytest-xdist."""
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    if given is None:
        return
    config.stash[_TURNS] = Turns(_folder(given), given["workerid"])


def _folder(workerinput: dict[str, Any]) -> pathlib.Path:
    """Return the folder of a run on this host."""
    return pathlib.Path(tempfile.gettempdir()) / f"pytest-torchcompile-{workerinput['testrunuid']}"


def worker_file(config: pytest.Config) -> pathlib.Path | None:
    """Return `worker_file_of` this process; None if it is no worker."""
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    return None if given is None else worker_file_of(given)


def worker_file_of(workerinput: dict[str, Any]) -> pathlib.Path:
    """Return the steps file of a worker. If the worker dies, a controller on the same host reads it."""
    return _folder(workerinput) / f"{workerinput['workerid']}.steps"


def expect(config: pytest.Config, workerinput: dict[str, Any]) -> None:
    """In the controller, remember the folder that a worker is going to create."""
    config.stash[_EXPECTED] = _folder(workerinput)


def end(config: pytest.Config) -> None:
    """In the controller, delete the workers' folder after they have ended."""
    if _EXPECTED in config.stash:
        shutil.rmtree(config.stash[_EXPECTED], ignore_errors=True)


def running(config: pytest.Config) -> contextlib.AbstractContextManager[None]:
    """See `Turns.running`. Without pytest-xdist it does nothing."""
    turns = config.stash.get(_TURNS, None)
    return contextlib.nullcontext() if turns is None else turns.running()


def alone(config: pytest.Config) -> contextlib.AbstractContextManager[None]:
    """See `Turns.alone`. Without pytest-xdist it does nothing."""
    turns = config.stash.get(_TURNS, None)
    return contextlib.nullcontext() if turns is None else turns.alone()
