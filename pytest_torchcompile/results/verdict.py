"""The verdicts of a case, from best to worst."""

from __future__ import annotations

from pytest_torchcompile.backports import StrEnum


class Verdict(StrEnum):
    """The conclusion of a case, as written in the report."""

    EQUAL = "equal"
    WITHIN_ROUNDING = "within rounding"
    DIFFERS = "differs"
    NOT_COMPILED = "not compiled"
    COMPILE_FAILED = "compile failed"
    EAGER_FAILED = "eager failed"
    SKIPPED = "skipped"
    CRASHED = "crashed"

    @property
    def severity(self) -> int:
        """0 if it passed, 1 if nothing was checked, 2 if something is wrong. A larger number is worse.

        ``equal`` and ``within rounding`` have the same severity, because a case may alternate between them.
        """
        if self.passed:
            return 0
        return 1 if self in (Verdict.SKIPPED, Verdict.COMPILE_FAILED) else 2

    @property
    def passed(self) -> bool:
        """Whether the check showed that the compiled method computes what the eager one does."""
        return self in (Verdict.EQUAL, Verdict.WITHIN_ROUNDING)
