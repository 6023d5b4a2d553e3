"""What a case concludes, from best to worst."""

from __future__ import annotations

import enum


class Verdict(enum.StrEnum):
    """The outcome of a case, in the words of the report."""

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
        """0 if it passed, 1 if nothing was checked, 2 if something is wrong; a verdict got worse if it grew.

        ``equal`` and ``within rounding`` are alike in this, because which it is varies from run to run.
        """
        if self.passed:
            return 0
        return 1 if self in (Verdict.SKIPPED, Verdict.COMPILE_FAILED) else 2

    @property
    def passed(self) -> bool:
        """Whether the compiled method was shown to compute what the eager one does."""
        return self in (Verdict.EQUAL, Verdict.WITHIN_ROUNDING)
