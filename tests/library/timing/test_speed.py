"""What is timed, with which inputs, and what stays unchanged. No test asserts on a real clock."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_checks import check
from torch import nn

from pytest_torchcompile import (
    Box,
    NotTimed,
    Speedup,
    UsageError,
    Verdict,
    check_equivalence,
    compile_policy,
    internals,
    measure_speedup,
)
from pytest_torchcompile.beyond.remarks import Beyond
from pytest_torchcompile.runtime import devices
from pytest_torchcompile.timing import blocks

CASE = {"observation": Box((8,)), "examples": 0, "batch": (4, 6), "benchmark_seconds": 0.05}


@pytest.fixture(autouse=True)
def _few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PAIRS", (5, 8))


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x))


# --- a case of a check ----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_case_that_is_equal_is_timed(phase: str) -> None:
    speedup = check(Agent, phase, **CASE).speedup
    assert speedup is not None
    assert speedup.batch == 4
    assert speedup.threads == torch.get_num_threads()
    assert len(speedup.eager_s) == len(speedup.compiled_s)
    assert len(speedup.eager_s) >= speedup.pairs >= 5
    assert all(seconds > 0 for seconds in speedup.eager_s + speedup.compiled_s)
    assert speedup.interval[0] <= speedup.ratio <= speedup.interval[1]


def test_nothing_is_timed_unless_asked_for() -> None:
    assert check(Agent, **{**CASE, "benchmark_seconds": None}).speedup is None
    assert check(Agent, **{**CASE, "benchmark_seconds": 0}).speedup is None


def test_asking_for_a_speedup_asks_for_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_torchcompile.timing.speed.SECONDS", 0.05)
    result = check(Agent, **{**CASE, "benchmark_seconds": None, "min_speedup": 1000.0})
    assert result.speedup is not None
    assert result.speedup.least == 1000.0
    assert result.speedup.too_slow
    assert result.verdict is Verdict.EQUAL, "slow is not different"


def test_what_differs_is_not_timed() -> None:
    def shifted(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return lambda *args: [out + 1 for out in graph(*args)]

    result = check(Agent, **CASE, backend=shifted)
    assert (result.verdict, result.speedup) == (Verdict.DIFFERS, None)


@pytest.fixture
def nothing_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing is the last thing that is done."""
    monkeypatch.setattr("pytest_torchcompile.check.look_beyond", lambda pair, options: Beyond())


class Looking(Agent):
    """Notes what each call is given, in python, which dynamo leaves as it is."""

    seen: list[tuple[int, bool, bool, bool]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.look(x)
        out: torch.Tensor = super().forward(x.clone())
        x.zero_()
        return out

    @torch.compiler.disable
    def look(self, x: torch.Tensor) -> None:
        fresh = bool((x != 0).any()) and bool((self.norm.num_batches_tracked == 0).all())
        Looking.seen.append((len(x), self.training, torch.is_grad_enabled(), fresh))


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_each_call_has_its_batch_its_phase_and_inputs_and_state_of_its_own(
    phase: str, nothing_rejected: None
) -> None:
    Looking.seen = []
    (result,) = check_equivalence(
        Looking, phases=phase, backend="eager", **CASE, benchmark_batch=3, nonfinite=False
    )
    assert result.speedup is not None, result
    timed = Looking.seen[-2 * len(result.speedup.eager_s) :]
    update = phase == "update"
    assert set(timed) == {(3, update, update, True)}


def test_the_backward_is_timed_with_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that advances only with the backward of a layer."""
    ticks = itertools.count()
    now = [0.0]

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            next(ticks)
            now[0] += 1.0
            return gradient

    layer = nn.Linear(2, 2)

    def call(x: torch.Tensor) -> torch.Tensor:
        return Slow.apply(layer(x))

    from pytest_torchcompile.timing import speed

    watch = speed._Stopwatch(
        speed.side_of(layer, lambda: torch.compiler.set_stance("default")).replaced(
            call, lambda: torch.compiler.set_stance("default")
        ),
        lambda: ((torch.ones(3, 2),), {}),
        phase="update",
        seed=0,
        device=devices.Cpu(),
        timer=lambda: now[0],
    )
    assert watch.call() == 1.0
    assert layer.weight.grad is None


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.layer(x), 0.5)


def test_what_samples_is_timed_with_the_random_numbers_that_it_has_when_deployed(
    nothing_rejected: None,
) -> None:
    """It is compiled once more, because in the check it draws eager's numbers."""
    from torch._inductor import config

    fallback: list[bool] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        fallback.append(config.fallback_random)
        return graph

    assert check(Dropping, **{**CASE, "batch": 4}, backend=backend).speedup is not None
    assert all(fallback[:-1])
    assert fallback[-1] is False
    fallback.clear()
    assert check(Agent, **{**CASE, "batch": 4}, backend=backend).speedup is not None
    assert not any(fallback), "what does not sample is timed as it was checked"


def test_what_samples_and_comes_compiled_is_not_timed() -> None:
    result = check(lambda: torch.compile(Dropping(), backend="eager"), **CASE)
    assert result.speedup is None
    assert "this is not the code that is deployed" in result.untimed


def test_a_timing_that_raises_is_told_and_is_no_failure() -> None:
    """Only the timing uses batch 5."""

    class Fussy(Agent):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) == 5:
                raise ValueError("no fives")
            return super().forward(x)

    result = check(Fussy, **CASE, benchmark_batch=5, backend="eager")
    assert result.verdict.passed
    assert result.untimed.startswith("timing raised ValueError: no fives")


def test_what_never_stops_compiling_is_not_timed() -> None:
    policy = nn.Linear(8, 4)
    calls = itertools.count()

    def growing(x: torch.Tensor) -> torch.Tensor:
        return internals.isolated_compile(lambda y: policy(y) + next(calls), backend="eager")(x)

    with pytest.raises(NotTimed, match="still compiling after 50 calls"):
        measure_speedup(policy, growing, torch.ones(4, 8), seconds=0.05)


def test_break_even_is_the_compile_time_over_what_a_call_saves() -> None:
    from pytest_torchcompile.timing.speed import _break_even

    def taking(eager: float, compiled: float) -> Speedup:
        return Speedup(ratio=1, interval=(1, 1), quiet=1, eager_s=(eager,), compiled_s=(compiled,))

    assert _break_even(taking(0.003, 0.001), 10.0) == 5000
    assert _break_even(taking(0.001, 0.003), 10.0) is None
    assert _break_even(taking(0.001, 0.001), 10.0) is None


# --- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_measure_speedup_of_a_compiled_policy(phase: str) -> None:
    policy = compile_policy(Agent, observation=Box((8,)), backend="eager", phase=phase)
    speedup = measure_speedup(policy.eager, policy, torch.ones(4, 8), phase=phase, seconds=0.05)
    assert speedup.conclusion in ("faster", "slower", "no clear difference", "too few rounds")
    assert speedup.batch is None


def test_measure_speedup_of_functions() -> None:
    speedup = measure_speedup(
        torch.sin, torch.compile(torch.sin, backend="eager"), torch.ones(4), seconds=0.05
    )
    assert speedup.pairs >= 5


def test_inputs_and_modules_are_as_before() -> None:
    model, x = Agent().eval(), torch.ones(4, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compiled = torch.compile(model, backend="eager")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    measure_speedup(model, compiled, x, phase="update", seconds=0.05)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, torch.ones(4, 8))
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.layer.weight.grad is None


def test_usage_errors() -> None:
    with pytest.raises(UsageError, match="phase='train'; accepted: rollout, update"):
        measure_speedup(torch.sin, torch.sin, torch.ones(4), phase="train")
    with pytest.raises(UsageError, match="3 is not callable"):
        measure_speedup(torch.sin, 3, torch.ones(4))  # type: ignore[arg-type]


# --- devices --------------------------------------------------------------------------------------


class FakeAccelerator:
    """Stands in for `torch.accelerator` on a device whose work is done when it is waited for."""

    def __init__(self, kind: str, statistics: bool = True) -> None:
        self.kind = kind
        self.log: list[str] = []
        self._statistics = statistics

    def is_available(self) -> bool:
        return True

    def current_accelerator(self) -> torch.device:
        return torch.device(self.kind)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def reset_peak_memory_stats(self) -> None:
        if not self._statistics:
            raise RuntimeError("not supported")
        self.log.append("reset")

    def memory_allocated(self) -> int:
        return 1000

    def max_memory_allocated(self) -> int:
        return 4096


@pytest.fixture(params=["cuda", "mps"])
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAccelerator]:
    """Everything is on the fake device, as far as timing can tell."""
    fake = FakeAccelerator(request.param, statistics=request.param == "cuda")
    monkeypatch.setattr(torch, "accelerator", fake)
    monkeypatch.setattr("pytest_torchcompile.timing.speed.device_of", lambda tensors: devices.Accelerator())
    yield fake


def test_the_clock_waits_for_the_accelerator(accelerator: FakeAccelerator) -> None:
    def timer() -> float:
        accelerator.log.append("clock")
        return float(len(accelerator.log))

    def sine(x: torch.Tensor) -> torch.Tensor:
        accelerator.log.append("call")
        return torch.sin(x)

    from pytest_torchcompile.timing import speed

    side = speed.side_of(sine, lambda: torch.compiler.set_stance("default"))
    arguments = ((torch.ones(4),), {})
    speed._Stopwatch(
        side, lambda: arguments, phase="rollout", seed=0, device=devices.Accelerator(), timer=timer
    ).call()
    assert accelerator.log == ["synchronize", "clock", "call", "synchronize", "clock"]


def test_memory_is_the_allocators_where_it_tells(accelerator: FakeAccelerator) -> None:
    speedup = measure_speedup(torch.sin, torch.sin, torch.ones(4), seconds=0.05)
    if accelerator.kind == "cuda":
        assert speedup.memory == (3096, 3096)
        assert speedup.figures()["eager_peak_allocated_bytes"] == 3096
    else:
        assert speedup.memory is None


@pytest.mark.parametrize(("place", "kind"), [("cuda", devices.Accelerator), ("cpu", devices.Cpu)])
def test_the_device_is_that_of_the_tensors(
    monkeypatch: pytest.MonkeyPatch, place: str, kind: type[devices.Device]
) -> None:
    monkeypatch.setattr(torch, "accelerator", FakeAccelerator("cuda"))
    fake = type("Somewhere", (), {"device": torch.device(place)})()
    assert isinstance(devices.device_of([fake]), kind)


def test_the_growth_of_the_process() -> None:
    used = devices.Cpu().watch_memory()
    if used() is None:
        pytest.skip("this system does not tell the resident memory")
    # Pages of its own: a tensor may be given memory that earlier tests freed and that is still resident.
    with mmap.mmap(-1, 100_000_000) as pages:
        pages.write(b"x" * len(pages))
        grown = used()
    assert grown is not None
    assert 50_000_000 < grown < 200_000_000


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_STATM", "/no/such/file")
    assert devices.Cpu().watch_memory()() is None
    assert measure_speedup(torch.sin, torch.sin, torch.ones(4), seconds=0.05).memory is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_real_gpu() -> None:
    layer = nn.Linear(64, 64).cuda()
    speedup = measure_speedup(layer, layer, torch.ones(32, 64, device="cuda"), phase="update", seconds=0.2)
    assert speedup.memory is not None
    assert speedup.memory[0] > 0
