"""Keeps the error of a wrong spec until the spec is used, while pytest imports test files.

Markers are evaluated when a file is imported. An error there would take the file's other tests along, so the
wrong spec is replaced by a `FailedSpec`, and only the test that uses it fails.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.texts import at, first_line

_DEFERRED = contextvars.ContextVar("deferred", default=False)


class FailedSpec:
    """Stands for a spec that could not be made.

    Args:
        sentence: what is wrong with it, and the line that makes it.
    """

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence

    def __getattr__(self, name: str) -> Any:
        # Python looks for names such as __deepcopy__ and takes only this answer for "there is none".
        raise AttributeError(name) if name.startswith("__") else UsageError(self.sentence)

    def __repr__(self) -> str:
        return f"<wrong spec: {self.sentence}>"


def errors_deferred() -> contextlib.AbstractContextManager[None]:
    """In the body, a wrong spec is a `FailedSpec` instead of an error."""
    return _deferring(True)


def errors_raised() -> contextlib.AbstractContextManager[None]:
    """In the body, a wrong spec is an error, also inside `errors_deferred`."""
    return _deferring(False)


@contextlib.contextmanager
def _deferring(deferred: bool) -> Iterator[None]:
    token = _DEFERRED.set(deferred)
    try:
        yield
    finally:
        _DEFERRED.reset(token)


def reported_once(make: Callable[[], Any]) -> Any:
    """Return the spec that `make` makes for the caller of the caller.

    If it is wrong, return a `FailedSpec` inside `errors_deferred`.

    Raises:
        UsageError: if the spec is wrong, without the frames of this package.
        TypeError: if it got an argument that it does not take.
    """
    __tracebackhide__ = True
    try:
        return make()
    except (UsageError, TypeError) as error:
        if not _DEFERRED.get():
            raise error.with_traceback(None) from None
        user = sys._getframe(2)
        text = str(error) if isinstance(error, UsageError) else first_line(error)
        return FailedSpec(text + at(user.f_code.co_filename, user.f_lineno))
