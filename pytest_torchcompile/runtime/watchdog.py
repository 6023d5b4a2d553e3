"""A compile that hangs is stopped at a limit, so that the session goes on.

A timer's thread sends the main thread a signal whose handler raises, which also wakes it from waiting for
a C++ compiler. Where there are no such signals, and in other threads, nothing is stopped.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any

AGAIN_S = 1.0
"""Torch may swallow the exception, as it does when it only tries something; it is raised again after this."""


class CompileTimedOut(Exception):
    """A compile took longer than it may."""


class Watchdog:
    """Raises `CompileTimedOut` in the main thread where more than `limit_s` pass between start and stop.

    SIGURG is sent, because nothing happens if it arrives late: it is ignored by default.

    Args:
        limit_s: seconds.
        option: the option that says so, for the message.
    """

    def __init__(self, limit_s: float, option: str) -> None:
        self._limit_s = limit_s
        self._option = option
        self._timer: threading.Timer | None = None
        self._before: Any = None

    def start(self) -> None:
        """Begin to watch."""
        self.stop()
        if self._limit_s < threading.TIMEOUT_MAX and _can_interrupt():
            self._before = signal.signal(signal.SIGURG, self._raise)
            self._wait(self._limit_s)

    def stop(self) -> None:
        """Watch no more."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            signal.signal(signal.SIGURG, self._before)

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._bark)
        self._timer.daemon = True
        self._timer.start()

    def _bark(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)

    def _raise(self, number: int, frame: object) -> None:
        if self._timer is not None:
            self._wait(AGAIN_S)
            raise CompileTimedOut(f"a compile was stopped after {self._option}={self._limit_s:g}")


def _can_interrupt() -> bool:
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and hasattr(signal, "pthread_kill") and hasattr(signal, "SIGURG")
