"""An exception of the compiler is a compile failure, on any call; an exception of compiled code is not."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checks import assert_passes, check
from torch import nn

from pytest_torchcompile import Box, CheckResult, UsageError, Verdict


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 8)
        self.policy = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.policy(torch.tanh(self.trunk(x)))


def assert_failed(result: CheckResult, *words: str) -> None:
    assert result.verdict is Verdict.COMPILE_FAILED, (result.verdict, result.reason)
    for word in words:
        assert word in result.reason


# --- backends that give up ------------------------------------------------------------------------


def raising(error: Exception, *, on_graph: int = 1) -> Callable[..., Any]:
    """A backend that raises on its `on_graph`-th graph."""
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        if graphs == on_graph:
            raise error
        return graph

    return backend


@pytest.mark.parametrize("phase", ["rollout", "update"])
@pytest.mark.parametrize(
    "error",
    [
        AssertionError("no such layout"),
        AssertionError(),
        UnboundLocalError("cannot access local variable 'buf'"),
        ValueError("nothing to compile\nand a second line"),
        RuntimeError("ran into a wall"),
        NotImplementedError("this operator"),
        KeyError("aten.foo"),
    ],
    ids=lambda error: f"{type(error).__name__} {error}".split("\n")[0].strip(),
)
def test_whatever_leaves_the_backend(error: Exception, phase: str) -> None:
    result = check(Policy, phase, observation=Box((8,)), backend=raising(error))
    assert_failed(result, type(error).__name__, str(error).split("\n")[0], "on call 1 (batch 4)")
    assert "second line" not in result.reason
    assert result.capture.graphs == 0


def test_a_backend_that_compiles() -> None:
    assert_passes(check(Policy, observation=Box((8,)), backend=raising(ValueError("never"), on_graph=99)))


@pytest.mark.parametrize(("number", "batch"), [(2, 7), (3, 1), (4, 33)])
def test_a_later_batch_size(number: int, batch: int) -> None:
    """Static shapes: one graph for each batch size."""
    backend = raising(AssertionError("no such layout"), on_graph=number)
    result = check(Policy, observation=Box((8,)), backend=backend, dynamic=False)
    assert_failed(result, "AssertionError: no such layout", f"(batch {batch})")


def test_the_backward() -> None:
    """The backward is compiled when it is first called, after the forward has succeeded."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def right(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    def gives_up(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise UnboundLocalError("cannot access local variable 'grad'")

    backend = aot_autograd(fw_compiler=right, bw_compiler=gives_up, inference_compiler=right)
    result = check(Policy, "update", observation=Box((8,)), backend=backend)
    assert_failed(result, "UnboundLocalError: cannot access local variable 'grad'", "(batch 4)")
    assert_passes(check(Policy, "rollout", observation=Box((8,)), backend=backend))


# --- dynamo gives up ------------------------------------------------------------------------------


class Branching(Policy):
    """Takes another way for some data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if y.sum() > 0:
            y = y * 2
        return y


def test_a_data_dependent_branch_with_fullgraph() -> None:
    result = check(Branching, observation=Box((8,)), fullgraph=True)
    assert_failed(result, "Unsupported", "Data-dependent branching", "test_compile_failures.py:")


def test_a_data_dependent_branch_without_fullgraph() -> None:
    result = check(Branching, observation=Box((8,)))
    assert_passes(result)
    assert len(result.capture.breaks) == 1


def test_an_explicit_graph_break_with_fullgraph() -> None:
    class Breaking(Policy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            torch._dynamo.graph_break()
            return y + 1

    assert_failed(check(Breaking, observation=Box((8,)), fullgraph=True), "Unsupported")
    assert_passes(check(Breaking, observation=Box((8,))))


def test_a_bare_assertion_inside_dynamo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception is of no compiler type and has no message, as for an LSTM under ``allow_rnn``."""
    from torch._dynamo.output_graph import OutputGraph

    def asserts(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(OutputGraph, "compile_subgraph", asserts)
        result = check(Policy, observation=Box((8,)))
    assert_failed(result, "AssertionError")
    assert_passes(check(Policy, observation=Box((8,))))


class Memory(nn.Module):
    """An LSTM; dynamo leaves those out unless ``allow_rnn`` is on."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def test_a_bare_assertion_out_of_the_compilers_own_code() -> None:
    """AOTAutograd asserts when the compiled forward first runs; no compile is in progress then."""
    with torch._dynamo.config.patch(allow_rnn=True):
        result = check(Memory, "update", observation=Box((3, 8)), backend="aot_eager")
        assert_failed(result, "AssertionError", "_aot_autograd")
        assert_passes(check(Memory, "rollout", observation=Box((3, 8)), backend="aot_eager"))


# --- inductor gives up ----------------------------------------------------------------------------

INDUCTOR = {"backend": "inductor", "examples": 2, "batch": 4}


@pytest.fixture
def no_cache() -> Any:
    """Nothing that an earlier run compiled is found."""
    with torch._inductor.config.patch(force_disable_caches=True):
        yield


def test_no_compiler(no_cache: None, tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-compiler")
    with torch._inductor.config.patch({"cpp.cxx": (missing,)}):
        result = check(Policy, observation=Box((8,)), **INDUCTOR)
    assert_failed(result, "on call 1 (batch 4)")
    assert "InvalidCxxCompiler" in result.reason or "no-such-compiler" in result.reason


def test_no_compiler_in_the_backward(no_cache: None, tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-compiler")
    with torch._inductor.config.patch({"cpp.cxx": (missing,)}):
        result = check(Policy, "update", observation=Box((8,)), **INDUCTOR)
    assert_failed(result)


@pytest.fixture
def unlowerable() -> Any:
    """An operator of our own for which inductor has a lowering that fails."""
    from torch._inductor.lowering import lowerings, register_lowering

    library = torch.library.Library("ptc_test", "DEF")
    library.define("halve(Tensor x) -> Tensor")
    library.impl("halve", lambda x: x / 2, "CompositeExplicitAutograd")
    library.impl("halve", lambda x: torch.empty_like(x), "Meta")
    operator = torch.ops.ptc_test.halve.default

    @register_lowering(operator, type_promotion_kind=None)
    def lower(x: Any) -> Any:
        raise NotImplementedError("halving is beyond me")

    yield torch.ops.ptc_test.halve
    lowerings.pop(operator, None)
    library._destroy()


def test_an_operator_that_inductor_cannot_lower(unlowerable: Any) -> None:
    class Halving(Policy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return unlowerable(super().forward(x).detach())

    result = check(Halving, observation=Box((8,)), **INDUCTOR)
    assert_failed(result, "LoweringException", "halving is beyond me")
    assert_passes(check(Halving, observation=Box((8,))))


# --- not the compiler's doing ---------------------------------------------------------------------


def failing_kernel(error: Exception, *, on_call: int = 1) -> Callable[..., Any]:
    """A backend whose code raises when it runs."""
    calls = 0

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= on_call:
                raise error
            return graph(*args)

        return run

    return backend


@pytest.mark.parametrize("on_call", [1, 6])
@pytest.mark.parametrize(
    "error",
    [RuntimeError("expected size 4, got 5"), AssertionError("wrong stride"), IndexError("out of range")],
    ids=lambda error: type(error).__name__,
)
def test_a_kernel_that_raises_is_a_difference(error: Exception, on_call: int) -> None:
    result = check(Policy, observation=Box((8,)), backend=failing_kernel(error, on_call=on_call))
    assert result.verdict is Verdict.DIFFERS
    assert result.differences[0].problem == "exception"
    assert type(error).__name__ in result.differences[0].compiled
    assert str(error) in result.differences[0].compiled


def test_a_kernel_of_the_backward_that_raises_is_a_difference() -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def right(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    def raises(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            raise RuntimeError("wrong stride")

        return make_boxed_func(run)

    backend = aot_autograd(fw_compiler=right, bw_compiler=raises, inference_compiler=right)
    result = check(Policy, "update", observation=Box((8,)), backend=backend)
    assert result.verdict is Verdict.DIFFERS
    assert "RuntimeError" in result.differences[0].compiled


def test_a_difference_found_before_a_later_compile_fails_is_a_difference() -> None:
    """Compiler exceptions after the first call are failures to compile, unless a difference came first."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        if inputs[-1].shape[0] == 7 or any(getattr(i, "shape", (0,))[:1] == (7,) for i in inputs):
            raise AssertionError("no such layout")
        return lambda *args: tuple(output + 1e-2 for output in graph(*args))

    result = check(Policy, observation=Box((8,)), backend=backend, dynamic=False)
    assert result.verdict is Verdict.DIFFERS


@pytest.mark.parametrize("fails", [False, True])
def test_a_difference_stays_one_where_a_smaller_example_does_not_compile(fails: bool) -> None:
    graphs = itertools.count()

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        if next(graphs) and fails:
            raise AssertionError("no such layout")
        return lambda *args: tuple(output + 1e-2 for output in graph(*args))

    result = check(Policy, observation=Box((8,)), backend=backend, shrink_seconds=60)
    assert result.verdict is Verdict.DIFFERS
    assert next(graphs) > 1, "it was made smaller"


class Raising(Policy):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such action")


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_model_that_fails_in_eager(phase: str) -> None:
    result = check(Raising, phase, observation=Box((8,)))
    assert result.verdict is Verdict.EAGER_FAILED
    assert "KeyError" in result.reason
    assert "no such action" in result.reason
    assert result.capture.graphs == 0, "nothing was compiled for it"


def test_a_model_that_fails_in_the_eager_backward() -> None:
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise KeyError("no gradient")

    class Failing(Policy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Backward.apply(super().forward(x))

    result = check(Failing, "update", observation=Box((8,)))
    assert result.verdict is Verdict.EAGER_FAILED
    assert "no gradient" in result.reason


def test_an_observation_of_the_wrong_shape() -> None:
    result = check(Policy, observation=Box((9,)))
    assert result.verdict is Verdict.EAGER_FAILED
    assert "mat1 and mat2 shapes cannot be multiplied" in result.reason
    assert "batch 4" in result.reason


def test_a_model_that_runs_out_of_memory_is_no_verdict() -> None:
    class Hungry(Policy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise MemoryError

    with pytest.raises(MemoryError):
        check(Hungry, observation=Box((8,)))


def test_a_backend_that_torch_does_not_know_is_the_users_mistake() -> None:
    with pytest.raises(
        UsageError, match=r"^backend='inductr'.* is unknown to torch \(did you mean 'inductor'"
    ):
        check(Policy, observation=Box((8,)), backend="inductr")


def test_an_inductor_option_that_torch_does_not_know_is_the_users_mistake() -> None:
    with pytest.raises(UsageError, match="no_such_option"):
        check(Policy, observation=Box((8,)), backend="inductor", options={"no_such_option": 1})


# --- warnings as errors ---------------------------------------------------------------------------


@functools.lru_cache
def factor() -> float:
    return 2.0


class Cached(Policy):
    """Calls a function with an ``lru_cache``, about which dynamo warns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * factor()


def test_warnings_as_errors_change_nothing() -> None:
    """Under ``-W error`` a warning of dynamo would raise InternalTorchDynamoError if it were not silenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_passes(check(Cached, observation=Box((8,))))
        assert_failed(check(Branching, observation=Box((8,)), fullgraph=True), "Unsupported")


class Ring(Policy):
    """Writes at a position that is a tensor, which AOTAutograd can't compile."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ring", torch.zeros(16, 4))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        self.ring[self.at] = y.mean(0).detach()  # the line
        return y + self.ring.sum(0)


def test_what_a_backend_raises_is_told_with_the_users_line() -> None:
    """Dynamo puts it into a message of its own, which begins with nothing that helps."""
    result = check(Ring, observation=Box((8,)), backend="aot_eager")
    assert_passes(result)
    line = next(
        n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# the line" in text
    )
    told = next(note for note in result.notes if "torch ran that part eager" in note)
    assert "aten._local_scalar_dense.default, in the backend (at " in told
    assert f"test_compile_failures.py:{line})" in told
