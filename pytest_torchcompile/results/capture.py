"""The record of what was compiled: graphs, parameters and work in them, breaks, recompiles, seconds."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

from pytest_torchcompile.texts import share, some


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capture:
    """What the compiler compiled of one method.

    Args:
        graphs: how many graphs the backend compiled.
        parameters: names of the parameters that eager used and some graph contains.
        left_eager: names of the parameters that eager used and no graph contains.
        elements: how many elements each of `parameters` and then each of `left_eager` has.
        work: floating-point operations of one eager call in products, convolutions, attention and recurrent
            kernels, without the backward; 0 if it has none, or if they could not be counted.
        work_inside: the part of `work` that runs in graphs.
        work_left_eager: the part that does not, by module with the user's line, or by line, largest first.
        breaks: graph breaks, one text per place, with reason and ``file:line``.
        fullgraph: whether every call was one graph without a break, so that ``fullgraph=True`` compiles too.
        recompiles: the recompiles of calls after the first one with a batch of at least 2, one text each:
            the guard that failed, the user's line, the input.
        compile_s: seconds spent compiling, forward and backward.
        from_cache: graphs, forward or backward, that inductor loaded from its cache on disk.
        added: how many of the graphs only the lifecycle needs: autocast, inference mode, another layout,
            acting in training mode.
        stage_s: `compile_s` by stage of the compiler: ``dynamo``, ``AOTAutograd``, ``inductor``.
        batches: for each forward graph, in the order of compilation, the batch sizes that it ran with.
    """

    graphs: int = 0
    parameters: tuple[str, ...] = ()
    left_eager: tuple[str, ...] = ()
    elements: tuple[int, ...] = ()
    work: int = 0
    work_inside: int = 0
    work_left_eager: dict[str, int] = dataclasses.field(default_factory=dict)
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
        """Return the capture of several methods of one module together."""
        captures = tuple(captures)
        taken = dict.fromkeys(name for capture in captures for name in capture.parameters)
        left = {name: None for c in captures for name in c.left_eager if name not in taken}
        sizes = {
            name: size
            for capture in captures
            for name, size in zip((*capture.parameters, *capture.left_eager), capture.elements, strict=True)
        }
        return cls(
            graphs=sum(capture.graphs for capture in captures),
            parameters=tuple(taken),
            left_eager=tuple(left),
            elements=tuple(sizes[name] for name in (*taken, *left)),
            work=sum(capture.work for capture in captures),
            work_inside=sum(capture.work_inside for capture in captures),
            work_left_eager=dict(
                sum((collections.Counter(c.work_left_eager) for c in captures), collections.Counter())
            ),
            breaks=tuple(dict.fromkeys(text for capture in captures for text in capture.breaks)),
            fullgraph={capture.fullgraph for capture in captures if capture.graphs} == {True},
            recompiles=tuple(text for capture in captures for text in capture.recompiles),
            compile_s=sum(capture.compile_s for capture in captures),
            stage_s=dict(sum((collections.Counter(c.stage_s) for c in captures), collections.Counter())),
            batches=tuple(sizes for capture in captures for sizes in capture.batches),
            from_cache=sum(capture.from_cache for capture in captures),
        )

    @property
    def elements_inside(self) -> int:
        """How many elements the parameters that some graph contains have."""
        return sum(self._elements[: len(self.parameters)])

    @property
    def elements_used(self) -> int:
        """How many elements the parameters that eager uses have."""
        return sum(self._elements)

    @property
    def _elements(self) -> tuple[int, ...]:
        # Reports of earlier versions do not have them: each parameter then counts once.
        return self.elements or (1,) * (len(self.parameters) + len(self.left_eager))

    @property
    def coverage(self) -> float | None:
        """The share of `elements_used` that some graph contains; None if eager uses no parameters."""
        return self.elements_inside / self.elements_used if self.elements_used else None

    @property
    def coverage_work(self) -> float | None:
        """The share of eager's floating-point work that runs in graphs; None if there is none."""
        return self.work_inside / self.work if self.work else None

    @property
    def what_is_eager(self) -> str:
        """``60 % compiled; eager: gru (12,480 of 17,300 parameters, 40 % of the work)``; empty if nothing.

        The share is that of the work, or that of the parameters if no work was counted. If it is less than
        half, the sentence says what that means, and names the option that makes it a failure.
        """
        if not self.left_eager and not self.work_left_eager:
            return ""
        parts = []
        used = self.elements_used
        if self.left_eager and self.elements:
            parts.append(f"{used - self.elements_inside:,} of {used:,} parameters")
        if self.work:
            parts.append(f"{share(self.work - self.work_inside, self.work)} of the work")
        compiled = (self.work_inside, self.work) if self.work else (self.elements_inside, used)
        head = f"{share(*compiled)} compiled; " if compiled[1] else ""
        working = {place.partition(" at ")[0]: place for place in self.work_left_eager}
        names = {name: working.pop(name, name) for name in self.modules_left_eager}
        shares = f" ({', '.join(parts)})" if parts else ""
        least = "min_coverage_work" if self.work else "min_coverage"
        proves = f"; the eager part is compared with itself, and {least}=0.5 makes that a failure"
        little = proves if 2 * compiled[0] < compiled[1] else ""
        return f"{head}eager: {some([*names.values(), *working.values()])}{shares}{little}"

    @property
    def modules_left_eager(self) -> tuple[str, ...]:
        """Names of the modules whose own parameters no graph contains."""
        owners = (name.rpartition(".")[0] or "(the module itself)" for name in self.left_eager)
        return tuple(dict.fromkeys(owners))
