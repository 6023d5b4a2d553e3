"""Wrong compilers: backends that hand back something other than what they were given.

Each comes with a switch, so that the control beside a fault goes through the very same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

Outputs = list[Any]
Change = Callable[[Outputs, int], Outputs]
"""Changes what a graph returns; also told the number of the call, from 1."""


def unchanged(outputs: Outputs, call: int) -> Outputs:
    """What a correct compiler does."""
    return outputs


def changed(change: Change) -> Callable[..., Any]:
    """A backend whose graphs return what `change` makes of their outputs."""
    calls = 0

    def wrong_backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return tuple(change(list(graph(*args)), calls))

        return run

    return wrong_backend


def changed_graph(number: int, change: Callable[[Outputs], Outputs]) -> Callable[..., Any]:
    """A backend of whose graphs only the `number`-th is wrong."""
    graphs = 0

    def wrong_backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        wrong = graphs == number

        def run(*args: Any) -> Any:
            outputs = list(graph(*args))
            return tuple(change(outputs) if wrong else outputs)

        return run

    return wrong_backend


def changed_backward(change: Callable[[Outputs], Outputs]) -> Callable[..., Any]:
    """A backend that compiles forwards right and whose backwards return what `change` makes of them."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def right(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        return make_boxed_func(graph.forward)

    def wrong(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        def run(*args: Any) -> Any:
            return tuple(change(list(graph(*args))))

        return make_boxed_func(run)

    return aot_autograd(fw_compiler=right, bw_compiler=wrong, inference_compiler=right)


def float_tensors(outputs: Outputs) -> list[int]:
    """Positions of the outputs that a fault can be put on."""
    return [i for i, o in enumerate(outputs) if isinstance(o, torch.Tensor) and o.is_floating_point()]
