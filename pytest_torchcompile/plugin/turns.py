"""Taking turns under pytest-xdist: one worker of a host times while the others run no test.

Timings of tests that run side by side say nothing. So each worker holds a lock of its own while it runs a
test, and who times waits until it has everybody's. The locks are empty files in the folder for temporary
ones, hence a host's: workers of other hosts, whose locks nobody takes here, don't wait. The system releases
those of a worker that crashes.
"""

from __future__ import annotations

import contextlib
import pathlib
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


def begin(config: pytest.Config) -> None:
    """Take part, if this is a worker of pytest-xdist."""
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    if given is None:
        return
    directory = pathlib.Path(tempfile.gettempdir()) / f"pytest-torchcompile-{given['testrunuid']}"
    config.stash[_TURNS] = Turns(directory, given["workerid"])


def running(config: pytest.Config) -> contextlib.AbstractContextManager[None]:
    """See `Turns.running`; without pytest-xdist there is nobody to wait for."""
    turns = config.stash.get(_TURNS, None)
    return contextlib.nullcontext() if turns is None else turns.running()


def alone(config: pytest.Config) -> contextlib.AbstractContextManager[None]:
    """See `Turns.alone`."""
    turns = config.stash.get(_TURNS, None)
    return contextlib.nullcontext() if turns is None else turns.alone()
