"""What a check found, as plain data.

Everything here survives JSON and a process boundary: no tensors, no modules and no import of
torch, because the terminal report, JUnit and pytest-xdist all read these records.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import importlib.metadata
import platform
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_torchcompile.texts import some

NOTE_SEPARATOR = " | "
"""Between the notes of a row, which are one string."""


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
        relative: the difference as a share of eager's value there, where that is not zero.
        ulps: the difference in units of the last place of eager's value there.
        floor: the rounding floor of this tensor, where it was asked for.
        unequal: how many elements exceed what is allowed.
        elements: how many elements the tensor has.
        rows: the batch rows with such elements, at most eight.
        closer: which side is closer to the float64 reference at the worst element, where it ran.
        chance: of draws so unequal from two sides that draw alike, where distributions were compared;
            `allowed` is then the chance from which on they are taken to differ.
        grid: the largest differences by place, of the tensor or the slice of its last two dimensions that
            holds the worst element: one number for each cell of a grid, row by row; 0 where what is
            allowed is not exceeded. Empty for what has less than two dimensions.
    """

    path: str
    problem: str = ""
    eager: str = ""
    compiled: str = ""
    float64: str | None = None
    index: tuple[int, ...] | None = None
    difference: float = 0.0
    allowed: float = 0.0
    relative: float | None = None
    ulps: float | None = None
    floor: float | None = None
    unequal: int = 0
    elements: int = 0
    rows: tuple[int, ...] = ()
    closer: str | None = None
    chance: float | None = None
    grid: tuple[tuple[float, ...], ...] = ()

    @property
    def place(self) -> str:
        """The path with the index of the worst element: ``output[0][3, 7]``."""
        return self.path + (f"[{', '.join(map(str, self.index))}]" if self.index else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far compiled was from eager on one example, at the element that came closest to its tolerance.

    Args:
        example: its number among those that were compared, from 1.
        batch: its batch size.
        verdict: ``equal``, ``within rounding`` or ``differs``.
        path: the tensor (or other value) that this element is of.
        difference: the absolute difference (0 where nothing numeric was compared).
        allowed: the tolerance there; rounding does not raise it.
        floor: the rounding floor of the tensor, where it was asked for.
        eager_error: how far eager's value is from the float64 reference's, where that ran.
        compiled_error: how far compiled's is.
    """

    example: int
    batch: int
    verdict: Verdict
    path: str = ""
    difference: float = 0.0
    allowed: float = 0.0
    floor: float | None = None
    eager_error: float | None = None
    compiled_error: float | None = None

    @property
    def share(self) -> float | None:
        """The difference in units of the tolerance; None if nothing numeric was compared."""
        if self.allowed:
            return self.difference / self.allowed
        return None if self.verdict is Verdict.DIFFERS else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capture:
    """What the compiler took of one method.

    Args:
        graphs: graphs whose backend compile finished.
        parameters: names of the parameters that eager used and a graph took.
        left_eager: names of the parameters that eager used and no graph took.
        breaks: graph breaks, one text per place, with reason and ``file:line``.
        fullgraph: whether every call was one graph without a break, so that ``fullgraph=True`` compiles too.
        recompiles: the recompiles of calls after the first one with a batch of at least 2, one text each:
            the guard that failed, the user's line, the input.
        compile_s: seconds spent compiling, forward and backward.
        from_cache: graphs, forward or backward, that inductor took from its cache on disk.
        added: how many of the graphs only the lifecycle needs: autocast, inference mode, another layout,
            acting in training mode.
        stage_s: the same by stage of the compiler: ``dynamo``, ``AOTAutograd``, ``inductor``.
        batches: for each forward graph, in the order in which they were made, the batch sizes that ran
            through it.
    """

    graphs: int = 0
    parameters: tuple[str, ...] = ()
    left_eager: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()
    fullgraph: bool = False
    recompiles: tuple[str, ...] = ()
    compile_s: float = 0.0
    from_cache: int = 0
    added: int = 0
    stage_s: dict[str, float] = dataclasses.field(default_factory=dict)
    batches: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of_all(cls, captures: Iterable[Capture]) -> Capture:
        """What was taken of several methods of one module."""
        captures = tuple(captures)
        taken = dict.fromkeys(name for capture in captures for name in capture.parameters)
        left = dict.fromkeys(name for capture in captures for name in capture.left_eager)
        return cls(
            graphs=sum(capture.graphs for capture in captures),
            parameters=tuple(taken),
            left_eager=tuple(name for name in left if name not in taken),
            breaks=tuple(dict.fromkeys(text for capture in captures for text in capture.breaks)),
            fullgraph={capture.fullgraph for capture in captures if capture.graphs} == {True},
            recompiles=tuple(text for capture in captures for text in capture.recompiles),
            compile_s=sum(capture.compile_s for capture in captures),
            stage_s=dict(sum((collections.Counter(c.stage_s) for c in captures), collections.Counter())),
            batches=tuple(sizes for capture in captures for sizes in capture.batches),
            from_cache=sum(capture.from_cache for capture in captures),
        )

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a case differs, as far as its time allowed to find out.

    Args:
        stage: the first stage of the compiler that differs: ``dynamo``, ``AOTAutograd``,
            ``decompositions and partitioner``, ``inductor``; empty if it is not known.
        agreed: the stages before it that agree with eager.
        causes: what that stage can't do without if it is to differ: a decomposition, a pass, a lowering, a
            setting.
        remedy: torch.compile's options under which the example agrees; None if none is known.
        place: the innermost submodule that differs when it is compiled alone on eager's inputs.
        lines: ``file:line`` of the user's code in the graph that differs.
        proof: the folder with a script that shows the difference; empty if none was written.
        confirmed: whether that script, run once, showed it.
        remarks: sentences on what could not be told, and why.
        seconds: how long explaining took.
    """

    stage: str = ""
    agreed: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    remedy: dict[str, Any] | None = None
    place: str = ""
    lines: tuple[str, ...] = ()
    proof: str = ""
    confirmed: bool = False
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0

    def row(self) -> dict[str, str | int | float]:
        """What of it goes into the row of its case."""
        return {"stage": self.stage, "place": self.place, "proof": self.proof}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How much of a policy the examples of a case reached.

    Args:
        parameters: elements of parameters that had a gradient other than zero on some example.
        of_parameters: elements of all parameters that require one; 0 where nothing was differentiated.
        outputs: elements of an output's row that were not the same in all rows of all examples.
        of_outputs: elements of a row of all outputs.
        unreached: modules of whose parameters none had such a gradient; single parameters of others.
        constant: outputs of which no element varied.
    """

    parameters: int = 0
    of_parameters: int = 0
    outputs: int = 0
    of_outputs: int = 0
    unreached: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = []
        if self.of_parameters:
            names = f", never {some(self.unreached)}" if self.unreached else ""
            parts.append(
                f"gradients reached {_share(self.parameters, self.of_parameters)} of the parameters{names}"
            )
        if self.of_outputs:
            names = f", never {some(self.constant)}" if self.constant else ""
            parts.append(f"{_share(self.outputs, self.of_outputs)} of the outputs varied{names}")
        return "; ".join(parts)


def _share(part: int, whole: int) -> str:
    """A percentage that says 0 % and 100 % only of none and all."""
    rounded = round(100 * part / whole)
    return f"{min(max(rounded, 1), 99) if 0 < part < whole else rounded} %"


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
            "worst_place": worst.place if worst and (worst.difference or worst.problem) else "",
            "coverage": "n/a" if capture.coverage is None else round(capture.coverage, 4),
            "graphs": capture.graphs,
            "added_graphs": capture.added,
            "breaks": len(capture.breaks),
            "fullgraph_compiles": "yes" if capture.fullgraph else "no",
            "recompiles": len(capture.recompiles),
            "compile_s": round(capture.compile_s, 3),
            "from_cache": capture.from_cache,
            "backend": self.backend,
            "notes": NOTE_SEPARATOR.join(self.notes),
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
        uncompiled = (Verdict.NOT_COMPILED, Verdict.COMPILE_FAILED, Verdict.EAGER_FAILED)
        return {
            "method": self.method,
            "phase": self.phase,
            "passed": self.verdict.passed,
            "compiled": self.verdict not in uncompiled,
            **self.row(),
            "coverage": self.capture.coverage,
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
