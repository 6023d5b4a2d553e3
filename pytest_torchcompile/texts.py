"""Names, exceptions and places in the words of messages."""

from __future__ import annotations

import os
import traceback
import unicodedata
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


def is_of_ours(filename: str) -> bool:
    """Whether a source file is this package's."""
    return filename.startswith(_PACKAGE)


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


_SHOWN_AS_CODES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of control and format characters, surrogates, line and paragraph separators."""


def visible(text: str) -> str:
    r"""`text` with each character that a terminal or browser obeys instead of showing as its escape code.

    These are control characters, among them the escape of terminals, marks that change the direction of
    writing, and surrogates, which no file can hold. A newline stays.

    Example:
        >>> print(visible("red: \x1b[31m, reversed: \u202e"))
        red: \x1b[31m, reversed: \u202e
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text.replace("\r\n", "\n")))


def one_line(text: str) -> str:
    """`text` on a single line, `visible`: no part of it can pass for a line of the report's own."""
    return " ".join(visible(text).split())


def _visible(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in _SHOWN_AS_CODES:
        return character
    return character.encode("unicode_escape").decode("ascii")


def shortest(path: str) -> str:
    """A path relative to the working directory where that is shorter."""
    return min(path, os.path.relpath(path), key=len)


def share(part: int, whole: int) -> str:
    """A percentage that says 0 % and 100 % only of none and all."""
    rounded = round(100 * part / whole)
    return f"{min(max(rounded, 1), 99) if 0 < part < whole else rounded} %"


def shortened(text: str, most: int) -> str:
    """Return `text` in at most `most` characters, with ``...`` for the middle if it is longer.

    Example:
        >>> shortened("get_action_and_value-lifecycle", 17)
        'get_act...fecycle'
    """
    if len(text) <= most:
        return text
    kept = max(most - 3, 2)
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
