"""Finds state that a policy writes to in place, and tries assignment instead.

AOTAutograd's partitioner decides which values backward computes again. If a buffer was written to in between,
backward computes another value, and the gradients are wrong (pytorch pull request 197039).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from pytest_torchcompile import internals
from pytest_torchcompile.explaining.stages import up_to
from pytest_torchcompile.explaining.subjects import WholeCase
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.reachable import Reachable

_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class Write(NamedTuple):
    """A line of the user's code that writes to a buffer in place: the buffer's name, and ``file:line``."""

    buffer: str
    line: str


def find_writes(case: WholeCase) -> tuple[Write, ...]:
    """Return the in-place writes to buffers of one eager call, in their order."""
    buffers = Reachable(case.pair.twins.eager).buffers
    keys = {internals.storage_key(buffer): name for name, buffer in buffers.items()}
    # A buffer without a storage, as on the meta device, has no key of its own.
    noting = _Writes({key: name for key, name in keys.items() if key})
    case.pair.run(case.pair.eager, case.recipe, under=lambda: noting)
    return tuple(dict.fromkeys(noting.found))


class _Writes(internals.DispatchMode):
    """Collects the operators in its body that write to a buffer, with the user's line."""

    def __init__(self, buffers: dict[int, str]) -> None:
        super().__init__()
        self._buffers = buffers
        self.found: list[Write] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        positions, _ = internals.written_arguments(func)
        for position in positions:
            written = args[position] if position < len(args) else None
            key = internals.storage_key(written) if isinstance(written, torch.Tensor) else 0
            line = internals.running_users_line() if key in self._buffers else ""
            if line:
                self.found.append(Write(self._buffers[key], line))
        return func(*args, **(kwargs or {}))


def assigning_agrees(case: WholeCase, options: CheckOptions, paths: Sequence[str]) -> bool:
    """Return whether the case agrees in `paths` if its graphs do not write to their inputs.

    Args:
        case: the case that differs.
        options: compile up to AOTAutograd.
        paths: the tensors that differ. The buffers themselves are not compared: they keep their values.

    Raises:
        CannotCompare: if it doesn't compile.
        OutOfTime: if the budget ends first.
    """
    backend = internals.backend_function("aot_eager")

    def assigning(module: fx.GraphModule, inputs: list[Any]) -> Any:
        return backend(without_writes(module), inputs)

    differences = case.differences(up_to(options, assigning))
    return not {difference.path for difference in differences} & set(paths)


def without_writes(module: fx.GraphModule) -> fx.GraphModule:
    """Return the graph with its inputs unchanged: each write in place is replaced by a new tensor.

    Nodes after the write use the new tensor. Writes to views of an input remain.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    inputs = {node for node in graph.nodes if node.op in ("placeholder", "get_attr")}
    current = {node: node for node in inputs}
    for node in graph.nodes:
        for old, new in current.items():
            if old is not new and node is not new:
                node.replace_input_with(old, new)
        target = _new_tensor_target(node)
        first = node.args[0] if node.args else None
        origin = next((old for old, new in current.items() if new is first), None)
        if target is not None and origin is not None:
            node.target = target
            current[origin] = node
    return fx.GraphModule(module, graph)


def _new_tensor_target(node: fx.Node) -> Any:
    """Return what computes the same as a node that writes in place, as a new tensor; None for other nodes."""
    if node.op == "call_function":
        return _OUT_OF_PLACE.get(node.target)
    name = str(node.target)
    if node.op == "call_method" and name.endswith("_") and not name.endswith("__"):
        return name[:-1] if hasattr(torch.Tensor, name[:-1]) else None
    return None
