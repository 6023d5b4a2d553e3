"""State that is neither buffer nor tensor attribute is restored or named, and hides no difference."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_checks import assert_differs, assert_passes, check
from torch import nn

from pytest_torchcompile import Box, Verdict

OBSERVATION = Box((8,))


def scaled(factor: float) -> Callable[..., Any]:
    """A backend whose outputs are wrong by a factor."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            return [
                out * factor if isinstance(out, torch.Tensor) and out.is_floating_point() else out
                for out in graph(*args)
            ]

        return run

    return backend


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)


class RunningMean:
    def __init__(self) -> None:
        self.mean = torch.zeros(8)


class PlainObject(Base):
    """A running normaliser that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.normaliser = RunningMean()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.normaliser.mean = 0.9 * self.normaliser.mean + 0.1 * x.detach().mean(0)
        return torch.as_tensor(self.layer(x - self.normaliser.mean))


class Cached:
    """Like Stable-Baselines3's distributions: plain until it is first used."""

    def __init__(self) -> None:
        self.distribution: torch.distributions.Distribution | None = None


class PlainUntilCalled(Base):
    def __init__(self) -> None:
        super().__init__()
        self.cached = Cached()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cached.distribution = torch.distributions.Categorical(logits=self.layer(x).nan_to_num(0, 0, 0))
        return torch.as_tensor(self.cached.distribution.logits)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Config:
    scale: float = 2.0


class Configured(Base):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x) * self.config.scale)


class Replaced(PlainObject):
    """Makes a new object on each call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = 0.9 * self.normaliser.mean + 0.1 * x.detach().mean(0)
        self.normaliser = RunningMean()
        self.normaliser.mean = mean
        return torch.as_tensor(self.layer(x - mean))


class Deque(Base):
    def __init__(self) -> None:
        super().__init__()
        self.history: collections.deque[torch.Tensor] = collections.deque(maxlen=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.history.append(x.detach().mean())
        return torch.as_tensor(self.layer(x) + torch.stack(list(self.history)).mean())


class Array(Base):
    """A numpy array written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.total = np.zeros(1, dtype=np.float32)

    @torch.compiler.disable
    def add(self, x: torch.Tensor) -> float:
        self.total += float(x.detach().nan_to_num(0, 0, 0).mean())
        return float(self.total[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x) + self.add(x))


class ReadOnly(Base):
    """An array that nobody can write to, such as the bounds of a space."""

    def __init__(self) -> None:
        super().__init__()
        self.low = np.broadcast_to(np.float32(-1), (8,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x))


class OwnGenerator(Base):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x) + torch.randn(len(x), 3, generator=self.generator))


class OwnNumpyGenerator(Base):
    def __init__(self, generator: Any = None) -> None:
        super().__init__()
        self.generator = generator or np.random.default_rng(1)

    @torch.compiler.disable
    def noise(self, n: int) -> torch.Tensor:
        drawn = [self.generator.random() for _ in range(n)]
        return torch.tensor(drawn, dtype=torch.float32).unsqueeze(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x) + self.noise(len(x)))


MODELS = {
    "a plain object": PlainObject,
    "an object that is plain until it is used": PlainUntilCalled,
    "a frozen object": Configured,
    "an object that is replaced": Replaced,
    "a deque": Deque,
    "an array": Array,
    "a read-only array": ReadOnly,
    "a generator of torch's": OwnGenerator,
    "a generator of numpy's": OwnNumpyGenerator,
    "a generator of numpy's old kind": lambda: OwnNumpyGenerator(np.random.RandomState(1)),
    "a generator of python's": lambda: OwnNumpyGenerator(random.Random(1)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_it_is_put_back(model: Callable[[], nn.Module], phase: str) -> None:
    result = check(model, phase, observation=OBSERVATION)
    assert_passes(result)
    assert result.verdict is Verdict.EQUAL


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_it_excuses_nothing(model: Callable[[], nn.Module]) -> None:
    result = check(model, observation=OBSERVATION, backend=scaled(1.001))
    assert result.verdict is Verdict.DIFFERS


class Rewound(Base):
    """Draws from a generator of its own; compiled, the draw `changes` its state afterwards."""

    def __init__(self, generator: Any, changes: Callable[[Any], Any] | None) -> None:
        super().__init__()
        self.noise = {"generator": generator}
        self.changes = changes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        compiled = torch.compiler.is_compiling()
        return torch.as_tensor(self.layer(x) + self.drawn(compiled))

    @torch.compiler.disable
    def drawn(self, compiled: bool) -> torch.Tensor:
        generator = self.noise["generator"]
        is_torch = isinstance(generator, torch.Generator)
        drawn = torch.rand((), generator=generator) if is_torch else torch.tensor(float(generator.random()))
        if compiled and self.changes is not None:
            self.changes(generator)
        return drawn


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch": (lambda: torch.Generator().manual_seed(1), lambda g: g.manual_seed(1)),
    "torch, twice": (lambda: torch.Generator().manual_seed(1), lambda g: torch.rand((), generator=g)),
    "numpy": (lambda: np.random.default_rng(1), lambda g: g.random()),
    "numpy's old kind": (lambda: np.random.RandomState(1), lambda g: g.seed(1)),
    "python": (lambda: random.Random(1), lambda g: g.seed(1)),
}


@pytest.mark.parametrize("phase", ["rollout", "update"])
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_that_compiled_leaves_in_another_state_is_found(kind: str, phase: str) -> None:
    make, changes = GENERATORS[kind]
    wrong = check(lambda: Rewound(make(), changes), phase, observation=OBSERVATION, backend="aot_eager")
    assert_differs(wrong, "generator noise.generator", "random state")
    (found,) = wrong.differences
    rewinds = kind not in ("torch, twice", "numpy")
    assert (found.eager, found.compiled) == ("drew", "did not draw" if rewinds else "drew differently")
    right = check(lambda: Rewound(make(), None), phase, observation=OBSERVATION, backend="aot_eager")
    assert_passes(right)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
def test_a_policy_that_draws_from_its_own_generator_passes(phase: str, backend: str) -> None:
    result = check(OwnGenerator, phase, observation=OBSERVATION, backend=backend)
    assert result.verdict is Verdict.EQUAL


_calls = itertools.count(1)


class Global(Base):
    """Depends on how often it has been called, by a count that the module does not hold."""

    @torch.compiler.disable
    def count(self) -> float:
        return float(next(_calls))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x) * self.count())


@pytest.mark.parametrize("backend", ["eager", scaled(1.5)], ids=["right", "wrong"])
def test_what_can_not_be_put_back_is_named_and_nothing_is_concluded(backend: Any) -> None:
    result = check(Global, observation=OBSERVATION, backend=backend)
    assert result.verdict is Verdict.EAGER_FAILED
    assert result.reason.startswith("eager does not repeat itself on one example under one seed: output[")
    assert "Keep that state in buffers" in result.reason


class Discretised(nn.Module):
    """Of a NaN it makes an index that is out of range."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = (x * 4.99 + 5).long().clamp(max=9)
        return torch.as_tensor(self.embedding(index).sum(1))


def finite(value: Any) -> Any:
    return torch.nan_to_num(value) if isinstance(value, torch.Tensor) else value


def raising(error: type[Exception] | None) -> Callable[..., Any]:
    """A backend whose kernels reject a NaN with an error of their own, or (None) take it."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            tensors = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
            if any(bool(a.isnan().any()) for a in tensors):
                if error is not None:
                    raise error("index out of bounds")
                return [torch.zeros(out.shape) for out in graph(*map(finite, args))]
            return graph(*args)

        return run

    return backend


class Clamped(Discretised):
    """Takes any number, and no NaN."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.clamp(-1, 1))


def test_both_reject_in_words_of_their_own() -> None:
    assert_passes(check(Clamped, observation=Box((8,)), backend=raising(RuntimeError)))
    result = check(Clamped, observation=Box((8,)), backend=raising(None))
    assert_passes(result)
    (remark,) = result.remarks
    assert remark.startswith("on inputs with a NaN or an infinity eager raises IndexError")
    assert remark.endswith("and compiled returns")


class Opaque:
    """What is no plain data."""

    __slots__ = ()


class InNumpy:
    """A normaliser in numpy, as Stable-Baselines3's, beside something that is no state."""

    def __init__(self) -> None:
        self.mean, self.beside = np.zeros(3), Opaque()

    def add(self, y: torch.Tensor) -> None:
        self.mean = self.mean + y.detach().mean(0).numpy()


class InPlace(InNumpy):
    def add(self, y: torch.Tensor) -> None:
        self.mean += y.detach().mean(0).numpy()


class Listed(InNumpy):
    def __init__(self) -> None:
        self.mean, self.beside = [np.zeros(3)], Opaque()

    def add(self, y: torch.Tensor) -> None:
        self.mean[0] = self.mean[0] + y.detach().mean(0).numpy()


@pytest.mark.parametrize("normaliser", [InNumpy, InPlace, Listed])
def test_plain_data_beside_what_is_not_is_put_back(normaliser: Any) -> None:
    class Normalises(Base):
        def __init__(self) -> None:
            super().__init__()
            self.normaliser = normaliser()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x)
            out = y - torch.as_tensor(np.asarray(self.normaliser.mean), dtype=torch.float32)
            self.normaliser.add(y)
            return out

    assert_passes(check(Normalises, observation=OBSERVATION, nonfinite=False))
    faulty = check(Normalises, observation=OBSERVATION, nonfinite=False, backend=scaled(1.01))
    assert any(d.path.startswith("attribute normaliser.mean") for d in faulty.differences)


class Normaliser(nn.Module):
    """As in rl_games: TorchScript puts a new tensor in the place of the buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count = self.count + x.shape[0]
        return x / self.count


class Body(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


class Scripted(nn.Module):
    """Dynamo leaves what is scripted eager, and compiles the body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.normaliser = Body(), torch.jit.script(Normaliser())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(self.normaliser(x))
        return out


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_submodule_is_put_back() -> None:
    assert_passes(check(Scripted, observation=OBSERVATION))
    assert_differs(check(Scripted, observation=OBSERVATION, backend=scaled(1.01)), "output")


class Numbered(nn.Module):
    """Counts its calls in a number that only some policies read."""

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.actor, self.critic = nn.Linear(8, 4), nn.Linear(8, 1)
        self.calls, self.read = 0, read

    @torch.compiler.disable
    def count(self) -> None:
        self.calls += 1

    def forward(self, x: torch.Tensor) -> Any:
        self.count()
        return self.actor(x) * (1.0 if not self.read or self.calls >= 0 else 2.0), self.critic(x)


@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
def test_a_count_of_calls_is_right_however_often_a_check_calls(phase: str) -> None:
    """The update phase learns from each output alone too, by further calls on one example."""
    assert_passes(check(functools.partial(Numbered, False), phase, observation=Box((8,))))
    read = check(functools.partial(Numbered, True), phase, observation=Box((8,)))
    assert read.verdict is Verdict.NOT_COMPILED
    assert "compiled again for shapes already seen" in read.reason


class Averaging(nn.Module):
    """A mean of all observations, in a buffer that is None before the first."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("mean", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        new = x.detach().mean(0) * (self.factor if torch.compiler.is_compiling() else 1.0)
        self.mean = new if self.mean is None else torch.lerp(self.mean, new, 0.1)
        return self.layer(x)


class AveragingWrongly(Averaging):
    factor = 1.5


@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
def test_a_buffer_that_is_none_before_the_first_call(phase: str) -> None:
    assert_passes(check(Averaging, phase, observation=OBSERVATION, nonfinite=False))
    assert_differs(check(AveragingWrongly, phase, observation=OBSERVATION, nonfinite=False), "buffer mean")


class MadeLazily(Base):
    """Makes a tensor in its first call, and sets a flag that its class defines."""

    is_ready = False
    factor = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.is_ready:
            self.scale = torch.full((3,), 2.0)
            self.is_ready = True
        factor = self.factor if torch.compiler.is_compiling() else 1.0
        return self.layer(x) * self.scale * factor


class MadeLazilyWithOwnFlag(MadeLazily):
    def __init__(self) -> None:
        super().__init__()
        self.is_ready = False


@pytest.mark.parametrize("policy", [MadeLazily, MadeLazilyWithOwnFlag])
@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
def test_a_flag_of_a_lazy_initialisation_is_restored_with_what_was_made(
    phase: str, policy: type[MadeLazily]
) -> None:
    right = check(policy, phase, observation=OBSERVATION)
    assert_passes(right)
    assert not right.notes
    wrong = type("Wrong", (policy,), {"factor": 1.5})
    assert_differs(check(wrong, phase, observation=OBSERVATION), "output", "values")
    model = policy()
    check(model, phase, observation=OBSERVATION)
    assert not model.is_ready
    assert not hasattr(model, "scale")
