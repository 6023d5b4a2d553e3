"""Changes between the calls of a policy: stale results are found, and their correct twins pass."""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from faults import backends
from small_checks import assert_passes
from small_checks import check as check_any
from torch import fx, nn
from torch.nn import functional as F

from pytest_torchcompile import Box, CheckResult, Verdict
from pytest_torchcompile.lifecycle.changes import Changes
from pytest_torchcompile.lifecycle.side import layers_with_modes
from pytest_torchcompile.lifecycle.stories import (
    ACTING,
    Change,
    Kind,
    Manner,
    Possible,
    canonical,
    story_text,
)
from pytest_torchcompile.policies.reachable import Reachable
from pytest_torchcompile.policies.state import ModuleState

compiling = torch.compiler.is_compiling

Wrap = Callable[[fx.GraphModule, backends.Run], backends.Run]


def check(factory: Any, **arguments: Any) -> CheckResult:
    options = {"observation": Box((8,)), "batch": (4, 7), "examples": 0, "steps": 0}
    options |= {"shrink_seconds": 60, "reference": "eager"}
    return check_any(factory, "lifecycle", **options | arguments)


class Normaliser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / (self.var + 1e-5).sqrt()


class Agent(nn.Module):
    """A normaliser, two layers and two heads, a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Normaliser()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
        self.actor, self.critic = nn.Linear(16, 4), nn.Linear(16, 1)
        self.temperature = 1.5

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.body(self.norm(x))
        return self.actor(hidden) / self.temperature, self.critic(hidden)


def assert_told(result: CheckResult, story: str, reason: str = "") -> None:
    assert result.verdict is Verdict.DIFFERS, result.reason
    assert result.example == story
    assert result.reason == reason


@pytest.fixture(scope="module")
def passed() -> CheckResult:
    return check(Agent)


def test_a_policy_that_is_right(passed: CheckResult) -> None:
    assert_passes(passed)
    assert not passed.notes
    # Layout, inference mode; annealed, frozen after annealed, thawed after annealed.
    assert passed.capture.added <= 5


# --- inputs ---------------------------------------------------------------------------------------


def remembering_inputs(on: bool) -> Wrap:
    """The answer to the very tensor of the last call is that of the last call."""

    def wrap(graph: fx.GraphModule, run: backends.Run) -> backends.Run:
        last: list[Any] = []

        def cached(*args: Any) -> Any:
            key = [a if not isinstance(a, nn.Parameter) else a._version for a in args]
            asked = [k for k in key if not isinstance(k, int)]
            weights = [k for k in key if isinstance(k, int)]
            if (
                on
                and last
                and weights == last[1]
                and all(a is b for a, b in zip(asked, last[0], strict=True))
            ):
                return last[2]
            last[:] = [asked, weights, run(*args)]
            return last[2]

        return cached

    return wrap


@pytest.mark.parametrize("on", [True, False])
def test_a_cache_by_the_identity_of_the_observation(on: bool) -> None:
    result = check(Agent, backend=backends.wrapped(remembering_inputs(on)))
    if on:
        story = "act(batch 7), act(batch 7, the same tensors refilled)"
        assert_told(result, story, "the last move returns the result for the inputs of an earlier call")
    else:
        assert_passes(result)


# --- buffers and attributes -----------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False])
def test_a_buffer_taken_for_a_constant(on: bool) -> None:
    class Wrong(Normaliser):
        def __init__(self) -> None:
            super().__init__()
            first = torch.zeros(8)
            self.held = lambda: first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = self.held() if on and compiling() else self.mean
            return (x - mean) / (self.var + 1e-5).sqrt()

    class Policy(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Wrong()

    result = check(Policy)
    if on:
        story = "buffer norm.mean changed by copy_, act(batch 4)"
        assert_told(result, story, "the last move uses the buffer from before the change")
    else:
        assert_passes(result)


@pytest.mark.parametrize("on", [True, False])
def test_a_buffer_that_was_assigned(on: bool) -> None:
    """Compiled code keeps using the object that was there before."""

    class Wrong(Normaliser):
        def __init__(self) -> None:
            super().__init__()
            var = self.var
            self.held = lambda: var

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            var = self.held() if on and compiling() else self.var
            return (x - self.mean) / (var + 1e-5).sqrt()

    class Policy(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Wrong()

    result = check(Policy)
    if on:
        story = "buffer norm.var changed by assignment, act(batch 4)"
        assert_told(result, story, "the last move uses the buffer from before the change")
    else:
        assert_passes(result)


class Choosing(Agent):
    """The order of the actions, which of them are legal, and an offset that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(4))
        self.register_buffer("legal", torch.tensor([True, True, False, True]))
        self.register_buffer("calls", torch.tensor(3))
        self.offset = torch.linspace(0.0, 1.0, 4)

    def forward(self, x: torch.Tensor) -> Any:
        logits, value = super().forward(x)
        logits = (logits[:, self.order] + self.offset) * torch.where(self.legal, 1.0, -1.0)
        return logits / self.calls, value


def first_values(shape: tuple[int, ...], dtype: torch.dtype) -> Wrap:
    """Inputs of this kind that are no parameters are taken for constants."""

    def wrap(graph: fx.GraphModule, run: backends.Run) -> backends.Run:
        constants: dict[int, torch.Tensor] = {}

        def folded(at: int, value: Any) -> Any:
            alike = isinstance(value, torch.Tensor) and (tuple(value.shape), value.dtype) == (shape, dtype)
            if not alike or isinstance(value, nn.Parameter):
                return value
            return constants.setdefault(at, value.detach().clone())

        return lambda *args: run(*(folded(at, value) for at, value in enumerate(args)))

    return wrap


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("order", (4,), torch.int64),
        ("legal", (4,), torch.bool),
        ("calls", (), torch.int64),
        ("offset", (4,), torch.float32),
    ],
)
def test_an_index_a_mask_a_count_or_an_attribute_taken_for_a_constant(
    name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    result = check(Choosing, backend=backends.wrapped(first_values(shape, dtype)))
    what = "buffer" if dtype.is_floating_point else "integer"
    story = f"{what} {name} changed by copy_, act(batch 4)"
    assert_told(result, story, f"the last move uses the {what} from before the change")


def test_what_chooses_passes_and_is_unchanged_after_the_check() -> None:
    made: list[Choosing] = []

    def factory() -> Choosing:
        made.append(Choosing())
        return made[-1]

    result = check(factory)
    assert_passes(result)
    assert not any("left out" in note for note in result.notes)
    for agent in made:
        assert agent.order.tolist() == [0, 1, 2, 3]
        assert agent.legal.tolist() == [True, True, False, True]
        assert (agent.calls.item(), agent.offset.tolist()[-1]) == (3, 1.0)


class Embedding(Agent):
    """It raises on the next higher id, which must not end the moves of its buffers of floats."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.tasks, self.wrong = nn.Embedding(2, 8), wrong
        self.register_buffer("task", torch.tensor(1))

    def forward(self, x: torch.Tensor) -> Any:
        mean = self.norm.mean
        if self.wrong and compiling():
            x = x + mean
        return super().forward(x + self.tasks(self.task))


@pytest.mark.parametrize("wrong", [True, False])
def test_an_integer_that_eager_refuses_leaves_the_other_moves(wrong: bool) -> None:
    result = check(lambda: Embedding(wrong))
    if wrong:
        story = "buffer norm.mean changed by copy_, act(batch 4)"
        assert_told(result, story, "the last move uses the buffer from before the change")
    else:
        assert_passes(result)
        (left_out,) = [note for note in result.notes if "left out" in note]
        assert left_out.startswith("left out: integers changed by copy_, after which eager raises IndexError")


SETTINGS = argparse.Namespace(temperature=1.5, unused=0.1)
LOW = torch.zeros(4)


class Sharing(Agent):
    """All of its instances hold one object of settings, and one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.settings, self.low = SETTINGS, LOW

    def forward(self, x: torch.Tensor) -> Any:
        logits, value = super().forward(x)
        return torch.maximum(logits, self.low) / self.settings.temperature, value


def test_what_both_sides_hold_is_left_alone() -> None:
    assert_passes(check(Sharing, examples=50))
    assert (SETTINGS.temperature, SETTINGS.unused, LOW.tolist()) == (1.5, 0.1, [0.0] * 4)


@pytest.mark.parametrize("on", [True, False])
def test_a_buffer_that_is_not_loaded(on: bool) -> None:
    made: list[nn.Module] = []

    class Policy(Agent):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
            # The first one stays eager.
            if on and self is not made[0]:
                state = {n: t for n, t in state.items() if n != "norm.mean"}
                return super().load_state_dict(state, strict=False)
            return super().load_state_dict(state, *args, **kwargs)

    result = check(Policy)
    if on:
        assert_told(result, "buffers changed by load_state_dict")
        assert result.worst is not None and result.worst.path == "buffer norm.mean"
    else:
        assert_passes(result)


@pytest.mark.parametrize("on", [True, False])
def test_an_attribute_taken_for_a_constant(on: bool) -> None:
    class Policy(Agent):
        def forward(self, x: torch.Tensor) -> Any:
            logits, value = super().forward(x)
            return (logits * self.temperature / 1.5 if on and compiling() else logits), value

    result = check(Policy)
    if on:
        story = "attribute temperature annealed, act(batch 4)"
        assert_told(result, story, "the last move uses the attribute from before the change")
    else:
        assert_passes(result)


class Settings:
    """An object that is no module."""

    def __init__(self) -> None:
        self.temperature = 1.5


@pytest.mark.parametrize("on", [True, False])
def test_an_attribute_of_an_object_taken_for_a_constant(on: bool) -> None:
    class Policy(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.settings = Settings()

        def forward(self, x: torch.Tensor) -> Any:
            logits, value = super().forward(x)
            constant = 1.5 if on and compiling() else self.settings.temperature
            return logits / constant, value

    result = check(Policy)
    if on:
        story = "attribute settings.temperature annealed, act(batch 4)"
        assert_told(result, story, "the last move uses the attribute from before the change")
    else:
        assert_passes(result)


def test_which_buffers_and_attributes_are_changed() -> None:
    agent = Choosing()
    agent.register_buffer("learnt", torch.zeros(4, requires_grad=True))
    agent.weight_of_loss = torch.ones(2, requires_grad=True)
    changes = Changes(agent, Choosing(), ModuleState(agent, parameters=True))
    assert changes.names(Change.BUFFERS_COPIED) == ["learnt", "norm.mean", "norm.var", "offset"]
    assert changes.names(Change.BUFFERS_LOADED) == ["learnt", "norm.mean", "norm.var"]
    assert changes.names(Change.INTEGERS_COPIED) == ["order", "legal", "calls"]


def test_frozen_objects_are_looked_for_as_often_for_many_attributes_as_for_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = []
    original = Reachable.frozen
    monkeypatch.setattr(Reachable, "frozen", lambda self: looked.append(self) or original(self))

    def times(attributes: int) -> int:
        agent = nn.Linear(2, 2)
        vars(agent).update({f"offset_{i}": torch.ones(3) for i in range(attributes)})
        changes = Changes(agent, nn.Linear(2, 2), ModuleState(agent, parameters=True))
        looked.clear()
        assert len(changes.names(Change.BUFFERS_COPIED)) == attributes
        return len(looked)

    assert times(20) == times(2) > 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Settings that can't be assigned."""

    temperature: float = 1.5
    low: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(4))


def test_a_frozen_object_is_not_annealed() -> None:
    seen = set()

    class Policy(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.settings = Frozen()

        @torch.compiler.disable
        def note(self) -> None:
            seen.add((self.settings.temperature, *self.settings.low.tolist()))

        def forward(self, x: torch.Tensor) -> Any:
            self.note()
            return super().forward(x)

    assert_passes(check(Policy))
    assert seen == {(1.5, 0.0, 0.0, 0.0, 0.0)}


@pytest.mark.parametrize("on", [True, False])
def test_an_attribute_that_is_kept_from_its_second_value_on(on: bool) -> None:
    """As in pytorch 194976: the first value is a constant, the second compiles for any, the third shows it."""

    class Policy(Agent):
        def forward(self, x: torch.Tensor) -> Any:
            logits, value = super().forward(x)
            if on and compiling() and self.temperature not in (1.5, 0.9 * 1.5):
                logits = logits * (0.9 * 1.5) / self.temperature
            return logits, value

    result = check(Policy)
    if on:
        assert_told(result, "attribute temperature annealed, attribute temperature annealed, act(batch 4)")
    else:
        assert_passes(result)


def test_an_attribute_that_can_not_be_annealed_is_left_out_and_said() -> None:
    class Policy(Agent):
        def forward(self, x: torch.Tensor) -> Any:
            if self.temperature != 1.5:
                raise ValueError("no schedule for this one")
            return super().forward(x)

    result = check(Policy)
    assert_passes(result)
    (note,) = result.notes
    assert (
        note == "left out: attributes annealed, after which eager raises ValueError: no schedule for this one"
    )


def test_an_omitted_move_shows_the_error_and_not_its_heading() -> None:
    class Policy(Agent):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("Error(s) in loading state_dict for Policy:\n\tMissing key(s): 'log_std'. ")

    note = next(note for note in check(Policy).notes if note.startswith("left out: load_state_dict()"))
    assert note.endswith(
        "RuntimeError: Error(s) in loading state_dict for Policy: Missing key(s): 'log_std'."
    )


def test_what_the_policy_moves_itself_is_not_annealed() -> None:
    class Policy(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0.0

        def forward(self, x: torch.Tensor) -> Any:
            self.calls = self.calls + 1.0
            return super().forward(x)

    result = check(Policy)
    assert result.verdict in (Verdict.EQUAL, Verdict.NOT_COMPILED), result.reason


# --- weights --------------------------------------------------------------------------------------


def kept_weights(stale: Callable[[nn.Parameter, dict[int, Any]], torch.Tensor]) -> Wrap:
    """Without gradients each parameter is what `stale` makes of it, given a memory of its own."""
    memory: dict[int, Any] = {}

    def wrap(graph: fx.GraphModule, run: backends.Run) -> backends.Run:
        def kept(value: Any) -> Any:
            return stale(value, memory) if isinstance(value, nn.Parameter) else value

        return lambda *args: run(*args) if torch.is_grad_enabled() else run(*map(kept, args))

    return wrap


def by_version(parameter: nn.Parameter, memory: dict[int, Any]) -> torch.Tensor:
    """A copy that is made anew when the version has moved, which writing through `.data` does not."""
    version, copied = memory.get(id(parameter), (None, None))
    if version != parameter._version:
        copied = parameter.detach().clone()
        memory[id(parameter)] = (parameter._version, copied)
    return copied


def by_memory(parameter: nn.Parameter, memory: dict[int, Any]) -> torch.Tensor:
    """The memory that the parameter had first, as an address that was written into code."""
    return memory.setdefault(id(parameter), parameter.detach())


@pytest.mark.parametrize(
    ("stale", "story"),
    [
        (by_version, "act(batch 4), weights changed by .data.copy_, act(batch 4)"),
        (by_memory, "weights changed by .data =, act(batch 4)"),
        (lambda parameter, memory: parameter, ""),
    ],
)
def test_weights_that_change_unnoticed(stale: Any, story: str) -> None:
    result = check(Agent, backend=backends.wrapped(kept_weights(stale)))
    if story:
        assert_told(result, story, "the last move uses the weights from before the change")
    else:
        assert_passes(result)


def frozen_for_good(on: bool) -> Wrap:
    """What once needed no gradient never gets one."""
    ever: set[int] = set()

    def wrap(graph: fx.GraphModule, run: backends.Run) -> backends.Run:
        def cut(value: Any) -> Any:
            if not isinstance(value, nn.Parameter):
                return value
            if not value.requires_grad:
                ever.add(id(value))
            return value.detach() if on and id(value) in ever else value

        return lambda *args: run(*map(cut, args))

    return wrap


def constant_while_frozen(on: bool) -> Wrap:
    """What needs no gradient is taken for a constant."""
    constants: dict[int, torch.Tensor] = {}

    def wrap(graph: fx.GraphModule, run: backends.Run) -> backends.Run:
        def folded(value: Any) -> Any:
            if not on or not isinstance(value, nn.Parameter) or value.requires_grad:
                return value
            return constants.setdefault(id(value), value.detach().clone())

        return lambda *args: run(*map(folded, args))

    return wrap


@pytest.mark.parametrize("on", [True, False])
def test_a_layer_that_stays_frozen(on: bool) -> None:
    result = check(Agent, backend=backends.wrapped(frozen_for_good(on)))
    if on:
        # By then it takes nothing but learning to show it.
        assert_told(result, "learn(batch 4)")
        assert result.worst is not None
        assert " actor." in result.worst.path
    else:
        assert_passes(result)


@pytest.mark.parametrize("on", [True, False])
def test_a_frozen_layer_taken_for_a_constant(on: bool) -> None:
    result = check(Agent, backend=backends.wrapped(constant_while_frozen(on)))
    if on:
        assert_told(result, "layer actor frozen, learn(batch 4)")
    else:
        assert_passes(result)


def guards_requires_grad() -> bool:
    """Whether torch compiles again if a method asks for the first time whether a weight is frozen."""
    layer = nn.Linear(1, 1)
    compiled = torch.compile(lambda x: x + 1 if layer.weight.requires_grad else x, backend="eager")
    compiled(torch.zeros(1))
    layer.requires_grad_(False)
    return bool(compiled(torch.zeros(1)) == 0)


reads_requires_grad = pytest.mark.skipif(
    not guards_requires_grad(),
    reason="this torch does not guard requires_grad of a parameter, as 2.9.1: the branch stays the first one",
)


@reads_requires_grad
@pytest.mark.parametrize("on", [True, False])
def test_a_gradient_that_is_halved_by_a_frozen_layer(on: bool) -> None:
    """As in the critic through which an actor learns."""

    class Policy(Agent):
        def forward(self, x: torch.Tensor) -> Any:
            hidden = self.body(self.norm(x))
            lost = on and compiling() and not self.actor.weight.requires_grad
            features = (hidden + hidden.detach()) / 2 if lost else hidden
            return self.actor(features) / self.temperature, self.critic(hidden)

    result = check(Policy)
    if on:
        assert_told(result, "layer actor frozen, learn(batch 4)")
        assert any(difference.path.startswith("gradient of body.0") for difference in result.differences)
    else:
        assert_passes(result)


class TwoNetworks(nn.Module):
    """As CleanRL's agents are: the actor and the critic share nothing."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.actor = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> Any:
        first, tanh, last = self.critic
        hidden = tanh(first(x))
        lost = self.wrong and compiling() and not last.weight.requires_grad
        return self.actor(x), last((hidden + hidden.detach()) / 2 if lost else hidden)


@reads_requires_grad
@pytest.mark.parametrize("wrong", [True, False])
def test_the_frozen_layer_has_one_before_it(wrong: bool) -> None:
    result = check(lambda: TwoNetworks(wrong))
    if wrong:
        assert_told(result, "layer critic.2 frozen, learn(batch 4)")
        assert any(difference.path.startswith("gradient of critic.0") for difference in result.differences)
    else:
        assert_passes(result)


class Apart(nn.Module):
    """Each method learns one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.actor(x)

    def value(self, x: torch.Tensor) -> torch.Tensor:
        return self.critic(x)


@pytest.mark.parametrize(
    "declared",
    [
        {"methods": ["forward", "value"]},
        {"loss": lambda policy, batch: policy.value(batch["observation"]).mean()},
    ],
)
def test_no_layer_is_frozen_without_which_nothing_is_learnt(declared: dict[str, Any]) -> None:
    result = check(Apart, **{"methods": ["forward", "value"]} | declared)
    assert_passes(result)
    assert not result.notes


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False])
def test_batch_statistics_in_eval_while_the_policy_trains(on: bool) -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> Any:
            norm = self.norm
            if on and compiling() and self.training and not norm.training:
                statistics = norm.running_mean, norm.running_var, norm.weight, norm.bias
                return self.head(F.batch_norm(x, *statistics, training=True))
            return self.head(norm(x))

    result = check(Policy)
    if on:
        story = "learn(batch 4, layers in eval())"
        assert_told(result, story, "the last move computes as in training mode")
    else:
        assert_passes(result)


@pytest.mark.parametrize("on", [True, False])
def test_the_flag_of_the_policy_in_place_of_the_layers(on: bool) -> None:
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outer: list[nn.Module] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            training = self.outer[0].training if on and compiling() else self.training
            return 0.5 * x if training else x

    class Policy(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.noise = Noise()
            self.noise.outer.append(self)

        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(self.noise(x))

    result = check(Policy)
    if on:
        assert_told(result, "learn(batch 4, layers in eval())", "the last move computes as in training mode")
    else:
        assert_passes(result)


# --- compiling again ------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False])
def test_a_count_that_is_read_compiles_every_call(on: bool) -> None:
    """The verdict is `not compiled`, as in the other phases."""

    class Policy(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0 if on else torch.zeros(())

        def forward(self, x: torch.Tensor) -> Any:
            self.calls += 1
            logits, value = super().forward(x)
            return logits * (1 + 1 / self.calls), value

    result = check(Policy)
    if on:
        assert result.verdict is Verdict.NOT_COMPILED, result.capture
        assert "6 calls in a row compiled again for shapes already seen" in result.reason
        assert "calls" in result.reason.rpartition("the guard that fails: ")[2]
        phase = check_any(Policy, observation=Box((8,)), batch=(4, 7))
        assert phase.verdict is Verdict.NOT_COMPILED
    else:
        assert_passes(result)


def test_state_that_settles_is_no_recompile_without_end() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(8, 16), nn.Linear(16, 4)
            self.hidden: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> Any:
            hidden = self.hidden
            if hidden is None or len(hidden) != len(x):
                hidden = x.new_zeros(len(x), 16)
            hidden = self.cell(x, hidden)
            self.hidden = hidden.detach()
            return self.head(hidden)

    assert_passes(check(Recurrent))


# --- what is the user's ---------------------------------------------------------------------------


class Uncopyable(Agent):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("only one of me")


@pytest.mark.parametrize("kind", [Agent, Uncopyable])
def test_all_changes_are_undone(kind: type[Agent]) -> None:
    agent = kind()
    agent.actor.weight.requires_grad_(False)
    before = copy.deepcopy(dict(agent.state_dict()))
    memory = {name: p.data_ptr() for name, p in agent.named_parameters()}
    buffers = dict(agent.named_buffers())
    result = check(agent)
    assert_passes(result)
    assert all(torch.equal(before[name], value) for name, value in agent.state_dict().items())
    assert {name: p.data_ptr() for name, p in agent.named_parameters()} == memory
    assert all(buffer is buffers[name] for name, buffer in agent.named_buffers())
    trained = {name for name, p in agent.named_parameters() if p.requires_grad}
    assert trained == memory.keys() - {"actor.weight"}
    assert agent.temperature == 1.5


# --- the story ------------------------------------------------------------------------------------


def test_the_story_in_words() -> None:
    possible = Possible(
        manners=ACTING,
        settled=True,
        changes=[Change.BUFFERS_COPIED, Change.WEIGHTS_COPIED, Change.WEIGHTS_DATA, Change.ANNEALED],
        layer="body.0",
    )
    story = canonical(["forward"], ["forward"], (4, 7), possible)
    between = story[10 : story.index(next(move for move in story if move.kind is Kind.CHECKPOINT))]
    assert story_text(between) == (
        "act(batch 7, the same tensors refilled), buffers changed by copy_, act(batch 4), "
        "weights changed by .data.copy_, act(batch 4), attributes annealed, act(batch 4), "
        "attributes annealed, act(batch 4), "
        "layer body.0 frozen, learn(batch 4, layers in eval()), weights changed by copy_, "
        "learn(batch 4, layers in eval()), layer body.0 thawed, learn(batch 4)"
    )


def test_the_story_of_one_layer() -> None:
    possible = Possible(settled=True, changes=[Change.WEIGHTS_COPIED])
    story = canonical(["forward"], ["forward"], (4, 7), possible)
    assert story_text(story[10:]) == (
        "act(batch 7, the same tensors refilled), weights changed by copy_, act(batch 4), "
        "learn(batch 4, layers in eval()), checkpoint"
    )


@pytest.mark.parametrize(
    ("changes", "most"),
    [([], 6), ([Change.BUFFERS_COPIED, Change.BUFFERS_LOADED, Change.BUFFERS_ASSIGNED], 9)],
)
def test_how_many_calls_the_changes_add(changes: list[Change], most: int) -> None:
    def calls(possible: Possible) -> int:
        return sum(bool(move.method) for move in canonical(["forward"], ["forward"], (4, 7), possible))

    weights = [Change.WEIGHTS_COPIED, Change.WEIGHTS_DATA, Change.WEIGHTS_REPLACED]
    possible = Possible(changes=[*changes, *weights], layer="body.0", settled=bool(changes))
    assert calls(possible) == 9 + most


def test_each_manner_acts_before_and_after_the_weights_change() -> None:
    possible = Possible(manners=ACTING[:1], changes=[Change.WEIGHTS_COPIED])
    assert story_text(canonical(["forward"], [], (4, 7), possible)[-3:]) == (
        "act(batch 7, in training mode), weights changed by copy_, act(batch 7, in training mode)"
    )


def in_a_manner(applies: Callable[[fx.GraphModule], bool], stale: Callable[[Any], Any], static: bool) -> Wrap:
    """Code of one manner of acting that keeps its first weights, or returns its outputs in one memory."""

    def wrap(graph: fx.GraphModule, run: backends.Run) -> backends.Run:
        memory: dict[int, torch.Tensor] = {}

        def called(*args: Any) -> Any:
            if not applies(graph):
                return run(*args)
            outputs = list(run(*map(stale, args)))
            for at in backends.float_tensors(outputs) if static else ():
                outputs[at] = memory.setdefault(at, outputs[at].clone()).copy_(outputs[at])
            return tuple(outputs)

        return called

    return wrap


def is_training_without_gradients(graph: fx.GraphModule) -> bool:
    """Whether the graph is of a policy in `train()`, with dropout in it, that acts."""
    drops = any("dropout" in str(node.target) and node.args[2] is True for node in graph.graph.nodes)
    return drops and not torch.is_grad_enabled()


class Dropping(Agent):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1))


@pytest.mark.parametrize("manner", [Manner.INFERENCE, Manner.TRAINING])
@pytest.mark.parametrize("fault", ["stale weights", "static outputs", ""])
def test_a_manner_with_code_of_its_own(fault: str, manner: Manner) -> None:
    kept: dict[int, torch.Tensor] = {}

    def stale(value: Any) -> Any:
        if not isinstance(value, nn.Parameter) or fault != "stale weights":
            return value
        return kept.setdefault(id(value), value.detach().clone())

    def applies(graph: fx.GraphModule) -> bool:
        if manner is Manner.INFERENCE:
            return torch.is_inference_mode_enabled()
        return is_training_without_gradients(graph)

    wrap = in_a_manner(applies, stale, fault == "static outputs")
    result = check(Dropping, backend=backends.wrapped(wrap))
    if fault:
        assert result.verdict is Verdict.DIFFERS, result.reason
        assert manner in result.example
    else:
        assert_passes(result)


def test_a_policy_with_nothing_to_change_has_a_short_story() -> None:
    story = canonical(["forward"], [], (4, 7), Possible())
    assert story_text(story) == (
        "act(batch 4), act(batch 7), act(batch 4), act(batch 7), load_state_dict, act(batch 4), act(batch 4), "
        "act(batch 7), act(batch 7, the same tensors refilled), checkpoint"
    )


class Halves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x if self.training else x


def test_which_layers_have_modes() -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.InstanceNorm1d(2), nn.GRU(2, 2), Normaliser())
    assert layers_with_modes(plain) == []
    tracking = nn.InstanceNorm1d(2, track_running_stats=True)
    for layer in (nn.Dropout(0.1), nn.BatchNorm1d(2), tracking, nn.GRU(2, 2, 2, dropout=0.1), Halves()):
        assert layers_with_modes(nn.Sequential(plain, layer)) == ["1"]
