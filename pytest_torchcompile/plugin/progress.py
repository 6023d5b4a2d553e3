"""Tell the user that a case is compiling, once that takes longer than a moment."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

AFTER_S = 1.0


@contextlib.contextmanager
def compiling(item: pytest.Item) -> Iterator[Callable[[], None]]:
    """Yields what to call when a compile begins; a line is written if the body runs on after it.

    Nothing is written by pytest-xdist's workers, which have no terminal, nor under ``-q``.
    """
    reporter: Any = item.config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = item.config.pluginmanager.get_plugin("capturemanager")
    timer: threading.Timer | None = None

    def write() -> None:
        shown = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
        with shown:
            reporter.write_line(f"  compiling {item.name} ...")

    def started() -> None:
        nonlocal timer
        if timer is None and reporter is not None and reporter.verbosity >= 0:
            timer = threading.Timer(AFTER_S, write)
            timer.daemon = True
            timer.start()

    try:
        yield started
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
