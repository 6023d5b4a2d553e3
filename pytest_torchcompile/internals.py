"""Every private name of torch that this project touches, each behind a function with a public meaning.

torch has no public way to see which tensors a captured graph takes, why a graph broke, or whether
an exception left the compiler. When a torch release moves one of these names, this module is the
only one to mend; ``tests/test_internals.py`` fails first.

Observed on torch 2.13.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_torchcompile.texts import at, line_of

__all__ = [
    "CompileEvent",
    "CompilerStep",
    "DispatchMode",
    "aliased_arguments",
    "argument_validation",
    "compile_events",
    "compile_seconds",
    "compiler_stack",
    "compiler_steps",
    "decomposition",
    "draws_random_numbers",
    "eager_call",
    "eager_random_numbers",
    "graph_break_count",
    "graph_breaks",
    "graphs_run",
    "inductor_settings",
    "inner_error",
    "is_compiled",
    "is_compilers_code",
    "is_configuration_error",
    "kernels_for_one_thread",
    "known_inductor_options",
    "known_modes",
    "module_of",
    "quiet_trace_log",
    "raised_recompile_limit",
    "recompile_limit",
    "recompile_reasons",
    "set_argument_validation",
    "set_compiled_call",
    "uncompiled",
    "user_line",
    "why_disabled",
]

RAISED_LIMIT = 1024

_graph_numbers = itertools.count()
_listeners: list[Callable[[int, Iterable[Any]], None]] = []


class DispatchMode(TorchDispatchMode):
    """Sees every operator that runs in its body, below autograd; subclasses say what to do with it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]  # torch leaves it untyped


class CompileEvent:
    """One run of the compiler: its id (``frame/attempt``) and the exception that left it, if any."""

    def __init__(self, compile_id: str, backward: bool, error: BaseException | None) -> None:
        self.compile_id = compile_id
        self.backward = backward
        self.error = error

    @property
    def frame(self) -> str:
        """The code object's number; a second event of one frame is a recompile."""
        return self.compile_id.partition("/")[0]


@contextlib.contextmanager
def compile_events(started: Callable[[], None], ended: Callable[[CompileEvent], None]) -> Iterator[None]:
    """Call `started` and `ended` around every compile, lazy backward compiles included.

    The end callback runs in a ``finally`` of torch's, where the exception that is leaving the
    compiler is the one being handled.
    """
    from torch._dynamo.callback import CallbackTrigger, callback_handler

    def on_start(args: Any) -> None:
        started()

    def on_end(args: Any) -> None:
        backward = args.callback_trigger is CallbackTrigger.LAZY_BACKWARD
        ended(CompileEvent(str(args.compile_id), backward, sys.exc_info()[1]))

    callback_handler.register_start_callback(on_start)
    callback_handler.register_end_callback(on_end)
    try:
        yield
    finally:
        # torch.compiler.reset() inside the body has cleared them already.
        with contextlib.suppress(ValueError):
            callback_handler.remove_start_callback(on_start)
        with contextlib.suppress(ValueError):
            callback_handler.remove_end_callback(on_end)


@contextlib.contextmanager
def graphs_run(ran: Callable[[int, Iterable[Any]], None]) -> Iterator[None]:
    """Call `ran` with each graph that runs in the body, as a number, and the values that it takes.

    The graphs are those that were compiled in such a body, this one or an earlier one: dynamo uses
    them again for other modules of the same class. The hook sits between dynamo and the backend, so
    that it works for objects that come compiled, and without putting a backend of ours in place of the
    user's. The values are the module's own tensors, not copies.
    """
    from torch._dynamo.output_graph import OutputGraph

    original = OutputGraph.call_user_compiler

    def call_user_compiler(self: Any, gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        compiled = original(self, gm, example_inputs)
        graph = next(_graph_numbers)
        inside = [*gm.parameters(), *gm.buffers()]

        @functools.wraps(compiled, updated=())
        def run(*args: Any) -> Any:
            for listener in _listeners:
                listener(graph, [*args, *inside])
            return compiled(*args)

        return run

    _listeners.append(ran)
    OutputGraph.call_user_compiler = call_user_compiler  # type: ignore[method-assign]
    try:
        yield
    finally:
        OutputGraph.call_user_compiler = original  # type: ignore[method-assign]
        _listeners.remove(ran)


def graph_break_count() -> int:
    """How many graph breaks there have been since the last reset."""
    from torch._dynamo import output_graph

    return len(output_graph.graph_break_reasons)  # type: ignore[attr-defined]  # imported there


def graph_breaks(since: int) -> list[str]:
    """The graph breaks after the first `since`: the reason's first line and ``file:line``."""
    from torch._dynamo import output_graph

    texts = []
    for reason in output_graph.graph_break_reasons[since:]:  # type: ignore[attr-defined]  # imported there
        lines = str(reason.reason).strip().splitlines() or ["graph break"]
        place = reason.user_stack[-1] if reason.user_stack else None
        texts.append(lines[0] + (at(place.filename, place.lineno) if place else ""))
    return texts


def cached_graph_count() -> int:
    """How many graphs inductor and AOTAutograd have taken from their caches on disk."""
    from torch._dynamo.utils import counters

    return counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]


def fresh_compile_cache() -> contextlib.AbstractContextManager[None]:
    """Compile without what is in inductor's caches in the body; they are as before after it."""
    from torch._inductor.utils import fresh_cache

    return fresh_cache()


def recompile_reasons() -> dict[str, str]:
    """Why each recompile happened, by compile id: the guard that failed, and the line that it is due to.

    Torch keeps the latest 64 compiles.
    """
    from torch._dynamo.utils import get_compilation_metrics

    return {
        str(metrics.compile_id): _guard(str(metrics.recompile_reason))
        for metrics in get_compilation_metrics()
        if metrics.recompile_reason
    }


def _guard(reason: str) -> str:
    """``0/1: GUARD  # SOURCE  # FILE:LINE in FUNCTION (...)`` as ``GUARD (at FILE:LINE)``."""
    guard, *comments = reason.strip().splitlines()[0].split("  # ")
    place = re.match(r"(\S+:\d+) in ", comments[-1]) if comments else None
    return re.sub(r"^\d+/\d+: ", "", guard) + (f" (at {place[1]})" if place else "")


def compile_seconds(latest: int) -> dict[str, float]:
    """Seconds of the latest compiles by stage: ``dynamo``, ``AOTAutograd``, ``inductor``.

    Torch's figures contain each other, forward: dynamo's those of AOTAutograd, and those inductor's.
    """
    from torch._dynamo.utils import get_compilation_metrics

    seconds = dict.fromkeys(("dynamo", "AOTAutograd", "inductor"), 0.0)
    for metrics in get_compilation_metrics()[-latest:] if latest else ():
        dynamo, autograd, backward, inductor = (
            (getattr(metrics, f"{name}_cumulative_compile_time_us") or 0) / 1e6
            for name in ("dynamo", "aot_autograd", "backward", "inductor")
        )
        seconds["dynamo"] += max(dynamo - autograd, 0.0)
        seconds["AOTAutograd"] += max(autograd + backward - inductor, 0.0)
        seconds["inductor"] += inductor
    return {stage: spent for stage, spent in seconds.items() if spent}


def recompile_limit() -> int:
    """After how many recompiles of a function dynamo runs it eager, in silence."""
    import torch._dynamo.config as config

    return int(config.recompile_limit)


def raised_recompile_limit() -> contextlib.AbstractContextManager[Any]:
    """Lift that limit in the body."""
    import torch._dynamo.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch(
        recompile_limit=RAISED_LIMIT, accumulated_recompile_limit=RAISED_LIMIT
    )
    return patch


def eager_random_numbers() -> contextlib.AbstractContextManager[Any]:
    """Make inductor draw what eager draws for the same seed, for compiles and calls in the body."""
    import torch._inductor.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch(fallback_random=True)
    return patch


def inductor_settings(settings: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Set inductor's options for what is compiled in the body."""
    import torch._inductor.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch(dict(settings))
    return patch


class CompilerStep(NamedTuple):
    """Something that the compiler does and can do without.

    Args:
        kind: ``decomposition``, ``pass`` or ``lowering``.
        name: the operator decomposed or lowered, or the name of the pass.
        line: ``file:line`` of the user's code that a lowering comes from, if it is known.
    """

    kind: str
    name: str
    line: str | None = None


_STEPS = {
    "decomposition": "decomposition",
    "pre_grad_passes": "pass",
    "joint_graph_passes": "pass",
    "post_grad_passes": "pass",
    "lowerings": "lowering",
}


@contextlib.contextmanager
def compiler_steps(leave_out: Callable[[CompilerStep], bool]) -> Iterator[None]:
    """Ask `leave_out`, before each step of a compile in the body, whether to do without it.

    An operator that is not lowered runs eager's kernel. This is where torch's compiler bisector is
    asked; it does its own counting, writes files and prints, and can't be given a time limit.
    """
    import torch._functorch.config as autograd_config
    import torch._inductor.config as config
    from torch._inductor.compiler_bisector import CompilerBisector

    def disable_subsystem(backend: str, subsystem: str, debug_info: Callable[[], str] | None = None) -> bool:
        kind = _STEPS.get(subsystem)
        if kind is None or debug_info is None:
            return False
        return leave_out(_lowered() if kind == "lowering" else CompilerStep(kind, _named(debug_info())))

    original = CompilerBisector.__dict__["disable_subsystem"]
    CompilerBisector.disable_subsystem = staticmethod(disable_subsystem)  # type: ignore[method-assign]
    try:
        # What was compiled with all its steps must not be taken from a cache, nor put there without some.
        with config.patch(fx_graph_cache=False), autograd_config.patch(enable_autograd_cache=False):
            yield
    finally:
        CompilerBisector.disable_subsystem = original  # type: ignore[method-assign]


def _named(text: str) -> str:
    """The name of a pass, or of an operator out of its ``repr``."""
    operator = re.fullmatch(r"<OpOverload\(op='(.+)', overload='(.+)'\)>", text)
    return f"{operator[1]}.{operator[2]}" if operator else text


def _lowered() -> CompilerStep:
    """The operator that inductor is about to lower."""
    from torch._inductor.virtualized import V

    node = V.get_current_node()
    return CompilerStep("lowering", str(node.target), user_line(node.meta.get("stack_trace")))


def user_line(stack_trace: str | None) -> str | None:
    """``file:line`` of the innermost frame outside torch in the stack trace of a graph's node."""
    frames = re.findall(r'File "(.+?)", line (\d+)', stack_trace or "")
    own = os.path.dirname(torch.__file__) + os.sep
    outside = [(file, line) for file, line in frames if not file.startswith(own)]
    return line_of(*outside[-1]) if outside else None


def kernels_for_one_thread() -> contextlib.AbstractContextManager[Any]:
    """Have inductor write CPU kernels without threads, for compiles and calls in the body.

    Only such a kernel can raise: where it has threads, an index out of range ends the process, because
    no C++ exception may leave an OpenMP region.
    """
    import torch._inductor.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch({"cpp.threads": 1})
    return patch


def argument_validation() -> bool:
    """Whether ``torch.distributions`` validates arguments; importing dynamo turns it off."""
    return bool(torch.distributions.Distribution._validate_args)


def set_argument_validation(value: bool) -> None:
    """Switch the validation of distribution arguments for the process."""
    torch.distributions.Distribution.set_default_validate_args(value)


def is_compiled(value: Any) -> bool:
    """Whether calling `value` goes through torch.compile: a module or function that came compiled."""
    from torch._dynamo import OptimizedModule

    if isinstance(value, OptimizedModule):
        return True
    if isinstance(value, torch.nn.Module):
        return value._compiled_call_impl is not None
    return hasattr(value, "_torchdynamo_orig_callable")


def uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside ``torch.compile(module)``; any other module as it is."""
    from torch._dynamo import OptimizedModule

    while isinstance(module, OptimizedModule):
        module = module._orig_mod
    return module


def eager_call(module: torch.nn.Module) -> Callable[..., Any]:
    """Calling the module, hooks included, whatever `set_compiled_call` was given.

    ``module.compile()`` compiles this without a function around it, which dynamo skips in silence where the
    module's ``forward`` is torch's own, as that of ``nn.Sequential`` is.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    return call


def set_compiled_call(module: torch.nn.Module, call: Callable[..., Any] | None) -> None:
    """Let calls of the module go through `call`, which copies and pickles leave out; None undoes it."""
    module._compiled_call_impl = call


def module_of(function: Any) -> torch.nn.Module | None:
    """The module whose method `function` is, compiled or not; None for a function without one."""
    if isinstance(function, torch.nn.Module):
        return uncompiled(function)
    original = getattr(function, "_torchdynamo_orig_callable", function)
    owner = getattr(original, "__self__", original)
    return uncompiled(owner) if isinstance(owner, torch.nn.Module) else None


def inner_error(error: BaseException) -> BaseException:
    """The exception that a backend raised, out of dynamo's wrapping of it."""
    inner = getattr(error, "inner_exception", None)
    return inner_error(inner) if isinstance(inner, BaseException) else error


def compiler_stack(error: BaseException) -> tuple[str, int | None] | None:
    """The user's file and line that dynamo was compiling when it raised `error`, if it says."""
    stack = getattr(error, "real_stack", None)
    return (stack[-1].filename, stack[-1].lineno) if stack else None


def is_configuration_error(error: BaseException) -> bool:
    """Whether the exception means that the user named something unknown, such as a backend."""
    from torch._dynamo.exc import InvalidBackend

    return isinstance(error, InvalidBackend)


def is_compilers_code(filename: str) -> bool:
    """Whether a traceback's file was written by inductor, or is part of torch's compiler."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    torch_ = os.path.dirname(torch.__file__) + os.sep
    packages = tuple(torch_ + name + os.sep for name in ("_dynamo", "_functorch", "_inductor"))
    return filename.startswith((cache_dir(), *packages))


def why_disabled() -> str:
    """Which setting of the process keeps torch.compile from compiling; empty if none does."""
    import torch._dynamo.config as config
    from torch._dynamo.eval_frame import _stance

    if config.disable or os.environ.get("TORCHDYNAMO_DISABLE", "0") == "1":
        return "dynamo is disabled (TORCHDYNAMO_DISABLE, TORCH_COMPILE_DISABLE or its config)"
    if _stance.stance == "force_eager":
        return "torch.compiler.set_stance('force_eager') is in force"
    if config.suppress_errors:
        return "torch._dynamo.config.suppress_errors turns compile errors into eager runs"
    return ""


def known_modes() -> list[str]:
    """The modes that torch.compile accepts with inductor."""
    from torch._inductor import list_mode_options

    return sorted(list_mode_options())


def known_inductor_options() -> list[str]:
    """The options that torch.compile accepts with inductor; dashes may stand for underscores."""
    from torch._inductor import list_options

    return [spelled for name in list_options() for spelled in (name, name.replace("_", "-"))]


def decomposition(operator: Any) -> Callable[..., Any] | None:
    """The operator written in smaller ones, for normalisations and softmax; None for all others.

    These are fused on CPU, so that moving their inputs would miss the rounding inside them.
    """
    from torch._decomp import decomposition_table

    fused = ("batch_norm", "layer_norm", "group_norm", "softmax", "logsumexp")
    if not any(name in operator.name() for name in fused):
        return None
    return decomposition_table.get(operator)


def aliased_arguments(operator: Any) -> tuple[frozenset[int], frozenset[str]]:
    """Positions and names of the arguments that the operator writes to or returns views of."""
    aliased = [
        (position, argument.name)
        for position, argument in enumerate(operator._schema.arguments)
        if argument.alias_info is not None
    ]
    return frozenset(p for p, _ in aliased), frozenset(n for _, n in aliased)


def draws_random_numbers(operator: Any) -> bool:
    """Whether the operator takes numbers from a random generator."""
    return torch.Tag.nondeterministic_seeded in operator.tags


@contextlib.contextmanager
def quiet_trace_log() -> Iterator[None]:
    """Keep torch's structured trace out of pytest's captured log.

    pytest >= 9.2 also listens to loggers that don't propagate. That would switch the trace on, which
    costs time, and print some 170 lines of it below a failure.
    """
    trace = logging.getLogger("torch.__trace")
    listening = [handler for handler in trace.handlers if type(handler).__module__.startswith("_pytest")]
    for handler in listening:
        trace.removeHandler(handler)
    try:
        yield
    finally:
        for handler in listening:
            trace.addHandler(handler)
