"""Ends the traceback of an error at the user's line, without the frames of this package and of torch.

An error that this package raises on purpose says everything in its sentence. An exception of the user's own
policy, called through this package, concerns the user's lines only. ``--full-trace`` leaves nothing out.
"""

from __future__ import annotations

import types

import pytest

from pytest_torchcompile.errors import CompileCheckError
from pytest_torchcompile.texts import is_of_ours, is_users_code


def concerns_us(excinfo: pytest.ExceptionInfo[BaseException], config: pytest.Config) -> bool:
    """Return whether the traceback of an exception has frames to leave out."""
    # Skips and failures of pytest are no `Exception`; their place is set elsewhere.
    if config.getoption("fulltrace", False) or not isinstance(excinfo.value, Exception):
        return False
    entries = list(_entries(excinfo.tb))
    through_us = [entry for entry in entries if is_of_ours(_file(entry))]
    # An exception that starts in this package and is none of its own is a bug of this package.
    is_ours = isinstance(excinfo.value, CompileCheckError)
    return bool(through_us) and (is_ours or not is_of_ours(_file(entries[-1])))


def shortened(excinfo: pytest.ExceptionInfo[BaseException]) -> pytest.ExceptionInfo[BaseException]:
    """Return the exception with the traceback that concerns the user."""
    entries = list(_entries(excinfo.tb))
    first = next(number for number, entry in enumerate(entries) if is_of_ours(_file(entry)))
    kept = entries[:first] + [
        entry for entry in entries[first:] if is_users_code(_file(entry)) and _file(entry) != "<string>"
    ]
    error = excinfo.value
    if isinstance(error, CompileCheckError):
        # The sentence names the exception that caused it, and its line.
        error.__cause__, error.__suppress_context__ = None, True
    return pytest.ExceptionInfo.from_exception(error.with_traceback(_linked(kept or entries)))


def _entries(traceback: types.TracebackType | None) -> list[types.TracebackType]:
    entries = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    return entries


def _linked(entries: list[types.TracebackType]) -> types.TracebackType | None:
    """Return new traceback entries for the same frames, linked in this order."""
    linked: types.TracebackType | None = None
    for entry in reversed(entries):
        linked = types.TracebackType(linked, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return linked


def _file(entry: types.TracebackType) -> str:
    return entry.tb_frame.f_code.co_filename
