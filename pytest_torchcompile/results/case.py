"""The record of one case."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from pytest_torchcompile.results.capture import Capture
from pytest_torchcompile.results.difference import Deviation, Difference
from pytest_torchcompile.results.explanation import Explanation, Sensitivity
from pytest_torchcompile.results.speedup import Speedup
from pytest_torchcompile.results.verdict import Verdict

NOTE_SEPARATOR = " | "
"""Separates the notes, or the remarks, that a row holds in one string."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The record of one case: one method in one phase under one set of compile options.

    Args:
        method: the method's name, ``forward`` or ``actor.action_log_prob``.
        phase: ``rollout`` or ``update``.
        verdict: the conclusion.
        reason: one sentence that explains any verdict but ``equal``.
        examples: how many examples were compared on both sides, up to the first failure.
        attempts: how many more were compared to make the failing example smaller.
        rounding: how many of them were equal only within rounding.
        worst: the difference with the largest ratio to what is allowed.
        differences: the differences that exceed what is allowed on the reported example, worst first.
        example: the shrunk example of a failure, in one line.
        capture: what was compiled.
        notes: observations that are no failure, a sentence each.
        remarks: differences found beyond what was declared, a sentence each; no failure by default.
        backend: the name of the backend.
        speedup: how much faster compiled is, if it was timed.
        untimed: why timing was requested but not done; empty otherwise.
        explanation: why it differs, if it does and there was time to find out.
        exceeded: the budgets for compiling that it exceeds, a sentence each.
        settings: the options that affect what is compiled and what is allowed, `CheckOptions.settings`.
        sensitivity: how much of the policy the examples reached, if this was requested.
        regressions: sentences on figures that are certainly worse than the baseline's.
        baseline: the file that the gate held the case against; empty without a gate.
        held: what the gate found: ``kept``, ``undecided``, ``worse`` or ``new``; empty without a gate.
        deviations: the deviations of single examples, in their order; of many, those with the largest share.
    """

    method: str
    phase: str
    verdict: Verdict
    reason: str = ""
    examples: int = 0
    attempts: int = 0
    rounding: int = 0
    worst: Difference | None = None
    differences: tuple[Difference, ...] = ()
    example: str = ""
    capture: Capture = Capture()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    backend: str = ""
    speedup: Speedup | None = None
    untimed: str = ""
    explanation: Explanation | None = None
    exceeded: tuple[str, ...] = ()
    settings: Mapping[str, str | int | float | None] = dataclasses.field(default_factory=dict)
    sensitivity: Sensitivity | None = None
    regressions: tuple[str, ...] = ()
    baseline: str = ""
    held: str = ""
    deviations: tuple[Deviation, ...] = ()

    @property
    def case(self) -> str:
        """``method-phase``, as in the item's id."""
        return f"{self.method}-{self.phase}"

    def as_dict(self) -> dict[str, Any]:
        """Return the record as nested plain data that ``json.dumps`` accepts."""
        speedup = None if self.speedup is None else self.speedup.figures()
        timeless = dataclasses.replace(self, speedup=None)
        return dataclasses.asdict(timeless) | {"verdict": self.verdict.value, "speedup": speedup}

    def row(self) -> dict[str, str | int | float]:
        """Return the record as a row of the report: strings and numbers only, for JUnit and pytest-xdist."""
        capture, worst = self.capture, self.worst
        return {
            "verdict": self.verdict.value,
            "reason": self.reason,
            "examples": self.examples,
            "worst_difference": worst.difference if worst else 0.0,
            "worst_allowed": worst.allowed if worst else 0.0,
            "worst_place": worst.place if worst and (worst.difference or worst.problem) else "",
            "coverage": "n/a" if capture.coverage is None else round(capture.coverage, 4),
            "coverage_work": "n/a" if capture.coverage_work is None else round(capture.coverage_work, 4),
            "graphs": capture.graphs,
            "added_graphs": capture.added,
            "breaks": len(capture.breaks),
            "fullgraph_compiles": "yes" if capture.fullgraph else "no",
            "recompiles": len(capture.recompiles),
            "compile_s": round(capture.compile_s, 3),
            "from_cache": capture.from_cache,
            "backend": self.backend,
            "left_eager": capture.what_is_eager,
            "notes": NOTE_SEPARATOR.join(self.notes),
            "remarks": NOTE_SEPARATOR.join(self.remarks),
            "remark_count": len(self.remarks),
            "untimed": self.untimed,
            "sensitivity": str(self.sensitivity or ""),
            "regressions": NOTE_SEPARATOR.join(self.regressions),
            **({"baseline": self.baseline, "held": self.held} if self.held else {}),
            **(self.speedup.figures() if self.speedup else {}),
            **(self.explanation.row() if self.explanation else {}),
            **({"exceeded": NOTE_SEPARATOR.join(self.exceeded)} if self.exceeded else {}),
        }

    def metadata(self) -> dict[str, str | int | float | None]:
        """Return the record for an experiment tracker, as a flat dict that ``json.dumps`` accepts.

        It adds to `row` the method and phase, whether the case was compiled and passed, the settings and the
        versions. `as_dict` returns the complete record.

        Example:
            >>> result = CheckResult(method="forward", phase="rollout", verdict=Verdict.EQUAL)
            >>> result.metadata()["passed"], result.metadata()["graphs"]
            (True, 0)
        """
        compiled = (Verdict.EQUAL, Verdict.WITHIN_ROUNDING, Verdict.DIFFERS)
        return {
            "method": self.method,
            "phase": self.phase,
            "passed": self.verdict.passed,
            "compiled": self.verdict in compiled,
            **self.row(),
            "coverage": self.capture.coverage,
            "coverage_work": self.capture.coverage_work,
            "worst_allowed": self.worst.allowed if self.worst else None,
            **self.settings,
            **versions(),
        }


def versions() -> dict[str, str]:
    """Return the versions of Python, torch and this package, without importing torch."""
    packages = {"torch_version": "torch", "torchcompile_version": "pytest-torchcompile"}
    return {"python_version": platform.python_version()} | {
        name: importlib.metadata.version(package) for name, package in packages.items()
    }
