"""Finds the first stage of the compiler that differs from eager, and the steps of it that matter.

torch's debugging backends stop after dynamo, after AOTAutograd, and after decompositions and partitioner. The
fault is in the first stage that differs. Inside that stage, steps are left out. If the difference vanishes,
the set of steps is halved for as long as one half is enough.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

from pytest_torchcompile import internals
from pytest_torchcompile.explaining.subjects import CannotCompare, Subject
from pytest_torchcompile.internals import CompilerStep
from pytest_torchcompile.options import GUARD_FILTER, CheckOptions
from pytest_torchcompile.policies.calls import Around
from pytest_torchcompile.runtime.budget import OutOfTime
from pytest_torchcompile.texts import some

STAGES = {
    "eager": "dynamo",
    "aot_eager": "AOTAutograd",
    "aot_eager_decomp_partition": "decompositions and partitioner",
    "inductor": "inductor",
}
"""The stages in order, each by the backend that stops after it."""

DEFAULT_PARTITIONER = "aot_eager_default_partitioner"
PARTITIONER = "the min-cut partitioner, which may compute a value again in backward"
"""The part of AOTAutograd that `DEFAULT_PARTITIONER` does without."""

SETTINGS = {
    "cpp.simdlen": (1, "vectorised loops"),
    "emulate_precision_casts": (True, "low-precision values kept in float32 between operators"),
    "max_fusion_size": (1, "fused loops"),
    "inplace_buffers": (False, "buffers written in place"),
    "allow_buffer_reuse": (False, "buffers used again"),
    "cpp.enable_floating_point_contract_flag": ("off", "contracted floating-point operations"),
    "layout_optimization": (False, "layouts of convolutions"),
}
"""Settings of inductor that turn something off: the value, and what it turns off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The first stage that differs.

    Args:
        name: as in `STAGES`; ``the backend itself`` for a backend that is not in it.
        backend: the backend that stops after it.
        agreed: the stages before it that agree with eager.
        not_compiled: the stages before it with whose backend the policy does not compile.
    """

    name: str
    backend: object
    agreed: tuple[str, ...] = ()
    not_compiled: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cause:
    """Something without which the stage agrees with eager.

    Args:
        text: its description.
        lines: ``file:line`` of the user's code that it comes from.
        options: the options of torch.compile that leave it out; None if there are none.
    """

    text: str
    lines: tuple[str, ...] = ()
    options: dict[str, Any] | None = None


def up_to(options: CheckOptions, backend: object) -> CheckOptions:
    """Return `options` with another backend, without mode and options that are for the user's backend."""
    if backend == options.backend:
        return options
    kept = {name: value for name, value in (options.options or {}).items() if name == GUARD_FILTER}
    return dataclasses.replace(options, backend=backend, mode=None, options=kept or None)


def first_stage(subject: Subject, options: CheckOptions) -> Stage:
    """Return the first stage at which `subject` differs. With the user's backend it is known to differ.

    Raises:
        OutOfTime: if the budget ends before that is known.
    """
    backends = list(STAGES)
    backends = backends[: backends.index(options.backend)] if options.backend in backends else ["eager"]
    agreed: list[str] = []
    not_compiled: list[str] = []
    for backend in backends:
        try:
            if subject.differences(up_to(options, backend)):
                return Stage(
                    name=STAGES[backend],
                    backend=backend,
                    agreed=tuple(agreed),
                    not_compiled=tuple(not_compiled),
                )
            agreed.append(STAGES[backend])
        except CannotCompare:
            not_compiled.append(STAGES[backend])
    name = STAGES.get(options.backend) if isinstance(options.backend, str) else None
    return Stage(
        name=name or "the backend itself",
        backend=options.backend,
        agreed=tuple(agreed),
        not_compiled=tuple(not_compiled),
    )


def narrow(subject: Subject, stage: Stage, options: CheckOptions) -> list[Cause]:
    """Return the parts of the stage without which the difference vanishes, as far as the budget allows.

    Args:
        subject: the subject that differs.
        stage: the first stage at which it differs.
        options: compile up to that stage.
    """
    search = _Search(subject, options)
    found: list[Cause] = []
    with contextlib.suppress(OutOfTime):
        if stage.name == "AOTAutograd":
            found += search.partitioner()
        if stage.name == "decompositions and partitioner":
            found += search.steps("decomposition")
        if stage.name == "inductor":
            found += search.settings()
            found += search.steps("pass")
            found += search.steps("lowering")
    return found


class _Search:
    """Leaves out parts of a stage, and compares again."""

    def __init__(self, subject: Subject, options: CheckOptions) -> None:
        self._subject = subject
        self._options = options

    def _agrees(self, under: Around) -> bool:
        """Return whether the subject agrees with eager in a context."""
        try:
            return not self._subject.differences(self._options, under)
        except CannotCompare:
            return False

    def partitioner(self) -> list[Cause]:
        """Return the partitioner of AOTAutograd, if the difference vanishes with functorch's default one."""
        try:
            differs = self._subject.differences(up_to(self._options, DEFAULT_PARTITIONER))
        except CannotCompare:
            return []
        return [] if differs else [Cause(text=PARTITIONER)]

    def settings(self) -> list[Cause]:
        """Return the first setting that makes the difference vanish."""
        taken = self._options.options or {}
        for name, (value, what) in SETTINGS.items():
            settings: dict[str, Any] = {name: value}
            if name not in taken and self._agrees(functools.partial(internals.inductor_settings, settings)):
                return [Cause(text=what, options=settings)]
        return []

    def steps(self, kind: str) -> list[Cause]:
        """Return a small set of steps of a kind such that leaving them out makes the difference vanish."""
        met: dict[str, CompilerStep] = {}

        def all_of_them(step: CompilerStep) -> bool:
            if step.kind == kind:
                met.setdefault(step.name, step)
            return step.kind == kind

        if not self._agrees(lambda: internals.compiler_steps(all_of_them)) or not met:
            return []
        needed = self._fewest(kind, list(met))
        lines = {step.line: None for step in map(met.__getitem__, needed) if step.line}
        what = {"pass": "the pass"}.get(kind, f"the {kind} of")
        options = {"disabled_passes": ",".join(needed)} if kind == "pass" else None
        return [Cause(text=f"{what} {some(needed)}", lines=tuple(lines), options=options)]

    def _fewest(self, kind: str, names: list[str]) -> list[str]:
        """Halve the set of steps as long as leaving out one half is enough and time is left."""

        def suffices(left_out: list[str]) -> bool:
            return self._agrees(
                lambda: internals.compiler_steps(lambda step: step.kind == kind and step.name in left_out)
            )

        with contextlib.suppress(OutOfTime):
            while len(names) > 1:
                middle = len(names) // 2
                half = next(filter(suffices, (names[:middle], names[middle:])), None)
                if half is None:
                    break
                names = half
        return names
