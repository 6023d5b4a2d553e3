"""Observe the graphs that dynamo captures: each run of a graph, and the user's lines of its nodes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from pytest_torchcompile.backports import profiled
from pytest_torchcompile.texts import is_users_code, line_of

_graph_numbers = itertools.count()


_listeners: list[Callable[[GraphCall], None]] = []


class GraphCall(NamedTuple):
    """One run of a graph that dynamo captured.

    Args:
        graph: the number of the graph.
        module: a copy of the graph as dynamo passed it to the backend, which may rewrite its own.
        args: the arguments of the run.
    """

    graph: int
    module: torch.fx.GraphModule
    args: tuple[Any, ...]

    @property
    def values(self) -> Iterable[Any]:
        """The arguments and the graph's own parameters and buffers, not copied."""
        return [*self.args, *self.module.parameters(), *self.module.buffers()]


@contextlib.contextmanager
def graphs_run(ran: Callable[[GraphCall], None]) -> Iterator[None]:
    """Call `ran` before each run of a graph in the body.

    It sees the graphs that were compiled in this or an earlier such body, because dynamo reuses graphs for
    other modules of the same class. The hook sits between dynamo and the backend. So it works for objects
    that come compiled, and the user's backend stays in place. The values are the module's own tensors.
    """
    from torch._dynamo.output_graph import OutputGraph

    original = OutputGraph.call_user_compiler

    def call_user_compiler(self: Any, gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        graph, module = next(_graph_numbers), _copied(gm)
        compiled = original(self, gm, example_inputs)

        @functools.wraps(compiled, updated=())
        def run(*args: Any) -> Any:
            for listener in _listeners:
                listener(GraphCall(graph, module, args))
            return compiled(*args)

        return run

    _listeners.append(ran)
    OutputGraph.call_user_compiler = call_user_compiler  # type: ignore[method-assign]
    try:
        yield
    finally:
        OutputGraph.call_user_compiler = original  # type: ignore[method-assign]
        _listeners.remove(ran)


def _copied(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return a copy of the graph with the same parameters. Its nodes keep only their stack traces."""
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    output = graph.graph_copy(module.graph, copies)
    for node in module.graph.nodes:
        if node.op == "output":
            graph.output(output)
        else:
            copies[node].meta = {k: v for k, v in node.meta.items() if k == "stack_trace"}
    return torch.fx.GraphModule(module, graph)


@contextlib.contextmanager
def compiled_code_run() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether compiled code has run in the body.

    Unlike `graphs_run` it also sees graphs that were compiled outside of any check. It makes the body slow.
    """
    seen: list[str] = []

    def on_event(frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call":
            seen.extend(name for name in frame.f_code.co_names if name.startswith("__compiled_fn"))

    with profiled(on_event):
        yield lambda: bool(seen)


def user_line(stack_trace: str | None) -> str | None:
    """Return ``file:line`` of the innermost frame of the user's code in the stack trace of a graph's node."""
    frames = re.findall(r'File "(.+?)", line (\d+)', stack_trace or "")
    users = [(file, line) for file, line in frames if is_users_code(file)]
    return line_of(*users[-1]) if users else None
