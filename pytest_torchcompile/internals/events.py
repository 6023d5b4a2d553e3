"""Read the compiler's events and counters: compiles, graph breaks, recompiles, seconds, cache hits."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pytest_torchcompile.internals.failures import is_compilers_code
from pytest_torchcompile.texts import at, is_users_code


class CompileEvent:
    """One run of the compiler: its id (``frame/attempt``) and the exception that it raised, if any."""

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
    """Call `started` and `ended` around every compile in the body, including lazy compiles of the backward.

    Torch calls the end callback in a ``finally`` block. `sys.exc_info` then gives the exception that the
    compiler raised or, if it raised none, the one that the caller is handling in an ``except`` block.
    """
    from torch._dynamo.callback import CallbackTrigger, callback_handler

    callers: BaseException | None = None

    def on_start(args: Any) -> None:
        nonlocal callers
        callers = sys.exc_info()[1]
        started()

    def on_end(args: Any) -> None:
        backward = args.callback_trigger is CallbackTrigger.LAZY_BACKWARD
        current = sys.exc_info()[1]
        error = None if current is callers else current
        ended(CompileEvent(str(args.compile_id), backward, error))

    callback_handler.register_start_callback(on_start)
    callback_handler.register_end_callback(on_end)
    try:
        yield
    finally:
        # If the body called torch.compiler.reset(), the callbacks are removed already.
        with contextlib.suppress(ValueError):
            callback_handler.remove_start_callback(on_start)
        with contextlib.suppress(ValueError):
            callback_handler.remove_end_callback(on_end)


def graph_break_count() -> int:
    """Return the number of graph breaks since the last reset."""
    from torch._dynamo import output_graph

    return len(output_graph.graph_break_reasons)  # type: ignore[attr-defined]  # imported there


def graph_breaks(since: int) -> list[str]:
    """Return the graph breaks after the first `since`: the first line of the reason, and ``file:line``."""
    from torch._dynamo import output_graph

    texts = []
    for reason in output_graph.graph_break_reasons[since:]:  # type: ignore[attr-defined]  # imported there
        lines = str(reason.reason).strip().splitlines() or ["graph break"]
        # The innermost line may be torch's, as in a function under `torch.compiler.disable`; if that is the
        # whole method, all lines are.
        users = [frame for frame in reason.user_stack if is_users_code(frame.filename)]
        others = [frame for frame in reason.user_stack if not is_compilers_code(frame.filename)]
        place = next(reversed(users or others), None)
        texts.append(lines[0] + (at(place.filename, place.lineno) if place else ""))
    return texts


def cached_graph_count() -> int:
    """Return the number of graphs that inductor and AOTAutograd have loaded from their caches on disk."""
    from torch._dynamo.utils import counters

    return counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]


def recompile_reasons() -> dict[str, str]:
    """Return the reason of each recompile by compile id: the failed guard and the line that caused it.

    Torch keeps the latest 64 compiles.
    """
    from torch._dynamo.utils import get_compilation_metrics

    return {
        str(metrics.compile_id): _guard(str(metrics.recompile_reason))
        for metrics in get_compilation_metrics()
        if metrics.recompile_reason
    }


def _guard(reason: str) -> str:
    """Convert ``0/1: GUARD  # SOURCE  # FILE:LINE in FUNCTION (...)`` to ``GUARD (at FILE:LINE)``."""
    guard, *comments = reason.strip().splitlines()[0].split("  # ")
    place = re.match(r"(\S+):(\d+) in ", comments[-1]) if comments else None
    # Torch aligns the comments of guards with spaces.
    return re.sub(r"^\d+/\d+: ", "", guard).rstrip() + (at(_whole(place[1]), int(place[2])) if place else "")


def _whole(end: str) -> str:
    """Return the file of a loaded module whose path ends like this: torch cuts off where long paths begin."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return next((file for file in files if isinstance(file, str) and file.endswith(end)), end)


def compile_seconds(latest: int) -> dict[str, float]:
    """Return the seconds of the latest compiles by stage: ``dynamo``, ``AOTAutograd``, ``inductor``.

    In torch's figures for the forward, dynamo's time contains that of AOTAutograd, which contains inductor's.
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
