"""Sizes that people train with: each edge is tried once, faults there are found, and a note lists untried ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_checks import assert_differs, assert_passes, check
from torch import nn

from pytest_torchcompile import Box, Discrete, Verdict
from pytest_torchcompile.checking import sizes
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.generation import edges
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.results import CheckResult

Outputs = list[torch.Tensor]


@pytest.fixture(autouse=True)
def enough_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine too, each size is tried."""
    monkeypatch.setattr(sizes, "LEAST_S", 3600.0)


class Net(nn.Module):
    """A linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Recurrent(nn.Module):
    """Averages over time."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).cumsum(1)


def wrong(change: Callable[[torch.Tensor], torch.Tensor], met: list[int] | None = None) -> Any:
    """A backend that changes the output of the graph; `met` takes its batch sizes."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            outputs = graph(*args)
            if met is not None:
                met.append(len(outputs[0]))
            return tuple(change(output) for output in outputs)

        return run

    return backend


def plus_one(rows: Callable[[torch.Tensor, int], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Adds 1 to the rows for which ``rows(row numbers, batch size)`` is true."""

    def change(output: torch.Tensor) -> torch.Tensor:
        where = torch.as_tensor(rows(torch.arange(len(output)), len(output)))
        return output + where.reshape(-1, *[1] * (output.dim() - 1)).to(output.dtype)

    return change


def try_sizes(change: Callable[[torch.Tensor], torch.Tensor] | None = None, **more: Any) -> CheckResult:
    # Beyond what was declared there is one more size, an empty batch.
    options = {"observation": Box((5,)), "examples": 0, "beyond": "off", "factory": Net} | more
    backend = wrong(change or (lambda output: output), options.pop("met", None))
    return check(options.pop("factory"), options.pop("phase", "rollout"), backend=backend, **options)


def none(rows: torch.Tensor, batch: int) -> Any:
    return rows < 0


FAULTS = {
    "rows from 34 on": lambda rows, batch: rows >= 33,
    "rows past 1000": lambda rows, batch: rows > 1000,
    "last row of no multiple of 16": lambda rows, batch: (
        (rows == batch - 1) & (batch > 16 and batch % 16 > 0)
    ),
    "multiples of 64": lambda rows, batch: (rows >= 0) & (batch % 64 == 0),
    **{f"exactly {n}": lambda rows, batch, n=n: (rows >= 0) & (batch == n) for n in (2, 31, 128, 1024)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_some_sizes_is_found(fault: str) -> None:
    assert_differs(try_sizes(plus_one(FAULTS[fault])), "output")


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_correct_policy_is_tried_at_every_size_once(phase: str) -> None:
    met: list[int] = []
    result = try_sizes(plus_one(none), met=met, phase=phase)
    assert_passes(result)
    assert set(edges.BATCHES) <= set(met)
    assert all(met.count(size) == 1 for size in edges.BATCHES if size > 33)
    assert not result.notes


class Late(torch.autograd.Function):
    """Doubles the gradient of the rows past 64."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor) -> torch.Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.cat([gradient[:64], 2 * gradient[64:]])


def test_a_gradient_of_late_rows_is_found() -> None:
    assert_differs(try_sizes(Late.apply, phase="update"), "gradient of net.weight")
    assert_passes(try_sizes(Late.apply, phase="rollout"))


# --- declared sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((4, 200), [4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200]),
        ((4, 7, 2, 33), [2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33]),
        ((4, 7, 1, 33), [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33]),
        ((64,), [64]),
        ((16, 2048), [16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 1024, 2048]),
    ],
    ids=str,
)
def test_a_declared_batch_bounds_the_sizes(batch: tuple[int, ...], expected: list[int]) -> None:
    met: list[int] = []
    assert_passes(try_sizes(met=met, batch=batch))
    assert sorted(set(met)) == expected


def test_a_fault_at_the_top_of_a_declared_range() -> None:
    top = plus_one(lambda rows, batch: (rows >= 0) & (batch == 200))
    assert_differs(try_sizes(top, batch=(4, 200)), "output")
    assert_passes(try_sizes(top, batch=(4, 199)))


def test_whether_an_option_was_set() -> None:
    assert not CheckOptions().is_set("batch")
    assert not CheckOptions.merge(("a test", {})).is_set("batch")
    assert CheckOptions.merge(("a test", {"batch": (4, 7, 1, 33)})).is_set("batch")


# --- the policy's own sizes -----------------------------------------------------------------------


class Wide(nn.Module):
    """Adds a bias; along the wrong dimension if the batch is as large as the outputs and `wrong`."""

    def __init__(self, outputs: int, wrong: bool) -> None:
        super().__init__()
        self.net = nn.Linear(5, outputs)
        self.bias = nn.Parameter(torch.randn(outputs))
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        if self.wrong and torch.compiler.is_compiling() and y.shape[0] == y.shape[1]:
            return y + self.bias[:, None]
        return y + self.bias


@pytest.mark.parametrize("outputs", [5, 24, 100, 256, 700])
@pytest.mark.parametrize("wrong", [True, False])
def test_a_batch_as_large_as_the_outputs(outputs: int, wrong: bool) -> None:
    result = check(functools.partial(Wide, outputs, wrong), observation=Box((5,)), examples=0, beyond="off")
    if wrong:
        assert_differs(result, "output")
        assert f"batch {outputs};" in result.example
    else:
        assert_passes(result)


def test_the_most_frequent_sizes_of_the_policy_within_the_declared_range() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(5, 3)
            self.others = nn.ParameterList(
                torch.zeros(n, 20) for n in (40, 40, 41, 300, 21, 22, 23, 24, 25, 26)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    met: list[int] = []
    assert_passes(try_sizes(met=met, factory=Many, batch=(4, 200)))
    assert set(met) - set(edges.BATCHES) - {4, 200} == {5, 20, 40, 41, 21, 22, 23, 24}


def test_own_sizes_that_compile_again_say_nothing_of_the_others() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(20, 22)
            self.other = nn.Linear(22, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            factor = 1.0
            for number in (20, 22, 24):
                factor = number if len(x) == number else factor
            return self.other(self.net(x)) * factor

    met: list[int] = []
    result = try_sizes(met=met, factory=Branches, observation=Box((20,)))
    assert_passes(result)
    assert set(edges.BATCHES) <= set(met)
    assert result.notes == ("batch 24 not tried: each is compiled separately, as 20, 22 were",)


def test_own_sizes_that_take_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "LEAST_S", 0.0)
    monkeypatch.setattr(sizes, "SHARE", 0.0)
    result = check(functools.partial(Wide, 256, False), observation=Box((5,)), examples=0, beyond="off")
    assert_passes(result)
    assert result.notes == (
        "batch 256, 257, 1024 not tried: they would take more than 0% of the case's time",
    )


# --- sequences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 33, 64])
def test_a_fault_at_one_length_is_found(length: int) -> None:
    def change(output: torch.Tensor) -> torch.Tensor:
        return output + (output.shape[1] == length)

    more = {"observation": Box(("T", 5)), "factory": Recurrent, "batch": (4,)}
    assert_differs(try_sizes(change, **more), "output")


def test_every_length_is_tried() -> None:
    met: set[int] = set()

    def change(output: torch.Tensor) -> torch.Tensor:
        met.add(output.shape[1])
        return output

    assert_passes(try_sizes(change, observation=Box(("T", 5)), factory=Recurrent, batch=(4, 7)))
    assert met >= set(edges.LENGTHS)


@pytest.mark.parametrize("batch", [(4,), (4, 7, 1, 33), (16, 33), (1, 8), (64,)], ids=str)
@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_fault_where_t_is_the_batch(batch: tuple[int, ...], phase: str) -> None:
    def change(output: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(output.shape[1], dtype=output.dtype)[:, None]
        return output + (steps - steps.flip(0) if output.shape[0] == output.shape[1] > 1 else 0)

    more = {"observation": Box(("T", 5)), "factory": Recurrent, "batch": batch, "phase": phase}
    assert_differs(try_sizes(change, **more), "output")


@pytest.mark.parametrize("each_length_compiles", [True, False])
def test_t_as_the_batch_adds_no_graph(each_length_compiles: bool) -> None:
    class Steps(Recurrent):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if each_length_compiles:
                return torch.stack([self.net(step) for step in x.unbind(1)], 1)
            return self.net(x)

    met: list[tuple[int, ...]] = []

    def change(output: torch.Tensor) -> torch.Tensor:
        met.append(tuple(output.shape[:2]))
        return output

    result = try_sizes(change, observation=Box(("T", 5)), factory=Steps, batch=(4, 7))
    assert_passes(result)
    assert (5, 5) in met
    assert not any("T = batch" in note for note in result.notes), result.notes


# --- what compiles for each size ------------------------------------------------------------------


class ForEachSize(Net):
    """Loops over its rows, so that each batch size has a graph of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.net(row) for row in x.unbind()])


def test_a_policy_that_compiles_for_each_size() -> None:
    met: list[int] = []
    result = try_sizes(met=met, factory=ForEachSize, examples=10)
    assert_passes(result)
    assert set(met) == {4, 7, 1, 33, 2, 3}
    (note,) = result.notes
    assert note == (
        "batch 5, 8, 9, 15, 16, 17, 31, 32, 63, 64, 65, 127, 128, 129, 257, 1024 not tried: each is "
        "compiled separately, as 2, 3 were"
    )


def test_static_shapes() -> None:
    met: list[int] = []
    result = try_sizes(met=met, dynamic=False, batch=(4, 20), examples=10)
    assert_passes(result)
    assert set(met) == {4, 20}
    assert result.notes == ("batch 5, 7, 8, 9, 15, 16, 17 not tried: dynamic=False compiles for each size",)


def test_a_size_that_compiles_again_is_named() -> None:
    class Branches(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) * (2.0 if len(x) > 60 else 1.0)

    result = try_sizes(factory=Branches)
    assert_passes(result)
    assert result.notes == ("compiled again for batch 63",)
    assert any(text.endswith(" on batch 63") for text in result.capture.recompiles)


def test_a_policy_that_compiles_for_each_length() -> None:
    class Unrolled(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = torch.zeros(len(x), 3)
            for step in range(x.shape[1]):
                total = torch.tanh(self.net(x[:, step]) + total)
            return total

    result = try_sizes(factory=Unrolled, observation=Box(("T", 5)), batch=(4, 7), nonfinite=False)
    assert_passes(result)
    assert result.notes == ("T = 16, 33, 64 not tried: each is compiled separately, as 2, 7 were",)


# --- what sizes may cost --------------------------------------------------------------------------


def test_sizes_that_take_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "LEAST_S", 0.0)
    monkeypatch.setattr(sizes, "SHARE", 0.0)
    met: list[int] = []
    result = try_sizes(met=met)
    assert_passes(result)
    assert max(met) == 129
    assert result.notes == ("batch 257, 1024 not tried: they would take more than 0% of the case's time",)


def test_sizes_that_need_much_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # A row of (5,) and one of (3,) floats take 32 bytes.
    monkeypatch.setattr(sizes, "MOST_BYTES", 32 * 200)
    met: list[int] = []
    result = try_sizes(met=met)
    assert_passes(result)
    assert 33 < max(met) <= 257
    assert len(result.notes) == 1
    assert result.notes[0].endswith("1024 not tried: a call would hold more than 0 GiB")


def test_no_size_is_tried_once_the_seconds_of_the_case_are_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pair, "out_of_seconds", lambda pair: "the case took too long")
    met: list[int] = []
    result = try_sizes(met=met, observation=Box(("T", 5)), factory=Recurrent)
    assert result.verdict is Verdict.EQUAL
    assert len(set(met)) == 1
    kinds = (
        "fixed examples",
        "batch 2, 3, 5, 8",
        "T = batch = 5",
        "T = 2, 7, 16, 33, 64",
    )
    said = [note for note in result.notes if note.endswith("not tried: the case took too long")]
    for kind in kinds:
        assert any(kind in note for note in said), (kind, result.notes)


def test_sizes_of_actions_alone() -> None:
    met: list[int] = []
    assert_passes(try_sizes(met=met, factory=lambda: nn.Embedding(4, 3), observation=Discrete(4)))
    assert set(edges.BATCHES) <= set(met)


# --- what fails is made small ---------------------------------------------------------------------


@pytest.mark.parametrize(("least", "found"), [(50, 51), (700, 701)])
def test_a_failure_shrinks_to_the_smallest_batch(least: int, found: int) -> None:
    late = plus_one(lambda rows, batch: rows >= least)
    result = try_sizes(late, examples=60, shrink_seconds=300.0)
    assert_differs(result, "output")
    assert result.example == f"batch {found}; observation: zeros"


def test_a_failure_shrinks_to_the_shortest_sequence() -> None:
    def change(output: torch.Tensor) -> torch.Tensor:
        return output + (torch.arange(output.shape[1]) >= 20)[:, None]

    result = try_sizes(
        change, observation=Box(("T", 5)), factory=Recurrent, batch=(4,), examples=60, shrink_seconds=300.0
    )
    assert_differs(result, "output")
    assert result.example.startswith("batch 4; T = 21; ")
