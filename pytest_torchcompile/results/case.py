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
"""Between the notes of a row, and its remarks, which are one string each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The record of one case: one method in one phase under one set of compile options.

    Args:
        method: the method's name, ``forward`` or ``actor.action_log_prob``.
        phase: ``rollout`` or ``update``.
        verdict: the conclusion.
        reason: one sentence that explains any verdict but ``equal``.
        examples: how many examples were compared on both sides.
        rounding: how many of them were equal only within rounding.
        worst: the difference that came closest to (or exceeded most) what is allowed.
        differences: what exceeded it on the reported example, worst first.
        example: the shrunk example of a failure, in one line.
        capture: what was compiled.
        notes: sentences on what was seen but is no failure.
        remarks: differences found beyond what was declared, a sentence each; no failure by default.
        backend: the name of the backend.
        speedup: how much faster compiled is, if it was timed.
        untimed: why it was not timed though that was to be; empty otherwise.
        explanation: why it differs, if it does and there was time to find out.
        exceeded: the budgets for compiling that it exceeds, a sentence each.
        settings: the options that shape what is compiled and what is allowed, `CheckOptions.settings`.
        sensitivity: how much of the policy the examples reached, if that was asked for.
        regressions: sentences on figures that are surely worse than the baseline's.
        deviations: what single examples showed, in their order; of many, those with the largest share.
    """

    method: str
    phase: str
    verdict: Verdict
    reason: str = ""
    examples: int = 0
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
    deviations: tuple[Deviation, ...] = ()

    @property
    def case(self) -> str:
        """``method-phase``, as in the item's id."""
        return f"{self.method}-{self.phase}"

    def as_dict(self) -> dict[str, Any]:
        """The record as nested plain data that ``json.dumps`` accepts."""
        speedup = None if self.speedup is None else self.speedup.figures()
        timeless = dataclasses.replace(self, speedup=None)
        return dataclasses.asdict(timeless) | {"verdict": self.verdict.value, "speedup": speedup}

    def row(self) -> dict[str, str | int | float]:
        """The record as one row of the report: strings and numbers only, for JUnit and pytest-xdist."""
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
            **(self.speedup.figures() if self.speedup else {}),
            **(self.explanation.row() if self.explanation else {}),
            **({"exceeded": NOTE_SEPARATOR.join(self.exceeded)} if self.exceeded else {}),
        }

    def metadata(self) -> dict[str, str | int | float | None]:
        """The record for an experiment tracker: `row` with what describes the run, flat and JSON-able.

        To the figures of the row it adds which case it is, whether it was compiled and passed, the settings
        and the versions. For everything that was found, see `as_dict`.

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
    """The versions of what a result depends on, without an import of it."""
    packages = {"torch_version": "torch", "torchcompile_version": "pytest-torchcompile"}
    return {"python_version": platform.python_version()} | {
        name: importlib.metadata.version(package) for name, package in packages.items()
    }
