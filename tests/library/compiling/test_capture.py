"""Proof of compilation: each way of not compiling is reported, and its correct twin passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_checks import assert_passes, check
from torch import nn
from torch_versions import RELEASE, needs_torch

from pytest_torchcompile import (
    Box,
    Capture,
    CheckResult,
    Discrete,
    Verdict,
    check_equivalence,
    compile_policy,
)
from pytest_torchcompile.reports.failure import capture_line


class Agent(nn.Module):
    """An actor-critic whose entry point is not ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 8)
        self.policy = nn.Linear(8, 4)
        self.value = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.policy(torch.tanh(self.trunk(x)))

    def act(self, x: torch.Tensor) -> Any:
        hidden = torch.tanh(self.trunk(x))
        return self.policy(hidden), self.value(hidden)


def assert_not_compiled(result: CheckResult, *words: str) -> None:
    assert result.verdict is Verdict.NOT_COMPILED
    for word in words:
        assert word in result.reason


# --- objects that come compiled -------------------------------------------------------------------


def test_a_method_that_bypasses_an_optimized_module() -> None:
    """``torch.compile(module).act`` is the eager module's own method."""
    result = check(lambda: torch.compile(Agent(), backend="eager"), observation=Box((8,)), methods="act")
    assert_not_compiled(result, "'act'", "OptimizedModule", "model.act = torch.compile(model.act)")
    assert result.capture.graphs == 0
    assert result.backend == "as deployed"


def test_forward_of_an_optimized_module_is_compiled() -> None:
    result = check(lambda: torch.compile(Agent(), backend="eager"), observation=Box((8,)))
    assert_passes(result)
    assert result.backend == "as deployed"
    assert result.capture.coverage == 1.0


def compiled_in_place() -> nn.Module:
    model = Agent()
    model.compile(backend="eager")
    return model


def with_a_compiled_method() -> nn.Module:
    model = Agent()
    model.act = torch.compile(model.act, backend="eager")  # type: ignore[method-assign]
    return model


class WithCompiledAttribute(Agent):
    """Compiles a method of its own while it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = torch.compile(self.act, backend="eager")


class WithCompiledPart(nn.Module):
    """Compiles one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = torch.compile(nn.Linear(8, 4), backend="eager")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("phase", ["rollout", "update"])
@pytest.mark.parametrize(
    ("factory", "method", "coverage"),
    [
        (lambda: torch.compile(Agent(), backend="eager"), "forward", 1.0),
        (compiled_in_place, "forward", 1.0),
        (with_a_compiled_method, "act", 1.0),
        (WithCompiledAttribute, "fast", 1.0),
        (WithCompiledPart, "forward", 36 / 108),
    ],
    ids=["torch.compile(m)", "m.compile()", "m.act = torch.compile(m.act)", "in __init__", "one layer"],
)
def test_what_comes_compiled_is_checked_as_deployed(
    factory: Callable[[], nn.Module], method: str, coverage: float, phase: str
) -> None:
    result = check(factory, phase, observation=Box((8,)), methods=method, backend="aot_eager")
    assert_passes(result)
    assert result.backend == "as deployed", "the option backend= has no say in it"
    assert result.capture.coverage == coverage


def test_what_comes_compiled_and_is_wrong() -> None:
    def wrong(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return lambda *args: tuple(output + 1e-3 for output in graph(*args))

    for factory, method in [
        (lambda: torch.compile(Agent(), backend=wrong), "forward"),
        (lambda: _with(Agent(), wrong), "act"),
    ]:
        assert check(factory, observation=Box((8,)), methods=method).verdict is Verdict.DIFFERS


def _with(model: nn.Module, backend: Any) -> nn.Module:
    model.act = torch.compile(model.act, backend=backend)  # type: ignore[assignment, operator]
    return model


def test_a_compiled_module_in_place_of_a_factory() -> None:
    """It can't be copied, because the copy would call the original's weights, so both sides share it."""
    model = torch.compile(Agent(), backend="eager")
    assert_passes(check(model, observation=Box((8,))))


# --- the compiler is off --------------------------------------------------------------------------


def test_dynamo_disabled() -> None:
    with torch._dynamo.config.patch(disable=True):
        result = check(Agent, observation=Box((8,)))
    assert_not_compiled(result, "no graph was captured", "dynamo is disabled")
    assert_passes(check(Agent, observation=Box((8,))))


def test_dynamo_disabled_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    result = check(Agent, observation=Box((8,)))
    # Whether the variable still counts once dynamo is imported is torch's affair.
    if result.verdict is Verdict.NOT_COMPILED:
        assert "dynamo is disabled" in result.reason
    else:
        assert_passes(result)


def test_a_stance_that_forces_eager() -> None:
    with torch.compiler.set_stance("force_eager"):
        result = check(Agent, observation=Box((8,)))
    assert_not_compiled(result, "no graph was captured", "force_eager")


def failing_backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    raise ValueError("the backend gave up")


def test_compile_errors_suppressed() -> None:
    """Every compile fails, and dynamo catches the exception and runs eager, so equality proves nothing."""
    with torch._dynamo.config.patch(suppress_errors=True):
        result = check(Agent, observation=Box((8,)), backend=failing_backend)
    assert_not_compiled(result, "suppress_errors", "ValueError: the backend gave up")


def test_errors_suppressed_that_do_not_happen() -> None:
    with torch._dynamo.config.patch(suppress_errors=True):
        assert_passes(check(Agent, observation=Box((8,))))


def test_compile_errors_suppressed_after_the_first_graph() -> None:
    """The first batch size compiles, and the others run eager."""
    graphs = 0

    def fails_later(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        if graphs > 1:
            raise ValueError("the backend gave up")
        return graph

    with torch._dynamo.config.patch(suppress_errors=True):
        result = check(Agent, observation=Box((8,)), backend=fails_later)
    told = " ".join([result.reason, *result.notes])
    assert "the backend gave up" in told


class Fallback(nn.Module):
    """Calls what it compiled itself while it handles an exception of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.compiled = torch.compile(self.net, backend="eager")

    @torch.compiler.disable
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            raise KeyError("user")
        except KeyError:
            return self.compiled(x)


def test_an_exception_that_the_policy_handles_is_no_failure_of_the_compiler() -> None:
    result = check(Fallback, observation=Box((3,)), backend="eager")
    assert_passes(result)
    assert not [note for note in result.notes if "raised" in note]


def test_torch_compile_replaced_by_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compile(model: Any = None, **options: Any) -> Any:
        return model if model is not None else (lambda function: function)

    monkeypatch.setattr(torch, "compile", no_compile)
    result = check(Agent, observation=Box((8,)))
    assert_not_compiled(result, "no graph was captured", "torch.compile has been replaced by", "no_compile")


def test_a_method_that_dynamo_may_not_enter() -> None:
    class Disabled(Agent):
        @torch.compiler.disable
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x)

    result = check(Disabled, observation=Box((8,)))
    assert_not_compiled(result, "no graph was captured", "'forward'", "torch.compiler.disable")
    assert "external_utils" not in result.reason


# --- part of it compiled --------------------------------------------------------------------------


class PartlyCompiled(nn.Module):
    """A trunk that dynamo leaves out, between two operations that it captures."""

    def __init__(self, *, head: bool) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4) if head else nn.Identity()

    @torch.compiler.disable
    def run_trunk(self, x: torch.Tensor) -> torch.Tensor:
        return self.trunk(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.run_trunk(torch.relu(x) + 1)))


def test_a_trunk_left_out_between_two_captured_operations() -> None:
    """Two graphs without any parameter: the number of graphs proves nothing."""
    result = check(lambda: PartlyCompiled(head=False), observation=Box((8,)))
    assert_not_compiled(result, "graphs captured, but none takes a parameter that eager uses", "trunk")
    assert result.capture.graphs >= 2
    assert result.capture.coverage == 0.0


def test_a_trunk_left_out_before_the_only_graph() -> None:
    class Squashed(PartlyCompiled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.run_trunk(x))

    result = check(lambda: Squashed(head=False), observation=Box((8,)), batch=4, layouts=False, examples=0)
    assert result.capture.graphs == 1
    assert result.reason.startswith(
        "1 graph captured, but none takes a parameter that eager uses; left eager: "
    )


def test_the_share_of_what_was_compiled_is_reported() -> None:
    result = check(lambda: PartlyCompiled(head=True), observation=Box((8,)))
    assert_passes(result)
    assert result.capture.coverage == 36 / 108, "the elements of its parameters"
    assert result.capture.left_eager == ("trunk.weight", "trunk.bias")
    assert result.capture.modules_left_eager == ("trunk",)
    assert result.capture.breaks, "the break is reported with its reason and place"
    assert re.search(r"test_capture\.py:\d+", result.capture.breaks[0])


def test_min_coverage_makes_a_share_too_small_a_failure() -> None:
    def verdict(least: float) -> CheckResult:
        return check(lambda: PartlyCompiled(head=True), observation=Box((8,)), min_coverage=least)

    assert_passes(verdict(0.33))
    assert_not_compiled(verdict(0.34), "33 %", "min_coverage=0.34", "trunk")
    assert_passes(check(Agent, observation=Box((8,)), min_coverage=1.0))


def test_parameters_that_the_method_does_not_use_do_not_count() -> None:
    result = check(Agent, observation=Box((8,)), min_coverage=1.0)
    assert_passes(result)
    assert set(result.capture.parameters) == {"trunk.weight", "trunk.bias", "policy.weight", "policy.bias"}


def test_a_module_without_parameters_needs_but_a_graph() -> None:
    class Bare(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x)

    result = check(Bare, observation=Box((8,)), min_coverage=1.0)
    assert_passes(result)
    assert result.capture.coverage is None
    assert result.row()["coverage"] == "n/a"


# --- compiled again and again ---------------------------------------------------------------------


class Steps:
    """A count kept outside the module."""

    taken = 0


class Counting(nn.Module):
    """Counts its calls, in itself or outside; dynamo guards on the number once the result depends on it."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.calls = 0
        self.where = where

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        if self.where == "inside":
            self.calls += 1
            if self.calls == 10**6:
                return -y
        if self.where == "outside":
            Steps.taken += 1
            if Steps.taken == 10**6:
                return -y
        return y


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("inside", "calls"),
        pytest.param("outside", "taken", marks=needs_torch("2.12", "captures writes to a class")),
    ],
)
def test_a_module_that_compiles_again_on_every_call(where: str, named: str) -> None:
    """In use, torch gives up after the limit and runs eager, so equality would prove nothing."""
    result = check(lambda: Counting(where), observation=Box((8,)))
    assert_not_compiled(result, "in a row compiled again for shapes already seen", "torch gives up after 8")
    assert named in result.reason, "the guard that failed is named"


def test_a_module_that_compiles_once() -> None:
    result = check(lambda: Counting("nowhere"), observation=Box((8,)))
    assert_passes(result)
    assert 1 <= result.capture.graphs <= 4


class Lookup(nn.Module):
    """Takes one integer a row."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.table(x))


class CountsInItsClass(nn.Module):
    """Its counter begins as an attribute of the class."""

    steps = 0

    def __init__(self, *, by: int) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.by
        return self.layer(x) + self.steps


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_counter_that_begins_in_the_class_compiles_again(phase: str) -> None:
    model = CountsInItsClass(by=1)
    result = check(model, phase, observation=Box((8,)))
    assert_not_compiled(result, "in a row compiled again for shapes already seen", "steps")
    assert "steps" not in vars(model)
    assert_passes(check(CountsInItsClass(by=0), phase, observation=Box((8,))))


def test_recompiles_for_new_shapes_are_no_failure() -> None:
    """Static shapes: each batch size is compiled once, none of them twice."""
    result = check(Lookup, observation=Discrete(5), dynamic=False)
    assert_passes(result)
    sizes = [text for text in result.capture.recompiles if "size mismatch at index 0" in text]
    assert len(sizes) == 3
    assert result.capture.graphs == 1 + len(result.capture.recompiles)


def test_more_recompiles_than_the_users_own_limit_allows() -> None:
    """The check raises the limit to continue comparing, and reports what happens under the user's limit."""
    with torch._dynamo.config.patch(recompile_limit=2):
        result = check(Lookup, observation=Discrete(5), dynamic=False)
        assert torch._dynamo.config.recompile_limit == 2
    assert_passes(result)
    assert any("3 recompiles of one function exceed your recompile_limit of 2" in n for n in result.notes)


class InTwoParts(Lookup):
    """A graph break makes two functions of it, and torch limits the recompiles of each."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.table(x)
        torch._dynamo.graph_break()
        return torch.tanh(hidden)


def test_the_limit_counts_for_each_function() -> None:
    with torch._dynamo.config.patch(recompile_limit=4):
        result = check(InTwoParts, observation=Discrete(5), dynamic=False)
    assert_passes(result)
    assert len(result.capture.recompiles) > 4
    assert not any("limit" in note for note in result.notes)


def test_a_limit_that_is_not_reached_is_not_mentioned() -> None:
    assert not any("limit" in note for note in check(Lookup, observation=Discrete(5), dynamic=False).notes)


# --- code that is compiled already ----------------------------------------------------------------


@pytest.mark.parametrize(
    "factory", [Agent, lambda: torch.compile(Agent(), backend="eager")], ids=["to be compiled", "as deployed"]
)
def test_a_second_check_of_the_same_class(factory: Callable[[], nn.Module]) -> None:
    """dynamo finds the code of the first check and compiles nothing; the library never resets it."""
    for _ in range(2):
        (result,) = check_equivalence(
            factory, observation=Box((8,)), phases="rollout", backend="eager", examples=3
        )
        assert_passes(result)
        assert result.capture.coverage == 1.0


def test_a_second_policy_of_the_same_class() -> None:
    for _ in range(2):
        policy = compile_policy(Agent, observation=Box((8,)), backend="eager")
        assert policy.capture.coverage == 1.0


def test_a_check_of_what_the_user_has_compiled_and_called_before() -> None:
    model = Agent()
    torch.compile(model, backend="eager")(torch.zeros(4, 8))
    (result,) = check_equivalence(model, observation=Box((8,)), phases="rollout", backend="eager", examples=3)
    assert_passes(result)
    assert result.capture.coverage == 1.0


@pytest.mark.xfail(
    strict=True,
    reason="graphs compiled before any check are not seen; the message says to call torch.compiler.reset()",
)
def test_a_deployed_policy_that_has_run_before() -> None:
    """All its graphs exist already; the check still sees them run."""
    model = torch.compile(Lookup(), backend="eager").eval()
    with torch.no_grad():
        model(torch.arange(4))
    (result,) = check_equivalence(model, observation=Discrete(5), phases="rollout", batch=4)
    assert_passes(result)
    assert result.capture.coverage == 1.0


# --- what is counted ------------------------------------------------------------------------------


def test_graphs_breaks_and_seconds_are_counted() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.table(x)
            torch._dynamo.graph_break()
            return y * 2

    broken = check(Broken, observation=Discrete(5), batch=4)
    whole = check(Lookup, observation=Discrete(5), batch=4)
    assert_passes(broken)
    assert (whole.capture.graphs, len(whole.capture.breaks), len(whole.capture.recompiles)) == (1, 0, 0)
    assert broken.capture.graphs == 2
    assert len(broken.capture.breaks) == 1
    assert 0 < whole.capture.compile_s < 60


class Pieces(nn.Module):
    """What dynamo can take whole, or not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.table(x)
        if self.how == "explicit":
            torch._dynamo.graph_break()
        elif self.how == "printed":
            print(end="")
        elif self.how == "by data":
            y = y + 1 if y.sum() > 0 else y - 1
        elif self.how == "disabled inside":
            y = self.disabled(y)
        elif self.how == "in a handler":
            try:
                torch._dynamo.graph_break()
            except ValueError:
                y = -y
        return self.tail(y)

    @torch.compiler.disable
    def disabled(self, y: torch.Tensor) -> torch.Tensor:
        return y + 1

    def tail(self, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(y) * self.scale


class NotItself(Pieces):
    """Only what its disabled forward calls is compiled."""

    @torch.compiler.disable(recursive=False)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.table(x)) + self.inner(self.table(x))

    def inner(self, y: torch.Tensor) -> torch.Tensor:
        return torch.sin(y)


WHOLE = ["", "explicit", "printed", "by data", "disabled inside", "in a handler"]


@pytest.mark.parametrize("how", WHOLE)
@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_fullgraph_is_told_beside_the_default(how: str, phase: str) -> None:
    """The reported reason is the one that torch gives on request."""
    default = check(lambda: Pieces(how), phase, observation=Discrete(5), batch=(4, 7))
    asked_for = check(lambda: Pieces(how), phase, observation=Discrete(5), batch=(4, 7), fullgraph=True)
    assert_passes(default)
    assert default.capture.fullgraph is (asked_for.verdict is not Verdict.COMPILE_FAILED)
    assert default.capture.fullgraph is (how == "")
    assert ("(fullgraph)" in capture_line(default.capture)) is (how == "")


def test_parts_of_a_method_are_no_full_graph() -> None:
    result = check(lambda: NotItself(""), observation=Discrete(5), batch=(4, 7), min_coverage=0)
    assert not result.capture.fullgraph


def test_fullgraph_of_several_methods() -> None:
    whole, broken = Capture(graphs=1, fullgraph=True), Capture(graphs=2)
    assert Capture.of_all([whole, Capture(), whole]).fullgraph
    assert not Capture.of_all([whole, broken]).fullgraph
    assert not Capture.of_all([Capture()]).fullgraph


def test_every_method_and_phase_has_a_capture_of_its_own() -> None:
    results = check_equivalence(
        Agent, observation=Box((8,)), methods=["forward", "act"], backend="aot_eager", examples=0
    )
    assert [result.case for result in results] == [
        "forward-rollout",
        "forward-update",
        "act-rollout",
        "act-update",
        "forward+act-lifecycle",
    ]
    for result in results:
        assert_passes(result)
        assert len(result.capture.parameters) == (4 if result.method == "forward" else 6)


def test_an_adapter_is_compiled_itself() -> None:
    def greedy(model: Agent, x: torch.Tensor) -> torch.Tensor:
        return model.act(x)[0].argmax(-1)

    result = check(Agent, observation=Box((8,)), methods=greedy)
    assert_passes(result)
    assert result.method == "greedy"
    assert set(result.capture.parameters) == {
        "trunk.weight",
        "trunk.bias",
        "policy.weight",
        "policy.bias",
    } | {
        "value.weight",
        "value.bias",
    }


def test_the_backend_is_given_what_torch_compile_gives_it() -> None:
    """The recorder is used beside the backend and does not replace it."""
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Any:
        seen.append((type(graph).__name__, len(inputs), options))
        return graph

    assert_passes(check(Lookup, observation=Discrete(5), backend=backend, batch=4, threads=2, layouts=False))
    # Once for the case, once more on one thread to see whether an index out of range is rejected, and once
    # for an empty batch. Before torch 2.13 the second compiles once for each of two wrong inputs.
    assert set(map(repr, seen)) == {repr(("GraphModule", 2, {}))}
    assert len(seen) in ({3} if RELEASE >= (2, 13) else {3, 4})


def test_the_limit_is_the_users_own_again_after_the_check() -> None:
    before = torch._dynamo.config.recompile_limit
    check(Agent, observation=Box((8,)), examples=0)
    assert torch._dynamo.config.recompile_limit == before


# --- compiled before the check --------------------------------------------------------------------


class CompiledBefore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_class_that_the_process_has_compiled_before(phase: str) -> None:
    """Dynamo keeps code by class, and the library resets nothing."""
    torch.compiler.reset()
    with torch.set_grad_enabled(phase == "update"):
        earlier = CompiledBefore().train(phase == "update")
        torch.compile(earlier, backend="aot_eager")(torch.randn(4, 8))
    (result,) = check_equivalence(
        CompiledBefore, observation=Box((8,)), phases=phase, backend="aot_eager", examples=2
    )
    assert result.verdict is Verdict.EQUAL, result.reason
    assert any("torch.compiler.reset()" in note for note in result.notes)
