"""Taking turns under pytest-xdist: one worker of a host times while the others run no test.

Timings of tests that run side by side say nothing. So each worker holds a lock of its own while it runs a
test, and who times waits until it has everybody's. The locks are empty files in a folder of the run, among
temporary ones, hence a host's: workers of other hosts, whose locks nobody takes here, don't wait. The system
releases those of a worker that crashes. The controller deletes the folder at the end, that of its own host.
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
        directory: where the locks of this run are.
        own: this worker's name.
    """

    def __init__(self, directory: pathlib.Path, own: str) -> None:
        # torch needs it, so that it is there whenever there is something to time.
        from filelock import FileLock

        directory.mkdir(parents=True, exist_ok=True)
        self._gate = FileLock(directory / "gate")
        self._own = FileLock(directory / f"{own}{_TEST}")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the body, a test, beside those of other workers."""
        # Through the gate, or who waits to time might wait for as long as there are tests.
        with self._gate:
            self._own.acquire()
        try:
            yield
        finally:
            self._own.release()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within `running`: run the body while no other worker of this host runs a test."""
        # Two that wait for each other's lock at the gate would wait for ever.
        self._own.release()
        try:
            with self._gate, contextlib.ExitStack() as held:
                for other in self._others():
                    held.enter_context(other)
                yield
        finally:
            self._own.acquire()

    def _others(self) -> list[FileLock]:
        """The locks that there are; who has none yet can't begin a test while the gate is held."""
        files = pathlib.Path(self._own.lock_file).parent.glob(f"*{_TEST}")
        return [type(self._own)(path) for path in files if str(path) != self._own.lock_file]


_TEST = ".test"
"""What the names of the locks end with that are held during a test."""
_TURNS = pytest.StashKey[Turns]()
_EXPECTED = pytest.StashKey[pathlib.Path]()


def begin(config: pytest.Config) -> None:
    """Take part, if this is a worker of pytest-xdist."""
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    if given is None:
        return
    config.stash[_TURNS] = Turns(_folder(given), given["workerid"])


def _folder(workerinput: dict[str, Any]) -> pathlib.Path:
    """That of a run, by what a worker is given."""
    return pathlib.Path(tempfile.gettempdir()) / f"pytest-torchcompile-{workerinput['testrunuid']}"


def worker_file(config: pytest.Config) -> pathlib.Path | None:
    """`worker_file_of` this process, None if it is no worker."""
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    return None if given is None else worker_file_of(given)


def worker_file_of(workerinput: dict[str, Any]) -> pathlib.Path:
    """The file of a worker for what it is doing, which the controller reads if it dies on the same host."""
    return _folder(workerinput) / f"{workerinput['workerid']}.steps"


def expect(config: pytest.Config, workerinput: dict[str, Any]) -> None:
    """In the controller, remember the folder that a worker is going to make."""
    config.stash[_EXPECTED] = _folder(workerinput)


def end(config: pytest.Config) -> None:
    """In the controller, once its workers have ended, delete their folder."""
    if _EXPECTED in config.stash:
        shutil.rmtree(config.stash[_EXPECTED], ignore_errors=True)


def running(config: pytest.Config) -> contextlib.AbstractContextManager[None]:
    """See `Turns.running`; without pytest-xdist there is nobody to wait for."""
    turns = config.stash.get(_TURNS, None)
    return contextlib.nullcontext() if turns is None else turns.running()


def alone(config: pytest.Config) -> contextlib.AbstractContextManager[None]:
    """See `Turns.alone`."""
    turns = config.stash.get(_TURNS, None)
    return contextlib.nullcontext() if turns is None else turns.alone()
