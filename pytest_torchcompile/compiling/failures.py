"""Describe an exception of the compiler."""

from __future__ import annotations

import traceback

from pytest_torchcompile import internals
from pytest_torchcompile.compiling.toolchain import advice, compilers_own_error
from pytest_torchcompile.texts import at, clipped, first_line


def failure_text(error: BaseException) -> str:
    """Return a sentence on a compile failure: type, first line, and the line that was being compiled."""
    inner = internals.inner_error(error)
    of_backend = internals.of_backend(inner)
    if of_backend is not None:
        raised, line = of_backend
        return f"{type(inner).__name__}: {clipped(raised, 200)}, in the backend{at(*line) if line else ''}"
    place = internals.compiler_stack(error) or internals.traced_line(inner)
    if place is None:
        frames = traceback.extract_tb(inner.__traceback__)
        place = (frames[-1].filename, frames[-1].lineno) if frames else None
    where = at(*place) if place else ""
    if internals.fails_under_inference_mode(inner):
        return (
            "before torch 2.13 AOTAutograd can't compile code under torch.inference_mode(); use "
            f"torch.no_grad() in the policy{where}"
        )
    printed = compilers_own_error(inner) if "compile error" in first_line(inner) else ""
    said = first_line(inner) + (f": {printed}" if printed else "") + where
    remedy = advice(inner)
    return f"{remedy} ({first_line(inner)})" if remedy else said
