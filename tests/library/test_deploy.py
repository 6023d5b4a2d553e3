"""`compile_checked` compiles in place after a check, stays eager if the check fails, and changes nothing else."""

import copy
import dataclasses
import gc
import importlib.metadata
import importlib.util
import json
import logging
import pathlib
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Distribution

from pytest_torchcompile import (
    Box,
    CompileFailed,
    NotEquivalent,
    UsageError,
    compilation_of,
    compile_checked,
)

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "ppo_loop.py"
CHEAP = {"backend": "eager", "phases": "rollout", "batch": 4, "examples": 2}


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.actor = nn.Linear(8, 3)
        self.critic = nn.Linear(8, 1)

    def forward(self, x):
        return self.actor(torch.tanh(self.trunk(x)))

    def get_value(self, x):
        """The value of each row."""
        return self.critic(torch.tanh(self.trunk(x))).squeeze(-1)

    def get_action_and_value(self, x, action=None):
        probs = Categorical(logits=self(x))
        action = probs.sample() if action is None else action
        return action, probs.log_prob(action), self.get_value(x)


class Counting:
    """A backend that counts the calls of its graphs, and the graphs."""

    def __init__(self):
        self.calls = self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*args):
            self.calls += 1
            return graph(*args)

        return run


def shifted(graph, inputs):
    return lambda *args: [out + 1 if out.is_floating_point() else out for out in graph(*args)]


def failing(graph, inputs):
    raise RuntimeError("no code for this")


def checked(policy=None, **arguments):
    """An agent given to compile_checked."""
    policy = Agent() if policy is None else policy
    return compile_checked(policy, observation=Box((4,)), **{**CHEAP, "methods": "get_value", **arguments})


@pytest.fixture
def log(caplog):
    """What the library logs."""
    caplog.set_level(logging.INFO, logger="pytest_torchcompile")
    return caplog


# --- equal: compiled ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("forward", lambda agent, x: agent(x)),
        ("get_value", lambda agent, x: agent.get_value(x)),
        ("get_action_and_value", lambda agent, x: agent.get_action_and_value(x)),
        ("actor", lambda agent, x: agent.actor(x.repeat(1, 2))),
    ],
)
def test_an_equal_method_goes_through_compiled_code(method, call):
    backend = Counting()
    shape = (8,) if method == "actor" else (4,)
    agent = Agent()
    returned = compile_checked(agent, observation=Box(shape), methods=method, **CHEAP | {"backend": backend})
    assert returned is agent
    before = backend.calls
    call(agent, torch.zeros(4, 4))
    assert backend.calls > before
    assert compilation_of(agent).compiled
    assert compilation_of(agent).reason == ""


def test_what_is_compiled_follows_the_weights():
    agent = checked()
    x = torch.ones(4, 4)
    before = agent.get_value(x)
    with torch.no_grad():
        agent.critic.bias += 5
    assert torch.allclose(agent.get_value(x), before + 5)
    other = Agent()
    agent.load_state_dict(other.state_dict())
    assert torch.equal(agent.get_value(x), other.get_value(x))


def test_methods_that_call_each_other_are_one_graph():
    backend = Counting()
    agent = checked(methods=["forward", "get_value", "get_action_and_value"], backend=backend, fullgraph=True)
    graphs = backend.graphs
    agent.get_action_and_value(torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64))
    assert backend.graphs == graphs + 1


def test_the_policy_looks_as_before():
    agent, plain = checked(methods=["forward", "get_value"]), Agent()
    assert type(agent) is Agent
    assert list(agent.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in agent.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert repr(agent) == repr(plain)
    assert agent.get_value.__doc__ == "The value of each row."


def test_a_policy_that_is_no_module():
    class Pair:
        def __init__(self):
            self.actor, self.critic = nn.Linear(4, 2), nn.Linear(4, 1)

        def act(self, x):
            return self.actor(x), self.critic(x)

    backend = Counting()
    pair = checked(Pair(), methods="act", backend=backend)
    before = backend.calls
    pair.act(torch.zeros(4, 4))
    assert (backend.calls, compilation_of(pair).compiled) == (before + 1, True)


def test_a_method_of_a_part():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.agent = Agent()

    backend = Counting()
    whole = checked(Whole(), methods="agent.get_value", backend=backend)
    before = backend.calls
    whole.agent.get_value(torch.zeros(4, 4))
    assert backend.calls == before + 1


# --- copies, pickles, the rest of the process -----------------------------------------------------


COPIES = {
    "deep copy": copy.deepcopy,
    "pickle": lambda agent: pickle.loads(pickle.dumps(agent)),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_have_weights_of_their_own_and_are_eager(how):
    """A copied compiled function would still call the original's weights."""
    backend = Counting()
    agent = checked(methods=["forward", "get_value"], backend=backend)
    other = COPIES[how](agent)
    calls, x = backend.calls, torch.ones(4, 4)
    with torch.no_grad():
        other.critic.bias += 5
        other.actor.bias += 5
    assert torch.allclose(other.get_value(x), agent.get_value(x) + 5)
    assert torch.allclose(other(x), agent(x) + 5)
    assert backend.calls == calls + 2, "the original's two"
    with pytest.raises(UsageError, match="this Agent was not given to compile_checked"):
        compilation_of(other)


@pytest.mark.parametrize("warm_up", [0, 2])
def test_weights_gradients_modes_and_random_numbers_are_untouched(warm_up):
    class WithNorm(Agent):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return super().forward(self.norm(x))

    agent = WithNorm().train()
    agent.trunk.eval()
    agent.critic.weight.grad = torch.ones(1, 8)
    tensors = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    checked(agent, methods="forward", phases=["rollout", "update"], warm_up=warm_up)
    assert torch.equal(torch.get_rng_state(), expected)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in agent.state_dict().items())
    assert (agent.training, agent.trunk.training) == (True, False)
    assert torch.equal(agent.critic.weight.grad, torch.ones(1, 8))
    assert agent.actor.weight.grad is None


def test_distributions_are_compiled_as_they_were_checked():
    """Validating their arguments would break the graph."""
    before = Distribution._validate_args
    try:
        Distribution.set_default_validate_args(True)
        agent = checked(methods="get_action_and_value", fullgraph=True)
        agent.get_action_and_value(torch.zeros(4, 4))
        Distribution.set_default_validate_args(True)
        checked(methods="get_action_and_value", backend=shifted)
        assert Distribution._validate_args, "eager validates as before"
    finally:
        Distribution.set_default_validate_args(before)


def test_the_record_goes_with_the_policy():
    from pytest_torchcompile import deploy

    agent = checked(enabled=False)
    key = id(agent)
    assert key in deploy._compilations
    del agent
    gc.collect()
    assert key not in deploy._compilations


# --- not equal: eager -----------------------------------------------------------------------------


def test_one_that_differs_stays_eager_and_the_log_has_the_figures(log):
    agent = checked(backend=shifted)
    x = torch.ones(4, 4)
    assert "get_value" not in vars(agent)
    assert torch.equal(agent.get_value(x), Agent.get_value(agent, x))
    (record,) = [record for record in log.records if record.levelname == "WARNING"]
    assert record.name == "pytest_torchcompile"
    text = record.getMessage()
    assert text.startswith("Agent stays eager: compiled differs from eager: get_value, rollout phase")
    assert "difference  1 (" in text
    assert ", allowed " in text
    compilation = compilation_of(agent)
    assert not compilation.compiled
    assert compilation.reason == text.removeprefix("Agent stays eager: ")
    assert compilation.results[0].worst.difference == pytest.approx(1)


def test_a_compile_failure_falls_back(log):
    agent = checked(backend=failing)
    assert "get_value" not in vars(agent)
    assert "Agent stays eager: compile failed: get_value" in log.text
    assert "no code for this" in log.text
    assert compilation_of(agent).metadata()["compiled"] is False


def test_what_was_not_compiled_stays_eager(log, monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert "get_value" not in vars(checked())
    assert "Agent stays eager: not compiled: get_value" in log.text


def test_one_method_that_differs_keeps_all_eager():
    class WrongPolicy(Counting):
        def __call__(self, graph, inputs):
            wide = any(getattr(value, "shape", ()) == (3, 8) for value in inputs)
            return shifted(graph, inputs) if wide else super().__call__(graph, inputs)

    agent = checked(methods=["get_value", "forward"], backend=WrongPolicy())
    verdicts = {result.method: result.verdict for result in compilation_of(agent).results}
    assert verdicts == {"get_value": "equal", "forward": "differs"}
    assert "get_value" not in vars(agent)


def test_one_that_is_surely_slower_stays_eager(log):
    agent = checked(benchmark_seconds=0.1, min_speedup=1000)
    assert "get_value" not in vars(agent)
    assert "Agent stays eager: too slow: get_value" in log.text


@pytest.mark.parametrize("breaks", [0, 1])
def test_one_that_exceeds_a_budget_stays_eager(log, breaks):
    class Broken(Agent):
        def get_value(self, x):
            hidden = self.trunk(x)
            torch._dynamo.graph_break()
            return self.critic(hidden)

    agent = checked(Broken(), max_graph_breaks=breaks)
    allowed = breaks == 1
    assert ("get_value" in vars(agent)) == allowed
    assert ("Broken stays eager: over budget: get_value, rollout phase" in log.text) != allowed
    if not allowed:
        with pytest.raises(NotEquivalent, match="1 graph break, max_graph_breaks=0"):
            checked(Broken(), max_graph_breaks=breaks, fallback=False)


@pytest.mark.parametrize(("backend", "error"), [(shifted, NotEquivalent), (failing, CompileFailed)])
def test_without_fallback_it_raises(backend, error):
    with pytest.raises(error, match="get_value, rollout phase"):
        checked(backend=backend, fallback=False)


def test_not_enabled():
    backend = Counting()
    agent = checked(enabled=False, backend=backend)
    assert backend.graphs == 0
    assert (compilation_of(agent).compiled, compilation_of(agent).reason) == (False, "not enabled")


# --- warm-up --------------------------------------------------------------------------------------


def test_after_the_warm_up_nothing_compiles():
    backend = Counting()
    agent = checked(warm_up=2, batch=(4, 7), backend=backend, phases=["rollout", "update"])
    graphs = backend.graphs
    for batch in (4, 7):
        agent.eval()
        with torch.no_grad():
            agent.get_value(torch.zeros(batch, 4))
        agent.train()
        agent.get_value(torch.zeros(batch, 4)).sum().backward()
    assert backend.graphs == graphs
    assert compilation_of(agent).graphs > 0
    assert compilation_of(agent).compile_s > 0


def test_a_compile_that_fails_in_the_warm_up_falls_back(log):
    in_the_check = Counting()
    checked(backend=in_the_check)

    class FailsLater(Counting):
        def __call__(self, graph, inputs):
            if self.graphs == in_the_check.graphs:
                raise RuntimeError("out of luck")
            return super().__call__(graph, inputs)

    agent = checked(backend=FailsLater(), warm_up=1)
    assert "get_value" not in vars(agent)
    assert "the warm-up of get_value failed in rollout with batch 4" in log.text
    assert "out of luck" in log.text
    with pytest.raises(CompileFailed, match="out of luck"):
        checked(backend=FailsLater(), warm_up=1, fallback=False)


# --- what is asked for wrongly --------------------------------------------------------------------


def test_usage_errors_are_no_reason_to_fall_back():
    with pytest.raises(UsageError, match="Agent has no observation spec"):
        compile_checked(Agent(), methods="get_value", **CHEAP)
    with pytest.raises(UsageError, match=r"compile_checked\(\) got unknown option 'atoll'"):
        checked(atoll=1)
    with pytest.raises(UsageError, match="can't compile the function adapter in place"):
        checked(methods=lambda model, x: model(x))
    with pytest.raises(UsageError, match="Agent comes compiled"):
        checked(checked())
    with pytest.raises(UsageError, match="it takes a module, or an object that holds some"):
        checked(Agent)


# --- records --------------------------------------------------------------------------------------


def test_metadata_is_flat_json_and_agrees_with_the_results():
    agent = checked(
        backend="aot_eager", phases=["rollout", "update"], benchmark_seconds=0.1, atol=1e-4, warm_up=1
    )
    compilation = compilation_of(agent)
    metadata = json.loads(json.dumps(compilation.metadata()))
    assert all(value is None or isinstance(value, str | int | float) for value in metadata.values())
    assert (metadata["compiled"], metadata["atol"], metadata["mode"]) == (True, 1e-4, None)
    # As installed: without the build, such as +cu130.
    assert metadata["torch_version"] == importlib.metadata.version("torch")
    rollout = compilation.results[0]
    assert metadata["get_value-rollout/backend"] == "aot_eager"
    assert metadata["get_value-rollout/verdict"] == "equal"
    assert metadata["get_value-rollout/speedup"] == round(rollout.speedup.ratio, 4)
    assert metadata["get_value-rollout/compiled_resident_growth_bytes"] >= 0
    assert metadata["get_value-update/passed"] is True


def test_metadata_of_a_result_is_its_row_and_what_describes_the_run():
    (result,) = compilation_of(checked(backend=shifted)).results
    metadata = result.metadata()
    assert {k: v for k, v in metadata.items() if k in result.row()} == result.row()
    assert (metadata["passed"], metadata["compiled"]) == (False, True)
    assert metadata["worst_difference"] > metadata["worst_allowed"] > 0
    assert metadata.keys() >= {"mode", "dynamic", "fullgraph", "atol", "rtol", "python_version"}
    without_parameters = dataclasses.replace(result, capture=type(result.capture)(), worst=None)
    assert without_parameters.metadata()["coverage"] is None, "where a row can only say n/a"
    assert json.loads(json.dumps(result.as_dict()))["settings"]["atol"] == 1e-5


# --- a training script ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ppo():
    """examples/ppo_loop.py, on one thread: its tensors are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("ppo_loop", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


QUICK = {"examples": 2, "phases": ["rollout", "update"]}


def test_a_ppo_loop_trains_as_it_does_in_eager(ppo):
    """To the last bit, on a backend that computes what eager does."""
    plain, without = ppo.train(iterations=3, enabled=False)
    agent, with_compiled = ppo.train(iterations=3, backend="eager", warm_up=1, **QUICK)
    assert compilation_of(agent).compiled, compilation_of(agent).reason
    assert with_compiled == without
    weights = plain.state_dict()
    assert list(agent.state_dict()) == list(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in agent.state_dict().items())


def test_a_ppo_loop_goes_on_eager_where_compiled_is_wrong(ppo, log):
    _, without = ppo.train(iterations=2, enabled=False)
    agent, fallen_back = ppo.train(iterations=2, backend=shifted, shrink_seconds=0, **QUICK)
    assert not compilation_of(agent).compiled
    assert fallen_back == without
    assert "Agent stays eager" in log.text


def test_the_ppo_loop_learns(ppo):
    _, history = ppo.train(iterations=20, enabled=False)
    assert history[-1] > history[0] / 2
