"""Samplers as deployed: faults that show only without eager's random numbers, and their correct controls.

The faults are in a backend that compiles correctly if it has to draw eager's numbers, as the check
requires of inductor, and wrongly as it is deployed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_checks import check
from torch import nn
from torch.distributions import Bernoulli, Beta, Categorical, Normal
from torch.overrides import TorchFunctionMode
from torch_versions import needs_torch

from pytest_torchcompile import Box, CheckResult, Verdict, options
from pytest_torchcompile.checking.sampling import FALSE_ALARMS
from pytest_torchcompile.comparing.distributions import Series, Watched, merged, repeats, series_of, still
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.reports.failure import failure_text

Wrong = Callable[[str, Any, tuple[Any, ...]], Any]
"""Given a function's name, what it returned and its arguments, returns what is to come in its place."""

NORMALS = ("randn_like", "normal", "randn")


class WrongNumbers(TorchFunctionMode):
    """Changes what torch's samplers return."""

    def __init__(self, wrong: Wrong) -> None:
        super().__init__()
        self.wrong = wrong

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        return self.wrong(getattr(func, "__name__", ""), returned, args)


def deployed_with(wrong: Wrong) -> Callable[..., Any]:
    """A backend that draws `wrong` numbers unless it compiles under ``fallback_random``."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        if torch._inductor.config.fallback_random:
            return graph.forward

        def run(*args: Any) -> Any:
            with WrongNumbers(wrong):
                return graph(*args)

        return run

    return backend


def sampled(model: Callable[[], nn.Module], wrong: Wrong | None = None, **arguments: Any) -> CheckResult:
    backend = "eager" if wrong is None else deployed_with(wrong)
    given = {
        "observation": Box((8,)),
        "backend": backend,
        "examples": 0,
        "samples": 500,
        "batch": (4, 33),
        "nonfinite": False,
    }
    return check(model, **(given | arguments))


class Sampler(nn.Module):
    """One layer, and what is drawn from it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.dropout = nn.Dropout(0.5)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        y = self.layer(x)
        match self.kind:
            case "noise":
                return y + torch.randn_like(y)
            case "normal":
                normal = Normal(y, y.exp().clamp(0.1, 2))
                action = normal.sample()
                return action, normal.log_prob(action).sum(-1)
            case "clamped":
                return (y + torch.randn_like(y)).clamp(-1, 1)
            case "categorical":
                choices = Categorical(logits=y)
                action = choices.sample()
                return {"action": action, "log_prob": choices.log_prob(action), "choices": choices}
            case "bernoulli":
                return Bernoulli(logits=y).sample()
            case "beta":
                return Beta(y.exp() + 1, y.exp() + 1).sample()
            case "dropout":
                return self.dropout(torch.relu(y))
            case "small":
                return y + 1e-3 * torch.randn_like(y)
            case _:
                return y


KINDS = ["noise", "normal", "clamped", "categorical", "bernoulli", "beta", "dropout", "small"]


def text(result: CheckResult) -> str:
    return failure_text(result)


# --- controls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_sampler(kind: str) -> None:
    phase = "update" if kind == "dropout" else "rollout"
    result = sampled(lambda: Sampler(kind), phase=phase, backend="aot_eager")
    assert result.verdict in {Verdict.EQUAL, Verdict.WITHIN_ROUNDING}, text(result)
    (note,) = (note for note in result.notes if "draws" in note)
    assert note == (
        "as deployed, 500 draws on each of 2 examples follow eager's distribution (false alarm: 1 in 10,000)"
    )


@needs_torch("2.10", "can be made to draw in eager's order")
@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_inductors_own_random_numbers(phase: str) -> None:
    """With inductor, which draws other numbers than eager, with other code."""

    class Agent(Sampler):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.layer(self.dropout(x))
            choices = Categorical(logits=y)
            action = choices.sample()
            return action, choices.log_prob(action), y + torch.randn_like(y)

    result = sampled(lambda: Agent(""), phase=phase, backend="inductor", batch=(4, 9))
    assert_result_passes(result)


def assert_result_passes(result: CheckResult) -> None:
    assert result.verdict.passed, text(result)
    assert any("follow eager's distribution" in note for note in result.notes), result.notes


def test_what_draws_nothing() -> None:
    result = sampled(lambda: Sampler(""))
    assert result.verdict.passed
    assert "samples=500: eager draws no random numbers, so there is nothing to sample" in result.notes


def test_numbers_drawn_in_vain() -> None:
    class InVain(Sampler):
        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(x) + 0 * torch.randn(())

    (note,) = sampled(lambda: InVain("")).notes
    assert note.startswith("samples=500: eager draws random numbers, but no output, state")


def test_off_unless_asked_for() -> None:
    wrong = sampled(lambda: Sampler("noise"), lambda name, y, args: 0 * y, samples=0)
    assert (wrong.verdict, wrong.notes) == (Verdict.EQUAL, ())


def test_a_model_whose_counter_changes_what_it_draws() -> None:
    """Both sides draw alternately, so the counter has the same value on both."""

    class Annealed(Sampler):
        def __init__(self) -> None:
            super().__init__("")
            self.step = 0

        def forward(self, x: torch.Tensor) -> Any:
            self.step = 1 - self.step
            y = self.layer(x)
            return y + torch.randn_like(y) / (5 if self.step else 1)

    assert_result_passes(sampled(Annealed, samples=100, batch=4))


# --- faults ---------------------------------------------------------------------------------------


def deviates(share: float) -> Wrong:
    return lambda name, y, args: y * share if name in NORMALS else y


def shared_by_rows(name: str, y: Any, args: tuple[Any, ...]) -> Any:
    return y[:1].expand_as(y) if name in NORMALS else y


def shared_by_elements(name: str, y: Any, args: tuple[Any, ...]) -> Any:
    return y[:, :1].expand_as(y) if name in NORMALS else y


def other_dropout(name: str, y: Any, args: tuple[Any, ...]) -> Any:
    return torch.ops.aten.dropout(args[0], 0.4, True) if name == "dropout" else y


def never_dropped(name: str, y: Any, args: tuple[Any, ...]) -> Any:
    return args[0] if name == "dropout" else y


def off_by_one(name: str, y: Any, args: tuple[Any, ...]) -> Any:
    return (y + 1) % 4 if name == "multinomial" else y


def flattened(name: str, y: Any, args: tuple[Any, ...]) -> Any:
    """Probabilities a fifth of the way to uniform."""
    if name != "multinomial":
        return y
    uniform = torch.ops.aten.randint(4, list(y.shape), device="cpu")
    return torch.where(torch.ops.aten.rand(list(y.shape), device="cpu") < 0.2, uniform, y)


def cycling(length: int) -> Callable[[], Wrong]:
    """The numbers of the first `length` calls, again and again."""

    def make() -> Wrong:
        kept: dict[tuple[int, ...], list[torch.Tensor]] = {}
        calls: dict[tuple[int, ...], int] = {}

        def wrong(name: str, y: Any, args: tuple[Any, ...]) -> Any:
            if name not in NORMALS:
                return y
            drawn = kept.setdefault(tuple(y.shape), [])
            number = calls[tuple(y.shape)] = calls.get(tuple(y.shape), -1) + 1
            if len(drawn) < length:
                drawn.append(y.clone())
            return drawn[number % length]

        return wrong

    return make


def sliding() -> Wrong:
    """Half of each call's numbers are the last call's."""
    last: dict[tuple[int, ...], torch.Tensor] = {}

    def wrong(name: str, y: Any, args: tuple[Any, ...]) -> Any:
        if name not in NORMALS:
            return y
        mixed = (y + last.get(tuple(y.shape), y)) / 2**0.5
        last[tuple(y.shape)] = y
        return mixed

    return wrong


FAULTS = {
    "standard deviation 10 % off": ("noise", lambda: deviates(1.1), "standard deviation"),
    "standard deviation 10 % off, a Normal": ("normal", lambda: deviates(1.1), "standard deviation"),
    "a shifted mean": ("noise", lambda: lambda n, y, a: y + 0.2 if n in NORMALS else y, "mean"),
    "no noise at all": ("noise", lambda: deviates(0.0), "standard deviation"),
    "small noise that is wrong": ("small", lambda: deviates(2.0), "standard deviation"),
    "frozen": ("noise", cycling(1), "mean"),
    "a circle of 7 calls": ("noise", cycling(7), "mean"),
    "a circle of 100 calls": ("noise", cycling(100), "of the outcomes came more than once"),
    "half of the last call's": ("noise", sliding, "next call"),
    "one noise for all rows": ("noise", lambda: shared_by_rows, "next row"),
    "one noise for all elements": ("noise", lambda: shared_by_elements, "next element"),
    "clamped, wider": ("clamped", lambda: deviates(1.3), "standard deviation"),
    "dropout 0.4 for 0.5": ("dropout", lambda: other_dropout, ""),
    "nothing dropped": ("dropout", lambda: never_dropped, ""),
    "a category too far": ("categorical", lambda: off_by_one, "%"),
    "flatter probabilities": ("categorical", lambda: flattened, ""),
    "always the likelier": (
        "bernoulli",
        lambda: lambda n, y, a: (a[0] > 0.5).float() if n == "bernoulli" else y,
        "%",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_sampler(fault: str) -> None:
    kind, make, words = FAULTS[fault]
    phase = "update" if kind == "dropout" else "rollout"
    result = sampled(lambda: Sampler(kind), make(), phase=phase)
    assert result.verdict is Verdict.DIFFERS, f"missed: {text(result)}"
    assert result.reason == (
        "as deployed, without eager's random numbers, it does not draw from eager's distribution"
    )
    first = result.differences[0]
    assert first.problem == "distribution"
    assert first.chance is not None and first.chance < first.allowed < FALSE_ALARMS
    assert words in first.eager + first.compiled, text(result)


@pytest.mark.parametrize("fault", FAULTS)
def test_draw_for_draw_it_is_right(fault: str) -> None:
    """Only samples show the faults above."""
    kind, make, _ = FAULTS[fault]
    phase = "update" if kind == "dropout" else "rollout"
    assert sampled(lambda: Sampler(kind), make(), phase=phase, samples=0).verdict.passed


def test_the_message() -> None:
    result = sampled(lambda: Sampler("noise"), deviates(2.0), batch=4)
    lines = text(result).splitlines()
    assert lines[0].startswith("compiled differs from eager: forward, rollout phase, backend ")
    assert "as deployed" in lines[2]
    assert lines[4].startswith("  output[") and lines[4].endswith("]: distribution")
    assert " in 500 draws" in lines[5] and "standard deviation" in lines[6]
    assert lines[7].startswith("    chance      ")
    assert lines[8].strip().startswith("unequal") and lines[8].endswith(" of 16 elements")
    assert any(line.startswith("  example   batch 4") for line in lines)


def test_compiled_raises_only_as_deployed() -> None:
    def wrong(name: str, y: Any, args: tuple[Any, ...]) -> Any:
        if name in NORMALS:
            raise RuntimeError("no such kernel")
        return y

    result = sampled(lambda: Sampler("noise"), wrong)
    assert result.verdict is Verdict.DIFFERS
    assert result.differences[0].problem == "exception"
    assert result.differences[0].compiled == "raises RuntimeError: no such kernel on draw 1"


def test_a_backend_that_fails_only_as_deployed() -> None:
    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        if torch._inductor.config.fallback_random:
            return graph.forward
        raise NotImplementedError("no random numbers here")

    result = sampled(lambda: Sampler("noise"), backend=backend)
    assert result.verdict is Verdict.COMPILE_FAILED
    assert "no random numbers here" in result.reason
    assert "without eager's random numbers" in result.reason


def test_another_shape_as_deployed() -> None:
    class Rows(Sampler):
        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(x) + torch.randn_like(self.layer(x))

    backend = deployed_with(lambda name, y, args: y[None] if name in NORMALS else y)
    result = sampled(lambda: Rows(""), backend=backend)
    assert result.verdict is Verdict.DIFFERS


def test_eager_that_raises_in_the_end_concludes_nothing() -> None:
    calls = []

    class WearsOut(Sampler):
        def forward(self, x: torch.Tensor) -> Any:
            if not torch.compiler.is_compiling():
                calls.append(1)
                if len(calls) > 150:
                    raise ValueError("worn out")
            return super().forward(x)

    result = sampled(lambda: WearsOut("noise"))
    assert result.verdict.passed
    (note,) = result.notes
    assert note.startswith("samples=500: nothing was concluded, eager raises ValueError: worn out (at ")


# --- what came compiled ---------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, deviates(1.5)], ids=["right", "wrong"])
def test_what_came_compiled_is_compiled_anew(wrong: Wrong | None) -> None:
    def factory() -> Any:
        return torch.compile(Sampler("noise"), backend=deployed_with(wrong or (lambda name, y, args: y)))

    result = sampled(factory)
    assert result.verdict is (Verdict.EQUAL if wrong is None else Verdict.DIFFERS), text(result)
    assert result.backend == "as deployed"


# --- scipy ----------------------------------------------------------------------------------------


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    assert CheckOptions.merge(("the marker", {"samples": 0})).samples == 0
    with pytest.raises(UsageError) as raised:
        CheckOptions.merge(("the marker", {"samples": 1000}))
    assert str(raised.value) == (
        "samples=1000 (the marker) needs scipy, which is not installed: "
        'pip install "pytest-torchcompile[sampling]"'
    )


# --- the statistics by themselves -----------------------------------------------------------------


def smallest_chance(eager: np.ndarray, compiled: np.ndarray, shape: tuple[int, ...]) -> float:
    """The smallest chance times the number of tests, as a check would judge one tensor."""
    watched = Watched.of(shape, 64)
    columns = [side.reshape(len(side), -1)[:, watched.columns] for side in (eager, compiled)]
    moving = ~(still(columns[0], 1e-5, 1e-5) & still(columns[1], 1e-5, 1e-5))
    chances = [series.chance() for series in series_of(*columns, watched, moving)]
    return min(*chances, repeats(*(side[:, moving] for side in columns))[2]) * (len(chances) + 1)


DRAWS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda r: r.normal(size=(200, 4, 2)).astype(np.float32),
    "categories": lambda r: r.choice(4, p=[0.5, 0.3, 0.15, 0.05], size=(200, 8)),
    "clamped": lambda r: r.normal(size=(200, 4, 2)).clip(-1, 1),
    "dropped": lambda r: (r.random((200, 4, 4)) < 0.5) * np.arange(1.0, 17.0).reshape(4, 4),
    "rarely not finite": lambda r: np.where(r.random((200, 4)) < 0.1, np.inf, r.normal(size=(200, 4))),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_chances_are_not_understated(kind: str) -> None:
    """Of 60 comparisons of equal distributions, about one in ten has a p-value below 0.1, and none far below."""
    chances = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        eager, compiled = DRAWS[kind](generator), DRAWS[kind](generator)
        chances.append(smallest_chance(eager, compiled, eager.shape[1:]))
    assert sum(chance < 0.1 for chance in chances) <= 14
    assert min(chances) > FALSE_ALARMS


@pytest.mark.parametrize("kind", ["categories", "dropped", "clamped"])
def test_rounding_of_repeated_values_is_no_difference(kind: str) -> None:
    generator = np.random.default_rng(0)
    eager, compiled = (DRAWS[kind](generator) / 3 for _ in range(2))
    rounded = compiled * (1 + 1e-6)
    assert smallest_chance(eager, rounded, eager.shape[1:]) > FALSE_ALARMS
    assert smallest_chance(eager, compiled * 1.1 + 0.1, eager.shape[1:]) < FALSE_ALARMS


def test_only_what_repeats_is_merged() -> None:
    values = np.array([0.1, 0.1, 0.1, 0.1000001, 0.5, 0.5000001, 2.0])
    assert merged(values).tolist() == [0.1, 0.1, 0.1, 0.1, 0.5, 0.5000001, 2.0]
    dense = np.repeat(0.5 + np.arange(400) * 1e-7, 5)
    assert len(np.unique(merged(dense))) > 50


def test_which_elements_are_watched() -> None:
    small = Watched.of((3, 2), 64)
    assert small.columns.tolist() == [0, 1, 2, 3, 4, 5]
    assert small.below.tolist() == [[0, 2], [1, 3], [2, 4], [3, 5]]
    assert small.beside.tolist() == [[0, 1], [2, 3], [4, 5]]
    large = Watched.of((33, 13527), 64)
    assert len(large.elements) == 64
    assert len(large.columns) <= 3 * 64
    assert Watched.of((), 64).columns.tolist() == [0]
    assert Watched.of((5,), 64).beside.tolist() == []


def test_a_chance_is_exact() -> None:
    """Ten draws of each side: all of eager's below all of compiled's has the probability 2 / C(20, 10)."""
    series = Series(what="", column=0, eager=np.arange(10.0), compiled=np.arange(10.0) + 100)
    assert series.chance() == pytest.approx(2 / 184756)
