"""Exceptions that leave the compiler: whose they are, and where they were raised."""

from __future__ import annotations

import os

import torch


def inner_error(error: BaseException) -> BaseException:
    """The exception that a backend raised, out of dynamo's wrapping of it."""
    inner = getattr(error, "inner_exception", None)
    return inner_error(inner) if isinstance(inner, BaseException) else error


def compiler_stack(error: BaseException) -> tuple[str, int | None] | None:
    """The user's file and line that dynamo was compiling when it raised `error`, if it says."""
    stack = getattr(error, "real_stack", None)
    return (stack[-1].filename, stack[-1].lineno) if stack else None


def is_configuration_error(error: BaseException) -> bool:
    """Whether the exception means that the user named something unknown, such as a backend."""
    from torch._dynamo.exc import InvalidBackend

    return isinstance(error, InvalidBackend)


def is_compilers_code(filename: str) -> bool:
    """Whether a traceback's file was written by inductor, or is part of torch's compiler."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    torch_ = os.path.dirname(torch.__file__) + os.sep
    packages = tuple(torch_ + name + os.sep for name in ("_dynamo", "_functorch", "_inductor"))
    return filename.startswith((cache_dir(), *packages))
