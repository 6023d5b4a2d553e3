"""The exceptions that this package raises on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_torchcompile.results import CheckResult


class CompileCheckError(Exception):
    """Base of every error that this package raises on purpose."""


class UsageError(CompileCheckError):
    """The test, marker or call requests something that can't be done; the message says how to fix it."""


class CompileFailed(CompileCheckError):
    """torch.compile raised on a method that runs in eager.

    Under pytest, the plugin skips the test (with ``--compile-strict``, the test fails).

    Args:
        message: method, phase and reason.
        result: the record of the case, if there is one.
        strict: whether the test fails instead of being skipped.
    """

    def __init__(self, message: str, *, result: CheckResult | None = None, strict: bool = False) -> None:
        super().__init__(message)
        self.result = result
        self.strict = strict


class NotEquivalent(CompileCheckError, AssertionError):
    """Compiled and eager differ; the message says where, by how much and what was allowed."""
