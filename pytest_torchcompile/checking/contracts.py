"""Which exceptions are contracts: raised on purpose, by a policy's code or for a distribution's arguments.

What torch's kernels and modules reject is torch's affair: their compiled counterparts check other things, and
nobody relies on it. Who writes `raise` or `assert` does.
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
_ASKED = ("_check", "_assert")
"""How the functions of torch begin that raise what their caller asks for, such as ``torch._check``."""

_RAISE = dis.opmap["RAISE_VARARGS"]


def on_purpose(error: BaseException) -> bool:
    """Whether a ``raise`` or ``assert`` in code that is not torch's made `error`, or a distribution did.

    An exception of a C function, such as that of an index out of range, ends in the line that called it,
    without a ``raise`` there. Nothing but user code ends the process by `SystemExit`.
    """
    if isinstance(error, SystemExit):
        return True
    frames = list(_frames(error.__traceback__))
    asked = False
    while frames and _is_asked(frames[-1]):
        frames.pop()
        asked = True
    if not frames:
        return False
    file = os.path.abspath(frames[-1].tb_frame.f_code.co_filename)
    if file.startswith(_TORCH) and not file.startswith(_DISTRIBUTIONS):
        return False
    return asked or _raises(frames[-1])


def _frames(last: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while last is not None:
        yield last
        last = last.tb_next


def _is_asked(frame: types.TracebackType) -> bool:
    code = frame.tb_frame.f_code
    return code.co_filename == torch.__file__ and code.co_name.startswith(_ASKED)


def _raises(frame: types.TracebackType) -> bool:
    """Whether the instruction at which a frame ended is a ``raise``; ``assert`` is one, too."""
    return frame.tb_frame.f_code.co_code[frame.tb_lasti] == _RAISE


def unlike_rejection(
    pair: Pair, eager: BaseException, compiled: BaseException | None, returned: str = "returns"
) -> Difference | None:
    """What differs where eager raised; None if compiled raised too, and alike.

    Args:
        pair: the two sides.
        eager: what eager raised.
        compiled: what compiled raised, None if it returned.
        returned: how that is told.
    """
    if compiled is not None:
        # A RuntimeError is how kernels reject an index, for which eager has an IndexError.
        if isinstance(compiled, (type(eager), RuntimeError)) or pair.recorder.is_compile_failure(compiled):
            return None
        returned = f"raises {first_line(compiled)}"
    return Difference(
        path="output", problem="exception", eager=f"raises {first_line(eager)}", compiled=returned
    )


def is_contract(*errors: BaseException | None) -> bool:
    """Whether one of these was raised on purpose, so that a side that does not raise it is wrong."""
    return any(error is not None and on_purpose(error) for error in errors)


def unlike_text(difference: Difference) -> str:
    """What the two sides do otherwise, of which at least one raises."""
    return f"eager {difference.eager} and compiled {difference.compiled}"
