"""Names, exceptions and places in the words of messages."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def some(names: Iterable[str], most: int = 4) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """``Type: first line`` of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__


def raised_text(error: BaseException) -> str:
    """One sentence about an exception of the user's code, with the last line outside torch and us."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_PACKAGE) and f"{os.sep}torch{os.sep}" not in frame.filename
    ]
    return first_line(error) + (at(frames[-1].filename, frames[-1].lineno) if frames else "")


def at(filename: str, line: int | None) -> str:
    """`` (at file:line)``, as `line_of` writes it."""
    return f" (at {line_of(filename, line)})"


def line_of(filename: str, line: int | str | None) -> str:
    """``file:line``, the file as `shortest` writes it."""
    return f"{shortest(filename)}:{line}"


def shortest(path: str) -> str:
    """A path relative to the working directory where that is shorter."""
    return min(path, os.path.relpath(path), key=len)
