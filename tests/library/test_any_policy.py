"""Inputs, policies and state of the shapes that libraries give them; each with a fault that is caught."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from checking import assert_differs, assert_passes, check
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
    State,
    UsageError,
    Verdict,
    Wrapped,
    check_equivalence,
    register_output,
)

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
    assert_differs(check(OverSequences, phase, backend=twice_as_much, **spec), "output[0]")


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
    assert result.capture.parameters == ("models_actor.weight", "models_actor.bias")


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


class Store:
    """Keeps what it is given out of the check's sight."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = 0.0


class CachesDistribution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.store = nn.Linear(8, 3), Store()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.layer(x)
        self.store.value = Normal(mean + 1, torch.ones_like(mean))
        return mean.argmax(-1)


def kept(model: CachesDistribution) -> Any:
    return model.store.value


def test_observe_compares_what_the_check_does_not_see() -> None:
    assert_passes(check(CachesDistribution, observation=Box((8,)), observe=kept))
    # The index is right all the same.
    assert_passes(check(CachesDistribution, observation=Box((8,)), backend=twice_as_much))
    faulty = check(CachesDistribution, observation=Box((8,)), backend=twice_as_much, observe=kept)
    assert_differs(faulty, "observed.loc")


class KeepsDistribution(nn.Module):
    """What skrl's and rsl_rl's models do, for those who ask for the entropy afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)
        self.kept: Normal | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.layer(x)
        self.kept = Normal(mean + 1, torch.ones_like(mean))
        return mean.argmax(-1)


def test_a_distribution_in_an_attribute_is_compared() -> None:
    assert_passes(check(KeepsDistribution, observation=Box((8,))))
    faulty = check(KeepsDistribution, observation=Box((8,)), backend=twice_as_much)
    assert_differs(faulty, "attribute kept.loc")


class Accumulates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.store = nn.Linear(8, 3), Store()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) + self.store.value
        self.store.value = out.detach().mean()
        return out


def emptied(model: Accumulates) -> None:
    model.store.value = 0.0


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
    from pytest_torchcompile import outputs

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
    with pytest.raises(UsageError, match=rf"nothing says what \w+ observes; .*observation={proposed}"):
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
