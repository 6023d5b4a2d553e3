"""Contracts with torch and Hypothesis: each private name that this package uses still means the same.

A new release that moves a name, or changes its meaning, fails here first, and the test shows which
function of ``internals/`` or ``search.py`` has to be fixed.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import cProfile
import functools
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock
from unittest.mock import MagicMock

import hypothesis
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch_versions import needs_torch

from pytest_torchcompile import internals
from pytest_torchcompile.internals import events
from pytest_torchcompile.texts import at

with warnings.catch_warnings():
    # Whoever is first to import it is told that torch uses something it has deprecated.
    warnings.simplefilter("ignore")
    import torch._inductor.compile_fx


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_every_function_of_the_module_has_a_contract_here() -> None:
    """So that every new private name has a test."""
    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    missing = [name for name in internals.__all__ if f"internals.{name}" not in text]
    assert missing == []


def test_private_names_of_torch_stand_in_that_folder_only() -> None:
    """Apart from strings and comments; `_modules`, `_buffers` and `_version` are nn.Module's and Tensor's."""
    mine = os.path.dirname(internals.__file__)
    private = re.compile(r"\btorch\._[a-z]|from torch\._|import torch\._|\._dynamo\b|\._inductor\b")
    found = []
    for folder, _, files in os.walk(os.path.dirname(mine)):
        for name in files:
            if name.endswith(".py") and folder != mine:
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    code = [line.partition("#")[0] for line in file if '"' not in line and "``" not in line]
                found += [f"{name}: {line.strip()}" for line in code if private.search(line)]
    assert found == []
    with open(os.path.join(mine, "graphs.py"), encoding="utf-8") as file:
        assert private.search(file.read()), "the folder has some, or nothing was looked at"


def test_what_torch_compile_sets_on_the_module_that_it_wraps_is_known() -> None:
    model = Policy()
    before = set(vars(model))
    torch.compile(model, backend="eager")
    assert set(vars(model)) - before <= internals.COMPILED_MARKS, "and nothing before torch 2.13"


def test_code_that_was_compiled_before_is_seen_to_run() -> None:
    model = Policy()
    compiled = torch.compile(model, backend="eager")
    compiled(torch.ones(3, 8))
    for function, runs in ((compiled, True), (model, False)):
        with internals.compiled_code_run() as ran:
            function(torch.ones(3, 8))
        assert ran() is runs


def test_a_profile_goes_on_after_it() -> None:
    model = Policy()
    profile = cProfile.Profile()
    with profile:
        with internals.compiled_code_run():
            pass
        model(torch.ones(3, 8))
    assert "forward" in {code.co_name for code, *_ in profile.getstats() if not isinstance(code, str)}


def test_a_view_made_under_no_grad_has_no_history() -> None:
    weight = torch.ones(3, requires_grad=True)
    made = weight * 2
    with torch.no_grad():
        view = made.view(-1)
    assert view.requires_grad, "which is why it has to be asked"
    assert not internals.has_history(view)
    assert internals.has_history(weight)
    assert internals.has_history(made)
    assert not internals.has_history(torch.ones(3))


# --- compiles -------------------------------------------------------------------------------------


class Log:
    """What `compile_events` tells."""

    def __init__(self) -> None:
        self.started = 0
        self.events: list[internals.CompileEvent] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        with internals.compile_events(self._start, self.events.append):
            yield

    def _start(self) -> None:
        self.started += 1


def test_a_compile_starts_and_ends() -> None:
    log = Log()
    compiled = torch.compile(Policy(), backend="eager")
    with log.listening():
        compiled(torch.ones(3, 8))
        compiled(torch.ones(3, 8))
    assert log.started == len(log.events) == 1
    assert log.events[0].error is None
    assert not log.events[0].backward
    assert re.fullmatch(r"\d+/0", log.events[0].compile_id)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_policies_of_one_class_are_compiled_apart(backend: str) -> None:
    log = Log()
    with log.listening():
        first, second = (internals.isolated_compile(Policy(), backend=backend) for _ in range(2))
        for batch in (3, 3, 5, 7):
            first(torch.ones(batch, 8))
        of_first = len(log.events)
        second(torch.ones(3, 8))
        second(torch.ones(3, 8))
    assert of_first == 2, "one for a single size, one for all others"
    assert len(log.events) - of_first == 1, "it has a graph of its own and compiles it once"


def test_what_was_compiled_apart_does_not_count_towards_the_limit_once_it_has_ended() -> None:
    def policy(x: torch.Tensor, size: int) -> torch.Tensor:
        return x * size

    log = Log()
    with internals.raised_recompile_limit(), internals.isolated_code_forgotten():
        apart = internals.isolated_compile(policy, backend="eager", dynamic=False)
        for size in range(12):
            apart(torch.ones(3), size)
    with log.listening(), torch._dynamo.config.patch(recompile_limit=4):
        torch.compile(policy, backend="eager", dynamic=False, fullgraph=True)(torch.ones(3), 1)
        assert len(log.events) == 1, "it is compiled, and not refused for the twelve before"
        apart(torch.ones(3), 1)
    assert len(log.events) <= 2, "what is still in use may compile once more"


def test_without_isolation_they_share_graphs() -> None:
    """The control: it is what `isolated_compile` prevents."""
    log = Log()
    with log.listening():
        for _ in range(2):
            torch.compile(Policy(), backend="eager")(torch.ones(3, 8))
    assert len(log.events) == 1


def test_a_recompile_is_a_second_event_of_the_same_frame() -> None:
    log = Log()
    compiled = torch.compile(Policy(), backend="eager", dynamic=False)
    with log.listening():
        compiled(torch.ones(3, 8))
        compiled(torch.ones(4, 8))
    first, second = log.events
    assert first.frame == second.frame
    assert first.compile_id != second.compile_id


def test_two_functions_are_two_frames() -> None:
    log = Log()
    with log.listening():
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(3))
        torch.compile(lambda x: x + 2, backend="eager")(torch.ones(3))
    assert log.events[0].frame != log.events[1].frame


def test_a_lazy_backward_is_an_event_of_its_own() -> None:
    log = Log()
    compiled = torch.compile(Policy(), backend="aot_eager")
    with log.listening():
        loss = compiled(torch.ones(3, 8)).sum()
        forward = len(log.events)
        loss.backward()
    assert forward == 1
    assert [event.backward for event in log.events] in ([False], [False, True])


def test_a_lazy_backward_of_inductor_is_told_as_one() -> None:
    log = Log()
    compiled = torch.compile(Policy())
    config = torch._functorch.config
    setting = {name: False for name in ("force_non_lazy_backward_lowering",) if hasattr(config, name)}
    with log.listening(), config.patch(setting):  # before torch 2.10 it is always lazy
        compiled(torch.ones(3, 8)).sum().backward()
    assert log.events[0].backward is False
    assert all(event.error is None for event in log.events)


@pytest.mark.parametrize("error", [ValueError("no"), AssertionError()])
def test_the_exception_that_leaves_the_compiler_is_known_at_the_end(error: Exception) -> None:
    def gives_up(graph: Any, inputs: Any) -> Any:
        raise error

    log = Log()
    compiled = torch.compile(Policy(), backend=gives_up)
    with log.listening(), pytest.raises(Exception, match=".") as caught:
        compiled(torch.ones(3, 8))
    assert log.events[-1].error is not None
    assert internals.inner_error(log.events[-1].error) is error
    assert internals.inner_error(caught.value) is error


def test_an_exception_that_the_caller_handles_is_none_of_the_compiler_s() -> None:
    def gives_up(graph: Any, inputs: Any) -> Any:
        raise ValueError("no")

    log = Log()
    with log.listening():
        try:
            raise KeyError("user")
        except KeyError:
            torch.compile(Policy(), backend="aot_eager")(torch.ones(3, 8)).sum().backward()
            passed = list(log.events)
            with pytest.raises(Exception, match="no"):
                torch.compile(Policy(), backend=gives_up)(torch.ones(3, 8))
    assert [event.error for event in passed] == [None] * len(passed) != []
    assert isinstance(internals.inner_error(log.events[-1].error), ValueError)


def test_an_exception_of_a_backward_compile_is_known() -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def right(graph: Any, inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    def gives_up(graph: Any, inputs: Any) -> Any:
        raise ValueError("no backward")

    log = Log()
    compiled = torch.compile(Policy(), backend=aot_autograd(fw_compiler=right, bw_compiler=gives_up))
    with log.listening(), pytest.raises(Exception, match="no backward"):
        compiled(torch.ones(3, 8)).sum().backward()
    errors = [event.error for event in log.events if event.error is not None]
    assert "no backward" in str(errors[-1])


def test_nobody_listens_after_the_body() -> None:
    log = Log()
    with log.listening():
        pass
    torch.compile(Policy(), backend="eager")(torch.ones(3, 8))
    assert log.started == 0


def test_a_reset_in_the_body_is_no_error() -> None:
    with Log().listening():
        torch.compiler.reset()


# --- graphs ---------------------------------------------------------------------------------------


class Runs:
    """What `graphs_run` tells."""

    def __init__(self) -> None:
        self.graphs: list[int] = []
        self.values: list[list[Any]] = []

    def __call__(self, call: internals.GraphCall) -> None:
        self.graphs.append(call.graph)
        self.values.append(list(call.values))

    def took(self, tensor: torch.Tensor) -> bool:
        return any(value is tensor for values in self.values for value in values)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_graph_that_runs_is_told_with_the_modules_own_parameters(backend: str) -> None:
    runs, model = Runs(), Policy()
    compiled = torch.compile(model, backend=backend)
    with internals.graphs_run(runs):
        compiled(torch.ones(3, 8))
        compiled(torch.ones(3, 8))
    assert len(runs.graphs) == 2
    assert len(set(runs.graphs)) == 1
    assert runs.took(model.layer.weight), "the very object, not a copy"
    assert runs.took(model.layer.bias)
    assert not runs.took(Policy().layer.weight)


def test_parameters_inside_the_graph_are_told_too() -> None:
    """A graph module that is passed to dynamo keeps its own code."""
    runs, model = Runs(), Policy()
    graph = torch.fx.symbolic_trace(model)
    with internals.graphs_run(runs):
        torch.compile(graph, backend="eager")(torch.ones(3, 8))
    assert runs.took(model.layer.weight)


def test_a_second_module_of_the_class_runs_the_same_graph_with_its_own_parameters() -> None:
    first, second = Runs(), Runs()
    one, other = Policy(), Policy()
    with internals.graphs_run(first):
        torch.compile(one, backend="eager")(torch.ones(3, 8))
    with internals.graphs_run(second):
        torch.compile(other, backend="eager")(torch.ones(3, 8))
    assert set(second.graphs) == set(first.graphs)
    assert second.took(other.layer.weight)
    assert not second.took(one.layer.weight)


def test_a_graph_is_told_as_dynamo_made_it() -> None:
    """A backend that rewrites its graph does not change what is reported; each node has its line."""
    calls: list[internals.GraphCall] = []

    def emptied(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        original = copy.deepcopy(graph)
        for node in reversed(graph.graph.nodes):
            if node.op == "output":
                node.args = ((),)
            elif node.op != "placeholder":
                graph.graph.erase_node(node)
        graph.recompile()
        return original

    model = Policy()
    with internals.graphs_run(calls.append):
        expected = torch.compile(model, backend=emptied)(torch.ones(3, 8))
    (call,) = calls
    assert isinstance(call, internals.GraphCall)
    (found,) = call.module(*call.args)
    assert torch.equal(found, expected)
    lines = {internals.user_line(node.meta.get("stack_trace")) for node in call.module.graph.nodes}
    assert any("test_internals.py:" in (line or "") for line in lines)


def test_eager_runs_no_graph() -> None:
    runs = Runs()
    with internals.graphs_run(runs), torch.compiler.set_stance("force_eager"):
        torch.compile(Policy(), backend="eager")(torch.ones(3, 8))
    assert runs.graphs == []


def test_the_backend_is_the_users_and_gets_its_options() -> None:
    seen: list[dict[str, Any]] = []

    def backend(graph: Any, inputs: Any, **options: Any) -> Any:
        seen.append(options)
        return graph

    with internals.graphs_run(Runs()):
        torch.compile(Policy(), backend=backend, options={"a": 1})(torch.ones(3, 8))
    assert seen == [{"options": {"a": 1}}]


def test_dynamo_is_as_before_after_the_body() -> None:
    from torch._dynamo.output_graph import OutputGraph

    before = OutputGraph.call_user_compiler
    with contextlib.suppress(KeyError), internals.graphs_run(Runs()):
        assert OutputGraph.call_user_compiler is not before
        raise KeyError
    assert OutputGraph.call_user_compiler is before


# --- what happened --------------------------------------------------------------------------------


def test_graph_breaks_are_counted_and_told_with_their_place() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    def branching(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1

    assert internals.graph_break_count() == 0
    torch.compile(broken, backend="eager")(torch.ones(3))
    assert internals.graph_break_count() == 1
    torch.compile(branching, backend="eager")(torch.ones(3))
    assert internals.graph_break_count() == 2
    first, second = internals.graph_breaks(0)
    assert internals.graph_breaks(1) == [second]
    for text in (first, second):
        assert re.search(r"test_internals\.py:\d+", text)
    assert "graph_break" in first
    assert "generic_jump" in second


@torch.compiler.disable
def disabled(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def test_the_place_of_a_graph_break_is_a_line_of_the_users() -> None:
    """Dynamo's stack ends inside torch if the function is under `torch.compiler.disable`."""

    def run(x: torch.Tensor) -> torch.Tensor:
        return disabled(x) * 2

    torch.compile(run, backend="eager")(torch.ones(2))
    (told,) = internals.graph_breaks(0)
    assert "test_internals.py:" in told, told


def test_a_reset_forgets_the_graph_breaks() -> None:
    torch.compile(lambda x: print(end="") or x + 1, backend="eager")(torch.ones(3))
    torch.compiler.reset()
    assert internals.graph_break_count() == 0


def test_the_reason_of_a_recompile_is_known_by_its_compile_id() -> None:
    log = Log()
    compiled = torch.compile(Policy(), backend="eager", dynamic=False)
    with log.listening():
        compiled(torch.ones(3, 8))
        compiled(torch.ones(4, 8))
    reasons = internals.recompile_reasons()
    assert reasons[log.events[1].compile_id] == "tensor 'x' size mismatch at index 0. expected 3, actual 4"
    assert log.events[0].compile_id not in reasons


def test_the_reason_of_a_recompile_names_the_users_line() -> None:
    log = Log()
    compiled = torch.compile(Policy(), backend="eager", dynamic=True)
    with log.listening():
        compiled(torch.ones(3, 8))
        compiled(torch.ones(1, 8))
    reason = internals.recompile_reasons()[log.events[1].compile_id]
    assert re.fullmatch(r"2 <= x\.size\(\)\[0\] \(at .+\.py:\d+\)", reason), reason


def test_the_seconds_of_a_compile_by_stage() -> None:
    compiled = torch.compile(Policy(), backend="aot_eager")
    compiled(torch.ones(3, 8)).sum().backward()
    spent = internals.compile_seconds(2)
    assert spent.keys() <= {"dynamo", "AOTAutograd"}
    assert spent["dynamo"] > 0
    assert internals.compile_seconds(0) == {}


def test_settings_of_inductor_hold_in_the_body() -> None:
    before = torch._inductor.config.max_fusion_size
    with internals.inductor_settings({"max_fusion_size": before + 1}):
        assert torch._inductor.config.max_fusion_size == before + 1
    assert torch._inductor.config.max_fusion_size == before


def test_every_setting_that_is_tried_is_one_of_inductors() -> None:
    from pytest_torchcompile.explaining.stages import SETTINGS

    with internals.inductor_settings({name: value for name, (value, _) in SETTINGS.items()}):
        pass


@pytest.mark.parametrize(
    ("kind", "backend", "name"),
    [
        ("decomposition", "aot_eager_decomp_partition", "aten.silu.default"),
        ("pass", "inductor", "post_grad_custom_post_pass"),
        ("lowering", "inductor", "aten.addmm.default"),
    ],
)
def test_the_steps_of_the_compiler_are_asked_for(kind: str, backend: str, name: str) -> None:
    """By name, with the user's line where inductor knows it; and left out where that is the answer."""
    asked: list[internals.CompilerStep] = []

    def leave_out(step: internals.CompilerStep) -> bool:
        asked.append(step)
        return step.kind == kind

    layer = torch.nn.Linear(8, 8)

    def policy(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(layer(x))

    settings = {"post_grad_custom_post_pass": lambda graph: None}
    with internals.compiler_steps(leave_out), internals.inductor_settings(settings), torch.no_grad():
        x = torch.ones(3, 8)
        assert torch.allclose(torch.compile(policy, backend=backend)(x), policy(x), atol=1e-5)
    found = {step.name: step.line for step in asked if step.kind == kind}
    assert name in found
    assert (found[name] is not None) == (kind == "lowering")


def test_steps_are_asked_for_in_the_body_only() -> None:
    from torch._inductor.compiler_bisector import CompilerBisector

    before = CompilerBisector.__dict__["disable_subsystem"]
    with internals.compiler_steps(lambda step: True):
        assert CompilerBisector.disable_subsystem("inductor", "lowerings") is False, "no name, no answer"
    assert CompilerBisector.__dict__["disable_subsystem"] is before
    assert CompilerBisector.disable_subsystem("inductor", "pre_grad_passes", lambda: "a pass") is False


def test_the_users_line_of_a_node() -> None:
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(node.meta.get("stack_trace") for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compile(Policy(), backend=backend)(torch.ones(3, 8))
    assert all("test_internals.py:" in (internals.user_line(trace) or "") for trace in seen if trace)
    assert any(seen)
    assert internals.user_line(None) is None


def test_graphs_out_of_the_cache_are_counted_and_a_fresh_cache_has_none() -> None:
    def compile_anew() -> int:
        torch.compiler.reset()
        before = internals.cached_graph_count()
        torch.compile(nn.Linear(3, 2))(torch.ones(2, 3))
        return internals.cached_graph_count() - before

    with internals.fresh_compile_cache():
        assert compile_anew() == 0
        assert compile_anew() > 0
        with internals.fresh_compile_cache():
            assert compile_anew() == 0
        assert compile_anew() > 0


def test_the_recompile_limit_is_torchs_own() -> None:
    limit = internals.recompile_limit()
    assert limit == torch._dynamo.config.recompile_limit
    with torch._dynamo.config.patch(recompile_limit=3):
        assert internals.recompile_limit() == 3


def _graphs_of_sizes(count: int) -> int:
    """How many graphs `count` sizes make under static shapes."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(Policy(), backend=backend, dynamic=False)
    for size in range(count):
        compiled(torch.ones(2 + size, 8))
    return len(graphs)


def test_dynamo_gives_up_after_the_limit_and_not_when_it_is_raised() -> None:
    with torch._dynamo.config.patch(recompile_limit=3):
        assert _graphs_of_sizes(12) == 3, "eager in silence: what makes the check raise the limit"
        torch.compiler.reset()
        with internals.raised_recompile_limit():
            assert _graphs_of_sizes(12) == 12
        assert internals.recompile_limit() == 3


# --- settings -------------------------------------------------------------------------------------


def test_inductor_draws_eagers_numbers_when_it_is_told_to() -> None:
    def noise(x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)

    def seeded(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(0)
        return function(torch.zeros(64))

    compiled = torch.compile(noise)
    assert not torch.equal(seeded(compiled), seeded(noise)), "else there would be nothing to tell it"
    torch.compiler.reset()
    with internals.eager_random_numbers():
        assert torch.equal(seeded(torch.compile(noise)), seeded(noise))


def test_kernels_for_one_thread_have_no_parallel_region() -> None:
    """They would end the process instead of raising, so the test reads the code and does not run it."""

    def wide(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.relu(table[index])

    def code() -> str:
        torch.compiler.reset()
        inputs = torch.randn(4, 8192), torch.zeros(16, dtype=torch.int64)
        _, found = torch._inductor.utils.run_and_get_code(torch.compile(wide), *inputs)
        return "".join(found)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert "#pragma omp parallel" in code(), "else there would be nothing to prevent"
        with internals.kernels_for_one_thread():
            assert "#pragma omp parallel" not in code()
    finally:
        torch.set_num_threads(threads)


def test_argument_validation_can_be_read_and_switched() -> None:
    before = internals.argument_validation()
    try:
        internals.set_argument_validation(True)
        assert internals.argument_validation() is True
        with pytest.raises(ValueError, match="scale"):
            torch.distributions.Normal(torch.zeros(1), -torch.ones(1))
        internals.set_argument_validation(False)
        assert internals.argument_validation() is False
        torch.distributions.Normal(torch.zeros(1), -torch.ones(1))
    finally:
        internals.set_argument_validation(before)


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (lambda: torch._dynamo.config.patch(disable=True), "dynamo is disabled"),
        (lambda: torch.compiler.set_stance("force_eager"), "force_eager"),
        (lambda: torch._dynamo.config.patch(suppress_errors=True), "suppress_errors"),
        (contextlib.nullcontext, ""),
    ],
)
def test_why_nothing_compiles(patch: Callable[[], Any], words: str) -> None:
    with patch():
        why = internals.why_disabled()
    assert words in why
    assert bool(why) is bool(words)


def test_why_nothing_compiles_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert "TORCHDYNAMO_DISABLE" in internals.why_disabled()


def test_the_modes_of_inductor() -> None:
    modes = internals.known_modes()
    assert {"default", "reduce-overhead", "max-autotune"} <= set(modes)
    for mode in modes:
        torch.compile(Policy(), mode=mode)


def test_the_options_of_inductor() -> None:
    options = internals.known_inductor_options()
    assert {"max_autotune", "max-autotune", "cpp.simdlen", "fallback_random"} <= set(options)
    torch.compile(Policy(), options={"max-autotune": False, "cpp.simdlen": 1})
    with pytest.raises(RuntimeError, match="no_such_option"):
        torch.compile(Policy(), options={"no_such_option": 1})


# --- compiled objects -----------------------------------------------------------------------------


class MakesUp(dict[str, Any]):
    __getattr__ = dict.get


class Missing(dict[str, Any]):
    __getattr__ = dict.__getitem__


@pytest.mark.parametrize(
    "value", [MakesUp(), Missing(), MagicMock(), MagicMock(spec=nn.Module)], ids=lambda v: type(v).__name__
)
def test_an_object_that_makes_up_attributes_is_not_compiled(value: Any) -> None:
    assert not internals.is_compiled(value)
    assert internals.module_of(value) is None
    assert internals.owner_of(value) is value


@pytest.mark.filterwarnings("ignore:The PyTorch API:UserWarning")
def test_what_a_subclass_of_tensors_holds() -> None:
    class Tagged(torch.Tensor):
        pass

    tagged = torch.ones(2).as_subclass(Tagged)
    assert internals.inner_tensors(tagged) is None
    assert not internals.hides_elements(tagged)
    masked = torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False]))
    assert internals.inner_tensors(masked) is None
    assert internals.hides_elements(masked)
    both = TwoTensor(torch.ones(2), torch.zeros(2))
    held = internals.inner_tensors(both)
    assert held is not None
    assert [tensor.tolist() for tensor in held.values()] == [[1.0, 1.0], [0.0, 0.0]]


def test_what_a_transform_is_the_inverse_of() -> None:
    transform = torch.distributions.AffineTransform(1.0, 2.0)
    assert internals.inverted_transform(transform.inv) is transform
    assert internals.inverted_transform(transform) is None


def compiled_in_place() -> nn.Module:
    model = Policy()
    model.compile(backend="eager")
    return model


def test_what_has_been_compiled_is_known_as_such() -> None:
    model = Policy()
    assert not internals.is_compiled(model)
    assert not internals.is_compiled(model.forward)
    assert not internals.is_compiled(torch.relu)
    assert not internals.is_compiled(torch.compiler.disable(model.forward))
    assert not internals.is_compiled(3)
    assert internals.is_compiled(torch.compile(model, backend="eager"))
    assert internals.is_compiled(compiled_in_place())
    assert internals.is_compiled(torch.compile(model.forward, backend="eager"))
    assert internals.is_compiled(torch.compile(torch.relu, backend="eager"))


def test_the_module_inside_a_compiled_one() -> None:
    model = Policy()
    assert internals.uncompiled(torch.compile(model, backend="eager")) is model
    assert internals.uncompiled(model) is model


def test_the_module_that_a_method_belongs_to() -> None:
    model = Policy()
    assert internals.module_of(model) is model
    assert internals.module_of(model.forward) is model
    assert internals.module_of(torch.compile(model, backend="eager")) is model
    assert internals.module_of(torch.compile(model.forward, backend="eager")) is model
    assert internals.module_of(torch.relu) is None
    assert internals.module_of(torch.compile(torch.relu, backend="eager")) is None


# --- exceptions -----------------------------------------------------------------------------------


def test_the_object_whose_method_is_compiled() -> None:
    model = nn.Linear(2, 2)
    assert internals.compiled_owner(torch.compile(model.forward, backend="eager")) is model
    for other in (model, model.forward, torch.relu, torch.compile(torch.relu, backend="eager"), 3):
        assert internals.compiled_owner(other) is None


def test_late_hooks_are_ignored_unless_they_are_guarded() -> None:
    def hooked() -> list[int]:
        torch.compiler.reset()
        model, called = nn.Sequential(nn.Linear(2, 2)), []
        compiled = torch.compile(model, backend="eager")
        compiled(torch.zeros(1, 2))
        model[0].register_forward_hook(lambda *_: called.append(1))
        compiled(torch.zeros(1, 2))
        return called

    assert internals.ignores_late_hooks()
    assert not hooked()
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        assert not internals.ignores_late_hooks()
        assert hooked()


def test_the_place_where_dynamo_gave_up() -> None:
    def branching(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(Exception, match=".") as caught:
        torch.compile(branching, backend="eager", fullgraph=True)(torch.ones(3))
    place = internals.compiler_stack(caught.value)
    assert place is not None
    assert place[0] == __file__
    assert place[1] == branching.__code__.co_firstlineno + 1
    assert internals.compiler_stack(ValueError()) is None


def test_an_exception_of_the_users_is_its_own_inner_one() -> None:
    error = ValueError("no")
    assert internals.inner_error(error) is error


def test_an_unknown_backend_is_a_configuration_error() -> None:
    with pytest.raises(Exception, match="inductr") as caught:
        torch.compile(Policy(), backend="inductr")(torch.ones(3, 8))
    assert internals.is_configuration_error(caught.value)
    assert not internals.is_configuration_error(ValueError())


def test_code_of_the_compiler_is_told_from_the_users() -> None:
    from torch._inductor.codecache import PyCodeCache

    generated = PyCodeCache.load("x = 1").__file__
    assert generated is not None
    assert internals.is_compilers_code(generated)
    assert internals.is_compilers_code(torch._dynamo.eval_frame.__file__)
    assert internals.is_compilers_code(torch._inductor.graph.__file__)
    assert internals.is_compilers_code(torch._functorch.aot_autograd.__file__)
    assert not internals.is_compilers_code(__file__)
    assert not internals.is_compilers_code(torch.nn.functional.__file__)


def test_a_registered_backend_as_a_function() -> None:
    from pytest_torchcompile.explaining.stages import DEFAULT_PARTITIONER

    graph = torch.fx.symbolic_trace(torch.nn.Linear(2, 1))
    x = torch.ones(1, 2)
    assert torch.equal(internals.backend_function("eager")(graph, [x])(x), graph(x))
    assert DEFAULT_PARTITIONER in torch.compiler.list_backends(exclude_tags=())


def test_the_running_line_is_the_users() -> None:
    from pytest_torchcompile.texts import line_of

    assert internals.running_users_line().startswith(line_of(__file__, 1).rpartition(":")[0])


# --- operators ------------------------------------------------------------------------------------


class Operators(internals.DispatchMode):
    """Notes the operators that run in its body."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def operators(function: Callable[[], Any]) -> list[Any]:
    with Operators() as mode:
        function()
    return mode.seen


def test_a_dispatch_mode_sees_operators_below_autograd() -> None:
    model = Policy()
    seen = operators(lambda: model(torch.ones(3, 8)).sum().backward())
    names = [operator.name() for operator in seen]
    assert "aten::addmm" in names
    assert any("sum" in name for name in names)
    assert any(
        name in ("aten::mm", "aten::expand", "aten::t") for name in names[names.index("aten::addmm") + 1 :]
    )


def test_what_an_operator_takes_are_the_parameters_themselves() -> None:
    model = Policy()

    class Taken(Operators):
        found = False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Taken.found = Taken.found or any(arg is model.layer.bias for arg in args)
            return func(*args, **(kwargs or {}))

    with Taken():
        model(torch.ones(3, 8))
    assert Taken.found


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.softmax(x, -1),
        lambda x: torch.log_softmax(x, -1),
        lambda x: nn.functional.layer_norm(x, (8,)),
        lambda x: nn.functional.group_norm(x, 2),
        lambda x: nn.functional.batch_norm(x, None, None, training=True),
        lambda x: torch.logsumexp(x, -1),
    ],
    ids=["softmax", "log_softmax", "layer_norm", "group_norm", "batch_norm", "logsumexp"],
)
def test_fused_operators_come_apart(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Decomposed into smaller operators they compute the same, forward and backward."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    apart: list[str] = []

    class Apart(Operators):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            smaller = internals.decomposition(func)
            if smaller is not None:
                apart.append(func.name())
                return smaller(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        y = function(x)
        (gradient,) = torch.autograd.grad((y * y).sum(), x)
        return y.detach(), gradient

    whole = both()
    with Apart():
        pieces = both()
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)
    fused = [
        operator for operator in operators(both) if "norm" in operator.name() or "softmax" in operator.name()
    ]
    assert apart or not fused


def test_other_operators_stay_whole() -> None:
    assert internals.decomposition(torch.ops.aten.addmm.default) is None
    assert internals.decomposition(torch.ops.aten.tanh.default) is None
    assert internals.decomposition(torch.ops.aten._softmax.default) is not None


def test_arguments_that_an_operator_writes_to_or_returns_views_of() -> None:
    aten = torch.ops.aten
    assert internals.aliased_arguments(aten.add.Tensor) == (frozenset(), frozenset())
    assert internals.aliased_arguments(aten.add_.Tensor) == (frozenset({0}), frozenset({"self"}))
    assert internals.aliased_arguments(aten.view.default) == (frozenset({0}), frozenset({"self"}))
    assert internals.aliased_arguments(aten.add.out)[1] == frozenset({"out"})
    assert internals.written_arguments(aten.view.default) == (frozenset(), frozenset())
    assert internals.written_arguments(aten.add_.Tensor) == (frozenset({0}), frozenset({"self"}))
    assert internals.written_arguments(aten._foreach_add_.Scalar)[1] == frozenset({"self"})
    assert internals.returns_view(aten.view.default)
    assert internals.returns_view(aten.as_strided.default)
    assert not internals.returns_view(aten.add.Tensor)
    assert not internals.returns_view(aten.add_.Tensor)


def test_what_an_operator_was_given_under_a_name() -> None:
    total, x = torch.ops.aten.sum.dim_IntList, torch.ones(2, 3)
    assert internals.argument(total, (x, [1]), {}, "dim") == [1]
    assert internals.argument(total, (x,), {"dim": [0]}, "dim") == [0]
    assert internals.argument(total, (x, [1]), {}, "keepdim") is False
    assert internals.argument(total, (x, [1]), {}, "nothing of this name") is None


def test_elementwise_operators_are_tagged() -> None:
    aten = torch.ops.aten
    for operator in (aten.add.Tensor, aten.tanh.default, aten.mul_.Tensor, aten._foreach_add.List):
        assert internals.is_pointwise(operator)
    for operator in (aten.mm.default, aten.sum.default, aten.cumsum.default, aten._foreach_norm.Scalar):
        assert not internals.is_pointwise(operator)


@pytest.mark.parametrize(
    ("function", "draws"),
    [
        (lambda: torch.rand(3), True),
        (lambda: torch.randn_like(torch.ones(3)), True),
        (lambda: torch.empty(3).exponential_(), True),
        (lambda: torch.bernoulli(torch.full((3,), 0.5)), True),
        (lambda: torch.multinomial(torch.ones(3), 1), True),
        (lambda: torch.randperm(3), True),
        (lambda: nn.functional.dropout(torch.ones(3), 0.5, True), True),
        (lambda: torch.ones(3) + 1, False),
        (lambda: torch.zeros(3).normal_(), True),
    ],
    ids=[
        "rand",
        "randn_like",
        "exponential_",
        "bernoulli",
        "multinomial",
        "randperm",
        "dropout",
        "add",
        "normal_",
    ],
)
def test_operators_that_draw(function: Callable[[], Any], draws: bool) -> None:
    assert any(internals.draws_random_numbers(operator) for operator in operators(function)) is draws


# --- the trace log --------------------------------------------------------------------------------


def test_pytests_handler_is_kept_from_torchs_trace() -> None:
    from _pytest.logging import LogCaptureHandler

    trace = logging.getLogger("torch.__trace")
    handler, other = LogCaptureHandler(), logging.NullHandler()
    before = list(trace.handlers)
    trace.addHandler(handler)
    trace.addHandler(other)
    try:
        with internals.quiet_trace_log():
            assert handler not in trace.handlers
            assert other in trace.handlers
            torch.compile(Policy(), backend="eager")(torch.ones(3, 8))
        assert handler in trace.handlers
        assert handler.records == []
    finally:
        trace.handlers[:] = before


def test_torch_still_calls_its_trace_log_that() -> None:
    """Otherwise nothing would be silenced, and only the output would show it."""
    import torch._logging._internal as internal

    assert internal.trace_log.name == "torch.__trace"


# --- Hypothesis -----------------------------------------------------------------------------------


def _drawn(digest: bytes | None, *, database: Any = None, fails_from: int = 10**9) -> list[int]:
    found: list[int] = []

    def example(number: int) -> None:
        found.append(number)
        assert number < fails_from

    options = {"derandomize": True} if database is None else {"database": database}
    test = settings(max_examples=30, deadline=None, **options)(given(st.integers(0, 10**6))(example))
    if digest is not None:
        test.hypothesis.inner_test._hypothesis_internal_add_digest = digest
    with contextlib.suppress(AssertionError):
        test()
    return found


def test_the_digest_tells_cases_apart() -> None:
    """Without it all items would draw the same examples and share one entry of the database."""
    assert _drawn(b"one case") == _drawn(b"one case")
    assert _drawn(b"one case") != _drawn(b"another")
    assert _drawn(None) == _drawn(None)


def test_the_digest_keys_the_database() -> None:
    database = hypothesis.database.InMemoryExampleDatabase()
    smallest = _drawn(b"one case", database=database, fails_from=1000)[-1]
    assert smallest == 1000
    assert _drawn(b"one case", database=database, fails_from=1000)[0] == 1000
    assert _drawn(b"another", database=database, fails_from=1000)[0] != 1000


def test_the_settings_without_a_profile_say_100_examples() -> None:
    """`search` uses it to detect that the project has not set a number itself."""
    assert settings.get_profile("default").max_examples == 100


def test_a_strategy_outside_of_given_is_marked_as_a_hypothesis_test() -> None:
    """The plugin uses this attribute to detect that a marked test also has @given."""

    @given(st.integers())
    def drawn(number: int) -> None: ...

    assert drawn.is_hypothesis_test is True


def test_a_call_put_in_the_place_of_a_modules_own() -> None:
    """Also of torch's own modules, whose ``compile()`` dynamo skips; hooks count, copies are eager."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    module = nn.Sequential(nn.Linear(3, 2))
    module.register_forward_hook(lambda module, args, output: output + 1)
    expected = module(torch.ones(1, 3))
    internals.set_compiled_call(module, torch.compile(internals.eager_call(module), backend=backend))
    assert torch.equal(module(torch.ones(1, 3)), expected)
    assert len(graphs) == 1
    assert internals.is_compiled(module)
    assert not internals.is_compiled(copy.deepcopy(module))
    internals.set_compiled_call(module, None)
    assert not internals.is_compiled(module)


# --- counting work --------------------------------------------------------------------------------


def test_fake_tensors_have_shapes_and_no_numbers() -> None:
    model, state = Policy(), torch.get_rng_state()
    with internals.fake_tensors() as fake:
        found = model(fake.from_tensor(torch.ones(3, 8)) + torch.randn(8))
        model.layer.bias.data.add_(found.sum())
    assert found.shape == (3, 4)
    assert type(found) is not torch.Tensor
    assert torch.equal(torch.get_rng_state(), state)
    assert type(model.layer.bias.data) is torch.Tensor


def test_a_view_has_the_storage_of_what_it_views() -> None:
    tensor = torch.ones(3, 4)
    with internals.fake_tensors() as fake:
        unreal = fake.from_tensor(tensor)
    for one in (tensor, unreal):
        assert internals.storage_key(one) == internals.storage_key(one.T) == internals.storage_key(one[1:])
        assert internals.storage_key(one) != 0
    assert internals.storage_key(tensor) != internals.storage_key(tensor.clone())
    assert internals.storage_key(torch.eye(2).to_sparse()) == 0


def test_a_backward_pass_is_known_as_such() -> None:
    seen: list[bool] = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: seen.append(internals.in_backward()))
    assert not internals.in_backward()
    x.sum().backward()
    assert seen == [True]
    assert not internals.in_backward()


def test_recurrent_modules_are_captured_where_they_are_allowed() -> None:
    rnn, x = nn.GRU(3, 4), torch.ones(2, 1, 3)
    runs = Runs()
    with internals.graphs_run(runs):
        torch.compile(rnn, backend="eager")(x)
        before = runs.took(rnn.weight_ih_l0)
        torch.compiler.reset()
        with internals.allowed_rnns():
            torch.compile(rnn, backend="eager")(x)
    assert not before
    assert runs.took(rnn.weight_ih_l0)


def test_a_missing_compiler_is_known_and_named() -> None:
    from torch._inductor import config
    from torch._inductor.exc import InvalidCxxCompiler

    assert internals.is_missing_compiler(InvalidCxxCompiler())
    assert not internals.is_missing_compiler(RuntimeError("no kernel"))
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert internals.cxx_compiler() == "no-such-compiler"


def test_the_folder_of_inductors_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert internals.code_cache() == cache_dir() == str(tmp_path)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert internals.code_cache() == cache_dir()


@torch._dynamo.assume_constant_result
def constant(x: int) -> int:
    return x + 1


def test_a_result_taken_for_a_constant_is_known_and_can_be_traced() -> None:
    assert internals.constant_results({constant.__code__: globals()}) == [constant]
    assert internals.constant_results({test_the_folder_of_inductors_code.__code__: globals()}) == []

    def run(x: torch.Tensor, times: int) -> torch.Tensor:
        return x * constant(times)

    for takes_it_out in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(run, backend="eager", dynamic=False)
        under = internals.without_constant_results([constant]) if takes_it_out else contextlib.nullcontext()
        with under:
            assert compiled(torch.ones(2), 2).tolist() == [3, 3]
    assert internals.constant_results({constant.__code__: globals()}) == [constant]


_READ = [1.0]


@torch.compiler.allow_in_graph
def in_graph(x: torch.Tensor) -> torch.Tensor:
    return x + _READ[0]


@torch._dynamo.nonstrict_trace
def not_traced(x: torch.Tensor) -> torch.Tensor:
    return x + _READ[0]


class _Callable:
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_guard_is_told_with_the_whole_path_of_a_loaded_file() -> None:
    """Torch cuts off where a long path begins."""
    cut, unknown = __file__[-18:], "x/no_such_file.py"
    reason = "0/1: G['COUNT'] == 4  # counted()  # {}:12 in forward (HINT: ...)"
    assert events._guard(reason.format(cut)) == f"G['COUNT'] == 4{at(__file__, 12)}"
    padded = reason.replace("  # ", " " * 40 + "  # ", 1)
    assert events._guard(padded.format(cut)) == f"G['COUNT'] == 4{at(__file__, 12)}"
    assert events._guard(reason.format(unknown)) == f"G['COUNT'] == 4{at(unknown, 12)}"


def test_the_code_of_what_wraps_another_function() -> None:
    assert internals.code_of(in_graph) is in_graph.__code__
    assert internals.code_of(not_traced) is inspect.unwrap(not_traced).__code__ is not not_traced.__code__

    @functools.wraps(_Callable.__call__)
    def wraps_an_object(x: torch.Tensor) -> torch.Tensor:
        return x

    wraps_an_object.__wrapped__ = _Callable()  # type: ignore[attr-defined]
    assert internals.code_of(wraps_an_object) is wraps_an_object.__code__  # type: ignore[arg-type]


def test_the_line_of_an_operator_that_did_not_compile_is_the_users() -> None:
    def refused(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        class Refused(torch.fx.Interpreter):
            def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
                raise RuntimeError("<weakref at 0x7f355be27100; to 'torch.storage.UntypedStorage' at 0x7f3>")

        Refused(graph).run(*inputs)

    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        torch.compile(in_graph_of, backend=refused)(torch.ones(2))
    error = internals.inner_error(caught.value)
    file, line = internals.traced_line(error) or ("", 0)
    assert (os.path.basename(file), line) == ("test_internals.py", in_graph_of.__code__.co_firstlineno + 1)
    assert internals.fails_under_inference_mode(error)
    assert not internals.fails_under_inference_mode(RuntimeError("a weakref"))
    assert internals.traced_line(RuntimeError("a weakref")) is None


def in_graph_of(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x)


def test_what_a_backend_raised_is_read_from_dynamos_message() -> None:
    assert internals.of_backend(ValueError("Exception: no such kernel")) is None
    message = (
        "Backend compiler exception\n  Developer debug context: Backend: b\n    Exception:no such kernel\n"
        '    Original traceback:\n      File "a.py", line 3, in forward\n'
    )
    assert internals.of_backend(RuntimeError(message)) == ("no such kernel", ("a.py", 3))
    assert internals.of_backend(RuntimeError(message.partition("    Original")[0])) == (
        "no such kernel",
        None,
    )


@pytest.mark.parametrize("function", [in_graph, not_traced])
def test_a_function_that_dynamo_puts_into_the_graph_is_known_and_can_be_traced(function: Any) -> None:
    code = inspect.unwrap(function).__code__
    assert internals.functions_in_graph({code: globals()}) == [function]
    assert internals.functions_in_graph({constant.__code__: globals()}) == []

    def run(x: torch.Tensor) -> torch.Tensor:
        return function(x) * 2

    for looks_into_it in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(run, backend="aot_eager")
        under = (
            internals.without_functions_in_graph([function]) if looks_into_it else contextlib.nullcontext()
        )
        with under, mock.patch.object(sys.modules[__name__], "_READ", [1.0]):
            assert compiled(torch.ones(2)).tolist() == [4, 4]
            _READ[0] = 2.0
            assert compiled(torch.ones(2)).tolist() == ([6, 6] if looks_into_it else [4, 4])
    assert internals.functions_in_graph({code: globals()}) == [function]


@needs_torch("2.10", "can be made to draw in eager's order")
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_draws_in_eagers_order_and_users_passes_still_run(dynamic: bool) -> None:
    """The draw of noise does not depend on the choice before it, so that a scheduler may put it first.

    With dynamic sizes, those of the noise are nodes of the graph.
    """

    def draw(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.multinomial((x * 2).softmax(-1), 1), x + torch.randn_like(x)

    x = torch.rand(4, 8)
    seen: list[torch.fx.Graph] = []
    with internals.inductor_settings({"post_grad_custom_post_pass": seen.append, "fx_graph_cache": False}):
        with internals.eager_random_numbers():
            compiled = torch.compile(draw, dynamic=dynamic)
            torch.manual_seed(0)
            found = compiled(x)
        assert torch._inductor.config.post_grad_custom_post_pass == seen.append
    torch.manual_seed(0)
    for one, other in zip(draw(x), found, strict=True):
        assert torch.allclose(one, other)
    assert seen


def test_what_an_older_torch_can_not_do_is_listed() -> None:
    """Each mark that skips a test on an older torch, so that none hides a failure."""
    tests = os.path.dirname(__file__)
    marks = []
    for folder, _, files in os.walk(tests):
        for name in files:
            if name.endswith(".py") and name not in ("torch_versions.py", os.path.basename(__file__)):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    marks += re.findall(r'needs_torch\("([\d.]+)"|RELEASE < \((\d, \d+)\)', file.read())
    assert collections.Counter(one or other.replace(", ", ".") for one, other in marks) == {
        "2.10": 1,
        "2.12": 6,
        "2.13": 2,
    }
