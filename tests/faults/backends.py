"""Wrong compilers: backends that return something other than the compiled graph.

Each has a switch, so that the control of a fault runs the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

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


Run = Callable[..., Any]


def wrapped(wrap: Callable[[fx.GraphModule, Run], Run]) -> Callable[..., Any]:
    """A backend whose graphs are run by what `wrap` makes of them."""

    def wrapping_backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Run:
        return wrap(graph, graph.forward)

    return wrapping_backend


def stale_weights(on: bool) -> Callable[..., Any]:
    """Graphs without gradients go on with the weights that they were first run with."""

    first: dict[int, torch.Tensor] = {}

    def kept(value: Any) -> Any:
        return (
            first.setdefault(id(value), value.detach().clone()) if isinstance(value, nn.Parameter) else value
        )

    def wrap(graph: fx.GraphModule, run: Run) -> Run:
        def stale(*args: Any) -> Any:
            return run(*args) if torch.is_grad_enabled() or not on else run(*map(kept, args))

        return stale

    return wrapped(wrap)


def static_outputs(on: bool) -> Callable[..., Any]:
    """Every call writes its outputs where the last one of that shape wrote them."""

    def wrap(graph: fx.GraphModule, run: Run) -> Run:
        memory: dict[Any, torch.Tensor] = {}

        def keep(place: int, output: Any) -> Any:
            if not on or not isinstance(output, torch.Tensor) or output.requires_grad:
                return output
            slot = memory.setdefault((place, output.shape), torch.empty_like(output))
            return slot.copy_(output)

        return lambda *args: tuple(keep(i, output) for i, output in enumerate(run(*args)))

    return wrapped(wrap)


def folded_weights() -> Callable[..., Any]:
    """Each graph goes on with the weights of its first run, as a constant that was folded."""

    def wrap(graph: fx.GraphModule, run: Run) -> Run:
        first: dict[int, torch.Tensor] = {}

        def kept(place: int, value: Any) -> Any:
            if not isinstance(value, nn.Parameter):
                return value
            constant = first.setdefault(place, value.detach().clone())
            return value + (constant - value.detach())

        return lambda *args: run(*(kept(i, arg) for i, arg in enumerate(args)))

    return wrapped(wrap)


def two_buffers() -> Callable[..., Any]:
    """Outputs are written to two buffers in turn: those of the last call hold, those before don't."""

    def wrap(graph: fx.GraphModule, run: Run) -> Run:
        memory: dict[Any, torch.Tensor] = {}
        calls = 0

        def keep(place: int, output: Any) -> Any:
            if not isinstance(output, torch.Tensor) or output.requires_grad:
                return output
            slot = memory.setdefault((place, output.shape, calls % 2), torch.empty_like(output))
            return slot.copy_(output)

        def turn(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return tuple(keep(i, output) for i, output in enumerate(run(*args)))

        return turn

    return wrapped(wrap)


def frozen_draws() -> Callable[..., Any]:
    """Each graph draws the numbers of its first run, again and again."""

    def wrap(graph: fx.GraphModule, run: Run) -> Run:
        seeds: list[torch.Tensor] = []

        def frozen(*args: Any) -> Any:
            seeds.append(torch.get_rng_state())
            torch.set_rng_state(seeds[0])
            return run(*args)

        return frozen

    return wrapped(wrap)


def lenient(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """Kernels that make do with anything, by `change` of each tensor they are given."""

    def wrap(graph: fx.GraphModule, run: Run) -> Run:
        return lambda *args: run(*(change(a) if isinstance(a, torch.Tensor) else a for a in args))

    return wrapped(wrap)


def right() -> Callable[..., Any]:
    """The control of all these."""
    return changed(unchanged)
