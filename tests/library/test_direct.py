"""The functions to use by hand: in an ordinary test, under ``@given``, in a notebook."""

from __future__ import annotations

import contextlib
import copy
import gc
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from faults import backends
from hypothesis import given, settings
from torch import nn

from pytest_torchcompile import (
    Box,
    CompileFailed,
    Discrete,
    LegalMask,
    NotEquivalent,
    UsageError,
    assert_equivalent,
    compile_policy,
    observations,
)


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4))
        self.critic = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.actor(x)

    def act(self, x: torch.Tensor) -> Any:
        logits = self.actor(x)
        return {"logits": logits, "greedy": logits.argmax(-1), "value": self.critic(x)}


def policy_of(method: Any = "forward", phase: str = "rollout", **options: Any) -> Any:
    options = {"observation": Box((8,)), "backend": "eager"} | options
    return compile_policy(Agent, method, phase=phase, **options)


# --- compile_policy -------------------------------------------------------------------------------


def test_a_policy_is_called_like_its_method() -> None:
    policy = policy_of("act")
    out = policy(torch.ones(3, 8))
    assert set(out) == {"logits", "greedy", "value"}
    assert torch.equal(out["logits"], policy.eager(torch.ones(3, 8))["logits"])
    assert policy.capture.coverage == 1.0
    assert policy.capture.graphs >= 1


@pytest.mark.parametrize(("phase", "training"), [("rollout", False), ("update", True)])
def test_a_policy_is_called_in_its_phase(phase: str, training: bool) -> None:
    policy = policy_of(phase=phase, backend="aot_eager")
    out = policy(torch.ones(3, 8))
    assert out.requires_grad is training
    torch.manual_seed(0)
    first = policy.eager(torch.ones(3, 8))
    second = policy.eager(torch.ones(3, 8))
    assert torch.equal(first, second) is not training, "dropout is on in the update phase only"


def test_calling_it_leaves_grad_mode_alone() -> None:
    rollout = policy_of()
    assert not rollout(torch.ones(3, 8)).requires_grad
    assert torch.is_grad_enabled()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """dynamo guards on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_policy_has_been_compiled_before_it_is_handed_out(two_threads: None) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(1)
        return graph

    policy = policy_of(backend=backend, batch=4)
    assert len(graphs) == 1
    policy(torch.ones(4, 8))
    assert len(graphs) == 1, policy.capture.recompiles
    policy(torch.ones(5, 8))
    assert len(graphs) == 2
    assert policy.capture.graphs == 2
    assert len(policy.capture.recompiles) == 1


def test_the_first_call_leaves_no_trace_in_the_module() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.layer(x) + self.calls

    policy = compile_policy(Counting, observation=Box((8,)), backend="eager")
    zeros = torch.zeros(4, 8)
    bias = policy.eager(zeros)
    torch.testing.assert_close(policy(zeros), bias, msg="both have counted one call")
    torch.testing.assert_close(policy(zeros), bias + 1, msg="and go on counting, as in real use")


def test_the_users_module_is_not_the_one_that_is_called() -> None:
    model = Agent()
    before = copy.deepcopy(model.state_dict())
    policy = compile_policy(model, observation=Box((8,)), backend="eager")
    policy(torch.ones(3, 8))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_inputs_adapters_and_dotted_methods() -> None:
    def masked(model: Agent, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model.actor(x).masked_fill(~mask, float("-inf"))

    policy = policy_of(masked, inputs={"mask": LegalMask(4)})
    mask = torch.tensor([[True, False, True, True]])
    assert bool(policy(torch.ones(1, 8), mask)[0, 1].isinf())
    assert policy.name == "masked"
    assert policy_of("actor.forward").name == "actor.forward"


def test_it_tells_what_it_is() -> None:
    text = repr(policy_of("act", "update"))
    counts = r"1 graph, 117 of 117 parameters, 0 breaks \(fullgraph\), 0 recompiles"
    assert re.fullmatch(rf"<CompiledPolicy act-update: {counts}, \d+\.\d s compiling>", text)


def test_what_comes_compiled_is_called_as_it_is() -> None:
    policy = compile_policy(lambda: torch.compile(Agent(), backend="eager"), observation=Box((8,)))
    assert torch.equal(policy(torch.ones(3, 8)), policy.eager(torch.ones(3, 8)))
    assert policy.capture.graphs >= 1


def test_a_method_that_bypasses_the_compiler_is_no_compiled_policy() -> None:
    with pytest.raises(NotEquivalent, match="act-rollout: .*no graph was captured"):
        compile_policy(lambda: torch.compile(Agent(), backend="eager"), "act", observation=Box((8,)))


def test_a_policy_that_does_not_compile() -> None:
    def gives_up(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise AssertionError("no such layout")

    with pytest.raises(CompileFailed, match="forward-rollout: AssertionError: no such layout") as caught:
        policy_of(backend=gives_up)
    assert caught.value.__cause__ is not None


def test_a_policy_that_does_not_compile_for_another_batch_size() -> None:
    def gives_up(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        if any(isinstance(i, torch.Tensor) and i.shape[:1] == (5,) for i in inputs):
            raise AssertionError("no such layout")
        return graph

    policy = policy_of(backend=gives_up, dynamic=False)
    assert policy(torch.ones(4, 8)).shape == (4, 4)
    with pytest.raises(CompileFailed, match="no such layout"):
        policy(torch.ones(5, 8))


def test_a_call_that_does_not_compile_leaves_gradients_to_what_follows() -> None:
    """Before torch 2.13 code under inference mode does not compile, and torch's dispatcher is left without them."""

    class SometimesInference(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] < 8:
                return super().forward(x)
            with torch.inference_mode():
                return super().forward(x)

    policy = compile_policy(lambda: SometimesInference(8, 4), observation=Box((8,)), backend="aot_eager")
    with contextlib.suppress(CompileFailed):
        policy(torch.ones(8, 8))
    assert nn.Linear(8, 4)(torch.ones(1, 8)).requires_grad
    # Also once what torch's frames held has been collected.
    del policy
    gc.collect()
    assert nn.Linear(8, 4)(torch.ones(1, 8).double().float()).requires_grad


def test_inputs_that_eager_refuses_too_are_no_compile_failure() -> None:
    """dynamo raises while it traces; as a compile failure, it would skip the user's wrong test under pytest."""
    policy = policy_of()
    with pytest.raises(Exception, match=None) as caught:
        policy(torch.ones(3, 9))
    assert not isinstance(caught.value, CompileFailed)


def test_a_policy_that_fails_in_eager() -> None:
    with pytest.raises(
        UsageError, match=r"eager raises RuntimeError: (addmm: )?mat1 and mat2.*Box\(\(9,\)\)"
    ):
        compile_policy(Agent, observation=Box((9,)), backend="eager")


class Refuses(nn.Module):
    """Counts its calls in a buffer, and then raises; it can't be copied, so that both sides are this object."""

    def __init__(self, *, on: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.calls = nn.Buffer(torch.zeros(()))
        self.on = on

    def __deepcopy__(self, memo: object) -> Any:
        raise TypeError("not copied")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.on:
            raise ValueError("no such observation")
        return self.layer(x)


@pytest.mark.parametrize("on", [True, False])
def test_the_users_module_is_put_back_though_it_raises(*, on: bool) -> None:
    model = Refuses(on=on)
    model.train()
    with pytest.raises(UsageError, match="no such observation") if on else contextlib.nullcontext():
        compile_policy(model, observation=Box((8,)), backend="eager")
    assert model.training
    assert float(model.calls) == 0.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"phase": "training"}, "phase='training'; accepted: rollout, update"),
        ({"backend": "inductr"}, "backend='inductr'.* is unknown to torch"),
        ({"atoll": 1}, r"compile_policy\(\) got unknown option 'atoll'"),
        ({"method": "acts"}, "Agent has no method 'acts'; it has: act"),
        ({"inputs": {"turn": Discrete(2)}}, "no method takes the input 'turn'"),
        ({"observation": None}, "Agent has no observation spec"),
    ],
)
def test_compile_policy_refuses(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        policy_of(**arguments)


# --- assert_equivalent ----------------------------------------------------------------------------


def compiled(function: Any) -> Any:
    return torch.compile(function, backend="eager")


def wrong(amount: float = 1e-3) -> Any:
    return backends.changed(lambda outputs, call: [output + amount for output in outputs])


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_module_against_its_compiled_self(phase: str) -> None:
    model = Agent()
    assert_equivalent(model, torch.compile(model, backend="aot_eager"), torch.ones(3, 8), phase=phase)
    torch.compiler.reset()
    with pytest.raises(NotEquivalent, match=r"output\["):
        assert_equivalent(model, torch.compile(model, backend=wrong()), torch.ones(3, 8), phase=phase)


def test_a_bound_method_against_its_compiled_self() -> None:
    model = Agent()
    x = torch.ones(3, 8)
    assert_equivalent(model.act, torch.compile(model.act, backend="eager"), x)
    torch.compiler.reset()
    with pytest.raises(NotEquivalent, match=r"output\['(logits|value)'\]"):
        assert_equivalent(
            model.act,
            torch.compile(
                model.act,
                backend=backends.changed(lambda o, c: [t + 1e-3 if t.is_floating_point() else t for t in o]),
            ),
            x,
        )


def test_plain_functions() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    assert_equivalent(double, torch.compile(double, backend="eager"), torch.ones(3))
    with pytest.raises(NotEquivalent):
        assert_equivalent(double, compiled(lambda x: x * 2 + 1e-3), torch.ones(3))


def test_both_sides_of_a_compiled_policy() -> None:
    policy = policy_of("act")
    assert_equivalent(policy.eager, policy, torch.ones(3, 8))
    torch.compiler.reset()
    bad = policy_of(backend=wrong())
    with pytest.raises(NotEquivalent):
        assert_equivalent(bad.eager, bad, torch.ones(3, 8))


def test_gradients_are_compared_in_the_update_phase_only() -> None:
    class Straight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            return y.detach() + (y - y.detach()) * 1.05 if torch.compiler.is_compiling() else y

    model = Straight()
    compiled = torch.compile(model, backend="eager")
    assert_equivalent(model, compiled, torch.ones(3, 8))
    with pytest.raises(NotEquivalent, match="gradient of layer.weight"):
        assert_equivalent(model, compiled, torch.ones(3, 8), phase="update")


def test_under_given() -> None:
    """The functions in the user's own `@given` test, with one compile outside."""
    policy = policy_of("act")

    @settings(max_examples=10, deadline=None, database=None)
    @given(observations(Box((8,)), batch=(1, 9)))
    def acts_alike(x: torch.Tensor) -> None:
        assert_equivalent(policy.eager, policy, x)

    acts_alike()
    assert policy.capture.graphs >= 2


def test_under_given_a_difference_shrinks() -> None:
    # A dtype differs whatever rounding makes of it: a value would be rounded anew at each of 300 steps.
    change = backends.changed(lambda outputs, call: [o.double() if len(o) > 2 else o for o in outputs])
    policy = policy_of(backend=change)
    sizes: list[int] = []

    @settings(max_examples=50, deadline=None, database=None)
    @given(observations(Box((8,)), batch=(1, 9)))
    def acts_alike(x: torch.Tensor) -> None:
        try:
            assert_equivalent(policy.eager, policy, x)
        except AssertionError:
            sizes.append(len(x))
            raise

    with pytest.raises(NotEquivalent):
        acts_alike()
    assert sizes[-1] == 3


def test_inputs_are_not_changed_and_each_side_gets_its_own() -> None:
    def in_place(x: torch.Tensor, *, more: dict[str, torch.Tensor]) -> torch.Tensor:
        x.add_(1)
        more["y"].mul_(2)
        return x + more["y"]

    x, y = torch.zeros(3), torch.ones(3)
    assert_equivalent(in_place, torch.compile(in_place, backend="eager"), x, more={"y": y})
    assert float(x.sum()) == 0
    assert float(y.sum()) == 3


def test_an_input_that_only_one_side_changes() -> None:
    def in_place(x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)

    with pytest.raises(NotEquivalent, match="input 0"):
        assert_equivalent(in_place, compiled(lambda x: x + 1), torch.zeros(3))


def test_random_draws_are_compared_draw_for_draw() -> None:
    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)

    assert_equivalent(noisy, torch.compile(noisy, backend="eager"), torch.zeros(3), seed=5)
    with pytest.raises(NotEquivalent):
        assert_equivalent(noisy, compiled(lambda x: x + torch.randn_like(x) * 1.001), torch.zeros(3))
    with pytest.raises(NotEquivalent, match="random state of torch"):
        assert_equivalent(lambda x: x, compiled(lambda x: x + 0 * torch.randn_like(x)), torch.zeros(3))


@pytest.mark.parametrize(
    ("off", "tolerance", "equal"),
    [
        (9e-6, {}, True),
        (2e-5, {}, False),
        (2e-5, {"atol": 1e-4}, True),
        (1e-3, {"atol": 1e-4}, False),
        (9e-6, {"atol": 0.0, "rtol": 0.0, "reference": "eager"}, False),
    ],
)
def test_tolerance(off: float, tolerance: dict[str, Any], equal: bool) -> None:
    # Not on the scale of 1: there an eps of float32 is rounding's.
    x = torch.full((3,), 0.25)
    if equal:
        assert_equivalent(lambda x: x, compiled(lambda x: x + off), x, **tolerance)
    else:
        with pytest.raises(NotEquivalent):
            assert_equivalent(lambda x: x, compiled(lambda x: x + off), x, **tolerance)


@pytest.mark.parametrize(("off", "equal"), [(5e-4, True), (3e-3, False)])
def test_the_tolerance_is_relative_to_large_values(off: float, equal: bool) -> None:
    x = torch.full((3,), 100.0, dtype=torch.float64)
    if equal:
        assert_equivalent(lambda x: x, compiled(lambda x: x + off), x, reference="eager")
    else:
        with pytest.raises(NotEquivalent):
            assert_equivalent(lambda x: x, compiled(lambda x: x + off), x, reference="eager")


def test_reference_eager_excuses_no_rounding() -> None:
    def one(x: torch.Tensor) -> torch.Tensor:
        return (x + 1e4) - 1e4

    def other(x: torch.Tensor) -> torch.Tensor:
        return (x + 1e4) - torch.nextafter(torch.tensor(1e4), torch.tensor(2e4))

    x = torch.linspace(0, 1, 5)
    assert_equivalent(one, compiled(other), x)
    with pytest.raises(NotEquivalent):
        assert_equivalent(one, compiled(other), x, reference="eager")


def test_the_message() -> None:
    """The message names the output, index, both values, the allowed difference, the number of elements, the rows."""
    x = torch.zeros(4, 3)

    def off(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[2, 1] = 0.5
        y[3, 0] = 0.25
        return y

    with pytest.raises(NotEquivalent) as caught:
        assert_equivalent(lambda x: x.clone(), compiled(off), x)
    text = str(caught.value)
    assert "output[2, 1]: values" in text
    assert re.search(r"eager +0\n", text)
    assert re.search(r"compiled +0\.5\n", text)
    assert re.search(r"difference +0\.5\b.*, allowed 1e-05", text)
    assert "2 of 12 elements, in batch rows 2, 3" in text


def test_it_is_an_assertion_error() -> None:
    with pytest.raises(AssertionError):
        assert_equivalent(lambda x: x, compiled(lambda x: x + 1), torch.zeros(3))


def test_eagers_own_exception_comes_through() -> None:
    def raises(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such action")

    with pytest.raises(KeyError, match="no such action"):
        assert_equivalent(raises, compiled(lambda x: x), torch.zeros(3))


def test_an_exception_of_the_compiled_side_is_a_difference() -> None:
    def raises(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such action")

    with pytest.raises(NotEquivalent, match="KeyError"):
        assert_equivalent(lambda x: x, raises, torch.zeros(3))


def test_a_compile_failure_is_told_as_such() -> None:
    def gives_up(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise AssertionError("no such layout")

    model = Agent()
    with pytest.raises(CompileFailed, match="no such layout"):
        assert_equivalent(model, torch.compile(model, backend=gives_up), torch.ones(3, 8))


def test_a_module_shared_by_both_sides_is_put_back() -> None:
    model = nn.BatchNorm1d(8).eval()
    compiled = torch.compile(model, backend="eager")
    assert_equivalent(model, compiled, torch.randn(3, 8), phase="update")
    assert int(model.num_batches_tracked) == 0
    assert float(model.running_mean.abs().sum()) == 0
    assert not model.training
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"phase": "training"}, "phase='training'; accepted: rollout, update"),
        ({"reference": "float32"}, "reference='float32'; accepted: float64, eager"),
        ({"compiled": 3}, "3 is not callable"),
    ],
)
def test_assert_equivalent_refuses(arguments: dict[str, Any], sentence: str) -> None:
    arguments = {"eager": nn.ReLU(), "compiled": nn.ReLU()} | arguments
    eager, compiled = arguments.pop("eager"), arguments.pop("compiled")
    with pytest.raises(UsageError, match=sentence):
        assert_equivalent(eager, compiled, torch.zeros(3), **arguments)


def test_an_output_that_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="register_output"):
        assert_equivalent(lambda x: {1, 2}, lambda x: {1, 2}, torch.zeros(3))


# --- the documentation ----------------------------------------------------------------------------


def test_the_examples_in_the_docstrings_run() -> None:
    import doctest

    from pytest_torchcompile import check, direct
    from pytest_torchcompile.generation import strategies
    from pytest_torchcompile.specs import spaces

    for module in (spaces, strategies, direct, check):
        torch.compiler.reset()
        names = {"Box": Box, "Discrete": Discrete}
        finder = doctest.DocTestFinder(recurse=True)
        runner = doctest.DocTestRunner(verbose=False)
        found = [test for test in finder.find(module, extraglobs=names) if test.examples]
        assert found
        for test in found:
            runner.run(test)
        assert runner.failures == 0


def test_one_policy_is_compiled_for_one_phase() -> None:
    with pytest.raises(UsageError, match=r"compile_policy\(\) takes one phase; write phase='rollout' or"):
        policy_of(phases="update")


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(4, 6)[:, ::2],
        torch.zeros(4, 1).expand(4, 3),
        torch.zeros(3, 4).t(),
        torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    ],
    ids=["gaps", "overlaps", "transposed", "channels last"],
)
def test_each_side_gets_inputs_laid_out_as_the_users(x: torch.Tensor) -> None:
    """Compilers generate other code for other layouts."""
    seen = []

    def policy(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.stride())
        return x + 1

    assert_equivalent(policy, compiled(policy), x)
    assert set(seen) == {x.stride()}


def test_two_modules_with_different_weights_are_told() -> None:
    x = torch.randn(3, 8)
    one, other = nn.Linear(8, 2), nn.Linear(8, 2)
    compiled = torch.compile(other, backend="eager")
    with pytest.raises(NotEquivalent, match=r"the two modules have different weights \(weight, bias\)"):
        assert_equivalent(one, compiled, x)
    other.load_state_dict(one.state_dict())
    assert_equivalent(one, compiled, x)
