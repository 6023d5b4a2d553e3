"""Inputs, policies and state in the forms that libraries use; each with a fault that is found."""

from __future__ import annotations

import collections
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from drawing import draws
from faults.backends import changed
from small_checks import assert_differs, assert_passes, check
from test_hidden_state import scaled
from torch import nn
from torch.distributions import Normal
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from pytest_torchcompile import (
    Box,
    Discrete,
    Flag,
    LegalAction,
    LegalMask,
    MultiBinary,
    MultiDiscrete,
    NotEquivalent,
    State,
    Tokens,
    UsageError,
    Verdict,
    Wrapped,
    assert_equivalent,
    check_equivalence,
    observations,
    register_output,
)
from pytest_torchcompile.policies.ordinary import is_finite
from pytest_torchcompile.reports.failure import failure_text
from pytest_torchcompile.specs import conventions, conversion

BOTH = ("rollout", "update")
twice_as_much = scaled(2.0)


class Batch:
    """A container like tianshou's: keys and items, but no `Mapping`."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def keys(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __getitem__(self, key: str) -> Any:
        return self.__dict__[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.__dict__[key] = value


# --- inputs ---------------------------------------------------------------------------------------


class OfBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, batch: Batch) -> Batch:
        logits = self.layer(batch["obs"]).masked_fill(~batch["mask"], -1e8)
        return Batch(logits=logits, act=logits.argmax(-1))


OF_BATCH = Wrapped({"obs": Box((8,)), "mask": LegalMask(4)}, lambda tensors: Batch(**tensors))


@pytest.mark.parametrize("phase", BOTH)
def test_a_container_of_the_librarys_own(phase: str) -> None:
    result = check(OfBatch, phase, observation=OF_BATCH)
    assert_passes(result)
    assert result.worst is not None
    assert result.worst.path.startswith(("output['logits']", "output['act']", "gradient"))


@pytest.mark.parametrize("phase", BOTH)
def test_a_fault_behind_a_container_is_caught(phase: str) -> None:
    assert_differs(check(OfBatch, phase, observation=OF_BATCH, backend=twice_as_much), "output['logits']")


def test_the_example_of_a_wrapped_input_is_told_by_its_tensors() -> None:
    result = check(OfBatch, observation=OF_BATCH, backend=twice_as_much)
    assert result.example.startswith("batch ")
    assert "observation.obs: " in result.example


class WritesToBatch(OfBatch):
    """What a TensorDictModule does: the outputs are put into the input."""

    def forward(self, batch: Batch) -> Batch:
        batch["logits"] = self.layer(batch["obs"])
        return batch


def test_what_is_written_into_a_container_is_compared() -> None:
    assert_passes(check(WritesToBatch, observation=OF_BATCH))
    faulty = check(WritesToBatch, observation=OF_BATCH, backend=twice_as_much)
    assert_differs(faulty, "input observation['logits']")


class OfPacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, packed: PackedSequence) -> torch.Tensor:
        out: torch.Tensor = self.layer(packed.data)
        return out


def packed(tensors: dict[str, torch.Tensor]) -> PackedSequence:
    lengths = tensors["lengths"].clamp(max=tensors["x"].shape[1])
    return pack_padded_sequence(tensors["x"], lengths, batch_first=True, enforce_sorted=False)


PACKED = Wrapped({"x": Box(("T", 8)), "lengths": Discrete(8, start=1)}, packed)


def test_a_packed_sequence() -> None:
    assert_passes(check(OfPacked, observation=PACKED))
    assert_differs(check(OfPacked, observation=PACKED, backend=twice_as_much), "output")


class OfNumpyMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, action_masks: np.ndarray[Any, Any]) -> torch.Tensor:
        mask = torch.as_tensor(action_masks, dtype=torch.bool)
        return torch.where(mask, self.layer(x), torch.tensor(-1e8))


def test_a_mask_as_a_numpy_array() -> None:
    inputs = {"action_masks": Wrapped(LegalMask(4), lambda mask: mask.numpy())}
    assert_passes(check(OfNumpyMask, observation=Box((8,)), inputs=inputs))
    faulty = check(OfNumpyMask, observation=Box((8,)), inputs=inputs, backend=twice_as_much)
    assert_differs(faulty, "output")


class OverSequences(nn.Module):
    """Rows of T steps of B sequences, as CleanRL's LSTM agents take them."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 6), nn.Linear(6, 4)

    def forward(
        self,
        x: torch.Tensor,
        state: torch.Tensor,
        done: torch.Tensor,
        mask: torch.Tensor,
        action: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, outputs = state[0], []
        batch = hidden.shape[0]
        for step, ended in zip(x.reshape(-1, batch, 8), done.reshape(-1, batch), strict=True):
            hidden = self.cell(step, hidden * (1.0 - ended)[:, None])
            outputs.append(hidden)
        logits = self.head(torch.cat(outputs)).masked_fill(~mask, -1e8)
        return logits.log_softmax(-1).gather(1, action[:, None]), hidden


PER_STEP: dict[str, Any] = {
    "state": State((1, 6), batch_dim=1),
    "done": Flag("float32", per_step=True),
    "mask": LegalMask(4, per_step=True),
    "action": LegalAction("mask", per_step=True),
}


@pytest.mark.parametrize("phase", BOTH)
def test_rows_of_steps_times_sequences(phase: str) -> None:
    spec = {"observation": Box((8,), per_step=True), "inputs": PER_STEP, "batch": (3, 2, 1), "examples": 4}
    assert_passes(check(OverSequences, phase, **spec))
    # A row with one legal action has the log-probability 0 whatever the logits are; the state differs.
    assert_differs(check(OverSequences, phase, backend=twice_as_much, **spec), "output[1]")


@pytest.mark.parametrize(
    ("wrap", "sentence"),
    [
        ("Batch", r"wrap is a function that is given the tensors"),
        (None, r"wrap is a function that is given the tensors"),
    ],
)
def test_a_wrap_that_is_no_function(wrap: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Wrapped(Box((8,)), wrap)


def test_a_wrap_that_raises_is_named() -> None:
    spec = Wrapped({"obs": Box((8,))}, lambda tensors: tensors["observation"])
    with pytest.raises(UsageError, match=r"Wrapped\(.*wrap raised KeyError: 'observation'"):
        check_equivalence(OfBatch, observation=spec, backend="eager")


# --- policies -------------------------------------------------------------------------------------


class Agent:
    """A policy that is no module."""

    def __init__(self) -> None:
        self.models = {"actor": nn.Linear(8, 4), "critic": nn.Linear(8, 1)}
        self.log_std = torch.zeros(4)
        self.last: torch.Tensor | None = None

    def act(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.models["actor"](x)
        return self.last.tanh()

    def value(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.models["critic"](x)
        return out


@pytest.mark.parametrize("phase", BOTH)
def test_a_policy_that_is_no_module(phase: str) -> None:
    result = check(Agent, phase, observation=Box((8,)), methods="act")
    assert_passes(result)
    assert result.capture.parameters == ("models.actor.weight", "models.actor.bias")


@pytest.mark.parametrize("phase", BOTH)
def test_faults_in_a_policy_that_is_no_module(phase: str) -> None:
    faulty = check(Agent, phase, observation=Box((8,)), methods="act", backend=twice_as_much)
    assert_differs(faulty, "output")


def test_what_such_a_policy_keeps_is_compared() -> None:
    faulty = check(Agent, observation=Box((8,)), methods="act", backend=twice_as_much)
    assert "attribute last" in {difference.path for difference in faulty.differences}


def test_an_adapter_gets_the_policy_itself() -> None:
    def acts(agent: Agent, x: torch.Tensor) -> torch.Tensor:
        assert type(agent) is Agent
        return agent.act(x)

    assert_passes(check(Agent, observation=lambda agent: Box((len(agent.log_std) * 2,)), methods=acts))


def test_a_method_that_such_a_policy_lacks() -> None:
    with pytest.raises(UsageError, match=r"Agent has no method 'forward'; it has: act, value"):
        check_equivalence(Agent, observation=Box((8,)))


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.LazyLinear(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.tanh(self.norm(self.body(x))))
        return out


@pytest.mark.parametrize("phase", BOTH)
def test_lazily_initialised_parameters(phase: str) -> None:
    assert_passes(check(Lazy, phase, observation=Box((8,)), batch=(4, 7, 2)))
    faulty = check(Lazy, phase, observation=Box((8,)), batch=(4, 2), backend=twice_as_much)
    assert_differs(faulty, "output")


def test_a_lazy_module_in_place_of_a_factory_is_an_error() -> None:
    with pytest.raises(UsageError, match="give a function that makes it, or call it once before"):
        check_equivalence(Lazy(), observation=Box((8,)))


def test_what_no_method_initialises_is_an_error() -> None:
    class Half(Lazy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.body(x)
            return out

    with pytest.raises(UsageError, match="lazily initialised parameters that no declared method initialises"):
        check_equivalence(Half, observation=Box((8,)))


def test_a_first_call_that_raises_is_told() -> None:
    class Raises(Lazy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no weights here")

    with pytest.raises(UsageError, match="its first call raised RuntimeError: no weights here"):
        check_equivalence(Raises, observation=Box((8,)))


# --- state ----------------------------------------------------------------------------------------


UNSEEN: list[Any] = [0.0]
"""What policies keep out of the check's sight: no attribute of theirs leads here."""


@pytest.fixture(autouse=True)
def nothing_unseen() -> None:
    UNSEEN[0] = 0.0


class CachesDistribution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.layer(x)
        self.keep(Normal(mean + 1, torch.ones_like(mean)))
        return mean.argmax(-1)

    def keep(self, distribution: Normal) -> None:
        UNSEEN[0] = distribution


def kept(model: CachesDistribution) -> Any:
    return UNSEEN[0]


def test_observe_compares_what_the_check_does_not_see() -> None:
    assert_passes(check(CachesDistribution, observation=Box((8,)), observe=kept))
    # The index is right all the same.
    assert_passes(check(CachesDistribution, observation=Box((8,)), backend=twice_as_much))
    faulty = check(CachesDistribution, observation=Box((8,)), backend=twice_as_much, observe=kept)
    assert_differs(faulty, "observed.loc")


class KeepsDistribution(CachesDistribution):
    """What skrl's and rsl_rl's models do, for those who ask for the entropy afterwards."""

    def keep(self, distribution: Normal) -> None:
        self.kept = distribution


def test_a_distribution_in_an_attribute_is_compared() -> None:
    assert_passes(check(KeepsDistribution, observation=Box((8,))))
    faulty = check(KeepsDistribution, observation=Box((8,)), backend=twice_as_much)
    assert_differs(faulty, "attribute kept.loc")


class Accumulates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) + UNSEEN[0]
        UNSEEN[0] = out.detach().mean()
        return out


def emptied(model: Accumulates) -> None:
    UNSEEN[0] = 0.0


def test_reset_puts_back_what_the_check_can_not() -> None:
    assert check(Accumulates, observation=Box((8,))).verdict is not Verdict.EQUAL
    assert_passes(check(Accumulates, observation=Box((8,)), reset=emptied))
    assert_differs(check(Accumulates, observation=Box((8,)), reset=emptied, backend=twice_as_much), "output")


@pytest.mark.parametrize("name", ["observe", "reset"])
def test_a_hook_that_raises_is_named(name: str) -> None:
    hook: Any = {name: lambda model: model.nothing}
    with pytest.raises(UsageError, match=rf"{name} raised AttributeError: .*nothing"):
        check_equivalence(Accumulates, observation=Box((8,)), backend="eager", **hook)


# --- outputs --------------------------------------------------------------------------------------


class Answer:
    def __init__(self, move: torch.Tensor) -> None:
        self.move = move


class Answers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return Answer(self.layer(x))


def test_an_output_of_an_unknown_type_is_an_error_with_the_line_to_write() -> None:
    with pytest.raises(UsageError, match=r"output is a .*Answer, .*register_output\(Answer, lambda value"):
        check_equivalence(Answers, observation=Box((8,)), backend="eager")


def test_a_registered_output_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_torchcompile.policies import outputs

    monkeypatch.setattr(outputs, "_registered", {})
    register_output(Answer, lambda answer: {"move": answer.move})
    assert_passes(check(Answers, observation=Box((8,))))
    faulty = check(Answers, observation=Box((8,)), backend=twice_as_much)
    assert_differs(faulty, "output['move']")


# --- what policies say of themselves --------------------------------------------------------------


class WithSpaces(nn.Module):
    """As Stable-Baselines3's policies, which keep the spaces that they were made for."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (8,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(4)
        self.layer = nn.Linear(8, 4)

    def forward(self, obs: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        out: torch.Tensor = self.layer(obs)
        return out

    def evaluate_actions(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self.forward(obs).log_softmax(-1).gather(1, actions[:, None])


@pytest.mark.parametrize("method", ["forward", "evaluate_actions"])
def test_a_policy_with_spaces_needs_no_declaration(method: str) -> None:
    result = check(WithSpaces, methods=method)
    assert_passes(result)
    assert any(
        note.startswith("inputs are the policy's own spaces: observation=Box((8,)") for note in result.notes
    )
    assert_differs(check(WithSpaces, methods=method, backend=twice_as_much), "output")


def test_a_declared_input_goes_before_the_policys_own_space() -> None:
    result = check(
        WithSpaces, methods="evaluate_actions", inputs={"actions": Discrete(2)}, backend=twice_as_much
    )
    assert "actions: zeros" in result.example


@pytest.mark.parametrize(
    ("layer", "proposed"),
    [
        (nn.Linear(17, 4), r"Box\(\(17,\)\)"),
        (nn.Conv2d(46, 4, 3), r"Box\(\(46, 84, 84\)\)"),
        (nn.Embedding(100, 4), r"Tokens\(100\)"),
        (nn.GRUCell(5, 4), r"Box\(\('T', 5\)\)|Box\(\(\"T\", 5\)\)"),
        (nn.ReLU(), r"Box\(\(8,\)\)"),
    ],
)
def test_what_can_not_be_told_is_proposed(layer: nn.Module, proposed: str) -> None:
    with pytest.raises(UsageError, match=rf"\w+ has no observation spec; .*observation={proposed}"):
        check_equivalence(layer)


@pytest.mark.parametrize(
    ("name", "proposed"),
    [
        ("action", r"Discrete\(6\)"),
        ("action_masks", r"LegalMask\(6\)"),
        ("episode_starts", r"Flag\(\)"),
        ("lstm_state", r"State\(\(1, 64\), batch_dim=1\)"),
        ("other", r"Box\(\(8,\)\)"),
    ],
)
def test_an_input_that_can_not_be_told_is_proposed_by_its_name(name: str, proposed: str) -> None:
    source = f"def method(model, x, {name}): return model.actor(x)"
    scope: dict[str, Any] = {}
    exec(source, scope)

    class ActorCritic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor, self.critic = nn.Linear(8, 6), nn.Linear(8, 1)

    with pytest.raises(UsageError, match=rf"inputs=\{{'{name}': {proposed}\}}"):
        check_equivalence(ActorCritic, observation=Box((8,)), methods=scope["method"])


# --- what a hostile reader tried ------------------------------------------------------------------


def wrong_gradients(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    """A backend that keeps values to the last bit, and makes gradients half as large again."""

    def run(*args: Any) -> Any:
        return [
            out.detach() + (out - out.detach()) * 1.5
            if isinstance(out, torch.Tensor) and out.is_floating_point()
            else out
            for out in graph(*args)
        ]

    return run


class Critic:
    """A plain object inside an agent."""

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 1))


class Nested:
    """An agent whose modules lie deeper, some under names that `nn.Module` has for something else."""

    def __init__(self) -> None:
        self.critic = Critic()
        self.policy, self.half = nn.Linear(8, 3), nn.Linear(8, 2)
        self.models, self.models_actor = {"actor": nn.Linear(8, 2)}, nn.Linear(8, 2)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.temperature = torch.ones((), requires_grad=True)
        self.training = True
        self.modes: list[bool] = []

    def value(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.critic.net(x)
        return out

    def act(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.policy(x), self.half(x), self.models["actor"](x), self.models_actor(x)], -1)
        out: torch.Tensor = both * self.log_alpha.exp() * self.temperature
        return out if self.training else out.tanh()


@pytest.mark.parametrize(
    ("method", "gradients"),
    [
        ("value", {"critic.net.0.bias", "critic.net.2.bias"}),
        ("act", {"policy.bias", "half.bias", "models.actor.bias", "models_actor.bias"}),
        ("act", {"log_alpha", "temperature"}),
    ],
)
def test_gradients_of_all_that_an_agent_holds(method: str, gradients: set[str]) -> None:
    spec = {"observation": Box((8,)), "methods": method}
    assert_passes(check(Nested, "update", **spec))
    result = check(Nested, "update", backend=wrong_gradients, **spec)
    assert result.verdict is Verdict.DIFFERS
    assert {f"gradient of {name}" for name in gradients} <= {d.path for d in result.differences}


def test_what_an_agent_holds_is_switched_to_the_phase() -> None:
    modes = set()

    def noted(agent: Nested, x: torch.Tensor) -> torch.Tensor:
        modes.add((agent.training, agent.critic.net.training, agent.critic.net[1].training))
        return agent.value(x)

    check(Nested, "rollout", observation=Box((8,)), methods=noted)
    assert modes == {(False, False, False)}
    # An update learns in eval() too.
    check(Nested, "update", observation=Box((8,)), methods=noted)
    assert modes == {(False, False, False), (True, True, True)}


def test_an_agents_net_that_comes_compiled_is_checked_as_deployed() -> None:
    class Deployed(Nested):
        def __init__(self) -> None:
            super().__init__()
            self.critic.net = torch.compile(self.critic.net, backend=twice_as_much)

    result = check(Deployed, observation=Box((8,)), methods="value")
    assert result.backend == "as deployed"
    assert_differs(result, "output")


def test_a_bound_method_of_an_agent_by_hand() -> None:
    agent, x = Nested(), torch.randn(4, 8)
    good, bad = (torch.compile(agent.act, backend=backend) for backend in ("eager", wrong_gradients))
    assert_equivalent(agent.act, good, x, phase="update")
    torch.compiler.reset()
    with pytest.raises(NotEquivalent, match="gradient of"):
        assert_equivalent(agent.act, bad, x, phase="update")


@dataclasses.dataclass
class Data:
    obs: torch.Tensor


class Opaque:
    __slots__ = ("obs",)

    def __init__(self, obs: torch.Tensor) -> None:
        self.obs = obs


class OfObs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, data: Data | Opaque) -> torch.Tensor:
        out: torch.Tensor = self.layer(data.obs)
        return out


@pytest.mark.parametrize("container", [Data, Opaque])
def test_the_gradient_of_an_input_in_any_container(container: Any) -> None:
    spec = Wrapped(Box((8,), requires_grad=True), lambda x: container(x * 1.0))
    assert_passes(check(OfObs, "update", observation=spec))
    result = check(OfObs, "update", observation=spec, backend=wrong_gradients)
    assert_differs(result, "gradient of input observation")


def test_a_float64_rerun_that_the_users_functions_do_not_take_hides_nothing() -> None:
    def float32_only(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise TypeError("observations are float32")
        return x

    spec = Wrapped(Box((8,)), float32_only)
    assert_differs(check(WithSpaces, observation=spec, backend=twice_as_much), "output")


def test_observed_structures_that_differ() -> None:
    def observe(model: nn.Module) -> Any:
        return {"compiled": 1} if hasattr(model, "seen") else {"eager": 1}

    class Marks(WithSpaces):
        def forward(self, obs: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
            if torch.compiler.is_compiling():
                self.seen = True
            return super().forward(obs)

    assert_differs(check(Marks, observe=observe), "observed['eager']", "structure")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"observe": "kept"}, "observe='kept'; accepted: a function of the policy"),
        ({"observe": lambda model: None}, "observe returned None"),
    ],
)
def test_an_observe_that_observes_nothing(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check_equivalence(WithSpaces, backend="eager", **arguments)


def test_an_input_named_after_the_first_parameter_replaces_the_policys_own_space() -> None:
    result = check(WithSpaces, inputs={"obs": Box((8,), low=0, high=1)}, backend=twice_as_much)
    assert_differs(result, "output")
    assert result.example.partition("; ")[2].startswith("obs: ")


def of_library(module: str, name: str) -> type[nn.Module]:
    """A class that is known by its full name, as one of another library's is."""
    return type(name, (nn.Module,), {"__module__": module, "__qualname__": name})


SB3 = of_library("stable_baselines3.common.policies", "BaseModel")
SKRL = of_library("skrl.models.torch.base", "Model")


@pytest.mark.parametrize(
    ("library", "space", "expected"),
    [
        (SB3, gymnasium.spaces.MultiBinary(3), MultiBinary((3,), "float32")),
        (SB3, gymnasium.spaces.MultiDiscrete([3, 2]), MultiDiscrete((3, 2), "float32")),
        (SB3, gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64), Box((2,), -1.0, 1.0, "float32")),
        (SB3, gymnasium.spaces.Discrete(4), Discrete(4)),
        (SKRL, gymnasium.spaces.Discrete(4), MultiDiscrete((4,), "float32")),
        (SKRL, gymnasium.spaces.MultiBinary(3), MultiBinary((3,), "float32")),
        (nn.Module, gymnasium.spaces.MultiBinary(3), MultiBinary((3,), "int8")),
    ],
    ids=repr,
)
def test_an_action_is_what_the_library_s_buffer_stores(library: Any, space: Any, expected: Any) -> None:
    class Learner(library):  # type: ignore[misc]  # made at run time
        action_space = space

        def evaluate_actions(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            return actions

    signature = inspect.signature(Learner().evaluate_actions)
    found = conventions.own_actions(Learner(), [signature])
    assert conversion.as_spec(found["actions"]) == expected


def test_a_library_s_float_buffer_stores_whole_numbers_from_the_start_of_their_column() -> None:
    class Learner(SB3):  # type: ignore[misc,valid-type]  # made at run time
        action_space = gymnasium.spaces.MultiDiscrete([3, 2], start=[1, 0])

        def evaluate_actions(self, actions: torch.Tensor) -> torch.Tensor:
            return actions

    found = conventions.own_actions(Learner(), [inspect.signature(Learner().evaluate_actions)])
    rows = torch.cat(draws(observations(found["actions"]), 50))
    assert rows.dtype == torch.float32
    assert rows.amin(0).tolist() == [1, 0]
    assert set(rows.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_skrl_s_taken_actions_are_a_column_of_floats() -> None:
    class Learner(SKRL):  # type: ignore[misc,valid-type]  # made at run time
        observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(4)

    found = conventions.own_observation(Learner())
    assert found["taken_actions"] == MultiDiscrete((4,), "float32")
    assert conversion.as_spec(found["observations"]) == Box((2,), -1.0, 1.0, "float32")


def test_an_action_space_that_is_none_is_not_taken() -> None:
    class Number(WithSpaces):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = 4

    with pytest.raises(UsageError, match=r"needs 'actions', which has no spec"):
        check_equivalence(Number, methods="evaluate_actions", backend="eager")


def test_spaces_that_can_not_be_asked_for() -> None:
    class NoEnvironment(nn.Linear):
        @property
        def observation_space(self) -> Any:
            raise RuntimeError("no env yet")

    with pytest.raises(UsageError, match=r"NoEnvironment has no observation spec"):
        check_equivalence(lambda: NoEnvironment(8, 2), backend="eager")


def test_the_state_of_the_first_call_of_lazy_layers_is_put_back() -> None:
    class Keeps(Lazy):
        def __init__(self) -> None:
            super().__init__()
            self.hidden: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.hidden is not None and len(self.hidden) != len(x):
                raise ValueError("another batch")
            self.hidden = super().forward(x)
            return self.hidden

    result = check(Keeps, observation=Box((8,)))
    assert_passes(result)
    assert not any("eager itself raised" in note for note in result.notes)


def test_a_wrap_that_draws() -> None:
    spec = Wrapped(Box((8,)), lambda x: x + torch.randn(()))
    assert_passes(check(WithSpaces, observation=spec))


class Opinion(torch.distributions.Distribution):
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Any) -> None:
        self.parts = parts
        super().__init__(validate_args=False)


@pytest.mark.parametrize("kind", [tuple, lambda parts: {"one": parts[0]}], ids=["tuple", "dict"])
def test_a_distribution_that_keeps_its_parts_in_a_container(kind: Any) -> None:
    class Composite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return Opinion(kind([self.layer(x)]))

    assert_passes(check(Composite, observation=Box((8,))))
    assert check(Composite, observation=Box((8,)), backend=twice_as_much).verdict is Verdict.DIFFERS


def test_a_normaliser_with_a_device_and_one_in_an_ordered_dict() -> None:
    class Running:
        def __init__(self) -> None:
            self.mean, self.device = torch.zeros(3), torch.device("cpu")

    class Normalises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.running = nn.Linear(8, 3), Running()
            self.means: Any = collections.OrderedDict(mean=torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            self.running.mean = self.running.mean + y.mean(0)
            self.means["mean"] = self.means["mean"] + y.mean(0)
            return y.argmax(-1)

    assert_passes(check(Normalises, observation=Box((8,)), nonfinite=False))
    result = check(Normalises, observation=Box((8,)), nonfinite=False, backend=twice_as_much)
    found = {difference.path for difference in result.differences}
    assert {"attribute running.mean", "attribute means['mean']"} <= found


# --- parameters and modes -------------------------------------------------------------------------

EVERYWHERE = (*BOTH, "lifecycle")


class Embedded(nn.Module):
    """The gradient of its table is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8, sparse=True)
        self.layer = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layer(self.table(tokens).mean(1))


@pytest.mark.parametrize("phase", EVERYWHERE)
def test_a_sparse_gradient(phase: str) -> None:
    result = check(Embedded, phase, observation=Tokens(20, length=5))
    assert result.verdict is Verdict.EQUAL, failure_text(result)
    assert not any("left out" in note for note in result.notes)


def test_a_wrong_sparse_gradient() -> None:
    backend = changed(lambda outputs, call: [o.detach() + 2 * (o - o.detach()) for o in outputs])
    result = check(Embedded, "update", observation=Tokens(20, length=5), backend=backend)
    assert_differs(result, "gradient of table.weight")


class Adapted(nn.Linear):
    """A layer with an adapter, which it merges into its weights in `eval()`, as LoRA layers do."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 8))
        self.merged = False

    def train(self, mode: bool = True) -> Adapted:
        super().train(mode)
        if mode is self.merged:
            self.merged = not mode
            change = self.up.data @ self.down.data
            self.weight.data += -change if mode else change
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if self.merged else y + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("phase", EVERYWHERE)
def test_weights_that_eval_changes(phase: str) -> None:
    assert_passes(check(Adapted, phase, observation=Box((8,))))
    assert check(Adapted, phase, observation=Box((8,)), backend=twice_as_much).verdict is Verdict.DIFFERS


class KeepsItsDistribution(nn.Module):
    """As in rsl_rl: the samples that it returns have no gradient, the distribution that it keeps has one."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 3)
        self.distribution: Normal | None = None

    def act(self, x: torch.Tensor) -> torch.Tensor:
        self.distribution = Normal(self.actor(x), torch.ones(3), validate_args=False)
        return self.distribution.sample()


def test_it_learns_from_the_distribution_that_it_keeps() -> None:
    found = check(KeepsItsDistribution, "lifecycle", observation=Box((8,)), methods="act")
    assert_passes(found)
    assert not any("left out" in note for note in found.notes)
    backend = changed(lambda outputs, call: [o.detach() + 2 * (o - o.detach()) for o in outputs])
    wrong = check(KeepsItsDistribution, "lifecycle", observation=Box((8,)), methods="act", backend=backend)
    assert wrong.verdict is Verdict.DIFFERS, failure_text(wrong)


class Called:
    """An object that is called, and no module."""

    def __init__(self) -> None:
        self.layer = nn.Linear(8, 3)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("methods", ["forward", "__call__"])
def test_an_object_that_is_called_is_told_the_line_to_write(methods: str) -> None:
    line = "methods=lambda policy, observation: policy(observation)"
    with pytest.raises(UsageError, match=re.escape(f"write {line}")):
        check(Called, observation=Box((8,)), methods=methods)
    assert_passes(
        check(Called, observation=Box((8,)), methods=lambda policy, observation: policy(observation))
    )


class TrainsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def act(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def learn(self, x: torch.Tensor) -> torch.Tensor:
        self.layer(x).mean().backward()
        return x.sum()


def test_the_advice_on_a_method_for_training_names_the_method_that_acts() -> None:
    results = check_equivalence(
        TrainsItself, observation=Box((8,)), methods=["act", "learn"], phases="rollout", backend="eager"
    )
    reason = next(result.reason for result in results if result.method == "learn")
    assert "methods=['learn', 'act'], act='act'" in reason


class ActsAndLearns(WithSpaces):
    def get_value(self, obs: torch.Tensor) -> torch.Tensor:
        return self.layer(obs)[:, :1]

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        return self.get_value(obs)


class ForwardCallsAct(ActsAndLearns):
    @torch.no_grad()
    def forward(self, obs: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        return torch.cat([self.act(rows) for rows in (obs, obs)])


def _not_checked(result: Any) -> list[str]:
    return [note for note in result.notes if note.startswith("not checked: ")]


@pytest.mark.parametrize(
    ("policy", "others"),
    [(ActsAndLearns, ["act", "evaluate_actions", "get_value"]), (ForwardCallsAct, ["evaluate_actions"])],
)
def test_methods_beside_forward_are_named_if_none_was_declared(policy: Any, others: list[str]) -> None:
    (note,) = _not_checked(check(policy))
    assert f"methods={['forward', *others]}" in note, "not what forward calls, at any depth"


@pytest.mark.parametrize("policy", [ActsAndLearns, lambda: nn.Linear(8, 4)])
def test_no_note_for_declared_methods_and_none_for_a_policy_with_forward_only(policy: Any) -> None:
    methods = "forward" if policy is ActsAndLearns else None
    assert not _not_checked(check(policy, observation=Box((8,)), methods=methods))


class Neighbours(nn.Module):
    """Adds what its neighbours in a fixed graph know, as policies of traffic lights and molecules do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, obs: torch.Tensor, other: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        known: torch.Tensor = self.layer(obs + other)
        return known if edges.is_nested else known * edges.to_dense().float().sum()


EDGES: dict[str, Callable[[], torch.Tensor]] = {
    "8 bits": lambda: torch.eye(8).to(torch.float8_e4m3fn),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "coo": lambda: torch.eye(8).to_sparse(),
    "csr": lambda: torch.eye(8).to_sparse_csr(),
}


@pytest.mark.parametrize("kind", EDGES)
@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_constant_of_any_layout_and_dtype_can_be_an_input(kind: str, phase: str) -> None:
    declared = {"observation": Box((8,)), "inputs": {"other": Box((8,)), "edges": EDGES[kind]()}}
    assert_passes(check(Neighbours, phase, **declared))
    assert_differs(check(Neighbours, phase, **declared, backend=twice_as_much), "output")


@pytest.mark.parametrize("make", [np.array, torch.tensor, lambda v: torch.tensor(v).to_sparse()])
@pytest.mark.parametrize("value", [np.nan, -np.inf, complex(0, np.inf)], ids=repr)
def test_a_nan_or_an_infinity_in_an_input_is_not_finite(make: Any, value: Any) -> None:
    assert not is_finite(make([1.0, value]))
    for finite in ([1.0, 2.0], [1, 2], [True], [1j]):
        assert is_finite(make(finite))
    assert is_finite("greedy")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run was started with."""

    training: bool = True


class AgentWithSettings:
    """A policy that is no module, and keeps settings that can't be changed."""

    def __init__(self) -> None:
        self.net, self.settings = nn.Linear(8, 4), Settings()

    def act(self, obs: torch.Tensor) -> Any:
        return self.net(obs)


@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
def test_a_frozen_field_called_training_is_no_mode(phase: str) -> None:
    declared = {"observation": Box((8,)), "methods": "act"}
    assert_passes(check(AgentWithSettings, phase, **declared))
    assert_differs(check(AgentWithSettings, phase, **declared, backend=twice_as_much), "output")
