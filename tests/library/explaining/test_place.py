"""Graphs that are captured to be compared alone."""

from __future__ import annotations

import torch
from torch import nn

from pytest_torchcompile import Box
from pytest_torchcompile.checking.pair import Pair
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


def captured(*, writes: bool) -> tuple[Pair, Graph]:
    options = CheckOptions(backend="aot_eager")
    declaration = Declaration(observation=Box((3,)))
    pair = Pair(
        lambda: Policy(writes=writes), Method("forward"), "update", declaration=declaration, options=options
    )
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


def test_a_wrong_gradient_of_a_parameter_is_a_difference_of_its_graph() -> None:
    _, graph = captured(writes=False)

    def wrong(module: torch.fx.GraphModule, inputs: object) -> object:
        return lambda *args: [output * 1.5 for output in module(*args)]

    found = graph.part.differences(CheckOptions(backend=wrong))
    labels = {f"gradient of {name}" for name in graph.parameters}
    assert labels & {difference.path for difference in found}
