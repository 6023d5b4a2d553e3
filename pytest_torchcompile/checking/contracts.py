"""Decide which exceptions are contracts: raised on purpose by the policy's code or by a distribution.

An exception of torch's kernels and modules is no contract, because the compiled code checks other conditions
and nobody relies on them. A `raise` or `assert` in the policy is one.
"""

from __future__ import annotations

import dis
import os
import types
from collections.abc import Iterator

import torch

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.results import Difference
from pytest_torchcompile.texts import first_line

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_DISTRIBUTIONS = os.path.join(_TORCH, "distributions", "")
_CHECK_PREFIXES = ("_check", "_assert")
"""Prefixes of torch's functions that raise on behalf of their caller, such as ``torch._check``."""

_RAISE = dis.opmap["RAISE_VARARGS"]


def on_purpose(error: BaseException) -> bool:
    """Whether `error` was raised by a ``raise`` or ``assert`` outside torch, or by a distribution.

    The traceback of an exception from a C function, such as an index out of range, ends at the line that
    called it, which has no ``raise``. `SystemExit` always comes from user code.
    """
    if isinstance(error, SystemExit):
        return True
    frames = list(_frames(error.__traceback__))
    from_check = False
    while frames and _is_check_function(frames[-1]):
        frames.pop()
        from_check = True
    if not frames:
        return False
    file = os.path.abspath(frames[-1].tb_frame.f_code.co_filename)
    if file.startswith(_TORCH) and not file.startswith(_DISTRIBUTIONS):
        return False
    return from_check or _raises(frames[-1])


def _frames(last: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while last is not None:
        yield last
        last = last.tb_next


def _is_check_function(frame: types.TracebackType) -> bool:
    code = frame.tb_frame.f_code
    return code.co_filename == torch.__file__ and code.co_name.startswith(_CHECK_PREFIXES)


def _raises(frame: types.TracebackType) -> bool:
    """Whether a frame ended at a ``raise`` instruction; an ``assert`` compiles to one too."""
    return frame.tb_frame.f_code.co_code[frame.tb_lasti] == _RAISE


def unlike_rejection(
    pair: Pair, eager: BaseException, compiled: BaseException | None, returned: str = "returns"
) -> Difference | None:
    """Return the difference if eager raised and compiled did not raise a matching exception; else None.

    Args:
        pair: the two sides.
        eager: eager's exception.
        compiled: compiled's exception; None if it returned.
        returned: the words for a compiled call that returned.
    """
    if compiled is not None:
        # Compiled kernels raise RuntimeError for an invalid index, eager raises IndexError.
        if isinstance(compiled, (type(eager), RuntimeError)) or pair.recorder.is_compile_failure(compiled):
            return None
        returned = f"raises {first_line(compiled)}"
    return Difference(
        path="output", problem="exception", eager=f"raises {first_line(eager)}", compiled=returned
    )


def is_contract(*errors: BaseException | None) -> bool:
    """Whether one of the exceptions was raised on purpose, so that both sides have to raise it."""
    return any(error is not None and on_purpose(error) for error in errors)


def unlike_text(difference: Difference) -> str:
    """Describe a difference in which at least one side raises."""
    return f"eager {difference.eager} and compiled {difference.compiled}"
