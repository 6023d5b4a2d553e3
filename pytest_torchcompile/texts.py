"""Formats names, exceptions, paths and percentages for messages."""

from __future__ import annotations

import difflib
import functools
import itertools
import linecache
import os
import re
import sys
import sysconfig
import textwrap
import traceback
import unicodedata
from collections.abc import Iterable

PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
"""The folder of this package, with a separator at its end."""

_STANDARD_LIBRARY = os.path.join(sysconfig.get_path("stdlib"), "")

_DOCS = "https://github.com/pytest-torchcompile/pytest-torchcompile/blob/main/docs"
VERDICTS_PAGE = f"{_DOCS}/verdicts.md"
"""The page with a section on each verdict and on each other finding; see `meaning_of`."""
REFERENCE_PAGE = f"{_DOCS}/reference.md"
"""The page that lists the arguments of the marker and all options."""


def meaning_of(finding: str) -> str:
    """Return the address of the section on a verdict or another finding, as its heading names it.

    Example:
        >>> meaning_of("eager failed").rpartition("/")[2]
        'verdicts.md#eager-failed'
    """
    return f"{VERDICTS_PAGE}#{finding.replace(' ', '-')}"


_NAMES = 4
"""The most names that `some` returns."""


def some(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    names = list(names)
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'atol'?)``, with the known name closest to `name`; empty if none is close."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def first_line(error: BaseException) -> str:
    """Return ``Type: first line`` of an exception.

    A first line that only announces others, as that of ``load_state_dict`` does, is followed by the next one.

    Example:
        >>> first_line(RuntimeError("Error(s) in loading state_dict for A:\\n\\tMissing key(s): 'log_std'."))
        "RuntimeError: Error(s) in loading state_dict for A: Missing key(s): 'log_std'."
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return f"{type(error).__name__}: {clipped(said, 300)}" if lines else type(error).__name__


def is_of_ours(filename: str) -> bool:
    """Return whether a source file belongs to this package."""
    return filename.startswith(PACKAGE)


@functools.cache
def is_users_code(filename: str) -> bool:
    """Return whether a source file is neither of this package nor of torch, Hypothesis or Python itself."""
    installed = any(f"{os.sep}{name}{os.sep}" in filename for name in ("site-packages", "dist-packages"))
    if filename.startswith(_STANDARD_LIBRARY) and not installed:
        return False
    return not filename.startswith((PACKAGE, *map(_folder_of, ("torch", "hypothesis"))))


def _folder_of(package: str) -> str:
    """Return the folder of an imported package, with a separator at its end; else what begins no path."""
    file = getattr(sys.modules.get(package), "__file__", None)
    return os.path.join(os.path.dirname(os.path.abspath(file)), "") if isinstance(file, str) else "\0"


_PRIVATE_TORCH = f"{os.sep}torch{os.sep}_"
"""What the path of a module has by which torch runs operators, modes and compiled code."""


def line_that_raised(error: BaseException) -> str:
    """Return the source of the policy's or torch's line that raised; empty if it is not known.

    What this package runs inside the call, such as a dispatch mode that records, is left out.
    """
    inner: list[tuple[str, int]] = []
    for frame, number in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if is_users_code(file):
            inner = []
        inner.append((file, number))
    own = itertools.takewhile(lambda place: not is_of_ours(place[0]), inner)
    lines = [linecache.getline(*place) for place in own if _PRIVATE_TORCH not in place[0]]
    return lines[-1] if lines else ""


def raised_text(error: BaseException) -> str:
    """Return `first_line` of an exception, with the last frame of the user's code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users_code(frame.filename)]
    return first_line(error) + (at(frames[-1].filename, frames[-1].lineno) if frames else "")


def at(filename: str, line: int | None) -> str:
    """Return `` (at file:line)``, with `line_of`."""
    return f" (at {line_of(filename, line)})"


def line_of(filename: str, line: int | str | None) -> str:
    """Return ``file:line``, with the `shortest` path."""
    return f"{shortest(filename)}:{line}"


_SHOWN_AS_CODES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of control and format characters, surrogates, line and paragraph separators."""


def visible(text: str) -> str:
    r"""Return `text` with control and format characters written as escape codes; newlines are kept.

    These include the terminal's escape character, marks that change the direction of writing, and
    surrogates, which can't be encoded in a file.

    Example:
        >>> print(visible("red: \x1b[31m, reversed: \u202e"))
        red: \x1b[31m, reversed: \u202e
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text.replace("\r\n", "\n")))


def one_line(text: str) -> str:
    """Return `visible` text on a single line, so that no part of it looks like a line of the report."""
    return " ".join(visible(text).split())


def _visible(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in _SHOWN_AS_CODES:
        return character
    return character.encode("unicode_escape").decode("ascii")


def shortest(path: str) -> str:
    """Return a path relative to the working directory if that is shorter, else unchanged."""
    return min(path, os.path.relpath(path), key=len)


def counted(number: int, noun: str) -> str:
    """Return a number of things, whose plural ends in ``s``.

    Example:
        >>> counted(1, "graph break"), counted(0, "recompile")
        ('1 graph break', '0 recompiles')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def share(part: float, whole: float = 1.0) -> str:
    """Return a percentage, which is 0 % only for none and 100 % only for all."""
    rounded = round(100 * part / whole)
    return f"{min(max(rounded, 1), 99) if 0 < part < whole else rounded} %"


def clipped(text: str, most: int) -> str:
    """Return `text` in at most `most` characters, with ``...`` for its end if it is longer.

    Example:
        >>> clipped("expected all tensors to be on one device", 20)
        'expected all tens...'
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


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


def wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    """Return the lines of `text`, broken at spaces where they are longer than `width`.

    A word that is longer, such as a path, stays whole.

    Args:
        text: one or more lines.
        width: the most characters of a line.
        indent: the number of spaces before each continuation of a line.

    Example:
        >>> wrapped("note  eager raised on one example", 20, indent=6)
        ['note  eager raised', '      on one example']
    """
    return [line for whole in text.splitlines() or [""] for line in _wrapped_line(whole, width, indent)]


_NO_BREAK = "\0"
_KEPT_TOGETHER = re.compile(
    r"\(at \S+|`[^`]{1,60}`|\w+=\w+\((?:[^()]|\([^()]*\)){1,60}\)|\w+=\{[^{}]{1,60}\}"
)
"""Matches what stays on one line: a place, short code in backticks, ``name=Spec(...)``, ``name={...}``."""


def _wrapped_line(line: str, width: int, indent: int) -> list[str]:
    if len(line) <= width:
        return [line]
    kept = _KEPT_TOGETHER.sub(lambda found: found[0].replace(" ", _NO_BREAK), line)
    # Spaces within the line, such as those that align it, are kept.
    broken = textwrap.wrap(
        kept,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        expand_tabs=False,
    )
    return [part.replace(_NO_BREAK, " ") for part in broken]
