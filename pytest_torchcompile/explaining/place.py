"""Where a case first differs: in which submodule, and in which of its graphs.

Each submodule is given what it was given in the eager call and compiled alone, so that what an earlier
one did wrong does not count. A submodule that differs is searched for one inside it that does.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from pytest_torchcompile import internals
from pytest_torchcompile.explaining.stages import up_to
from pytest_torchcompile.explaining.subjects import Budget, CantTell, Part, WholeCase
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.holders import policy_of
from pytest_torchcompile.policies.snapshots import copied, map_tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph that dynamo captured, with what it was called with.

    Args:
        module: the graph.
        part: the same, to be judged by itself.
    """

    module: fx.GraphModule
    part: Part

    @property
    def takes_sizes(self) -> bool:
        """Whether it was compiled for any batch: such a graph takes numbers beside its tensors."""
        return any(isinstance(value, int) for value in self.part.args)

    @property
    def lines(self) -> tuple[str, ...]:
        """``file:line`` of the user's code that is in the graph, in its order."""
        called = (node for node in self.module.graph.nodes if node.op.startswith("call_"))
        lines = (internals.user_line(node.meta.get("stack_trace")) for node in called)
        return tuple(dict.fromkeys(filter(None, lines)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The innermost module that differs when it is compiled alone.

    Args:
        name: of the submodule with its class, or of the policy's method.
        inside: how many modules inside it were compiled alone and agree.
    """

    name: str
    inside: int

    def __str__(self) -> str:
        if not self.inside:
            return self.name
        agree = "module inside it agrees" if self.inside == 1 else "modules inside it agree"
        return f"{self.name} itself: {self.inside} {agree}, compiled alone"


def find_module(case: WholeCase, options: CheckOptions, budget: Budget) -> Place:
    """The innermost module that differs, the first in the order of the calls.

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
            except CantTell:
                pass
        return Place(name=name, inside=agree if agree == len(inside) else 0)

    policy = policy_of(internals.uncompiled(case.pair.twins.eager))
    return innermost("", f"{type(policy).__name__}.{case.pair.method.name}")


def _inside(outer: str, names: Sequence[str]) -> list[str]:
    """The names right inside `outer`: those with no other of `names` in between."""
    below = [name for name in names if name.startswith(f"{outer}." if outer else "")]
    return [name for name in below if not any(name.startswith(f"{other}.") for other in below)]


def _calls(case: WholeCase, budget: Budget) -> dict[str, Part]:
    """The first call of each submodule of eager's side, in the order of the calls."""
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
    """The first graph that differs when compiled alone; None if none does.

    Raises:
        OutOfTime: if the budget ends first.
    """

    def differs(graph: Graph) -> bool:
        try:
            return bool(graph.part.differences(options))
        except CantTell:
            return False

    return next(filter(differs, graphs), None)


def captured(case: WholeCase, options: CheckOptions, budget: Budget) -> list[Graph]:
    """The graphs that run for the case's example, with what they were last called with.

    Raises:
        CantTell: if dynamo can't capture the case.
        OutOfTime: if the budget ends first.
    """
    calls: dict[fx.GraphModule, tuple[Any, ...]] = {}

    def keep(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            calls.pop(graph, None)
            calls[graph] = map_tensors(copied, args)
            return graph(*args)

        return run

    case.differences(up_to(options, keep))
    return [
        Graph(
            module=graph,
            part=Part(
                pair=case.pair,
                eager=graph,
                compiled=graph,
                args=args,
                kwargs={},
                names=tuple(node.name for node in graph.graph.nodes if node.op == "placeholder"),
                seed=case.recipe.seed,
                budget=budget,
            ),
        )
        for graph, args in calls.items()
    ]
