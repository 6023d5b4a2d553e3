"""Tell the user that a case is compiling, once that takes longer than a moment."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

AFTER_S = 1.0


@contextlib.contextmanager
def compiling(item: pytest.Item) -> Iterator[Callable[[bool], None]]:
    """Yields what to call when a compile begins (True) and ends (False).

    A line is written, once for the item, when a compile takes longer than `AFTER_S`. Nothing is written by
    pytest-xdist's workers, which have no terminal, nor under ``-q``.
    """
    reporter: Any = item.config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = item.config.pluginmanager.get_plugin("capturemanager")
    timer: threading.Timer | None = None
    written = reporter is None or reporter.verbosity < 0

    def write() -> None:
        nonlocal written
        written = True
        shown = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
        with shown:
            reporter.write_line(f"  compiling {item.name} ...")

    def stop() -> None:
        if timer is not None:
            timer.cancel()
            timer.join()

    def progress(begins: bool) -> None:
        nonlocal timer
        stop()
        timer = None
        if begins and not written:
            timer = threading.Timer(AFTER_S, write)
            timer.daemon = True
            timer.start()

    try:
        yield progress
    finally:
        stop()
