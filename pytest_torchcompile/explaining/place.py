"""Finds the submodule and the graph in which a case first differs.

Each submodule is compiled alone and called on the arguments that it had in the eager call, so that an error
of an earlier submodule has no effect. If a submodule differs, the submodules inside it are searched.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from pytest_torchcompile import internals
from pytest_torchcompile.explaining.stages import up_to
from pytest_torchcompile.explaining.subjects import CannotCompare, Part, WholeCase
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.holders import policy_of
from pytest_torchcompile.policies.snapshots import copied, map_tensors
from pytest_torchcompile.runtime.budget import Budget


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph that dynamo captured, and its arguments.

    Args:
        module: the graph.
        arguments: its arguments by name: the policy's parameters themselves, copies of everything else.
        part: the graph with its arguments, which can be compared by itself.
    """

    module: fx.GraphModule
    arguments: Mapping[str, Any]
    part: Part

    @property
    def takes_sizes(self) -> bool:
        """Whether it was compiled for any batch size. Such a graph takes integers besides tensors."""
        return any(isinstance(value, int) for value in self.arguments.values())

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the arguments that are parameters of the policy."""
        return tuple(name for name, value in self.arguments.items() if isinstance(value, nn.Parameter))

    @property
    def lines(self) -> tuple[str, ...]:
        """``file:line`` of the user's code in the graph, in the order of the graph."""
        called = (node for node in self.module.graph.nodes if node.op.startswith("call_"))
        lines = (internals.user_line(node.meta.get("stack_trace")) for node in called)
        return tuple(dict.fromkeys(filter(None, lines)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The innermost module that differs when it is compiled alone.

    Args:
        name: the name of the submodule with its class, or of the policy's method.
        inside: the number of modules inside it, if all of them agree when compiled alone; else 0.
    """

    name: str
    inside: int

    def __str__(self) -> str:
        if not self.inside:
            return self.name
        agree = "module inside it agrees" if self.inside == 1 else "modules inside it agree"
        return f"{self.name} itself: {self.inside} {agree}, compiled alone"


def find_module(case: WholeCase, options: CheckOptions, budget: Budget) -> Place:
    """Return the innermost module that differs; of several, the one that is called first.

    Raises:
        OutOfTime: if the budget ends first.
    """
    calls = _calls(case, budget)

    def innermost(path: str, name: str) -> Place:
        inside = _inside(path, list(calls))
        agree = 0
        for inner in inside:
            try:
                if calls[inner].differences(options):
                    return innermost(inner, f"{inner} ({type(calls[inner].eager).__name__})")
                agree += 1
            except CannotCompare:
                pass
        return Place(name=name, inside=agree if agree == len(inside) else 0)

    policy = policy_of(internals.uncompiled(case.pair.twins.eager))
    return innermost("", f"{type(policy).__name__}.{case.pair.method.name}")


def _inside(outer: str, names: Sequence[str]) -> list[str]:
    """Return the names directly inside `outer`: those with no other of `names` in between."""
    below = [name for name in names if name.startswith(f"{outer}." if outer else "")]
    return [name for name in below if not any(name.startswith(f"{other}.") for other in below)]


def _calls(case: WholeCase, budget: Budget) -> dict[str, Part]:
    """Return the first call of each submodule on the eager side, in the order of the calls."""
    pair = case.pair
    eager, compiled = internals.uncompiled(pair.twins.eager), internals.uncompiled(pair.twins.compiled)
    found: dict[str, Part] = {}

    def note(name: str) -> Callable[..., None]:
        def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in found:
                found[name] = Part(
                    pair=pair,
                    eager=module,
                    compiled=compiled.get_submodule(name),
                    args=map_tensors(copied, args),
                    kwargs=map_tensors(copied, kwargs),
                    seed=case.recipe.seed,
                    budget=budget,
                )

        return called

    with contextlib.ExitStack() as hooks:
        for name, module in eager.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                handle = module.register_forward_pre_hook(note(name), with_kwargs=True)
                hooks.callback(handle.remove)
        pair.run(pair.eager, case.recipe)
    return found


def find_graph(graphs: Sequence[Graph], options: CheckOptions) -> Graph | None:
    """Return the first graph that differs when compiled alone; None if none does.

    Raises:
        OutOfTime: if the budget ends first.
    """

    def differs(graph: Graph) -> bool:
        try:
            return bool(graph.part.differences(options))
        except CannotCompare:
            return False

    return next(filter(differs, graphs), None)


def capture_graphs(case: WholeCase, options: CheckOptions, budget: Budget) -> list[Graph]:
    """Return the graphs that run for the case's example, with the arguments of their last call.

    Raises:
        CannotCompare: if dynamo can't capture the case.
        OutOfTime: if the budget ends first.
    """
    state = case.pair.compiled.state
    assert state is not None
    written = state.remembered()
    lent = {id(value) for name, value in state.parameters().items() if name not in written}
    calls: dict[fx.GraphModule, tuple[Any, ...]] = {}

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if id(tensor) in lent else copied(tensor)

    def keep(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            calls.pop(graph, None)
            calls[graph] = map_tensors(kept, args)
            return graph(*args)

        return run

    case.differences(up_to(options, keep))
    graphs = [_graph(case, graph, args, budget) for graph, args in calls.items()]
    # Dynamo keeps the backend, and with it `calls`, for as long as the code that it compiled.
    calls.clear()
    return graphs


def _graph(case: WholeCase, module: fx.GraphModule, args: tuple[Any, ...], budget: Budget) -> Graph:
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    arguments = dict(zip(names, args, strict=True))
    own = {name: value for name, value in arguments.items() if isinstance(value, nn.Parameter)}
    graph = _WithParameters(module, own, names)
    inputs = {name: value for name, value in arguments.items() if name not in own}
    part = Part(
        pair=case.pair,
        eager=graph,
        compiled=graph,
        args=tuple(inputs.values()),
        kwargs={},
        names=tuple(inputs),
        seed=case.recipe.seed,
        budget=budget,
    )
    return Graph(module=module, arguments=arguments, part=part)


class _WithParameters(nn.Module):
    """A graph that holds the policy's parameters among its arguments, so that no call needs copies of them.

    Args:
        graph: the graph.
        parameters: those of its arguments that are parameters, by name.
        names: the names of all its arguments, in their order.
    """

    def __init__(self, graph: fx.GraphModule, parameters: Mapping[str, nn.Parameter], names: Sequence[str]):
        super().__init__()
        self.graph = graph
        self._positions = [(names.index(name), name) for name in parameters]
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)

    def forward(self, *inputs: Any) -> Any:
        """Call the graph on its other arguments."""
        args = list(inputs)
        for position, name in self._positions:
            args.insert(position, getattr(self, name))
        return self.graph(*args)
