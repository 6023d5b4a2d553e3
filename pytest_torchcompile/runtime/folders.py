"""Makes folders that git ignores, and removes them if nothing is left in them.

Several processes may use such a folder at the same time.
"""

from __future__ import annotations

import pathlib

_FILE = ".gitignore"
_IGNORE = "*\n"


def make_ignored(folder: pathlib.Path) -> None:
    """Create a folder that git ignores, unless it exists.

    Raises:
        OSError: if it can't be created.
    """
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FILE).write_text(_IGNORE, encoding="utf-8")


def remove_unused(folder: pathlib.Path) -> None:
    """Delete a folder that `make_ignored` created, if nothing else is in it.

    Raises:
        OSError: if it does not exist, or can't be deleted.
    """
    ignore = folder / _FILE
    if [path.name for path in folder.iterdir()] == [ignore.name] and ignore.read_text("utf-8") == _IGNORE:
        ignore.unlink()
        try:
            folder.rmdir()
        except OSError:
            # Another session has just begun and put its file there.
            ignore.write_text(_IGNORE, "utf-8")
