"""Record what the compiler captured of one method.

That torch.compile returns a callable proves nothing: it also does so when it is disabled, when it falls back
to eager, and when it never sees the method. The proof is which of the module's parameters the captured graphs
take.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.compiling.failures import failure_text
from pytest_torchcompile.compiling.work import CountedWork, Work
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.methods import Method
from pytest_torchcompile.policies.reachable import Reachable
from pytest_torchcompile.results import Capture
from pytest_torchcompile.runtime.isolation import drop_frames
from pytest_torchcompile.runtime.progress import Progress, silent
from pytest_torchcompile.runtime.watchdog import Watchdog
from pytest_torchcompile.texts import counted, share, some

# If generated code raises one of these at run time, the code is invalid; a failing kernel raises others.
_BROKEN_CODE = (AssertionError, AttributeError, NameError, SyntaxError, TypeError)


COMPILED_BEFORE = (
    "the first call used code that was compiled before the check; call torch.compiler.reset() first"
)
"""Why nothing is known of the work of a method whose first call ran no graph that the check has compiled."""


class Recorder:
    """Records what the compiler does inside `watching`.

    Args:
        model: the compiled side's module, whose parameters are searched for in the graphs.
        progress: receives the start and the end of each compile.
        limit_s: a single compile is stopped after this many seconds.
    """

    def __init__(self, model: nn.Module, progress: Progress = silent, limit_s: float = float("inf")) -> None:
        parameters = _parameters_of(model)
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        self._model = model
        self._work: CountedWork | None = None
        self._counts_work = False
        self._progress = progress
        self._watchdog = Watchdog(limit_s, "max_seconds")
        self._begun = 0.0
        self._compiles = 0
        self._stage_s: collections.Counter[str] = collections.Counter()
        self._recipe: Recipe | None = None
        self._batches: dict[int, dict[int, None]] = {}
        self._captured: set[str] = set()
        self._errors: list[BaseException] = []
        self._frames: set[str] = set()
        self._recompiled: dict[str, str] = {}
        self._recompiles_of_each: collections.Counter[str] = collections.Counter()
        self._inputs: dict[str, str] = {}
        self._warm = False
        self._breaks: dict[str, None] = {}
        self._in_call = 0
        self._in_pieces = False
        self._from_cache = 0
        self.compile_s = 0.0
        self.compiled_in_last_call: set[str] = set()
        """Dynamo's numbers of the code objects that the last call compiled."""

    def begin(self, recipe: Recipe) -> None:
        """Set the example of the following calls."""
        self._warm = self._warm or (self._recipe is not None and self._recipe.batch > 1)
        self._recipe = recipe

    def expect(self, eager: Work) -> None:
        """Count how much of an eager call's work the graphs of the next call do; both have equal shapes."""
        if self._work is None:
            self._work, self._counts_work = CountedWork(eager, self._model), True

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record the compiles and the graphs of one call, the body."""
        self.compiled_in_last_call = set()
        self._compiles = self._in_call = 0
        breaks_before = internals.graph_break_count()
        cached_before = internals.cached_graph_count()
        errors_before, handled = len(self._errors), sys.exc_info()[1]
        try:
            with (
                internals.compile_events(self._on_start, self._on_end),
                internals.graphs_run(self._on_graph),
            ):
                yield
                self._in_pieces |= self._in_call != 1
            ran = self._in_call or self.compiled_in_last_call or self._errors
            if self._counts_work and self._work is not None and self._work.all and not ran:
                self._work.unknown = COMPILED_BEFORE
        finally:
            self._counts_work = False
            self._watchdog.stop()
            drop_frames(self._errors[errors_before:], handled)
            self._stage_s.update(internals.compile_seconds(self._compiles))
            self._from_cache += internals.cached_graph_count() - cached_before
            if self.compiled_in_last_call:
                self._breaks |= dict.fromkeys(internals.graph_breaks(breaks_before))
                reasons = internals.recompile_reasons()
                self._recompiled |= {i: reasons.get(i, text) for i, text in self._recompiled.items()}

    def _on_start(self) -> None:
        self._begun = time.perf_counter()
        self._progress.compiling(True)
        self._watchdog.start()

    def _on_end(self, event: internals.CompileEvent) -> None:
        self._watchdog.stop()
        self._compiles += 1
        self.compile_s += time.perf_counter() - self._begun
        self._progress.compiling(False)
        if event.error is not None:
            self._errors.append(event.error)
        elif not event.backward:
            self.compiled_in_last_call.add(event.frame)
            if event.frame in self._frames and (self._warm or self._recipe is None):
                self._recompiles_of_each[event.frame] += 1
                self._recompiled[event.compile_id] = "reason unknown"
                self._inputs[event.compile_id] = "" if self._recipe is None else f" on {self._recipe.shape}"
            self._frames.add(event.frame)

    def _on_graph(self, call: internals.GraphCall) -> None:
        self._in_call += 1
        if self._work is not None and self._counts_work:
            self._work.add(call)
        sizes = self._batches.setdefault(call.graph, {})
        if self._recipe is not None:
            sizes[self._recipe.batch] = None
        self._captured |= {self._names[id(value)] for value in call.values if id(value) in self._names}

    def capture(self, used: set[str]) -> Capture:
        """Return what was captured so far.

        Args:
            used: names of the parameters that eager uses; the others are left out.
        """
        taken = tuple(name for name in self._names.values() if name in used & self._captured)
        left = tuple(name for name in self._names.values() if name in used - self._captured)
        return Capture(
            graphs=len(self._batches),
            parameters=taken,
            left_eager=left,
            elements=tuple(self._sizes[name] for name in (*taken, *left)),
            work=self._work.all if self._work else 0,
            work_inside=self._work.inside if self._work else 0,
            work_left_eager=self._work.left_eager if self._work else {},
            breaks=tuple(self._breaks),
            fullgraph=bool(self._batches) and not (self._breaks or self._in_pieces or self._errors),
            recompiles=tuple(text + self._inputs[i] for i, text in self._recompiled.items()),
            compile_s=self.compile_s,
            stage_s=dict(self._stage_s),
            batches=tuple(tuple(sizes) for sizes in self._batches.values()),
            from_cache=self._from_cache,
        )

    def recompiles_of_each(self) -> collections.Counter[str]:
        """Return the number of recompiles of each code object, as torch limits them, by dynamo's number."""
        return self._recompiles_of_each.copy()

    def notes(self, *, eager_raised: bool) -> list[str]:
        """Return a sentence on each thing that the compiler did not do, if there are graphs at all.

        Args:
            eager_raised: whether eager raised on an example; an exception of the compiler is then expected.
        """
        notes: list[str] = []
        if self._batches and self._errors and not eager_raised:
            notes.append(f"{self.suppressed()}, and torch ran that part eager")
        if self._batches and self._work is not None and self._work.unknown:
            notes.append(f"not known what share of the work is compiled: {self._work.unknown}")
        return notes

    @property
    def failures(self) -> tuple[BaseException, ...]:
        """The exceptions that compiles raised."""
        return tuple(self._errors)

    def suppressed(self) -> str:
        """Return a sentence on an exception of the compiler that dynamo suppressed; empty if it did not."""
        return f"the compiler raised {failure_text(self._errors[0])}" if self._errors else ""

    def is_compile_failure(self, error: BaseException) -> bool:
        """Whether `error` was raised by the compiler and not by the compiled code.

        It was if it was raised during a compile, forward or backward, or if it shows that generated code, or
        the compiler's runtime code, is invalid. A kernel that fails at run time is no compile failure.
        """
        # Dynamo raises InternalTorchDynamoError "from None"; the cause is then in the context.
        chain = [error, error.__cause__, error.__context__]
        if any(one is seen for one in chain for seen in self._errors):
            return True
        frames = traceback.extract_tb(error.__traceback__)
        return (
            bool(frames)
            and internals.is_compilers_code(frames[-1].filename)
            and isinstance(error, _BROKEN_CODE)
        )


def why_not_compiled(capture: Capture, method: Method, options: CheckOptions, recorder: Recorder) -> str:
    """Return why the capture does not prove that the method was compiled; empty if it does."""
    if capture.graphs == 0:
        reasons = filter(None, (internals.why_disabled(), recorder.suppressed()))
        return f"no graph was captured: {'; '.join(reasons) or _why_not_reached(method, capture)}"
    if capture.coverage == 0:
        return (
            f"{counted(capture.graphs, 'graph')} captured, but none takes a parameter that eager uses; "
            f"left eager: {some(capture.modules_left_eager)}"
        )
    if capture.work and not capture.work_inside:
        return (
            f"{counted(capture.graphs, 'graph')} captured, but none does any of the {capture.work:,} "
            f"operations of the products, convolutions, attention and recurrent kernels of a call; eager: "
            f"{some(capture.work_left_eager)}"
        )
    return _why_too_little(capture, options)


def _why_too_little(capture: Capture, options: CheckOptions) -> str:
    """Return which share of the method is smaller than the user's minimum; empty if none is."""
    if capture.coverage is not None and capture.coverage < options.min_coverage:
        return (
            f"{share(capture.coverage)} of the parameters were compiled, min_coverage="
            f"{options.min_coverage:g} asks for more; left eager: {some(capture.modules_left_eager)}"
        )
    if capture.coverage_work is not None and capture.coverage_work < options.min_coverage_work:
        return (
            f"{share(capture.coverage_work)} of the work was compiled, min_coverage_work="
            f"{options.min_coverage_work:g} asks for more; eager: {some(capture.work_left_eager)}"
        )
    return ""


def _why_not_reached(method: Method, capture: Capture) -> str:
    if capture.breaks:
        return f"dynamo ran {method.name!r} eager: {capture.breaks[0]}"
    if torch.compile.__module__ != "torch":
        replacement = f"{torch.compile.__module__}.{torch.compile.__qualname__}"
        return f"torch.compile has been replaced by {replacement}"
    return (
        f"dynamo skipped {method.name!r}, or used code that was compiled before the check; call "
        f"torch.compiler.reset() first, or run with TORCH_LOGS=dynamo to see why"
    )


def _parameters_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and other leaf tensors by name."""
    found = Reachable(model)
    return found.parameters | found.leaves


class Uses(internals.DispatchMode):
    """Records which of a module's parameters the operators of an eager call take."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in _parameters_of(model).items()}
        self.used: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in [*args, *(kwargs or {}).values()]:
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if id(tensor) in self._names:
                    self.used.add(self._names[id(tensor)])
        return func(*args, **(kwargs or {}))
