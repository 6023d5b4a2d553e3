"""What a check found, as plain data.

Everything here survives JSON and a process boundary: no tensors, no modules and no import of
torch, because the terminal report, JUnit and pytest-xdist all read these records.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import statistics
import traceback
from collections.abc import Iterable
from typing import Any

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep

NOTE_SEPARATOR = " | "
"""Between the notes of a row, which are one string."""


class CompileCheckError(Exception):
    """Base of every error that this package raises on purpose."""


class UsageError(CompileCheckError):
    """The test, marker or call asks for something that can't be done; the message names the fix."""


class CompileFailed(CompileCheckError):
    """torch.compile raised on a method that runs in eager.

    Under pytest the plugin turns it into a skip (a failure with ``--compile-strict``).

    Args:
        message: method, phase and reason.
        result: the record of the case, if there is one.
        strict: whether it is to fail a test, not skip it.
    """

    def __init__(self, message: str, *, result: CheckResult | None = None, strict: bool = False) -> None:
        super().__init__(message)
        self.result = result
        self.strict = strict


class NotEquivalent(CompileCheckError, AssertionError):
    """Compiled and eager differ; the message says where, by how much and what was allowed."""


class Verdict(enum.StrEnum):
    """The outcome of a case, in the words of the report."""

    EQUAL = "equal"
    WITHIN_ROUNDING = "within rounding"
    DIFFERS = "differs"
    NOT_COMPILED = "not compiled"
    COMPILE_FAILED = "compile failed"
    EAGER_FAILED = "eager failed"

    @property
    def passed(self) -> bool:
        """Whether the compiled method was shown to compute what the eager one does."""
        return self in (Verdict.EQUAL, Verdict.WITHIN_ROUNDING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One tensor (or other value) that a call left behind, eager held against compiled.

    Args:
        path: what was compared: ``output['logits']``, ``gradient of head.weight``.
        problem: how it is unequal: ``values``, ``dtype``, ``shape``, ``structure`` ... ; empty if equal.
        eager: eager's value at the worst element, or eager's dtype, shape, type, exception.
        compiled: the same for compiled.
        float64: the float64 reference at the worst element, where it ran.
        index: position of the worst element.
        difference: the largest absolute difference (0 where nothing numeric was compared).
        allowed: what was allowed at that element.
        ulps: the difference in units of the last place of eager's value there.
        floor: the rounding floor of this tensor, where it was asked for.
        unequal: how many elements exceed what is allowed.
        elements: how many elements the tensor has.
        rows: the batch rows with such elements, at most eight.
        closer: which side is closer to the float64 reference at the worst element, where it ran.
        chance: of draws so unequal from two sides that draw alike, where distributions were compared;
            `allowed` is then the chance from which on they are taken to differ.
    """

    path: str
    problem: str = ""
    eager: str = ""
    compiled: str = ""
    float64: str | None = None
    index: tuple[int, ...] | None = None
    difference: float = 0.0
    allowed: float = 0.0
    ulps: float | None = None
    floor: float | None = None
    unequal: int = 0
    elements: int = 0
    rows: tuple[int, ...] = ()
    closer: str | None = None
    chance: float | None = None

    @property
    def place(self) -> str:
        """The path with the index of the worst element: ``output[0][3, 7]``."""
        return self.path + (f"[{', '.join(map(str, self.index))}]" if self.index else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capture:
    """What the compiler took of one method.

    Args:
        graphs: graphs whose backend compile finished.
        parameters: names of the parameters that eager used and a graph took.
        left_eager: names of the parameters that eager used and no graph took.
        breaks: graph breaks, one text per place, with reason and ``file:line``.
        recompiles: reasons of the recompiles, one text each.
        compile_s: seconds spent compiling, forward and backward.
    """

    graphs: int = 0
    parameters: tuple[str, ...] = ()
    left_eager: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()
    recompiles: tuple[str, ...] = ()
    compile_s: float = 0.0

    @property
    def coverage(self) -> float | None:
        """Share of the parameters used by eager that some graph took; None if eager used none."""
        used = len(self.parameters) + len(self.left_eager)
        return len(self.parameters) / used if used else None

    @property
    def modules_left_eager(self) -> tuple[str, ...]:
        """Names of the modules that own the parameters no graph took."""
        owners = (name.rpartition(".")[0] or "(the module itself)" for name in self.left_eager)
        return tuple(dict.fromkeys(owners))


MARGIN = 1.05
"""A speedup within 5 % of 1 is no conclusion, however narrow its interval."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times faster compiled is than eager, timed side by side.

    Args:
        ratio: eager's time over compiled's, the median over pairs of neighbouring blocks.
        interval: bootstrap interval of `ratio`, 95 %.
        quiet: the ratio of the 5th percentiles, the calls that the machine disturbed least.
        eager_s: seconds of each timed call of eager.
        compiled_s: seconds of each timed call of compiled.
        pairs: how many pairs of blocks were timed.
        batch: the batch size, where the inputs were drawn.
        threads: torch threads of both sides.
        break_even: calls after which the compile time has been made up for; None if it never is, or
            where nothing was compiled here.
        memory: bytes that eager and compiled needed, as far as the device tells.
        memory_kind: what they are: ``peak allocated`` of an accelerator's allocator, or the ``resident
            growth`` of the whole process.
        least: the speedup that was asked for, `min_speedup`.
    """

    ratio: float
    interval: tuple[float, float]
    quiet: float
    eager_s: tuple[float, ...] = ()
    compiled_s: tuple[float, ...] = ()
    pairs: int = 0
    batch: int | None = None
    threads: int = 1
    break_even: int | None = None
    memory: tuple[int, int] | None = None
    memory_kind: str = ""
    least: float | None = None

    @property
    def conclusion(self) -> str:
        """``faster`` or ``slower`` where interval and quiet ratio clear 5 %, ``no clear difference``."""
        if self.interval[0] > MARGIN and self.quiet > MARGIN:
            return "faster"
        if self.interval[1] < 1 / MARGIN and self.quiet < 1 / MARGIN:
            return "slower"
        return "no clear difference"

    @property
    def misses_one(self) -> bool:
        """Whether two equal things could not be shown to be equally fast: a noisy machine's control."""
        return not 1 / MARGIN <= self.interval[0] <= self.interval[1] <= MARGIN

    @property
    def too_slow(self) -> bool:
        """Whether the whole interval lies below what was asked for."""
        return self.least is not None and self.interval[1] < self.least

    def figures(self) -> dict[str, str | int | float]:
        """The figures as strings and numbers, without the single times."""
        figures: dict[str, str | int | float] = {
            "speedup": round(self.ratio, 4),
            "speedup_low": round(self.interval[0], 4),
            "speedup_high": round(self.interval[1], 4),
            "speedup_quiet": round(self.quiet, 4),
            "conclusion": self.conclusion,
            "eager_median_s": statistics.median(self.eager_s),
            "compiled_median_s": statistics.median(self.compiled_s),
            "timed_calls": len(self.eager_s),
            "threads": self.threads,
        }
        if self.batch is not None:
            figures["batch"] = self.batch
        if self.break_even is not None:
            figures["break_even_calls"] = self.break_even
        if self.memory is not None:
            kind = self.memory_kind.replace(" ", "_")
            figures[f"eager_{kind}_bytes"], figures[f"compiled_{kind}_bytes"] = self.memory
        if self.least is not None:
            figures["min_speedup"] = self.least
        return figures

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.ratio:.2f} [{low:.2f}, {high:.2f}] {self.conclusion}"


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
        backend: the name of the backend.
        speedup: how much faster compiled is, if it was timed.
        untimed: why it was not timed though that was to be; empty otherwise.
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
    backend: str = ""
    speedup: Speedup | None = None
    untimed: str = ""

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
            "worst_place": worst.place if worst and worst.difference else "",
            "coverage": "n/a" if capture.coverage is None else round(capture.coverage, 4),
            "graphs": capture.graphs,
            "breaks": len(capture.breaks),
            "recompiles": len(capture.recompiles),
            "compile_s": round(capture.compile_s, 3),
            "backend": self.backend,
            "notes": NOTE_SEPARATOR.join(self.notes),
            "untimed": self.untimed,
            **(self.speedup.figures() if self.speedup else {}),
        }


def some(names: Iterable[str], most: int = 4) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """``Type: first line`` of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__


def raised_text(error: BaseException) -> str:
    """One sentence about an exception of the user's code, with the last line outside torch and us."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_PACKAGE) and f"{os.sep}torch{os.sep}" not in frame.filename
    ]
    return first_line(error) + (at(frames[-1].filename, frames[-1].lineno) if frames else "")


def at(filename: str, line: int | None) -> str:
    """`` (at file:line)``, relative to the working directory where that is shorter."""
    relative = os.path.relpath(filename)
    return f" (at {min(filename, relative, key=len)}:{line})"
