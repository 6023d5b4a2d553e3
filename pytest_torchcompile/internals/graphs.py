"""The graphs that dynamo captures, each time one runs, and their lines in the code of the user."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from pytest_torchcompile.texts import line_of

_graph_numbers = itertools.count()


_listeners: list[Callable[[GraphCall], None]] = []


class GraphCall(NamedTuple):
    """One run of a graph that dynamo captured.

    Args:
        graph: its number.
        module: the graph as dynamo handed it to the backend; backends may rewrite theirs.
        args: what it is called with.
    """

    graph: int
    module: torch.fx.GraphModule
    args: tuple[Any, ...]

    @property
    def values(self) -> Iterable[Any]:
        """What it takes: its arguments, and the tensors that it holds itself; no copies of either."""
        return [*self.args, *self.module.parameters(), *self.module.buffers()]


@contextlib.contextmanager
def graphs_run(ran: Callable[[GraphCall], None]) -> Iterator[None]:
    """Call `ran` with each run of a graph in the body, before it.

    The graphs are those that were compiled in such a body, this one or an earlier one: dynamo uses
    them again for other modules of the same class. The hook sits between dynamo and the backend, so
    that it works for objects that come compiled, and without putting a backend of ours in place of the
    user's. The values are the module's own tensors, not copies.
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
    """The same graph on the same parameters, with nothing kept of its nodes but where they come from."""
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
    """Yield what tells whether code that dynamo wrote has run in the body, whenever it was compiled.

    Unlike `graphs_run` it sees graphs that were compiled outside of any check, and makes the body slow.
    """
    seen: list[str] = []
    before = sys.getprofile()

    def on_event(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            seen.extend(name for name in frame.f_code.co_names if name.startswith("__compiled_fn"))

    sys.setprofile(on_event)
    try:
        yield lambda: bool(seen)
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:
            # Before Python 3.12 a cProfile.Profile (or __main__.Profile), which can't be set again.
            before.enable()


def user_line(stack_trace: str | None) -> str | None:
    """``file:line`` of the innermost frame outside torch in the stack trace of a graph's node."""
    frames = re.findall(r'File "(.+?)", line (\d+)', stack_trace or "")
    own = os.path.dirname(torch.__file__) + os.sep
    outside = [(file, line) for file, line in frames if not file.startswith(own)]
    return line_of(*outside[-1]) if outside else None
