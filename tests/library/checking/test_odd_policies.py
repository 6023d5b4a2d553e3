"""Unusual but correct policies: each gets a verdict or an error message, never differs, and is left unchanged."""

from __future__ import annotations

import collections
import dataclasses
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from small_checks import PASSED
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch_versions import needs_torch

from pytest_torchcompile import Box, check_equivalence
from pytest_torchcompile.policies import snapshots
from pytest_torchcompile.policies.ordinary import same_values
from pytest_torchcompile.reports.failure import failure_text

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

Answer = Callable[[Any, torch.Tensor, torch.Tensor], Any]


class Net(nn.Module):
    """One layer, and whatever `prepare` adds; returns what `answer` makes of the policy, input and output."""

    def __init__(self, prepare: Callable[[Any], Any], answer: Answer) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)
        prepare(self)
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer(self, x, self.net(x))


def keep(**values: Any) -> Callable[[Any], None]:
    """Sets attributes; a value is made anew for each policy."""

    def prepare(policy: Any) -> None:
        for name, make in values.items():
            setattr(policy, name, make())

    return prepare


def buffer(make: Callable[[], torch.Tensor]) -> Callable[[Any], None]:
    return lambda policy: policy.register_buffer("kept", make())


def nothing(policy: Any) -> None:
    """Prepare nothing."""


def plain(policy: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    return y


# --- what is kept ---------------------------------------------------------------------------------


class Settings(dict[str, Any]):
    __getattr__ = dict.get


class Strict(dict[str, Any]):
    __getattr__ = dict.__getitem__


class Itself(dict[str, Any]):
    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.__dict__ = self


class Frozen(collections.OrderedDict[str, Any]):
    """As diffusers' FrozenDict."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.is_frozen = True

    def __setitem__(self, key: str, value: Any) -> None:
        if getattr(self, "is_frozen", False):
            raise TypeError("frozen")
        super().__setitem__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("frozen")

    def clear(self) -> None:
        raise TypeError("frozen")


class Compared:
    """Its ``==`` returns a tensor."""

    def __init__(self) -> None:
        self.rows = torch.ones(3)

    def __eq__(self, other: object) -> Any:
        return self.rows == 1

    __hash__ = None  # type: ignore[assignment]  # as objects with such an __eq__ have it


class Slotted:
    __slots__ = ("low", "rows")

    def __init__(self) -> None:
        self.rows, self.low = torch.ones(3), 0.0


class Raising:
    @property
    def size(self) -> int:
        raise RuntimeError("not there yet")


class Uncopied:
    def __init__(self) -> None:
        self.rows = torch.ones(3)

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("can't be copied")


class Everything:
    def __getattr__(self, name: str) -> Any:
        return name


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 3
    scale: torch.Tensor = dataclasses.field(default_factory=lambda: torch.ones(3))


Memory = collections.namedtuple("Memory", "h c")

UNREAD: dict[str, Callable[[], Any]] = {
    "a dict that makes up attributes": lambda: Settings(a=1),
    "a dict that raises KeyError for attributes": lambda: Strict(a=torch.ones(3)),
    "a dict that is its own __dict__": lambda: Itself(a=torch.ones(3)),
    "a dict that forbids writing": lambda: Frozen(a=1, b=[1, 2]),
    "a dict that forbids writing, with tensors": lambda: Frozen(a=torch.ones(3)),
    "a default dict": lambda: collections.defaultdict(list, a=[torch.ones(2)]),
    "a counter": lambda: collections.Counter("abc"),
    "a mock": MagicMock,
    "a mock of a module": lambda: {"mock": MagicMock(spec=nn.Module)},
    "an object of every attribute": Everything,
    "an object whose == is a tensor": Compared,
    "an object with slots": Slotted,
    "an object whose property raises": Raising,
    "an object that can't be copied": Uncopied,
    "a frozen dataclass": Config,
    "a named tuple": lambda: Memory(torch.zeros(3), torch.ones(3)),
    "a deque": lambda: collections.deque([torch.ones(3)], maxlen=2),
    "a lock": threading.Lock,
    "a thread's own": threading.local,
    "an open file": lambda: sys.__stdout__,
    "a torch generator": torch.Generator,
    "a numpy generator": lambda: np.random.default_rng(0),
    "a partial": lambda: functools.partial(torch.add, torch.ones(3)),
    "a set": lambda: {1, 2},
    "an iterator": lambda: iter([1]),
    "a module class": lambda: nn.Linear,
    "modules in a list": lambda: [nn.Linear(3, 3)],
    "modules in a dict": lambda: {"target": nn.Linear(3, 3).requires_grad_(False)},
    "a complex number": lambda: 1j,
    "a huge integer": lambda: 2**200,
    "an array of objects": lambda: np.array([None, "a"], dtype=object),
    "long doubles": lambda: np.ones(3, np.longdouble),
    "a read-only array": lambda: np.broadcast_to(np.ones(3), (2, 3)),
    "a memory of a tensor": lambda: memoryview(b"abc"),
    "a distribution": lambda: torch.distributions.Gumbel(torch.zeros(3), torch.ones(3)),
}

TENSORS: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse by rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "meta": lambda: torch.ones(3, device="meta"),
    "expanded": lambda: torch.ones(1).expand(3),
    "empty": lambda: torch.ones(0, 3),
    "made in inference mode": lambda: torch.inference_mode()(torch.ones)(3),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "8-bit floats": lambda: torch.ones(3).to(torch.float8_e5m2),
    "bits": lambda: torch.ones(3, dtype=torch.uint8).view(torch.bits8),
    "unsigned": lambda: torch.ones(3, dtype=torch.uint16),
    "with gaps": lambda: torch.ones(3, 6)[:, ::2],
    "NaN": lambda: torch.full((3,), float("nan")),
}

KINDS: dict[str, Callable[[], nn.Module]] = {}
KINDS |= {f"keeps {name}": functools.partial(Net, keep(kept=make), plain) for name, make in UNREAD.items()}
KINDS |= {f"buffer: {name}": functools.partial(Net, buffer(make), plain) for name, make in TENSORS.items()}
KINDS |= {f"attribute: {name}": functools.partial(Net, keep(kept=t), plain) for name, t in TENSORS.items()}

# --- what is returned -----------------------------------------------------------------------------

OUTPUTS: dict[str, Answer] = {
    "sparse": lambda policy, x, y: y.relu().to_sparse(),
    "complex": lambda policy, x, y: torch.complex(y, y + 1),
    "8-bit floats": lambda policy, x, y: y.detach().round().clamp(-4, 4).to(torch.float8_e4m3fn),
    "nothing of a row": lambda policy, x, y: (y, y[:0]),
    "expanded": lambda policy, x, y: y[:, :1].expand(-1, 4),
    "meta": lambda policy, x, y: (y, y.detach().to("meta")),
    "a dict that makes up attributes": lambda policy, x, y: Settings(logits=y),
    "a named tuple": lambda policy, x, y: Memory(y, y + 1),
    "bits": lambda policy, x, y: (y, (y.detach() > 0).byte()),
    "nothing and numbers": lambda policy, x, y: (y, None, 3, "a", 1.5),
}
KINDS |= {f"returns {name}": functools.partial(Net, nothing, answer) for name, answer in OUTPUTS.items()}


# --- how it is made -------------------------------------------------------------------------------


def made(function: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Adds a way of making a policy under the words of its name."""
    KINDS[function.__name__.replace("_", " ")] = function
    return function


@made
def weight_norm() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(5, 3))


@made
def spectral_norm() -> nn.Module:
    return parametrizations.spectral_norm(nn.Linear(5, 3))


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).mT


@made
def parametrised() -> nn.Module:
    layer = nn.Linear(5, 5)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


@made
def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))


@made
def shared_parameters() -> nn.Module:
    one = nn.Linear(5, 5)
    return nn.Sequential(one, nn.Tanh(), one)


@made
def frozen() -> nn.Module:
    return nn.Linear(5, 3).requires_grad_(False)


@made
def partly_frozen() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4).requires_grad_(False), nn.Linear(4, 3))


@made
def hooked() -> nn.Module:
    layer = nn.Linear(5, 3)
    layer.register_forward_hook(lambda module, args, output: output * 2)
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return nn.Sequential(layer)


@made
def hooked_after_compiling() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 3))
    model.compile(backend="eager")
    model.register_forward_hook(lambda module, args, output: output * 2)
    return model


@made
def hooked_backward() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 3))
    model[0].weight.register_hook(lambda gradient: gradient * 2)
    return model


@made
def scripted_inside() -> nn.Module:
    return Net(keep(scripted=lambda: torch.jit.script(nn.Linear(3, 3))), lambda p, x, y: p.scripted(y))


@made
def parameter_list() -> nn.Module:
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    return Net(lambda p: setattr(p, "extra", nn.ParameterList(parameters)), lambda p, x, y: y + p.extra[0])


@made
def buffer_class() -> nn.Module:
    return Net(keep(shift=lambda: nn.Buffer(torch.ones(3))), lambda p, x, y: y + p.shift)


@made
def buffer_not_saved() -> nn.Module:
    return Net(
        lambda p: p.register_buffer("shift", torch.ones(3), persistent=False), lambda p, x, y: y + p.shift
    )


@made
def a_circle_of_references() -> nn.Module:
    def prepare(policy: Any) -> None:
        policy.__dict__["owner"] = policy
        policy.nest = {"policy": [policy]}

    return Net(prepare, plain)


@made
def a_weak_reference() -> nn.Module:
    return Net(lambda policy: setattr(policy, "weak", weakref.ref(policy)), plain)


@made
def a_weak_proxy() -> nn.Module:
    return Net(lambda policy: policy.__dict__.update(weak=weakref.proxy(policy.net)), plain)


@made
def noise_with_a_graph() -> nn.Module:
    def prepare(policy: Any) -> None:
        policy.log_std = nn.Parameter(torch.zeros(3))
        policy.noise = torch.randn(3) * policy.log_std.exp()

    return Net(prepare, lambda policy, x, y: y + policy.noise)


@made
def noises_with_a_graph() -> nn.Module:
    def prepare(policy: Any) -> None:
        policy.log_std = nn.Parameter(torch.zeros(3))
        policy.noises = [policy.log_std.exp(), {"b": policy.log_std.tanh()}]

    return Net(prepare, lambda policy, x, y: y + policy.noises[0] + policy.noises[1]["b"])


@made
def an_ensemble_on_meta() -> nn.Module:
    base = nn.Linear(3, 3).to("meta")
    return Net(lambda policy: setattr(policy, "base", base), plain)


@made
def a_policy_that_makes_up_attributes() -> nn.Module:
    class Wrapper(Net):
        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("net"), name)

    return Wrapper(nothing, plain)


@made
def properties_that_raise() -> nn.Module:
    class Lazy(Net):
        @property
        def action_space(self) -> Any:
            raise RuntimeError("no environment yet")

    return Lazy(nothing, plain)


@made
def embedding_of_sparse_gradients() -> nn.Module:
    return Net(
        keep(table=lambda: nn.Embedding(4, 3, sparse=True)),
        lambda policy, x, y: y + policy.table((x[:, 0] > 0).long()),
    )


@made
def complex_parameters() -> nn.Module:
    return Net(
        keep(turn=lambda: nn.Parameter(torch.ones(3, dtype=torch.complex64))),
        lambda policy, x, y: (y * policy.turn).real + (y * policy.turn).imag,
    )


def test_there_are_enough() -> None:
    assert len(KINDS) >= 80


# --- what a call changed is put back all the same -------------------------------------------------


def test_a_dict_that_forbids_writing_has_its_items_again() -> None:
    kept = Frozen(a=torch.ones(2), b=1)
    saved = snapshots.map_tensors(snapshots.copied, kept)
    collections.OrderedDict.__setitem__(kept, "a", torch.zeros(2))
    collections.OrderedDict.__setitem__(kept, "c", 3)
    assert snapshots.put_back(kept, saved) is kept
    assert list(kept) == ["a", "b"]
    assert kept["a"].tolist() == [1.0, 1.0]


def test_what_did_not_change_is_not_written() -> None:
    kept = Frozen(a=torch.ones(2))
    saved = snapshots.map_tensors(snapshots.copied, kept)
    tensor, version = kept["a"], kept["a"]._version
    assert snapshots.put_back(kept, saved)["a"] is tensor
    assert tensor._version == version


def test_what_can_not_be_written_to_is_replaced() -> None:
    expanded = torch.ones(1).expand(3)
    saved = snapshots.copied(expanded)
    assert snapshots.put_back(expanded, saved) is expanded
    other = snapshots.put_back(expanded, 2 * saved)
    assert other is not expanded
    assert other.tolist() == [2.0, 2.0, 2.0]


def test_a_tensor_with_a_graph_becomes_a_leaf() -> None:
    weight = torch.ones(2, requires_grad=True)
    noise = weight.exp()
    leaf = snapshots.put_back(noise, snapshots.copied(noise))
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert torch.equal(leaf, noise)


# --- the check ------------------------------------------------------------------------------------


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in dict.values(value):
            yield from tensors_of(item)
    elif isinstance(value, (list, tuple, collections.deque)):
        for item in value:
            yield from tensors_of(item)


class Watched:
    """A factory that remembers what its policies held."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self.make = make
        self.found: list[tuple[nn.Module, dict[str, Any], list[tuple[torch.Tensor, torch.Tensor]]]] = []

    def __call__(self) -> nn.Module:
        model = self.make()
        if not any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
            self.found.append((model, dict(vars(model)), self._values(model)))
        return model

    def _values(self, model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
        held = [*model.parameters(), *model.buffers(), *tensors_of(vars(model))]
        return [(tensor, tensor.detach().clone()) for tensor in held]

    def assert_as_before(self) -> None:
        for model, attributes, values in self.found:
            now = dict(vars(model))
            # torch.compile leaves it on what it wraps.
            now.pop("_is_torch_compile", None)
            assert now.keys() == attributes.keys()
            assert all(now[name] is value for name, value in attributes.items())
            held = {id(tensor) for tensor in (*model.parameters(), *model.buffers(), *tensors_of(now))}
            assert held >= {id(tensor) for tensor, _ in values}
            assert all(same_values(tensor, value) for tensor, value in values)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=needs_torch("2.12", "compiles a module with a hook of its own")
            if name == "hooked after compiling"
            else (),
        )
        for name in KINDS
    ],
)
def test_an_odd_policy_gets_its_verdict_and_is_left_as_it_was(name: str) -> None:
    torch.compiler.reset()
    factory = Watched(KINDS[name])
    results = check_equivalence(
        factory,
        observation=Box((5,)),
        phases="update",
        backend="eager",
        batch=3,
        examples=1,
        shrink_seconds=0.1,
        explain_seconds=0,
        beyond="off",
    )
    for result in results:
        assert result.verdict in PASSED, failure_text(result)
    factory.assert_as_before()


def test_a_circle_in_a_deep_copy_is_checked_too() -> None:
    """A module in place of a factory is copied; if that fails, both sides share it."""
    for name in ("keeps an object that can't be copied", "keeps a lock", "noise with a graph"):
        torch.compiler.reset()
        factory = Watched(KINDS[name])
        (result,) = check_equivalence(
            factory(), observation=Box((5,)), phases="update", backend="eager", batch=3, examples=1
        )
        assert result.verdict in PASSED, failure_text(result)
        factory.assert_as_before()


LIVES = (
    "buffer: sparse",
    "buffer: made in inference mode",
    "buffer: quantised",
    "an ensemble on meta",
    "noise with a graph",
    "shared parameters",
    "keeps a dict that forbids writing",
)


@pytest.mark.parametrize("name", LIVES)
def test_an_odd_policy_has_a_lifecycle(name: str) -> None:
    torch.compiler.reset()
    factory = Watched(KINDS[name])
    (result,) = check_equivalence(
        factory,
        observation=Box((5,)),
        phases="lifecycle",
        backend="eager",
        batch=3,
        examples=5,
        steps=2,
        explain_seconds=0,
        beyond="off",
    )
    assert result.verdict in PASSED, failure_text(result)
    factory.assert_as_before()
