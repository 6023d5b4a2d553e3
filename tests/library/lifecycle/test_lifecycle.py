"""The lifecycle of one compiled object: faults that no single call shows, each with its correct twin."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from faults import backends, hard
from small_checks import assert_differs, assert_passes
from small_checks import check as check_any
from torch import fx, nn
from torch.distributions import Categorical, Normal

from pytest_torchcompile import Box, CheckResult, Discrete, UsageError, Verdict, check_equivalence
from pytest_torchcompile.beyond.undeclared import IGNORED_HOOK
from pytest_torchcompile.reports.failure import failure_text

compiling = torch.compiler.is_compiling


def check(factory: Any, **arguments: Any) -> CheckResult:
    declared = {"observation": Box((8,)), "methods": "forward", "batch": (4, 7), "shrink_seconds": 300}
    return check_any(factory, "lifecycle", **declared | arguments)


def besides(result: CheckResult) -> list[str]:
    """The remarks, but for torch's own on hooks, which every policy has."""
    return [remark for remark in result.remarks if remark != IGNORED_HOOK]


class Agent(nn.Module):
    """Logits, a value, an action; batch statistics, and noise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.1))
        self.actor = nn.Linear(16, 4)
        self.critic = nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.body(x)
        return 2 * self.actor(hidden), self.critic(hidden).squeeze(-1)

    def act(self, x: torch.Tensor) -> Any:
        logits, value = self(x)
        choices = Categorical(logits=logits)
        action = choices.sample()
        return action, choices.log_prob(action), value

    def evaluate(self, x: torch.Tensor, action: torch.Tensor) -> Any:
        logits, value = self(x)
        choices = Categorical(logits=logits)
        return choices.log_prob(action), choices.entropy(), value


# --- rounding -------------------------------------------------------------------------------------


def test_a_row_on_a_coarse_grid_that_rounding_happens_not_to_move() -> None:
    """Seed 10: under autocast one step of the grid is 64, and no run moves one row of seven."""
    result = check(hard.Cancellation, seed=10)
    assert_passes(result)
    assert not besides(result)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False])
def test_stale_weights(on: bool) -> None:
    result = check(Agent, backend=backends.stale_weights(on))
    if not on:
        assert_passes(result)
        return
    assert_differs(result, "output[0]", "values")
    assert "uses the weights from before" in result.reason
    assert result.example in ("load_state_dict, act(batch 4)", "learn(batch 4), act(batch 4)")


@pytest.mark.parametrize("on", [True, False])
def test_one_stale_bias_after_learning(on: bool) -> None:
    """A fault that loading does not show, because every other change of weights refreshes them."""

    class Policy(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.kept = self.critic.bias.detach().clone()

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            found = super().load_state_dict(*args, **kwargs)
            self.kept.copy_(self.critic.bias.detach())
            return found

        def forward(self, x: torch.Tensor) -> Any:
            logits, value = super().forward(x)
            if on and compiling() and not self.training:
                value = value + (self.kept - self.critic.bias.detach()).to(value.dtype)
            return logits, value

    result = check(Policy)
    if on:
        assert_differs(result, "output[1]", "values")
        assert "learn" in result.example
    else:
        assert_passes(result)


@pytest.mark.parametrize("on", [True, False])
def test_wrong_gradients_only_after_a_step(on: bool) -> None:
    """Right with new weights, and so in every example of the update phase."""

    class Policy(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.actor.weight.detach().clone()

        def forward(self, x: torch.Tensor) -> Any:
            logits, value = super().forward(x)
            if on and compiling():
                moved = (self.actor.weight.detach() - self.first).abs().sum() > 0
                value = torch.where(moved, value.detach() + 0.9 * (value - value.detach()), value)
            return logits, value

    result = check(Policy)
    if on:
        assert_differs(result, "gradient of critic.weight", "values")
    else:
        assert_passes(result)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False])
def test_static_output_memory(on: bool) -> None:
    result = check(Agent, backend=backends.static_outputs(on))
    if on:
        assert_differs(result, "output[0] of move 1", "overwritten")
        assert result.example.count("act(batch") == 2
        assert not result.reason, "the last answer is right"
    else:
        assert_passes(result)


def test_outputs_that_change_in_eager_too() -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)
            self.register_buffer("last", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> Any:
            logits = self.layer(x)
            self.last.copy_(logits.detach().mean(0))
            return logits, self.last

    assert_passes(check(Policy))


# --- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_code_of_one_mode_answers_in_the_other(on: bool, trained: bool) -> None:
    """The code that is compiled first, in one mode, is used in the other mode too."""

    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)
            self.other = nn.Linear(8, 4)
            self.mode: list[bool] = []

        def forward(self, x: torch.Tensor) -> Any:
            training = self.training
            if on and compiling() and training is trained:
                training = not training
            return self.layer(x) if training else self.other(x) + self.layer(x)

    result = check(Policy)
    if on:
        assert result.verdict is Verdict.DIFFERS
        assert result.differences[0].problem in ("values", "presence")
        if not trained:
            assert "computes as in training mode" in result.reason
    else:
        assert_passes(result)


@pytest.mark.parametrize("on", [True, False])
def test_only_with_autocast(on: bool) -> None:
    def wrong(outputs: list[Any], call: int) -> list[Any]:
        if not (on and torch.is_autocast_enabled("cpu")):
            return outputs
        return [o * 1.2 if isinstance(o, torch.Tensor) and o.is_floating_point() else o for o in outputs]

    result = check(Agent, backend=backends.changed(wrong))
    assert_passes(result)
    story_text = besides(result)
    assert len(story_text) == on
    if on:
        assert story_text[0].startswith("under autocast to bfloat16, which was not declared, output[")
    declared = check(Agent, backend=backends.changed(wrong), autocast="bfloat16")
    if on:
        assert declared.verdict is Verdict.DIFFERS
    else:
        assert_passes(declared)
    assert not besides(declared)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("manner", ["in training mode", "another memory layout"])
def test_only_in_one_manner_of_acting(manner: str, on: bool) -> None:
    class Policy(Agent):
        def forward(self, x: torch.Tensor) -> Any:
            logits, value = super().forward(x)
            here = self.training if manner == "in training mode" else not x.is_contiguous()
            if on and compiling() and here and not torch.is_grad_enabled():
                logits = logits + 1e-3
            return logits, value

    result = check(Policy)
    if on:
        assert_differs(result, "output[0]", "values")
        assert result.example == f"act(batch 7, {manner})"
    else:
        assert_passes(result)


@pytest.mark.parametrize("on", [True, False])
def test_only_in_inference_mode(on: bool) -> None:
    def wrong(outputs: list[Any], call: int) -> list[Any]:
        if not (on and torch.is_inference_mode_enabled()):
            return outputs
        return [o + 1e-3 if isinstance(o, torch.Tensor) and o.is_floating_point() else o for o in outputs]

    result = check(Agent, backend=backends.changed(wrong))
    if on:
        assert_differs(result, "output[0]", "values")
        assert result.example == "act(batch 7, inference mode)"
    else:
        assert_passes(result)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("method", ["forward", "act"])
def test_autocast_rounds_elsewhere(method: str, seed: int) -> None:
    """A backend that keeps intermediate results in float32, as inductor does, is no fault."""

    def wrap(graph: fx.GraphModule, run: backends.Run) -> backends.Run:
        def wide(*args: Any) -> Any:
            if not torch.is_autocast_enabled("cpu"):
                return run(*args)
            with torch.autocast("cpu", enabled=False):
                outputs = run(*args)
            with torch.autocast("cpu", dtype=torch.bfloat16), torch.random.fork_rng():
                like = run(*args)
            return tuple(
                o.to(x.dtype) if isinstance(o, torch.Tensor) and isinstance(x, torch.Tensor) else o
                for o, x in zip(outputs, like, strict=True)
            )

        return wide

    wide_backend = backends.wrapped(wrap)
    result = check(Agent, methods=method, backend=wide_backend, seed=seed)
    assert_passes(result)
    assert not besides(result)


def test_what_eager_does_not_do_is_left_out_and_said() -> None:
    class Policy(Agent):
        def forward(self, x: torch.Tensor) -> Any:
            if torch.is_inference_mode_enabled():
                raise RuntimeError("no inference here")
            return super().forward(x)

    result = check(Policy)
    assert_passes(result)
    assert any("no inference here" in note and "inference mode" in note for note in result.notes)


def test_autocast_that_eager_does_not_take_is_nothing_unless_declared() -> None:
    class Policy(Agent):
        def forward(self, x: torch.Tensor) -> Any:
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("no half precision here")
            return super().forward(x)

    result = check(Policy)
    assert_passes(result)
    assert (result.notes, besides(result)) == ((), [])
    declared = check(Policy, autocast="bfloat16")
    assert declared.verdict is Verdict.EAGER_FAILED
    assert "no half precision here" in declared.reason


def test_what_the_compiler_can_not_do_besides_is_left_out_and_said() -> None:
    graphs: list[fx.GraphModule] = []

    def four_graphs(graph: fx.GraphModule, inputs: Sequence[Any]) -> backends.Run:
        graphs.append(graph)
        if len(graphs) > 4:
            raise NotImplementedError("no more than the phases need")
        return graph.forward

    result = check(Agent, backend=four_graphs)
    assert_passes(result)
    assert any("left out: act(forward, " in n and "on which the compiler" in n for n in result.notes)
    assert any("no more than the phases need" in note for note in result.notes)


# --- the number of the call -----------------------------------------------------------------------


def test_a_fault_on_one_call_is_told_with_its_number() -> None:
    def wrong(outputs: list[Any], call: int) -> list[Any]:
        return [o + 1e-2 if isinstance(o, torch.Tensor) else o for o in outputs] if call == 5 else outputs

    result = check(Agent, backend=backends.changed(wrong))
    assert result.verdict is Verdict.DIFFERS
    assert result.example == "act(batch 4), act(batch 7), learn(batch 4), act(batch 4), act(batch 7)"
    assert "depends on what ran before: differed on move 5, not when tried again" in result.reason


# --- drift ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False])
def test_training_leads_elsewhere(on: bool) -> None:
    """A loss that is slightly wrong in every step."""

    def wrong(outputs: list[Any]) -> list[Any]:
        return [o * 1.05 if on and isinstance(o, torch.Tensor) and o.dim() else o for o in outputs]

    result = check(Agent, backend=backends.changed_backward(wrong), steps=4)
    if on:
        assert result.verdict is Verdict.DIFFERS
        assert any(d.path.startswith("gradient of") for d in result.differences)
    else:
        assert_passes(result)


def loss(policy: Any, batch: Any) -> torch.Tensor:
    log_prob, entropy, value = policy.evaluate(batch["observation"], batch["action"])
    value_loss = (value - batch["target"]).square().mean()
    return value_loss - (log_prob * batch["advantage"]).mean() - 0.01 * entropy.mean()


@pytest.mark.parametrize("on", [True, False])
def test_the_users_loss(on: bool) -> None:
    def wrong(outputs: list[Any]) -> list[Any]:
        return [o * (1 + 0.05 * on) if isinstance(o, torch.Tensor) and o.dim() else o for o in outputs]

    result = check(
        Agent,
        methods=["act", "evaluate"],
        act="act",
        inputs={"action": Discrete(4), "advantage": Box(()), "target": Box(())},
        loss=loss,
        backend=backends.changed_backward(wrong),
    )
    assert result.method == "act+loss"
    if on:
        assert result.verdict is Verdict.DIFFERS
        assert "learn(batch 4)" in result.example
    else:
        assert_passes(result)


def test_a_loss_and_methods_to_learn_by() -> None:
    with pytest.raises(UsageError, match="can't be combined with a loss"):
        check(Agent, loss=loss, learn="forward")


def loses_gradients(on: bool) -> Any:
    """A backend whose graphs return outputs without a graph."""

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        return lambda *args: tuple(out.detach() if on else out for out in graph(*args))

    return backend


def value_loss(policy: Any, batch: dict[str, Any]) -> torch.Tensor:
    return policy(batch["observation"])[1].square().mean()


@pytest.mark.parametrize("arguments", [{}, {"loss": value_loss}])
@pytest.mark.parametrize("on", [True, False])
def test_outputs_that_lose_their_gradients(on: bool, arguments: dict[str, Any]) -> None:
    result = check(Agent, backend=loses_gradients(on), **arguments)
    if on:
        assert_differs(result, "output" if arguments else "output[0]", "requires_grad")
        assert "stack" not in failure_text(result)
    else:
        assert_passes(result)


def test_a_loss_without_gradients() -> None:
    with pytest.raises(UsageError, match="a loss is declared, but nothing that it returns .* requires grad"):
        check(Agent, loss=lambda policy, batch: policy(batch["observation"])[1].detach().sum())


def test_a_loss_that_is_none() -> None:
    with pytest.raises(
        UsageError, match="loss returned no tensor; it must return a scalar that requires grad"
    ):
        check(Agent, loss=lambda policy, batch: policy(batch["observation"]))


# --- methods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False])
def test_acting_and_learning_by_different_methods(on: bool) -> None:
    result = check(
        Agent,
        methods=["act", "evaluate", "forward"],
        act="act",
        learn=["evaluate"],
        inputs={"action": Discrete(4)},
        backend=backends.stale_weights(on),
    )
    assert result.method == "act+evaluate"
    if on:
        assert_differs(result, "output[1]")
    else:
        assert_passes(result)
        assert result.capture.coverage == 1.0


def test_what_can_not_learn_though_it_was_declared_to() -> None:
    class Greedy(Agent):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x)[0].argmax(-1)

    with pytest.raises(UsageError, match="learn='forward', but nothing that it returns .* requires grad"):
        check(Greedy, learn="forward")


def test_a_loss_that_raises_is_the_users_error() -> None:
    result = check(Agent, loss=lambda policy, batch: batch["returns"])
    assert result.verdict is Verdict.EAGER_FAILED
    assert "learning by loss, eager raises KeyError: 'returns'" in result.reason


class Closes(Agent):
    """Raises from one of its calls on, as an environment that has ended."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.calls, self.last = 0, last

    def forward(self, x: torch.Tensor) -> Any:
        self.calls += 1
        if self.calls > self.last:
            raise RuntimeError("closed")
        return super().forward(x)


def test_a_policy_that_soon_refuses_every_call_has_not_lived() -> None:
    """Loads and changes of weights are compared nevertheless, which proves nothing."""
    result = check(functools.partial(Closes, 4))
    assert result.verdict is Verdict.EAGER_FAILED
    assert result.reason.startswith(
        "no acting or learning was compared: left out act(forward), on which eager"
    )
    assert "closed" in result.reason


def test_a_method_that_raises_in_training_is_said_not_to_learn() -> None:
    class Acting(Agent):
        def act(self, x: torch.Tensor) -> Any:
            assert not self.training, "call eval() first"
            return super().act(x)

    result = check(Acting, methods=["act", "forward"])
    assert_passes(result)
    assert any(
        "act does not learn: eager raises AssertionError: call eval() first" in n for n in result.notes
    )


def test_steps_in_a_row_are_taken() -> None:
    few, many = (check(Agent, steps=steps, examples=0) for steps in (0, 4))
    assert many.examples - few.examples == 4


def test_no_method_to_act_by() -> None:
    with pytest.raises(UsageError, match="accepted: at least one method"):
        check(Agent, act=[])


def test_methods_that_can_not_be_learnt_from() -> None:
    class Greedy(Agent):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x)[0].argmax(-1)

    result = check(Greedy)
    assert_passes(result)
    assert any("no learning" in note for note in result.notes)


@pytest.mark.parametrize("name", ["act", "learn"])
def test_a_method_that_is_not_declared(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}='think'; accepted: some of methods='forward'"):
        check(Agent, **{name: "think"})


def test_a_method_that_bypasses_the_compiler() -> None:
    result = check(lambda: torch.compile(Agent(), backend="eager"), methods=["act"])
    assert result.verdict is Verdict.NOT_COMPILED


def test_a_backend_that_fails_on_gradients() -> None:
    def no_gradients(graph: fx.GraphModule, inputs: Sequence[Any]) -> backends.Run:
        if torch.is_grad_enabled():
            raise NotImplementedError("no backward here")
        return graph.forward

    result = check(Agent, backend=no_gradients)
    assert result.verdict is Verdict.COMPILE_FAILED
    assert "no backward here" in result.reason and "learn(batch 4)" in result.reason


# --- freshness ------------------------------------------------------------------------------------


class Sampler(nn.Module):
    """Draws by code that is compiled, of which `frozen` decides."""

    def __init__(self, frozen: bool = False, spread: float = 1.0) -> None:
        super().__init__()
        self.mean = nn.Linear(8, 2)
        self.frozen = frozen
        self.spread = spread

    def forward(self, x: torch.Tensor) -> Any:
        mean = self.mean(x)
        noise = torch.randn_like(mean)
        if self.frozen and compiling() and not torch._inductor.config.fallback_random:
            noise = 0 * noise + torch.arange(2)
        return mean + self.spread * noise


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_as_deployed(frozen: bool) -> None:
    result = check(lambda: Sampler(frozen))
    if frozen:
        assert_differs(result, "output", "frozen")
        assert "same draw again and again" in result.reason
        assert "16 of 16 pairs of calls differ" in failure_text(result)
    else:
        assert_passes(result)


class Reseeded(Sampler):
    """As deployed it draws new numbers each time, whatever the seed."""

    generator = torch.Generator().manual_seed(0)

    @torch.compiler.disable
    def drawn(self, like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=type(self).generator)

    def forward(self, x: torch.Tensor) -> Any:
        mean = self.mean(x)
        if self.frozen and compiling() and not torch._inductor.config.fallback_random:
            return mean + self.drawn(mean)
        return mean + torch.randn_like(mean)


@pytest.mark.parametrize("wrong", [True, False])
def test_draws_that_do_not_follow_the_seed(wrong: bool) -> None:
    result = check(lambda: Reseeded(wrong))
    if wrong:
        assert_differs(result, "output", "seed")
        assert "other draws under the same seed" in result.reason
        assert "repeats under one seed" in failure_text(result)
    else:
        assert_passes(result)


class Annealed(Sampler):
    """Its noise depends on the number of the call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.count()
        return super().forward(x) + torch.randn(2) / self.calls

    @torch.compiler.disable
    def count(self) -> None:
        self.calls += 1


def test_noise_that_depends_on_the_number_of_the_call_follows_the_seed() -> None:
    result = check(Annealed, examples=0)
    assert result.verdict is not Verdict.DIFFERS, failure_text(result)


class Valued(Sampler):
    """Returns a value beside the draw, from the same code."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.value = nn.Linear(8, 1)
        self.error = error

    def forward(self, x: torch.Tensor) -> Any:
        value = self.value(x)
        if compiling() and not torch._inductor.config.fallback_random:
            value = value + self.error
        return super().forward(x), value


@pytest.mark.parametrize("error", [1.0, 1e-3, 0.0])
def test_what_lies_beside_a_draw_is_compared_as_deployed(error: float) -> None:
    result = check(lambda: Valued(error))
    if error:
        assert_differs(result, "output[1]", "values")
        assert "another result where nothing is drawn" in result.reason
    else:
        assert_passes(result)


def test_a_sampler_that_hardly_ever_moves_is_not_frozen() -> None:
    class Rare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> Any:
            logits = self.layer(x) + torch.tensor([4.0, 0.0])
            return Categorical(logits=logits).sample(), logits

    for seed in range(5):
        assert_passes(check(Rare, seed=seed, examples=0))


# --- checkpoints ----------------------------------------------------------------------------------


def test_the_wrapper_in_a_checkpoint_is_told() -> None:
    result = check(lambda: torch.compile(Agent(), backend="eager"))
    assert_passes(result)
    (note,) = result.notes
    assert "'_orig_mod.'" in note and "module.compile()" in note


def test_compiled_in_place_has_plain_checkpoints() -> None:
    def factory() -> nn.Module:
        agent = Agent()
        agent.compile(backend="eager")
        return agent

    result = check(factory)
    assert_passes(result)
    assert not result.notes


@pytest.mark.parametrize("on", [True, False])
def test_a_checkpoint_that_lacks_what_was_learnt(on: bool) -> None:
    made: list[nn.Module] = []

    class Policy(Agent):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            found = super().state_dict(*args, **kwargs)
            # The first one stays eager.
            if on and self is not made[0]:
                found["critic.bias"] = found["critic.bias"] + 1
            return found

    result = check(Policy)
    if on:
        assert_differs(result, "checkpoint['critic.bias']", "values")
        assert result.example == "checkpoint"
    else:
        assert_passes(result)


# --- what is the user's ---------------------------------------------------------------------------


class Uncopyable(Agent):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("only one of me")


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    gradients = {name: p.grad for name, p in module.named_parameters()}
    training = module.training
    yield
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is gradients[name] for name, p in module.named_parameters())
    assert module.training is training


@pytest.mark.parametrize("kind", [Agent, Uncopyable])
def test_the_users_module_is_left_as_it_was(kind: type[Agent]) -> None:
    agent = kind()
    agent.critic.bias.grad = torch.ones(1)
    with untouched(agent):
        result = check(agent)
    assert_passes(result)


@pytest.mark.parametrize("on", [True, False])
def test_one_module_on_both_sides(on: bool) -> None:
    agent = Uncopyable()
    with untouched(agent):
        result = check(agent, backend=backends.stale_weights(on))
    if on:
        assert_differs(result, "output[0]", "values")
    else:
        assert_passes(result)


def test_state_that_lives_on_between_calls() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(8, 16)
            self.head = nn.Linear(16, 4)
            self.hidden: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> Any:
            hidden = self.hidden
            if hidden is None or len(hidden) != len(x):
                hidden = x.new_zeros(len(x), 16)
            hidden = self.cell(x, hidden)
            self.hidden = hidden.detach()
            return Normal(self.head(hidden), 1.0)

    assert_passes(check(Recurrent))


@pytest.mark.parametrize("on", [True, False])
def test_a_story_goes_on_where_its_floors_were_asked_for(on: bool) -> None:
    """Computing the rounding floor and the float64 reference repeats the story."""

    class Sharp(Agent):
        def forward(self, x: torch.Tensor) -> Any:
            logits, value = super().forward(x)
            # Amplifies rounding beyond the tolerance, which the floors then have to explain.
            return logits, 1e4 * (
                value + (1e-7 * logits.detach().sum(-1) if compiling() else 0)
            ) - on * 2 * compiling()

    result = check(Sharp, examples=10)
    if on:
        assert_differs(result, "output[1]", "values")
    else:
        assert result.verdict is Verdict.WITHIN_ROUNDING, failure_text(result)
        assert not [note for note in result.notes if "rounding alone moves eager" not in note]


def test_every_phase_and_the_lifecycle_by_default() -> None:
    torch.compiler.reset()
    results = check_equivalence(Agent, observation=Box((8,)), backend="eager", examples=0)
    assert [result.case for result in results] == [
        "forward-rollout",
        "forward-update",
        "forward-lifecycle",
    ]
    assert all(result.verdict.passed for result in results)
    lifecycle = results[-1]
    assert 0 < lifecycle.capture.added <= 4


# --- rounding that an optimizer step carries on -------------------------------------------------------


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_what_follows_from_a_gradient_at_a_kink_is_rounding(seed: int) -> None:
    """The step, the optimizer's state and all outputs after it follow from a ReLU that rounding switches."""
    assert_passes(check_any(hard.Kink, "lifecycle", observation=Box((8,)), backend="eager", seed=seed))


class WrongAfterLearning(hard.Kink):
    """Its answers are 1 % too large once its weights have moved."""

    def build(self) -> None:
        super().build()
        self.register_buffer("first_weight", self.first.weight.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        moved = (self.first.weight.detach() != self.first_weight).any()
        return torch.where(moved, y * 1.01, y) if torch.compiler.is_compiling() else y


def test_a_fault_after_a_step_at_a_kink_is_found() -> None:
    result = check_any(WrongAfterLearning, "lifecycle", observation=Box((8,)), backend="eager")
    assert_differs(result, "output", "values")
