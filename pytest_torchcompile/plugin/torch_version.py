"""Tell the user if the installed torch is older than the check works on, or newer than it was tested on.

Reads the metadata of the installed package, because torch must not be imported when pytest starts.
"""

from __future__ import annotations

import importlib.metadata
import re

from pytest_torchcompile.errors import UsageError

OLDEST = (2, 9)
NEWEST_TESTED = (2, 15)
DRAWS_IN_ORDER = (2, 10)
"""The first release whose inductor can be made to keep the order of random draws."""


def require_supported() -> None:
    """Return if torch is installed and not too old.

    Raises:
        UsageError: otherwise; it names the version that is needed.
    """
    needed = f"--compile-check needs torch {_text(OLDEST)} or newer: pip install 'torch>={_text(OLDEST)}'"
    version = _installed()
    if version is None:
        raise UsageError(f"torch is not installed; {needed}")
    release = _release(version)
    if release is not None and release < OLDEST:
        raise UsageError(f"torch {version} is installed; {needed}")


def note() -> str:
    """Return what the installed torch can't do, or that the check was not tested with it; empty otherwise."""
    version = _installed()
    release = None if version is None else _release(version)
    if release is None:
        return ""
    if release > NEWEST_TESTED:
        return (
            f"torch {version} is newer than {_text(NEWEST_TESTED)}, the newest that the check was tested on"
        )
    if release < DRAWS_IN_ORDER:
        return (
            f"before torch {_text(DRAWS_IN_ORDER)} inductor may change the order of random draws, so a "
            f"correct policy that draws twice in a call may differ"
        )
    return ""


def _installed() -> str | None:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, int] | None:
    """Return major and minor, ``(2, 13)`` for ``2.13.0+cpu``; None for a version of another form."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def _text(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
