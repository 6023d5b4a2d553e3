"""Shows what a check is doing: on the terminal when a compile is slow, and in the process's `steps` file."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_torchcompile.plugin import steps
from pytest_torchcompile.runtime.progress import Progress

AFTER_S = 1.0


@contextlib.contextmanager
def watched(item: pytest.Item) -> Iterator[Progress]:
    """Yield the progress object for the check of an item, which is the body.

    When a compile takes longer than `AFTER_S` seconds, a line is written to the terminal, once per item. With
    ``-q`` and in pytest-xdist's workers, which have no terminal, nothing is written.
    """
    progress = _Watched(item)
    try:
        yield progress
    finally:
        progress.stop()
        steps.note(item.config, item.nodeid, steps.AFTER)


class _Watched(Progress):
    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._step = ""
        self._timer: threading.Timer | None = None
        self._reporter: Any = item.config.pluginmanager.get_plugin("terminalreporter")
        self._written = self._reporter is None or self._reporter.verbosity < 0

    def compiling(self, begins: bool) -> None:
        self.stop()
        steps.note(self._item.config, self._item.nodeid, self._step + (", compiling" if begins else ""))
        if begins and not self._written:
            self._timer = threading.Timer(AFTER_S, self._write)
            self._timer.daemon = True
            self._timer.start()

    def step(self, what: str) -> None:
        self._step = what
        steps.note(self._item.config, self._item.nodeid, what)

    def stop(self) -> None:
        """Cancel the line for the compile that has begun."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()

    def _write(self) -> None:
        self._written = True
        capture: Any = self._item.config.pluginmanager.get_plugin("capturemanager")
        shown = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
        with shown:
            self._reporter.write_line(f"  compiling {self._item.name} ...")
