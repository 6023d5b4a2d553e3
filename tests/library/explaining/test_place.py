"""Graphs that are captured to be compared alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pytest_torchcompile import Box
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.explaining.graph_script import graph_script
from pytest_torchcompile.explaining.place import Graph, capture_graphs
from pytest_torchcompile.explaining.subjects import WholeCase
from pytest_torchcompile.generation.recipes import random_recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.methods import Method
from pytest_torchcompile.runtime.budget import Budget


class Policy(nn.Module):
    """Two parameters, of which forward may write to one."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.calls = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.writes = writes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.writes:
            self.calls.add_(1.0)
        return self.layer(x) * (1 + self.calls)


class WithUnmadeLayer(nn.Module):
    """A policy whose first parameter holds no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.unmade = nn.Linear(2, 2, device="meta")
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def captured(*, writes: bool) -> tuple[Pair, Graph]:
    return captured_of(lambda: Policy(writes=writes), CheckOptions(backend="aot_eager"))


def captured_of(factory: Callable[[], nn.Module], options: CheckOptions) -> tuple[Pair, Graph]:
    declaration = Declaration(observation=Box((3,)))
    pair = Pair(factory, Method("forward"), "update", declaration=declaration, options=options)
    recipe = random_recipe(pair.tree, 4, options.seed)
    pair.first_eager(recipe)
    budget = Budget(60.0)
    (graph,) = capture_graphs(WholeCase(pair, recipe, budget), options, budget)
    return pair, graph


def held(pair: Pair, graph: Graph) -> set[str]:
    """The names of the compiled side's parameters that are arguments of the graph themselves."""
    arguments = {id(value) for value in graph.arguments.values()}
    return {name for name, p in pair.twins.compiled.named_parameters() if id(p) in arguments}


def test_a_graph_takes_the_parameters_themselves_and_agrees_with_itself() -> None:
    pair, graph = captured(writes=False)
    assert held(pair, graph) == {"layer.weight", "layer.bias", "calls"}
    assert len(graph.parameters) == 3
    assert not graph.part.differences(CheckOptions(backend="aot_eager"))


def test_what_the_graph_writes_to_is_copied_for_each_call() -> None:
    pair, graph = captured(writes=True)
    assert held(pair, graph) == {"layer.weight", "layer.bias"}
    before = {name: p.detach().clone() for name, p in pair.twins.compiled.named_parameters()}
    assert not graph.part.differences(CheckOptions(backend="aot_eager"))
    after = dict(pair.twins.compiled.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_script_of_a_graph_runs_under_autocast_on_a_device_that_holds_numbers() -> None:
    options = CheckOptions(backend="aot_eager", autocast="bfloat16")
    pair, graph = captured_of(WithUnmadeLayer, options)
    assert next(pair.twins.eager.parameters()).is_meta
    script = graph_script("a case", graph, (), options)
    assert "torch.autocast('cpu', dtype=torch.bfloat16)" in script.source


def test_a_wrong_gradient_of_a_parameter_is_a_difference_of_its_graph() -> None:
    _, graph = captured(writes=False)

    def wrong(module: torch.fx.GraphModule, inputs: object) -> object:
        return lambda *args: [output * 1.5 for output in module(*args)]

    found = graph.part.differences(CheckOptions(backend=wrong))
    labels = {f"gradient of {name}" for name in graph.parameters}
    assert labels & {difference.path for difference in found}
