"""Inputs that only one side rejects are a remark, and a failure if the exception is raised on purpose."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import backends
from small_checks import assert_differs, assert_passes, check
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import (
    Box,
    CheckResult,
    Discrete,
    Flag,
    Image,
    LegalAction,
    LegalMask,
    MultiBinary,
    MultiDiscrete,
    OneHot,
    State,
    Tokens,
    Verdict,
)
from pytest_torchcompile.beyond import rejection
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.generation import tensors
from pytest_torchcompile.generation.recipes import random_recipe
from pytest_torchcompile.reports.failure import failure_text
from pytest_torchcompile.specs import spaces, trees
from pytest_torchcompile.specs.invalid_inputs import MOST, invalid_inputs
from pytest_torchcompile.specs.spaces import Wrapped

compiling = torch.compiler.is_compiling
OBSERVATION = Box((8,))


def check_small(factory: Any, **arguments: Any) -> CheckResult:
    return check(factory, **{"observation": OBSERVATION, "batch": (4, 7), "examples": 2} | arguments)


# --- which inputs are tried -----------------------------------------------------------------------

SPECS = {
    "box": Box((3, 8)),
    "bounded": Box((8,), low=[0.0] * 8, high=1.0),
    "integers": Box((8,), low=0, high=5, dtype="int64"),
    "sequence": Box(("T", 8)),
    "scalar": Box(()),
    "image": Image((3, 4, 4)),
    "discrete": Discrete(4, start=1),
    "several": MultiDiscrete([3, 2]),
    "binary": MultiBinary(8),
    "one hot": OneHot(5),
    "mask": LegalMask(6),
    "flag": Flag(),
    "state": State((1, 6), batch_dim=1),
    "tokens": Tokens(10),
}


@pytest.mark.parametrize("name", SPECS)
def test_each_is_wrong_in_what_it_says_and_can_be_drawn(name: str) -> None:
    tree = {"x": SPECS[name]}
    recipe = random_recipe(tree, 4, 0)
    right = tensors.build(tree, recipe)["x"]
    wrong = invalid_inputs(tree)
    assert 1 <= len(wrong) <= MOST
    for one in wrong:
        x = tensors.build(one.tree, recipe)["x"]
        assert isinstance(x, torch.Tensor)
        if "one too large" in one.what or "per row, not one" in one.what:
            assert x.shape != right.shape
            assert x.dtype == right.dtype
        elif one.in_values:
            assert (x.shape, x.dtype) == (right.shape, right.dtype)
        else:
            assert x.dtype != right.dtype
            assert x.shape == right.shape


def test_values_out_of_range() -> None:
    def drawn(spec: Any) -> dict[str, torch.Tensor]:
        recipe = random_recipe({"x": spec}, 4, 0)
        return {
            w.what: tensors.build(w.tree, recipe)["x"] for w in invalid_inputs({"x": spec}) if w.in_values
        }

    assert {k: v.tolist() for k, v in drawn(Discrete(4, start=1)).items()} == {
        "x: index 5, one beyond the last": [5] * 4,
        "x: index 0, one below the first": [0] * 4,
    }
    beyond, below = drawn(MultiDiscrete([3, 2])).values()
    assert beyond.tolist() == [[3, 2]] * 4
    assert below.tolist() == [[-1, -1]] * 4
    beyond, below = drawn(Box((8,), low=-1, high=2)).values()
    assert bool((beyond >= 3).all())
    assert bool((below <= -2).all())
    (none,) = drawn(LegalMask(6)).values()
    assert not bool(none.any())


def test_the_first_input_of_each_kind_comes_first() -> None:
    tree = {"x": OBSERVATION, "y": Box((3,)), "mask": LegalMask(6), "action": LegalAction("mask")}
    whats = [wrong.what for wrong in invalid_inputs(tree)]
    assert len(whats) == MOST
    assert not any(what.startswith("y:") for what in whats)
    assert whats[:3] == [
        "mask: no legal action",
        "action: index 6, one beyond the last",
        "x: last dimension one too large",
    ]


def test_nested_inputs_are_exchanged_where_they_are() -> None:
    tree = {"observation": Wrapped({"a": OBSERVATION, "b": (Flag(), spaces.Constant(3))}, lambda t: t)}
    entries = {wrong.what: dict(trees.leaves(wrong.tree)) for wrong in invalid_inputs(tree)}
    changed = entries["observation.a: float64, not float32"]
    assert repr(changed["observation", "a"]) == "Box((8,), dtype='float64')"
    assert changed["observation", "b", 0] == Flag()
    flags = entries["observation.b.0: two flags per row, not one"]
    assert flags["observation", "b", 0] == MultiBinary((2,), "bool")
    assert flags["observation", "a"] == OBSERVATION


# --- swallowed exceptions -------------------------------------------------------------------------


class Actor(nn.Module):
    """`lenient` is applied to the inputs on the compiled side only."""

    def __init__(self, lenient: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.table = nn.Embedding(4, 4)
        self.lenient = lenient

    def let(self, x: torch.Tensor) -> torch.Tensor:
        return self.lenient(x) if compiling() else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(self.let(x)))

    def chosen(self, x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(x) + self.table(self.let(action)))

    def log_prob(self, x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(self.layer(x), -1).gather(1, self.let(action)[:, None])

    def spread(self, x: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        return torch.normal(torch.as_tensor(self.layer(x)), self.let(std))

    def legal(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = self.layer(x).masked_fill(~self.let(mask), -torch.inf)
        return torch.multinomial(torch.softmax(logits, -1), 1)


def clamped(x: torch.Tensor) -> torch.Tensor:
    return x if x.is_floating_point() or x.dtype is torch.bool else x.clamp(0, 3)


IN_THE_MODEL: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str, dict[str, Any]]] = {
    "shape": (lambda x: x[..., :8], "observation: last dimension one too large", {}),
    "dtype": (lambda x: x.float(), "observation: float64, not float32", {}),
    "index beyond": (
        lambda a: a.clamp(max=3),
        "action: index 4, one beyond the last",
        {"methods": "chosen", "inputs": {"action": Discrete(4)}},
    ),
    "index below": (
        lambda a: a.clamp(min=0),
        "action: index -1, one below the first",
        {"methods": "log_prob", "inputs": {"action": Discrete(4)}},
    ),
    "distribution parameter": (
        lambda std: std.clamp(min=0),
        "std: values below the minimum, 0",
        {"methods": "spread", "inputs": {"std": Box((4,), low=0)}},
    ),
    "nothing legal": (
        lambda mask: mask | ~mask.any(-1, keepdim=True),
        "mask: no legal action",
        {"methods": "legal", "inputs": {"mask": LegalMask(4)}},
    ),
}


@pytest.mark.parametrize("name", IN_THE_MODEL)
def test_swallowed_in_the_model(name: str) -> None:
    lenient, what, arguments = IN_THE_MODEL[name]
    arguments = {"nonfinite": False} | arguments
    assert_remarks(check_small(lambda: Actor(lenient), **arguments), what)
    assert_passes_small(check_small(Actor, **arguments))


IN_THE_BACKEND = {
    "dtype": (lambda x: x.float() if x.is_floating_point() else x, "float64", {}),
    "index": (clamped, "beyond", {"methods": "chosen", "inputs": {"action": Discrete(4)}}),
    "distribution parameter": (
        lambda x: x.clamp(min=0) if x.shape[1:] == (4,) and not isinstance(x, nn.Parameter) else x,
        "std: values below",
        {"methods": "spread", "inputs": {"std": Box((4,), low=0)}},
    ),
}


@pytest.mark.parametrize("name", IN_THE_BACKEND)
def test_swallowed_in_the_backend(name: str) -> None:
    change, what, arguments = IN_THE_BACKEND[name]
    assert_remarks(check_small(Actor, backend=backends.lenient(change), **arguments), what)
    assert_passes_small(check_small(Actor, backend=backends.lenient(lambda x: x), **arguments))


def assert_passes_small(result: CheckResult) -> None:
    assert_passes(result)
    assert not result.remarks


def assert_remarks(result: CheckResult, what: str) -> None:
    """Eager raises and compiled returns; that is no failure."""
    assert_passes(result)
    assert any(
        what in remark and "eager raises" in remark and "and compiled returns" in remark
        for remark in result.remarks
    ), result.remarks


def test_what_is_told() -> None:
    result = check_small(lambda: Actor(lambda x: x[..., :8]), nonfinite=False)
    (told,) = result.remarks
    assert told.replace("addmm: ", "") == (  # as torch 2.15 begins it
        "on inputs that were not declared (observation: last dimension one too large) eager raises "
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x9 and 8x4) and compiled returns "
        "float32 (4, 4)"
    )


def test_who_asks_for_it_is_told_as_a_failure() -> None:
    result = check_small(lambda: Actor(lambda x: x[..., :8]), nonfinite=False, beyond="fail")
    assert result.verdict is Verdict.DIFFERS
    assert result.reason.startswith("beyond what was declared: on inputs that were not declared")
    assert check_small(Actor, nonfinite=False, beyond="fail").verdict is Verdict.EQUAL


def test_with_off_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(rejection, "Attempt", lambda *_: tried.append)
    result = check_small(lambda: Actor(lambda x: x[..., :8]), nonfinite=False, beyond="off")
    assert_passes_small(result)


# --- contracts ------------------------------------------------------------------------------------


class Guarded(nn.Module):
    """Says what it takes; compiled looks at none of it if it is `lenient`."""

    def __init__(self, how: str, *, lenient: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.how, self.lenient = how, lenient

    def looks(self) -> bool:
        return not (self.lenient and compiling())

    def forward(self, x: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        mean = self.layer(x)
        if self.looks():
            self.require(std)
        validate = self.how == "distribution" and self.looks()
        return torch.distributions.Normal(mean, std, validate_args=validate).log_prob(mean + 1)

    def require(self, std: torch.Tensor) -> None:
        if self.how == "raise" and bool((std < 0).any()):
            raise ValueError(
                "a negative deviation",
            )
        if self.how == "assert":
            assert bool((std >= 0).all()), "a negative deviation"
        if self.how == "torch._check":
            torch._check(bool((std >= 0).all()), lambda: "a negative deviation")


SPREAD = {"inputs": {"std": Box((4,), low=0.1)}, "nonfinite": False}
DECLARED = "compiled does not reject what eager rejects: std: values below the minimum, 0.1"


@pytest.mark.parametrize("how", ["raise", "assert", "torch._check", "distribution"])
def test_what_is_raised_on_purpose_is_a_contract(how: str) -> None:
    wrong = check_small(lambda: Guarded(how, lenient=True), **SPREAD)
    assert_differs(wrong, "output", "exception")
    assert wrong.reason == DECLARED
    assert wrong.example.startswith("batch 4; observation: random")
    assert_passes_small(check_small(lambda: Guarded(how), **SPREAD))


def test_a_rejection_that_is_lost_has_its_stage_its_line_and_a_script(tmp_path: Path) -> None:
    result = check(
        NegatedByItself, examples=0, explain_seconds=300, proof=str(tmp_path), observation=Box((8,)), **SPREAD
    )
    assert result.reason == DECLARED
    explanation = result.explanation
    assert explanation is not None
    assert explanation.stage == "dynamo"
    assert "asks whether it is being compiled" in explanation.place
    assert explanation.confirmed, explanation.remarks
    assert "which reproduces the difference" in failure_text(result)


def test_a_distribution_that_does_not_validate_promises_nothing() -> None:
    assert_passes_small(check_small(lambda: Guarded("nothing"), **SPREAD))


class Negated(nn.Module):
    """Compiled draws with a deviation that eager's kernel rejects, as inductor does (pytorch 185248)."""

    def __init__(self, validate: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.validate = validate

    def forward(self, x: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        mean = self.layer(x)
        if compiling():
            return mean + std * torch.randn_like(mean)
        return torch.distributions.Normal(mean, std, validate_args=self.validate).sample()


def test_a_negative_deviation_is_a_contract_where_the_policy_validates() -> None:
    assert check_small(lambda: Negated(True), **SPREAD).reason == DECLARED
    assert_remarks(check_small(lambda: Negated(False), **SPREAD), "std: values below the minimum, 0.1")


class NegatedByItself(Negated):
    """Can be made without arguments, as a script makes it."""

    def __init__(self) -> None:
        super().__init__(validate=True)


class OnlyCompiled(Actor):
    """Compiled rejects a value that eager takes."""

    def spread(self, x: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        y = torch.as_tensor(self.layer(x) * std)
        return y + 0 * self.table(std.clamp(max=3).long()).sum(1) if compiling() else y


def test_what_compiled_alone_rejects_is_a_remark() -> None:
    result = check_small(
        OnlyCompiled,
        methods="spread",
        inputs={"std": Box((4,), low=0)},
        backend="aot_eager",
        nonfinite=False,
        threads=1,
    )
    assert_passes(result)
    (remark,) = result.remarks
    assert "std: values below the minimum, 0" in remark
    assert "eager returns float32 (4, 4) and compiled raises IndexError" in remark


class Bare(nn.Module):
    """Without parameters; a backend of ours takes what eager rejects."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.sum()) > 1e3:
            raise ValueError("too much")
        return x * 2


class Silent(Bare):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if compiling() else super().forward(x)


def test_a_difference_is_no_less_without_parameters() -> None:
    small = {"observation": Box((8,), low=0), "nonfinite": False}
    assert_differs(check_small(Silent, **small), "output", "exception")
    assert check_small(Bare, **small).verdict is Verdict.EQUAL


# --- controls -------------------------------------------------------------------------------------


class TakesAll(nn.Module):
    """Any dtype, any size, any index."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        one_hot = (action.reshape(len(x), -1)[:, :1].long() % 4) == torch.arange(4)
        return torch.as_tensor(self.layer(x.float()[..., :8]) * one_hot)


def seen_by(shapes: set[Any]) -> Callable[..., Any]:
    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            shapes.update((tuple(a.shape[1:]), a.dtype) for a in args if isinstance(a, torch.Tensor))
            return graph(*args)

        return run

    return backend


def test_nothing_is_compiled_for_what_eager_takes() -> None:
    seen: set[Any] = set()
    result = check_small(TakesAll, inputs={"action": Discrete(4)}, backend=seen_by(seen))
    assert_passes_small(result)
    assert ((8,), torch.float32) in seen
    assert not {((9,), torch.float32), ((8,), torch.float64), ((2,), torch.int64)} & seen


def test_the_rest_of_the_report_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with_tries = check_small(Actor, methods="chosen", inputs={"action": Discrete(4)})
    monkeypatch.setattr(rejection, "invalid_inputs", lambda tree: [])
    without = check_small(Actor, methods="chosen", inputs={"action": Discrete(4)})
    for field in ("verdict", "reason", "examples", "notes", "remarks"):
        assert getattr(with_tries, field) == getattr(without, field)
    for field in ("graphs", "parameters", "breaks", "recompiles"):
        assert getattr(with_tries.capture, field) == getattr(without.capture, field)


def test_no_input_is_tried_once_the_seconds_of_the_case_are_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient() -> nn.Module:
        return Actor(lambda x: x[..., :8])

    assert_remarks(check_small(lenient, nonfinite=False), "one too large")
    monkeypatch.setattr(Pair, "out_of_seconds", lambda pair: "the case took too long")
    result = check_small(lenient, nonfinite=False)
    assert result.verdict is Verdict.EQUAL
    assert not result.remarks
    assert "beyond what was declared not all was tried: the case took too long" in result.notes


def test_only_the_rollout_tries_them() -> None:
    assert_passes_small(check_small(lambda: Actor(lambda x: x[..., :8]), phase="update", nonfinite=False))


def test_what_comes_compiled() -> None:
    def deployed(lenient: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        return torch.compile(Actor(lenient), backend="eager")

    assert_remarks(check_small(lambda: deployed(lambda x: x[..., :8]), nonfinite=False), "one too large")
    assert_passes_small(check_small(lambda: deployed(lambda x: x), nonfinite=False))


def test_a_container_that_does_not_take_them_is_no_failure() -> None:
    def wrap(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == 8, "made for eight"
        assert x.dtype is torch.float32
        return x

    assert_passes_small(check_small(Actor, observation=Wrapped(OBSERVATION, wrap)))


def test_a_case_that_rejects_is_not_timed() -> None:
    wrong = check_small(lambda: Guarded("raise", lenient=True), **SPREAD, benchmark_seconds=0.05)
    assert wrong.verdict is Verdict.DIFFERS
    assert wrong.speedup is None


def test_logging_is_as_it_was() -> None:
    before = logging.root.manager.disable
    assert_passes_small(check_small(Actor))
    assert logging.root.manager.disable == before


def test_an_index_out_of_range_on_several_threads() -> None:
    """A kernel with several threads would end this process: see `Pair.on_one_thread`."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 2048)

        def forward(self, action: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.table(action))

    result = check_small(
        Wide, observation=Discrete(4), backend="inductor", batch=16, examples=0, dynamic=False, threads=2
    )
    assert result.verdict is Verdict.EQUAL
