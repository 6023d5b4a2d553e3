"""Which stage of the compiler first differs from eager, and which of its steps.

torch's debugging backends stop after dynamo, after AOTAutograd, after decompositions and partitioner;
the first that differs is where the fault is. Inside a stage, steps are left out until the difference
vanishes, and halved until no fewer make it vanish.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

from pytest_torchcompile import internals
from pytest_torchcompile.explaining.subjects import CantTell, OutOfTime, Subject
from pytest_torchcompile.internals import CompilerStep
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Around
from pytest_torchcompile.texts import some

LADDER = {
    "eager": "dynamo",
    "aot_eager": "AOTAutograd",
    "aot_eager_decomp_partition": "decompositions and partitioner",
    "inductor": "inductor",
}
"""The backends that end after each stage, and the stages."""

SETTINGS = {
    "cpp.simdlen": (1, "vectorised loops"),
    "emulate_precision_casts": (True, "low-precision values kept in float32 between operators"),
    "max_fusion_size": (1, "fused loops"),
    "inplace_buffers": (False, "buffers written in place"),
    "allow_buffer_reuse": (False, "buffers used again"),
    "cpp.enable_floating_point_contract_flag": ("off", "contracted floating-point operations"),
    "layout_optimization": (False, "layouts of convolutions"),
}
"""Settings of inductor that leave something out, with what that is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The first stage that differs.

    Args:
        name: as in `LADDER`; ``the backend itself`` of a backend that is not in it.
        backend: the backend that ends after it.
        agreed: the stages before it, which agree with eager.
        untold: of those before it, the ones that could not be compiled.
    """

    name: str
    backend: object
    agreed: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cause:
    """Something without which the stage agrees with eager.

    Args:
        text: what it is.
        lines: ``file:line`` of the user's code that it comes from.
        options: torch.compile's options that leave it out; None if there are none.
    """

    text: str
    lines: tuple[str, ...] = ()
    options: dict[str, Any] | None = None


def up_to(options: CheckOptions, backend: object) -> CheckOptions:
    """`options` with a backend in place of the user's, which alone has a mode and options."""
    if backend == options.backend:
        return options
    return dataclasses.replace(options, backend=backend, mode=None, options=None)


def first_stage(subject: Subject, options: CheckOptions) -> Stage:
    """The first stage of the ladder at which `subject`, known to differ at its end, differs.

    Raises:
        OutOfTime: if the budget ends before that is known.
    """
    rungs = list(LADDER)
    rungs = rungs[: rungs.index(options.backend)] if options.backend in rungs else ["eager"]
    agreed: list[str] = []
    untold: list[str] = []
    for backend in rungs:
        try:
            if subject.differences(up_to(options, backend)):
                return Stage(
                    name=LADDER[backend], backend=backend, agreed=tuple(agreed), untold=tuple(untold)
                )
            agreed.append(LADDER[backend])
        except CantTell:
            untold.append(LADDER[backend])
    name = LADDER.get(options.backend) if isinstance(options.backend, str) else None
    return Stage(
        name=name or "the backend itself",
        backend=options.backend,
        agreed=tuple(agreed),
        untold=tuple(untold),
    )


def narrow(subject: Subject, stage: Stage, options: CheckOptions) -> list[Cause]:
    """What the stage can't do without if it is to differ, as far as the budget goes.

    Args:
        subject: what differs.
        stage: the first stage at which it does.
        options: compile up to that stage.
    """
    search = _Search(subject, options)
    found: list[Cause] = []
    with contextlib.suppress(OutOfTime):
        if stage.name == "decompositions and partitioner":
            found += search.steps("decomposition")
        if stage.name == "inductor":
            found += search.settings()
            found += search.steps("pass")
            found += search.steps("lowering")
    return found


class _Search:
    """Leaves out what it can, one thing after the other."""

    def __init__(self, subject: Subject, options: CheckOptions) -> None:
        self._subject = subject
        self._options = options

    def _cures(self, under: Around) -> bool:
        try:
            return not self._subject.differences(self._options, under)
        except CantTell:
            return False

    def settings(self) -> list[Cause]:
        """The first setting that makes the difference vanish."""
        taken = self._options.options or {}
        for name, (value, what) in SETTINGS.items():
            settings: dict[str, Any] = {name: value}
            if name not in taken and self._cures(functools.partial(internals.inductor_settings, settings)):
                return [Cause(text=what, options=settings)]
        return []

    def steps(self, kind: str) -> list[Cause]:
        """The fewest steps of a kind that make the difference vanish when they are left out."""
        met: dict[str, CompilerStep] = {}

        def all_of_them(step: CompilerStep) -> bool:
            if step.kind == kind:
                met.setdefault(step.name, step)
            return step.kind == kind

        if not self._cures(lambda: internals.compiler_steps(all_of_them)) or not met:
            return []
        needed = self._fewest(kind, list(met))
        lines = {step.line: None for step in map(met.__getitem__, needed) if step.line}
        what = {"pass": "the pass"}.get(kind, f"the {kind} of")
        options = {"disabled_passes": ",".join(needed)} if kind == "pass" else None
        return [Cause(text=f"{what} {some(needed)}", lines=tuple(lines), options=options)]

    def _fewest(self, kind: str, names: list[str]) -> list[str]:
        """Halve what is left out as long as one half alone makes the difference vanish, and time is left."""

        def cure(left_out: list[str]) -> bool:
            return self._cures(
                lambda: internals.compiler_steps(lambda step: step.kind == kind and step.name in left_out)
            )

        with contextlib.suppress(OutOfTime):
            while len(names) > 1:
                middle = len(names) // 2
                half = next(filter(cure, (names[:middle], names[middle:])), None)
                if half is None:
                    break
                names = half
        return names
