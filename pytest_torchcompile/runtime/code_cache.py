"""Removes broken files from inductor's cache.

A run that was killed while it compiled leaves a shared object of 0 bytes. Every later compile of the same
code fails on it. This module does not import torch, because the plugin cleans the cache at start-up.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterable, Sequence

from pytest_torchcompile.texts import some

SETTLED_S = 60.0
"""A file that is 0 bytes for so long is not being written by another process."""


def remove_broken(folder: str, named: Iterable[str] = ()) -> tuple[str, ...]:
    """Remove the shared objects of 0 bytes in the folder of a cache, and return their paths.

    Args:
        folder: inductor's cache; nothing outside it is removed.
        named: files that a compile has failed on. Other files are removed once they are `SETTLED_S` old.
    """
    failed = {pathlib.Path(name).absolute() for name in named}
    removed = []
    for file in pathlib.Path(folder).absolute().glob("*/*.so"):
        try:
            status = file.stat()
            is_settled = time.time() - status.st_mtime > SETTLED_S
            if status.st_size == 0 and (file in failed or is_settled):
                file.unlink()
                removed.append(str(file))
        except OSError:
            continue  # another process removed it
    return tuple(sorted(removed))


def removed_text(removed: Sequence[str]) -> str:
    """Return a sentence that names the removed files."""
    names = [pathlib.Path(name).name for name in removed]
    folder = pathlib.Path(removed[0]).parent.parent
    return (
        f"removed {len(names)} shared {'object' if len(names) == 1 else 'objects'} of 0 bytes from "
        f"inductor's cache {folder}, left by a run that was killed while it compiled: {some(names)}"
    )
