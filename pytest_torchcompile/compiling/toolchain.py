"""Says what to do if compiling failed because of the machine: no C++ compiler, no place for its code."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Iterable

from pytest_torchcompile import internals
from pytest_torchcompile.runtime import code_cache

_INSTEAD = "or give --compile-backend=aot_eager (backend='aot_eager'), which needs none"


def advice(error: BaseException) -> str:
    """Return what to install or set after an exception of the compiler; empty if the machine is fine."""
    text = str(error)
    if internals.is_missing_compiler(error):
        return (
            f"there is no C++ compiler: torch tried {internals.cxx_compiler()!r}; install g++ (Debian, "
            f"Ubuntu: apt install g++), set CXX to a compiler, {_INSTEAD}"
        )
    if "Python.h" in text and "No such file" in text:
        return (
            f"Python's headers are missing; install them (Debian, Ubuntu: apt install python3-dev), "
            f"{_INSTEAD}"
        )
    if isinstance(error, OSError) and error.filename and _is_in_cache(str(error.filename)):
        return (
            f"inductor can't write {error.filename}; set TORCHINDUCTOR_CACHE_DIR, or --compile-cache, to a "
            f"folder that can be written"
        )
    return ""


def compilers_own_error(error: BaseException) -> str:
    """Return the first error that the C++ compiler printed; empty if it printed none."""
    lines = [line.strip() for line in str(error).splitlines()[1:]]
    found = (line for line in lines if re.search(r"\berror\b|not recognized|cannot find", line))
    return next(found, "")[:300]


def repeat_without_broken_files(attempt: Callable[[], Iterable[BaseException]]) -> tuple[str, ...]:
    """Repeat an attempt while it fails on broken files of inductor's cache; return the removed files.

    Args:
        attempt: compiles; returns the exceptions of the compiler if it failed, and none if it did not.
    """
    removed: dict[str, None] = {}
    # Each file is removed once: a compiler that writes empty files would never end.
    while not removed.keys() >= set(broken := _remove_broken(attempt())):
        removed |= dict.fromkeys(broken)
    return tuple(removed)


def _remove_broken(errors: Iterable[BaseException]) -> tuple[str, ...]:
    """Remove the shared objects of 0 bytes on which compiles failed; return their paths."""
    texts = ["".join(traceback.format_exception_only(internals.inner_error(error))) for error in errors]
    named = [name for text in texts for name in re.findall(r"[^\s'\":]+\.so\b", text)]
    return code_cache.remove_broken(internals.code_cache(), named) if texts else ()


def _is_in_cache(path: str) -> bool:
    return os.path.abspath(path).startswith(os.path.join(os.path.abspath(internals.code_cache()), ""))
