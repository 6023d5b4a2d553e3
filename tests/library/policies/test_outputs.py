"""Every output is unpacked, or refused with a message that says how to register its type; none is ignored."""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from small_checks import assert_differs, assert_passes, check
from torch import distributions as D
from torch import nn
from torch_versions import needs_torch

from pytest_torchcompile import Box, UsageError, register_output
from pytest_torchcompile.policies import outputs
from pytest_torchcompile.policies.ordinary import is_ordinary
from pytest_torchcompile.policies.outputs import named_values

Step = collections.namedtuple("Step", "action value")


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    extra: Any = None


class Mode(enum.Enum):
    GREEDY = 1


T = torch.arange(3.0)


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (T, ["output"]),
        ((T, T), ["output[0]", "output[1]"]),
        ([T, [T]], ["output[0]", "output[1][0]"]),
        ({"a": T, "b": {"c": T}}, ["output['a']", "output['b']['c']"]),
        ({1: T, ("x", 2): T}, ["output[1]", "output[('x', 2)]"]),
        (collections.OrderedDict(a=T), ["output['a']"]),
        (collections.defaultdict(list, a=T), ["output['a']"]),
        (MappingProxyType({"a": T}), ["output['a']"]),
        (Step(T, T), ["output.action", "output.value"]),
        (Result(T, {"h": T}), ["output.logits", "output.extra['h']"]),
        (torch.max(T[None], 1), ["output[0]", "output[1]"]),
        (np.ones(3), ["output"]),
        (np.ones(3)[::-1], ["output"]),
        (1.5, ["output"]),
        (np.float32(1.5), ["output"]),
        (nn.Parameter(T), ["output"]),
    ],
    ids=repr,
)
def test_tensors_are_found_and_named(value: Any, paths: list[str]) -> None:
    found = named_values(value)
    assert list(found.tensors) == paths
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.tensors.values())


@pytest.mark.parametrize(
    "value",
    [None, True, 3, "greedy", b"x", Mode.GREEDY, np.int64(3), torch.Size([2]), torch.float32],
    ids=repr,
)
def test_plain_values_are_kept_as_they_are(value: Any) -> None:
    found = named_values({"x": value})
    assert found.tensors == {}
    assert found.plain == {"output['x']": value}


def test_a_float_is_compared_as_a_number() -> None:
    assert named_values(0.1).tensors["output"].dtype == torch.float64


def test_the_types_on_the_way_are_noted() -> None:
    kinds = named_values({"a": (T, None), "b": Step(T, 1)}).kinds
    assert kinds == {
        "output": "dict",
        "output['a']": "tuple of 2",
        "output['a'][0]": "Tensor",
        "output['a'][1]": "NoneType",
        "output['b']": "Step",
        "output['b'].action": "Tensor",
        "output['b'].value": "int",
    }


def test_a_parameter_is_a_tensor() -> None:
    """Compiled code may return a parameter's data as a plain tensor."""
    assert named_values(nn.Parameter(T)).kinds == named_values(T).kinds


# --- distributions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "paths"),
    [
        (lambda: D.Categorical(logits=T), {"logits"}),
        (lambda: D.Categorical(probs=T), {"probs"}),
        (lambda: D.Bernoulli(logits=T), {"logits"}),
        (lambda: D.Normal(T, T + 1), {"loc", "scale"}),
        (lambda: D.Independent(D.Normal(T, T + 1), 1), {"base_dist.loc", "base_dist.scale"}),
        (lambda: D.MultivariateNormal(T, torch.eye(3)), {"loc", "scale_tril"}),
        (lambda: D.Gamma(T + 1, T + 2), {"concentration", "rate"}),
    ],
    ids=[
        "categorical",
        "categorical of probabilities",
        "bernoulli",
        "normal",
        "independent",
        "multivariate normal",
        "gamma",
    ],
)
def test_distributions_are_taken_apart_into_their_parameters(distribution: Any, paths: set[str]) -> None:
    found = named_values(distribution()).tensors
    assert {f"output.{path}" for path in paths} <= set(found)


def test_a_transformed_distribution_has_those_of_base_and_transforms() -> None:
    squashed = D.TransformedDistribution(
        D.Normal(T, T + 1), [D.AffineTransform(2 * T, T + 3), D.TanhTransform()]
    )
    found = named_values(squashed).tensors
    assert {"output.base_dist.loc", "output.base_dist.scale"} <= set(found)
    assert torch.equal(found["output.transforms[0].loc"], 2 * T)


def test_what_a_distribution_has_cached_makes_no_difference() -> None:
    """`probs` exists only after it was read; a compiled side that did not read it is equal."""
    asked, not_asked = D.Categorical(logits=T), D.Categorical(logits=T)
    assert float(asked.probs.sum()) == pytest.approx(1)
    asked.entropy()
    assert named_values(asked).kinds == named_values(not_asked).kinds


def test_the_other_parametrisation_of_a_distribution_is_another_structure() -> None:
    one, other = D.Bernoulli(logits=T), D.Bernoulli(probs=T / 3)
    assert named_values(one).tensors.keys() != named_values(other).tensors.keys()


@pytest.mark.parametrize(
    "make",
    [
        lambda shift: D.Beta(T + 1 + shift, T + 2),
        lambda shift: D.MixtureSameFamily(D.Categorical(logits=T), D.Normal(T + shift, T + 1)),
        lambda shift: D.MixtureSameFamily(
            D.Categorical(logits=T * torch.tensor([1.0, 1.0, 1.0 + shift])), D.Normal(T, T + 1)
        ),
        lambda shift: D.LogNormal(T + shift, T + 1),
        lambda shift: D.LowRankMultivariateNormal(T, torch.ones(3, 1) + shift, torch.ones(3)),
        lambda shift: D.Dirichlet(T + 1 + shift),
        lambda shift: D.MultivariateNormal(T, (1.0 + shift) * torch.eye(3)),
        lambda shift: D.MultivariateNormal(T, precision_matrix=(1.0 + shift) * torch.eye(3)),
        lambda shift: D.RelaxedOneHotCategorical(torch.tensor(1.0 + shift), logits=T),
        lambda shift: D.Uniform(T, T + 1 + shift),
        lambda shift: D.Poisson(T + 1 + shift),
        lambda shift: D.Kumaraswamy(T + 1 + shift, T + 2),
        lambda shift: D.TransformedDistribution(D.Normal(T, T + 1), [D.AffineTransform(0.0, 1.0 + shift)]),
        lambda shift: D.VonMises(T, T + 1 + shift),
    ],
    ids=[
        "beta",
        "mixture's components",
        "mixture's weights",
        "log-normal",
        "low rank normal",
        "dirichlet",
        "multivariate normal",
        "multivariate normal by its precision",
        "relaxed one-hot",
        "uniform",
        "poisson",
        "kumaraswamy",
        "affine transform",
        "von Mises",
    ],
)
def test_no_parameter_of_a_distribution_is_overlooked(make: Any) -> None:
    """A distribution with another parameter has to differ, however it stores the parameter."""
    one, same, other = (named_values(make(shift)) for shift in (0.0, 0.0, 0.25))
    assert one.kinds == same.kinds
    assert all(torch.equal(one.tensors[path], same.tensors[path]) for path in one.tensors)
    assert one.kinds != other.kinds or any(
        not torch.equal(one.tensors[path], other.tensors[path]) for path in one.tensors
    )


# --- tensors that are no ordinary ones ------------------------------------------------------------

ROWS = torch.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    ("make", "kind", "paths"),
    [
        (lambda: ROWS.to_sparse(), "Tensor (sparse_coo)", ["output"]),
        (lambda: ROWS.to_sparse_csr(), "Tensor (sparse_csr)", ["output"]),
        (lambda: ROWS.to_sparse_csc(), "Tensor (sparse_csc)", ["output"]),
        (lambda: torch.eye(4).to_sparse_bsr((2, 2)), "Tensor (sparse_bsr)", ["output"]),
        (lambda: ROWS.to_mkldnn(), "Tensor (_mkldnn)", ["output"]),
        (lambda: torch.complex(ROWS, ROWS), "Tensor (complex64)", ["output"]),
        (lambda: torch.complex(ROWS, ROWS).conj(), "Tensor (complex64)", ["output"]),
        (lambda: torch.complex(ROWS, ROWS).to(torch.complex32), "Tensor (complex32)", ["output"]),
        (lambda: torch.complex(ROWS, ROWS).to_sparse(), "Tensor (sparse_coo, complex64)", ["output"]),
        (lambda: ROWS.to(torch.float8_e4m3fn), "Tensor (float8_e4m3fn)", ["output"]),
        (lambda: torch.quantize_per_tensor(ROWS, 0.1, 0, torch.qint8), "Tensor (qint8)", ["output"]),
        (lambda: ROWS.byte().view(torch.bits8), "Tensor (bits8)", ["output"]),
        (
            lambda: torch.nested.nested_tensor([ROWS[:1], ROWS], layout=torch.jagged),
            "NestedTensor (nested)",
            ["output[0]", "output[1]"],
        ),
        (lambda: ROWS.to("meta"), "Tensor (meta, float32 (4, 3))", []),
        (lambda: np.ones(2, np.longdouble), "ndarray", ["output"]),
        (lambda: np.ones(2, np.clongdouble), "ndarray", ["output"]),
        (lambda: np.ones(2, ">f4"), "ndarray", ["output"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tensor_of_any_layout_and_dtype_is_compared_by_ordinary_ones(
    make: Any, kind: str, paths: list[str]
) -> None:
    found = named_values(make())
    assert found.kinds["output"] == kind
    assert list(found.tensors) == paths
    assert all(is_ordinary(tensor) for tensor in found.tensors.values())


@pytest.mark.filterwarnings("ignore:Sparse invariant:UserWarning")
def test_the_entries_of_a_huge_sparse_tensor_are_compared_as_they_are() -> None:
    huge = torch.sparse_coo_tensor(torch.tensor([[5, 3], [0, 1]]), torch.tensor([1.0, 2.0]), (10**6, 10**6))
    found = named_values(huge).tensors
    assert found["output.values()"].tolist() == [2.0, 1.0]
    assert found["output.indices()"].tolist() == [[3, 5], [1, 0]]


def test_gradients_go_through() -> None:
    weight = (ROWS + 1).requires_grad_()
    for made, slope in (
        (weight.to_sparse(), 1.0),
        (torch.complex(weight, weight), 2.0),
        (weight.half(), 1.0),
    ):
        found = named_values(made).tensors["output"]
        assert torch.equal(torch.autograd.grad(found.sum(), weight)[0], slope * torch.ones(4, 3))


class Tagged(torch.Tensor):
    """A subclass of tensors."""


def test_a_subclass_of_tensors_can_be_taught(registered: None) -> None:
    register_output(Tagged, lambda value: {"rows": value.as_subclass(torch.Tensor)})
    assert list(named_values((T.as_subclass(Tagged),)).tensors) == ["output[0]['rows']"]


@pytest.mark.filterwarnings("ignore:The PyTorch API:UserWarning")
def test_a_tensor_that_can_not_be_taken_apart_is_refused_with_a_sentence() -> None:
    masked = torch.masked.masked_tensor(T, T > 0)
    with pytest.raises(UsageError) as caught:
        named_values({"x": masked})
    assert "output['x'] is a tensor (torch.masked" in str(caught.value)
    assert "register_output(MaskedTensor, lambda value: " in str(caught.value)


# --- what is not known ----------------------------------------------------------------------------


class Action:
    def __init__(self, move: torch.Tensor) -> None:
        self.move = move


class Special(Action):
    pass


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Types registered in a test are forgotten after it."""
    monkeypatch.setattr(outputs, "_registered", {})
    yield


def test_an_unknown_type_is_refused_with_the_line_that_teaches_it() -> None:
    with pytest.raises(UsageError) as caught:
        named_values({"a": Action(T)})
    assert "output['a'] is a test_outputs.Action" in str(caught.value)
    assert "pytest_torchcompile.register_output(Action, lambda value: " in str(caught.value)


def test_a_registered_type_is_taken_apart(registered: None) -> None:
    register_output(Action, lambda action: {"move": action.move})
    assert list(named_values((Action(T),)).tensors) == ["output[0]['move']"]
    assert named_values(Action(T)).kinds["output"] == "Action"


def test_subclasses_count_and_the_nearest_wins(registered: None) -> None:
    register_output(Action, lambda action: {"move": action.move})
    assert list(named_values(Special(T)).tensors) == ["output['move']"]
    register_output(Special, lambda action: (action.move, action.move))
    assert list(named_values(Special(T)).tensors) == ["output[0]", "output[1]"]
    assert list(named_values(Action(T)).tensors) == ["output['move']"]


def test_a_registered_type_may_hold_distributions(registered: None) -> None:
    register_output(Action, lambda action: D.Categorical(logits=action.move))
    assert "output.logits" in named_values(Action(T)).tensors


@pytest.mark.parametrize("arguments", [(Action(T), len), ("Action", len), (Action, "move")])
def test_register_output_takes_a_class_and_a_function(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match="give a class and a function"):
        register_output(*arguments)


class Settings(dict[str, Any]):
    """A common recipe: what is not there is made up, as None."""

    __getattr__ = dict.get


class Strict(dict[str, Any]):
    """Another: what is not there is a KeyError, which `hasattr` passes on."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("kind", [Settings, Strict])
def test_what_a_value_is_is_asked_of_its_type(kind: Any) -> None:
    found = named_values({"x": kind(logits=T)})
    assert list(found.tensors) == ["output['x']['logits']"]
    assert found.plain == {}


def test_what_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UsageError, match="contains itself"):
        named_values(endless)


@pytest.mark.parametrize(
    "value", [{1, 2}, iter([T]), object(), np.array([None])], ids=lambda value: type(value).__name__
)
def test_what_cannot_be_seen_into_is_never_ignored(value: Any) -> None:
    with pytest.raises(UsageError):
        named_values(value)


# --- in a check -----------------------------------------------------------------------------------


class Acting(nn.Module):
    """Returns a type of its own."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.error = error

    def forward(self, x: torch.Tensor) -> Action:
        y = self.layer(x)
        return Action(y + self.error if torch.compiler.is_compiling() else y)


def test_a_policy_that_returns_an_unknown_type_is_refused_before_anything_is_compiled() -> None:
    graphs: list[Any] = []
    with pytest.raises(UsageError, match="register_output"):
        check(Acting, observation=Box((8,)), backend=lambda graph, inputs: graphs.append(graph))
    assert graphs == []


def test_a_policy_that_returns_a_registered_type_is_compared(registered: None) -> None:
    register_output(Action, lambda action: {"move": action.move})
    assert_passes(check(Acting, observation=Box((8,))))
    assert_differs(check(lambda: Acting(1e-3), observation=Box((8,))), "output['move']", "values")


# --- inference tensors ----------------------------------------------------------------------------


class Acts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return {"logits": self.net(x)}


class ActsInInferenceMode(Acts):
    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x)


def in_inference_mode(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    def run(*args: Any) -> Any:
        with torch.inference_mode(not torch.is_grad_enabled()):
            return graph(*args)

    return run


def test_an_output_that_is_an_inference_tensor_in_compiled_alone_is_found() -> None:
    result = check(Acts, observation=Box((5,)), backend=in_inference_mode)
    assert_differs(result, "output['logits']", "inference")
    assert_passes(check(Acts, "update", observation=Box((5,)), backend=in_inference_mode))
    assert_passes(check(Acts, observation=Box((5,))))


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param(
            "aot_eager", marks=needs_torch("2.13", "compiles code under inference mode by AOTAutograd")
        ),
        in_inference_mode,
    ],
)
def test_a_policy_that_acts_in_inference_mode_passes(backend: Any) -> None:
    assert_passes(check(ActsInInferenceMode, observation=Box((5,)), backend=backend))
