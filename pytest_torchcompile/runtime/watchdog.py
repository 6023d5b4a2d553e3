"""Stop a compile that hangs, so that the session continues.

A timer thread sends a signal to the main thread, and the signal handler raises. This also interrupts waiting
for a C++ compiler. On platforms without such signals, and in other threads, nothing is stopped.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any

AGAIN_S = 1.0
"""Seconds after which the exception is raised again, because torch may suppress it."""


class CompileTimedOut(Exception):
    """A compile exceeded its time limit."""


class Watchdog:
    """Raises `CompileTimedOut` in the main thread if more than `limit_s` pass between `start` and `stop`.

    It uses SIGURG, which is ignored by default, so that a late signal has no effect.

    Args:
        limit_s: the time limit in seconds.
        option: the name of the option that sets the limit, for the message.
    """

    def __init__(self, limit_s: float, option: str) -> None:
        self._limit_s = limit_s
        self._option = option
        self._timer: threading.Timer | None = None
        self._before: Any = None

    def start(self) -> None:
        """Start the time limit."""
        self.stop()
        if self._limit_s < threading.TIMEOUT_MAX and _can_interrupt():
            self._before = signal.signal(signal.SIGURG, self._raise)
            self._start_timer(self._limit_s)

    def stop(self) -> None:
        """Cancel the time limit."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            signal.signal(signal.SIGURG, self._before)

    def _start_timer(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._send_signal)
        self._timer.daemon = True
        self._timer.start()

    def _send_signal(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)

    def _raise(self, number: int, frame: object) -> None:
        if self._timer is not None:
            self._start_timer(AGAIN_S)
            raise CompileTimedOut(f"a compile was stopped after {self._option}={self._limit_s:g}")


def _can_interrupt() -> bool:
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and hasattr(signal, "pthread_kill") and hasattr(signal, "SIGURG")
