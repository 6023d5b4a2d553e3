"""Faults injected into each stage of the compiler, and into one submodule: the explanation names them."""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.backends import changed, float_tensors
from small_checks import assert_passes, check
from torch import nn
from torch.overrides import TorchFunctionMode
from torch_versions import needs_torch

from pytest_torchcompile import Box, CheckResult, Explanation, Image, Verdict
from pytest_torchcompile.explaining import in_place, stages
from pytest_torchcompile.reports.failure import failure_text
from pytest_torchcompile.texts import line_of, one_line

aten = torch.ops.aten

needs_avx = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="the fault is in code for AVX"
)


class Tower(nn.Module):
    """Three submodules, the operators of which occur once each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
        self.gate = nn.Sequential(nn.Linear(16, 16), nn.Softplus())
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gate(self.body(x)))


def explained(
    factory: Any = Tower, phase: str = "rollout", **arguments: Any
) -> tuple[CheckResult, Explanation]:
    options = {
        "observation": Box((8,)),
        "batch": 4,
        "examples": 0,
        "nonfinite": False,
        "explain_seconds": 600,
    }
    result = check(factory, phase, **options | arguments)
    assert result.verdict is Verdict.DIFFERS, failure_text(result)
    assert result.explanation is not None
    return result, result.explanation


@pytest.fixture
def no_caches() -> Iterator[None]:
    """What a faulty compiler makes of a graph must neither come out of a cache nor go into one.

    Files that it writes in C++ may: their names are hashes of what is in them.
    """
    from torch._functorch import config as autograd
    from torch._inductor import config as inductor

    with inductor.patch(fx_graph_cache=False), autograd.patch(enable_autograd_cache=False):
        yield


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting of inductor costs a compile, and changes nothing about the fault."""
    monkeypatch.setattr(stages, "SETTINGS", {})


# --- stages ---------------------------------------------------------------------------------------


class Distracted(Tower):
    """Computes something else while it is traced: a fault as dynamo's would be."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.gate(self.body(x))
        return self.head(hidden + 1 if torch.compiler.is_compiling() else hidden)


def test_a_fault_of_dynamo() -> None:
    _, found = explained(Distracted, backend="aot_eager")
    assert (found.stage, found.agreed) == ("dynamo", ())
    assert_asked_in(found.place, Distracted.forward)


def assert_asked_in(place: str, function: Callable[..., Any]) -> None:
    """Where no stage is wrong, the place is the line of the policy's that asks."""
    last = inspect.getsourcelines(function)[1] + len(inspect.getsourcelines(function)[0]) - 1
    line = f"test_explanation.py:{last}, where the policy's own code asks whether it is being compiled"
    assert place.endswith(line), place


@pytest.fixture
def wrong_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """AOTAutograd takes a tanh for a sine."""
    from torch._dynamo.backends import common

    right = common.aot_module_simplified

    def wrong(graph: Any, *args: Any, **kwargs: Any) -> Any:
        for node in graph.graph.nodes:
            if node.target in (torch.tanh, "tanh"):
                node.op, node.target = "call_function", torch.sin
        graph.recompile()
        return right(graph, *args, **kwargs)

    monkeypatch.setattr(common, "aot_module_simplified", wrong)


def test_a_fault_of_autograd(wrong_autograd: None) -> None:
    _, found = explained(backend="aot_eager_decomp_partition")
    assert (found.stage, found.agreed) == ("AOTAutograd", ("dynamo",))
    assert found.place == "body.1 (Tanh)"


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_fault_of_a_decomposition(wrong_decomposition: None, phase: str) -> None:
    _, found = explained(phase=phase, backend="aot_eager_decomp_partition")
    assert found.stage == "decompositions and partitioner"
    assert found.agreed == ("dynamo", "AOTAutograd")
    assert found.causes == ("the decomposition of aten.softplus.default",)
    assert found.place == "gate.1 (Softplus)"


def test_a_fault_of_a_pass_of_inductor(no_caches: None, no_settings: None) -> None:
    def wrong(graph: torch.fx.Graph) -> None:
        for node in graph.nodes:
            if node.target is aten.tanh.default:
                node.target = aten.sin.default

    with torch._inductor.config.patch(post_grad_custom_post_pass=wrong):
        _, found = explained(backend="inductor")
    assert found.stage == "inductor"
    assert found.agreed == ("dynamo", "AOTAutograd", "decompositions and partitioner")
    assert "the pass post_grad_custom_post_pass" in found.causes
    assert found.remedy == {"disabled_passes": "post_grad_custom_post_pass"}
    assert found.place == "body.1 (Tanh)"


def test_a_fault_of_a_lowering_of_inductor(
    no_caches: None, no_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import lowering

    monkeypatch.setitem(lowering.lowerings, aten.tanh.default, lowering.lowerings[aten.sin.default])
    _, found = explained(backend="inductor")
    assert found.stage == "inductor"
    (cause,) = found.causes
    assert cause.startswith("the lowering of aten.tanh.default (")
    assert found.remedy is None
    assert found.place == "body.1 (Tanh)"


class Rectified(nn.Module):
    """The backward of its ReLU compares, its forward does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


def test_a_fault_of_a_backward(no_caches: None, no_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import lowering

    monkeypatch.setitem(lowering.lowerings, aten.le.Scalar, lowering.lowerings[aten.ge.Scalar])
    result, found = explained(Rectified, "update", backend="inductor")
    assert {difference.path.split()[0] for difference in result.differences} == {"gradient"}
    assert found.stage == "inductor"
    (cause,) = found.causes
    assert cause.startswith("the lowering of aten.le.Scalar (")
    assert found.place == "Rectified.forward itself: 1 module inside it agrees, compiled alone"


def test_a_backend_of_the_users() -> None:
    def one_more(outputs: list[Any], call: int) -> list[Any]:
        for i in float_tensors(outputs):
            outputs[i] = outputs[i] + 1
        return outputs

    _, found = explained(backend=changed(one_more))
    assert (found.stage, found.agreed) == ("the backend itself", ("dynamo",))
    assert found.place == "body.0 (Linear)"


def test_correct_models_are_not_explained() -> None:
    result = check(Tower, "update", observation=Box((8,)))
    assert_passes(result)
    assert result.explanation is None


def test_no_time_no_explanation() -> None:
    result = check(Distracted, observation=Box((8,)))
    assert result.verdict is Verdict.DIFFERS
    assert result.explanation is None


def test_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The explanation says what there was no time for."""
    _, found = explained(Distracted, explain_seconds=1e-9)
    assert found.stage == ""
    assert found.remarks == ("the stage was not found within explain_seconds=1e-09",)


def test_an_explanation_that_goes_wrong_does_not_hide_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_module(*arguments: Any) -> None:
        raise RuntimeError("torch has changed")

    monkeypatch.setattr("pytest_torchcompile.explaining.explanation.find_module", find_module)
    result, found = explained(Distracted, backend="aot_eager")
    assert found.stage == "dynamo"
    (remark,) = found.remarks
    assert "the submodule could not be found: the attempt raised RuntimeError: torch has changed" in remark
    assert f" unknown {remark}" in one_line(failure_text(result))


# --- lifecycles -----------------------------------------------------------------------------------


class Remembering(Tower):
    """Computes with the first bias of its head while it is traced: a fault that shows once it has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.head.bias.detach().clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        return out - self.head.bias.detach() + self.first if torch.compiler.is_compiling() else out


def test_the_stage_of_a_story() -> None:
    result, found = explained(Remembering, "lifecycle", backend="aot_eager")
    assert result.example in ("load_state_dict, act(batch 4)", "learn(batch 4), act(batch 4)")
    assert (found.stage, found.agreed) == ("dynamo", ())
    assert_asked_in(found.place, Remembering.forward)


def test_a_later_stage_of_a_story(wrong_decomposition: None) -> None:
    _, found = explained(phase="lifecycle", backend="aot_eager_decomp_partition")
    assert found.stage == "decompositions and partitioner"
    assert found.agreed == ("dynamo", "AOTAutograd")


def test_a_story_that_depends_on_what_ran_before() -> None:
    def late(outputs: list[Any], call: int) -> list[Any]:
        off = 0.5 if call == 4 else 0.0
        return [o + off if i in float_tensors(outputs) else o for i, o in enumerate(outputs)]

    result, found = explained(phase="lifecycle", backend=changed(late))
    assert "depends on what ran before" in result.reason
    assert found.stage == ""
    assert "the stage could not be found: compiled again, it agrees" in found.remarks[0]


class Opaque:
    """What the comparison can't see into."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Opaque:
        return Opaque(torch.tanh(self.layer(x)))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).tensor


def test_a_submodule_that_can_not_be_compared() -> None:
    """It is skipped, and the policy that contains it is not named as the place of the difference."""
    _, found = explained(Outer, backend=wrong_tanh)
    assert found.place == "Outer.forward"


# --- what can't be reproduced ---------------------------------------------------------------------


def test_what_depends_on_what_ran_before() -> None:
    def later(outputs: list[Any], call: int) -> list[Any]:
        return [outputs[0] + 1, *outputs[1:]] if call == 3 else outputs

    _, found = explained(backend=changed(later), batch=(4, 7))
    assert found.stage == ""
    (remark,) = found.remarks
    assert "compiled again, it agrees" in remark


def test_a_fault_of_graphs_for_any_batch() -> None:
    """Such a graph is compiled only after calls with two batch sizes; its parts are compiled in the same way."""

    def any_batch(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        wrong = any(isinstance(value, (int, torch.SymInt)) for value in inputs)

        def run(*args: Any) -> Any:
            return tuple(out + 1 for out in graph(*args)) if wrong else graph(*args)

        return run

    _, found = explained(backend=any_batch, batch=(4, 7))
    assert found.stage == "the backend itself"
    assert found.place == "body.0 (Linear)"
    assert found.lines != ()


def test_a_fault_of_graphs_for_one_batch() -> None:
    def one_batch(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        wrong = not any(isinstance(value, (int, torch.SymInt)) for value in inputs)

        def run(*args: Any) -> Any:
            return tuple(out + 1 for out in graph(*args)) if wrong else graph(*args)

        return run

    _, found = explained(backend=one_batch, batch=(4, 7), examples=5)
    assert found.stage == "the backend itself"
    assert found.place == "body.0 (Linear)"


def test_what_comes_compiled() -> None:
    _, found = explained(lambda: torch.compile(Distracted(), backend="eager"))
    (remark,) = found.remarks
    assert "the factory itself compiles the policy" in remark


# --- draws ----------------------------------------------------------------------------------------


class Noisy(Tower):
    """Draws otherwise while dynamo traces it as it is deployed."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = spread

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        noise = torch.randn_like(out)
        if torch.compiler.is_compiling() and not torch._inductor.config.fallback_random:
            noise = self.spread * noise + (0 if self.spread else torch.arange(4))
        return out + noise


def test_the_stage_of_samples() -> None:
    _, found = explained(lambda: Noisy(1.5), backend="aot_eager", samples=500)
    assert (found.stage, found.agreed) == ("dynamo", ())


def test_a_later_stage_of_samples() -> None:
    """The numbers are right draw for draw, and have too large a spread as deployed."""
    result, found = explained(
        lambda: Noisy(1.0), backend=spread_as_deployed, samples=500, explain_seconds=600
    )
    assert "does not draw from eager's distribution" in result.reason
    assert (found.stage, found.agreed) == ("the backend itself", ("dynamo",))


def test_the_stage_of_frozen_draws() -> None:
    result, found = explained(lambda: Noisy(0.0), "lifecycle", backend="aot_eager")
    assert "the same draw again and again" in result.reason
    assert (found.stage, found.agreed) == ("dynamo", ())


def spread_as_deployed(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    """Doubles what is drawn, unless it is told to draw eager's numbers."""
    if torch._inductor.config.fallback_random:
        return graph.forward

    class Doubled(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            returned = func(*args, **(kwargs or {}))
            return 2 * returned if getattr(func, "__name__", "") == "randn_like" else returned

    def run(*args: Any) -> Any:
        with Doubled():
            return graph(*args)

    return run


# --- places ---------------------------------------------------------------------------------------


def wrong_tanh(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    """A backend that takes a tanh for a sine."""
    for node in graph.graph.nodes:
        if node.target in (torch.tanh, "tanh"):
            node.op, node.target = "call_function", torch.sin
    graph.recompile()
    return graph.forward


class Nested(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.first = nn.ModuleList([nn.Linear(8, 8), nn.ReLU()])
        self.second = nn.ModuleDict({"a": Tower() if wrong else nn.Linear(8, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.first:
            x = module(x)
        return self.second["a"](x)

    def act(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).argmax(-1).float() + self(x).sum(-1)


@pytest.mark.parametrize("method", ["forward", "act"])
def test_the_innermost_submodule(method: str) -> None:
    """Also inside containers that are never called themselves, and from other methods."""
    _, found = explained(lambda: Nested(True), methods=method, backend=wrong_tanh)
    assert found.place == "second.a.body.1 (Tanh)"
    assert_passes(check(lambda: Nested(False), methods=method, observation=Box((8,)), backend=wrong_tanh))


class Broken(nn.Module):
    """Two graphs; the second is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.one(x))
        torch._dynamo.graph_break()
        return torch.tanh(self.two(hidden))  # the line


def test_the_lines_of_the_graph() -> None:
    _, found = explained(Broken, backend=wrong_tanh)
    source = Path(__file__).read_text().splitlines()
    numbers = [int(line.rpartition(":")[2]) for line in found.lines]
    assert [source[number - 1].strip() for number in numbers] == [
        "return torch.tanh(self.two(hidden))  # the line"
    ]
    assert found.place == "Broken.forward itself: 2 modules inside it agree, compiled alone"


# --- inductor's settings --------------------------------------------------------------------------


def test_a_setting_of_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that a setting of inductor injects into its own relu."""
    fault = "cpp.inject_relu_bug_TESTING_ONLY"
    monkeypatch.setattr(stages, "SETTINGS", {fault: (None, "planted faults")})
    with torch._inductor.config.patch({fault: "accuracy"}):
        result, found = explained(Rectified, backend="inductor")
    assert found.causes[0] == "planted faults"
    assert found.remedy == {fault: None}
    assert "remedy    options={'cpp.inject_relu_bug_TESTING_ONLY': None}" in failure_text(result)


# --- what torch 2.13 gets wrong -------------------------------------------------------------------

EXAMPLES = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "test_miscompiled.py"))
NEEDED = {name: stages.SETTINGS[name] for name in ("cpp.simdlen", "max_fusion_size")}


@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="observed on torch 2.13")
@pytest.mark.parametrize(
    ("policy", "observation", "cause"),
    [
        pytest.param("PixelPolicy", Image((1, 6, 6)), "vectorised loops", marks=needs_avx),
        (
            "ContrastPolicy",
            Image((1, 4, 4)),
            "the lowering of aten.abs.default (examples/test_miscompiled.py:",
        ),
        ("RememberingPolicy", Box((8,)), "the pass remove_noop_ops"),
        pytest.param("MirroredPolicy", Box((8,)), "fused loops", marks=pytest.mark.thorough),
        pytest.param(
            "TracingPolicy", Box((8,)), "the pass reinplace_inplaceable_ops", marks=pytest.mark.thorough
        ),
    ],
)
def test_real_faults(policy: str, observation: Any, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SETTINGS", NEEDED)
    monkeypatch.chdir(Path(__file__).parents[3])
    _, found = explained(EXAMPLES[policy], backend="inductor", observation=observation)
    assert found.stage == "inductor"
    assert found.agreed == ("dynamo", "AOTAutograd", "decompositions and partitioner")
    assert found.causes[0].startswith(cause)
    assert found.place.startswith(f"{policy}.forward itself")
    assert found.lines[0].startswith("examples/test_miscompiled.py:")


# --- branches on compiling ------------------------------------------------------------------------

compiling = torch.compiler.is_compiling


class Asking(nn.Module):
    """Does something else where it is compiled, and asks in a function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def shifted(self, y: torch.Tensor) -> torch.Tensor:
        return y + 1 if torch.compiler.is_compiling() else y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shifted(self.layer(x))


class AskingByAnotherName(Asking):
    def shifted(self, y: torch.Tensor) -> torch.Tensor:
        return y + 1 if compiling() else y


@pytest.mark.parametrize("model", [Asking, AskingByAnotherName])
@pytest.mark.parametrize("phase", ["rollout", "lifecycle"])
def test_a_branch_on_compiling_is_named(model: type[Asking], phase: str) -> None:
    result = check(model, phase, observation=Box((8,)), explain_seconds=60, examples=0)
    explanation = result.explanation
    assert explanation is not None
    assert explanation.stage == "dynamo"
    line = model.shifted.__code__.co_firstlineno + 1
    assert f"test_explanation.py:{line}, where the policy's own code asks" in explanation.place
    assert "asks whether it is being compiled" in one_line(failure_text(result))


def test_a_fault_without_such_a_branch_names_none() -> None:
    wrong = changed(lambda outputs, call: [output + 1 for output in outputs])
    result = check(Tower, observation=Box((8,)), backend=wrong, explain_seconds=600)
    assert result.explanation is not None
    assert "asks" not in result.explanation.place


# --- buffers that are written in place and read again in backward ---------------------------------


class Annealed(nn.Module):
    """A temperature that a counter anneals; torch 2.13 reads the counter again in backward (pytorch 197039)."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("steps", torch.zeros(()))
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.in_place:
            self.steps += 1
        else:
            self.steps = self.steps + 1
        return (self.head(torch.tanh(self.body(x))) * (1 + self.steps / 10)).softmax(-1)


def test_a_buffer_written_in_place_is_named_with_its_line_and_the_cure() -> None:
    result = check(Annealed, "update", observation=Box((8,)), backend="aot_eager", explain_seconds=300.0)
    found = result.explanation
    assert found is not None
    assert found.stage == "AOTAutograd"
    assert found.causes == (stages.PARTITIONER,)
    (place,) = found.lines
    number = inspect.getsourcelines(Annealed.forward)[1] + 2
    assert place == line_of(__file__, number)
    assert found.advice == (
        f"assign a new tensor to steps instead of writing to it in place ({place}): tried, this example then "
        f"agrees"
    )
    assert f" remedy {found.advice}" in one_line(failure_text(result))
    right = check(lambda: Annealed(in_place=False), "update", observation=Box((8,)), backend="aot_eager")
    assert_passes(right)


def test_a_fault_that_the_default_partitioner_has_too_gets_no_such_advice(wrong_autograd: None) -> None:
    result = check(Annealed, "rollout", observation=Box((8,)), backend="aot_eager", explain_seconds=300.0)
    assert result.explanation is not None
    assert result.explanation.stage == "AOTAutograd"
    assert (result.explanation.causes, result.explanation.advice) == ((), "")


def test_a_graph_without_its_writes_leaves_its_inputs_unchanged() -> None:
    def counts(count: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        before = count * 2
        count += 1
        count.mul_(3.0)
        return before + count * x

    module = in_place.without_writes(torch.fx.symbolic_trace(counts))
    count = torch.tensor(1.0)
    assert module(count, torch.tensor(2.0)) == 2 + 6 * 2
    assert count == 1


# --- Python code that dynamo does not trace as it runs --------------------------------------------


class Spread(nn.Module):
    """A standard deviation as a parameter, which a function reads."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.actor_logstd = nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.actor(x) * spread_of(self)


class Keeping(Spread):
    """Compiled keeps the first value of its spread."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.actor(x) * kept_spread_of(self)


def spread_of(policy: Spread) -> torch.Tensor:
    return policy.actor_logstd.exp()


@torch._dynamo.assume_constant_result
def kept_spread_of(policy: Spread) -> torch.Tensor:
    return policy.actor_logstd.exp()


@needs_torch("2.12", "takes the result of a function of a module for a constant")
def test_a_result_that_is_taken_for_a_constant_is_named_with_the_parameter() -> None:
    result, explanation = explained(Keeping, "lifecycle", backend="eager")
    assert explanation.stage == "dynamo"
    line = line_of(__file__, kept_spread_of.__code__.co_firstlineno)
    assert explanation.place == (
        f"{line}, where torch._dynamo.assume_constant_result makes compiled keep the first value of "
        f"kept_spread_of, and no graph takes actor_logstd"
    )
    advice = f"drop assume_constant_result from kept_spread_of ({line}): tried, this example then agrees"
    assert advice in one_line(failure_text(result))
    assert check(Spread, "lifecycle", observation=Box((8,)), examples=0).verdict.passed


class ElsewhereWrong(Keeping):
    """Its constant is not at fault."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.actor(x) * kept_spread_of(self)
        return y + torch.from_numpy(np.random.rand(4)).float()


@needs_torch("2.12", "takes the result of a function of a module for a constant")
@pytest.mark.parametrize("phase", ["rollout", "lifecycle"])
def test_numbers_of_another_generator_are_named_with_the_line_and_nothing_else(phase: str) -> None:
    result, explanation = explained(ElsewhereWrong, phase, backend="eager")
    line = line_of(__file__, inspect.getsourcelines(ElsewhereWrong.forward)[1] + 2)
    assert explanation.place == (
        f"{line}, where eager draws from numpy.random and compiled does not draw the same"
    )
    assert "draw these numbers from torch's generator" in failure_text(result)
    assert "assume_constant_result" not in failure_text(result)


class Annealing(nn.Module):
    """Divides by a temperature, which is an attribute that a run may anneal."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.temperature = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.actor(x) / self.temperature


class UnseenTemperature(Annealing):
    """Dynamo does not look into what reads the temperature, and guards nothing there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _acting["policy"] = self
        return tempered(self.actor(x))


class UntracedTemperature(Annealing):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _acting["policy"] = self
        return tempered_untraced(self.actor(x))


class PassedTemperature(Annealing):
    """The control: what the function needs is an argument of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return divided(self.actor(x), self.temperature)


_acting: dict[str, Annealing] = {}


@torch.compiler.allow_in_graph
def tempered(y: torch.Tensor) -> torch.Tensor:
    return y / _acting["policy"].temperature


@torch._dynamo.nonstrict_trace
def tempered_untraced(y: torch.Tensor) -> torch.Tensor:
    return y / _acting["policy"].temperature


@torch.compiler.allow_in_graph
def divided(y: torch.Tensor, temperature: float) -> torch.Tensor:
    return y / temperature


@pytest.mark.parametrize(
    ("policy", "function"), [(UnseenTemperature, tempered), (UntracedTemperature, tempered_untraced)]
)
def test_what_an_untraced_function_reads_is_kept_and_it_is_named(policy: Any, function: Any) -> None:
    result, explanation = explained(policy, "lifecycle", backend="aot_eager")
    assert "uses the attribute from before the change" in result.reason
    assert explanation.stage == "AOTAutograd"
    code = inspect.unwrap(function).__code__
    line = line_of(code.co_filename, code.co_firstlineno)
    assert explanation.place.startswith(f"{line}: {function.__name__} runs only while torch traces")
    assert f"pass what changes to {function.__name__} as an argument" in explanation.advice
    assert failure_text(result).count(line) == 1
    assert_passes(check(PassedTemperature, "lifecycle", observation=Box((8,)), backend="aot_eager"))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_guard_filter_that_drops_a_guard_is_named(backend: str) -> None:
    own = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    result, explanation = explained(Annealing, "lifecycle", backend=backend, options=own)
    assert "uses the attribute from before the change" in result.reason
    assert explanation.stage == "dynamo"
    assert "options={'guard_filter_fn': skip_guard_on_all_nn_modules_unsafe} drops" in explanation.place
    assert "tried, this example then agrees" in explanation.advice
    assert list(own) == ["guard_filter_fn"], "torch.compile takes it out of what it gets"


def test_a_guard_filter_that_keeps_what_matters_passes() -> None:
    def all_of_them(guards: Any) -> list[bool]:
        return [True for _ in guards]

    options = {"guard_filter_fn": all_of_them}
    result = check(Annealing, "lifecycle", observation=Box((8,)), backend="aot_eager", options=options)
    assert result.verdict.passed, failure_text(result)
