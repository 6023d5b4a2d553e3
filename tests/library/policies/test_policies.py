"""Two sides from one factory, their methods, their inputs, and the state that calls change."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from small_checks import assert_differs, assert_passes, check
from torch import nn
from torch.distributions import Categorical

from pytest_torchcompile import (
    Box,
    Discrete,
    LegalAction,
    LegalMask,
    UsageError,
    Verdict,
    check_equivalence,
    compile_policy,
)
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.policies.binding import bind, input_tree
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.methods import Method, as_methods
from pytest_torchcompile.policies.state import ModuleState
from pytest_torchcompile.policies.twins import build_twins


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("mean", torch.randn(8))
        self.hidden = torch.randn(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x - self.mean) + self.hidden


def assert_equal_tensors(one: nn.Module, two: nn.Module) -> None:
    mine, theirs = one.state_dict(), two.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    if hasattr(one, "hidden"):
        assert torch.equal(one.hidden, two.hidden)


# --- the two sides --------------------------------------------------------------------------------


def test_a_factory_runs_twice_under_one_seed() -> None:
    twins = build_twins(Policy, seed=3)
    assert twins.eager is not twins.compiled
    assert_equal_tensors(twins.eager, twins.compiled)
    assert twins.notes == []
    assert not twins.deployed


def test_another_seed_gives_other_weights() -> None:
    one, other = build_twins(Policy, seed=3).eager, build_twins(Policy, seed=4).eager
    assert not torch.equal(one.layer.weight, other.layer.weight)


def test_a_generator_shared_with_the_outside_is_made_up_for() -> None:
    generator = torch.Generator().manual_seed(1)
    numbers = itertools.count()

    def factory() -> nn.Module:
        model = Policy()
        with torch.no_grad():
            model.layer.weight.copy_(torch.randn(4, 8, generator=generator))
            model.mean.copy_(torch.randn(8, generator=generator))
        model.hidden = torch.full((4,), float(next(numbers)))
        return model

    twins = build_twins(factory, seed=0)
    assert_equal_tensors(twins.eager, twins.compiled)
    assert "factory is not deterministic: 3 tensors differ" in twins.notes[0]
    assert float(twins.eager.hidden[0]) == 0.0, "the first one's values"


def test_a_factory_whose_second_run_has_another_structure() -> None:
    sizes = iter([16, 17, 18])
    twins = build_twins(lambda: nn.Linear(8, next(sizes)), seed=0)
    assert twins.eager is not twins.compiled
    assert_equal_tensors(twins.eager, twins.compiled)
    assert "factory is not deterministic: its modules differ in structure" in twins.notes[0]


def test_a_factory_that_runs_once_only() -> None:
    models = iter([Policy()])
    twins = build_twins(lambda: next(models), seed=0)
    assert twins.eager is not twins.compiled
    assert_equal_tensors(twins.eager, twins.compiled)
    assert "the factory can't run twice" in twins.notes[0]
    assert "StopIteration" in twins.notes[0]


def test_a_factory_that_hands_back_one_and_the_same_module() -> None:
    model = Policy()
    twins = build_twins(lambda: model, seed=0)
    assert len({id(model), id(twins.eager), id(twins.compiled)}) == 3
    assert_equal_tensors(model, twins.compiled)


def test_a_factory_whose_modules_share_their_weights() -> None:
    """A new wrapper around one trunk: what one side changes, the other would see."""
    trunk = nn.BatchNorm1d(8)
    twins = build_twins(lambda: nn.Sequential(trunk, nn.ReLU()), seed=0)
    pointers = [{p.data_ptr() for p in side.parameters()} for side in (twins.eager, twins.compiled)]
    assert not pointers[0] & pointers[1]
    assert not pointers[0] & {p.data_ptr() for p in trunk.parameters()}


def test_a_module_in_place_of_a_factory_is_copied_twice() -> None:
    model = Policy()
    twins = build_twins(model, seed=0)
    assert len({id(model), id(twins.eager), id(twins.compiled)}) == 3
    assert_equal_tensors(model, twins.eager)
    assert_equal_tensors(model, twins.compiled)


def test_a_module_that_cannot_be_copied_is_shared_and_the_report_says_so() -> None:
    class Uncopyable(Policy):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("holds a socket")

    model = Uncopyable()
    twins = build_twins(model, seed=0)
    assert twins.eager is twins.compiled is model
    assert "the module can't be copied (TypeError: holds a socket)" in twins.notes[0]
    before = copy.deepcopy(model.state_dict())
    assert_passes(check(model, "update", observation=Box((8,))))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_compiled_module_is_never_copied() -> None:
    """The copy would call the original's weights."""
    model = torch.compile(Policy(), backend="eager")
    twins = build_twins(model, seed=0)
    assert twins.deployed
    assert twins.eager is twins.compiled is model


def test_numpy_and_python_are_seeded_for_the_factory() -> None:
    import random

    def factory() -> nn.Module:
        model = nn.Linear(8, 4)
        with torch.no_grad():
            model.weight.fill_(np.random.rand())
            model.bias.fill_(random.random())
        return model

    assert build_twins(factory, seed=5).notes == []


def test_a_buffer_of_nan_is_no_difference() -> None:
    class Unset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("best", torch.full((3,), float("nan")))

    assert build_twins(Unset, seed=0).notes == []


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        (lambda: None, r"the factory returned None \(is a `return` missing\?\)"),
        (lambda: Policy, r"the factory returned the class Policy; return an instance: Policy\(\.\.\.\)"),
        (lambda: "policy", "the factory returned a str: 'policy'; it must return a torch.nn.Module"),
        (lambda: (Policy(), 1), "the factory returned a tuple"),
        (lambda: 1 / 0, "the factory raised ZeroDivisionError: division by zero"),
        (lambda size: nn.Linear(size, 4), r"the factory needs arguments \(size\)"),
        (lambda *, size: nn.Linear(size, 4), r"the factory needs arguments \(size\)"),
        (functools.partial(nn.Linear, 8), r"the factory needs arguments \(out_features\)"),
    ],
)
def test_a_factory_that_makes_no_module(factory: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check(factory, observation=Box((8,)))


def test_an_async_factory() -> None:
    async def factory() -> nn.Module:
        return Policy()

    for each in (factory, lambda: factory()):
        with pytest.raises(UsageError, match="the factory is async"):
            check(each, observation=Box((8,)))


def test_factories_that_need_nothing_are_fine() -> None:
    for factory in (Policy, functools.partial(nn.Linear, 8, 4), lambda size=8: nn.Linear(size, 4)):
        assert_passes(check(factory, observation=Box((8,)), examples=0))


# --- methods --------------------------------------------------------------------------------------


class Agent(nn.Module):
    gain = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
        self.critic = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.actor(x)

    def get_value(self, x: torch.Tensor) -> torch.Tensor:
        return self.critic(x)

    def get_action_and_value(self, x: torch.Tensor, action: torch.Tensor | None = None) -> Any:
        distribution = torch.distributions.Categorical(logits=self.actor(x))
        if action is None:
            action = distribution.sample()
        return action, distribution.log_prob(action), distribution.entropy(), self.critic(x)

    def evaluate(self, x: torch.Tensor, mask: torch.Tensor, *, action: torch.Tensor) -> torch.Tensor:
        logits = self.actor(x).masked_fill(~mask, float("-inf"))
        return logits.log_softmax(-1).gather(1, action[:, None])


def test_names_adapters_and_several_of_them_are_methods() -> None:
    def greedy(model: Agent, x: torch.Tensor) -> torch.Tensor:
        return model.actor(x).argmax(-1)

    assert as_methods("forward") == (Method("forward"),)
    assert as_methods(greedy) == (Method("greedy", greedy),)
    assert [m.name for m in as_methods(["get_value", greedy, lambda m, x: m(x)])] == [
        "get_value",
        "greedy",
        "adapter",
    ]


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        ([], r"methods=\[\]; accepted: method names"),
        (3, "methods=3; accepted"),
        ([3], "^3 among methods; accepted"),
        ([""], "^'' among methods; accepted"),
        (["forward", "forward"], "^'forward' twice among methods"),
        ([lambda m, x: m(x), lambda m, x: m(x)], "^'adapter' twice among methods; give each adapter a name"),
        ([Agent], ".*Agent'> among methods"),
        ([nn.Linear(8, 2)], r"^Linear\(.*\) among methods"),
        ("__call__", "^'__call__' among methods; accepted: .*; instead write methods=lambda policy, observ"),
        ("get_valu", "Agent has no method 'get_valu'; it has: get_value"),
        ("critic.forwards", "Agent has no method 'critic.forwards'"),
        ("gain", "'gain' of Agent is a float"),
    ],
)
def test_methods_that_are_none(methods: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check_equivalence(Agent, observation=Box((8,)), methods=methods, backend="eager")


@pytest.mark.parametrize("method", ["forward", "get_value", "actor", "actor.forward", "critic"])
def test_every_kind_of_method_is_checked(method: str) -> None:
    result = check(Agent, observation=Box((8,)), methods=method, examples=0)
    assert_passes(result)
    assert result.method == method
    assert result.capture.coverage == 1.0


def test_an_adapter_gets_the_model_of_its_side() -> None:
    seen: set[int] = set()

    @torch.compiler.disable
    def note(model: nn.Module) -> None:
        seen.add(id(model))

    def adapter(model: Agent, x: torch.Tensor) -> torch.Tensor:
        note(model)
        return model.actor(x)

    assert_passes(check(Agent, observation=Box((8,)), methods=adapter, examples=0))
    assert len(seen) == 2


# --- inputs ---------------------------------------------------------------------------------------


def bound(method: Any, **inputs: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    model = Agent()
    (named,) = as_methods(method)
    binding = bind(named, model, input_tree(Declaration(observation=Box((8,)), inputs=inputs), model))
    return binding.positional, binding.named


def test_the_observation_is_the_first_argument_whatever_its_name() -> None:
    assert bound("get_value") == (("observation",), ())
    assert bound(lambda model, board: model.actor(board)) == (("observation",), ())


def test_further_inputs_go_by_parameter_name() -> None:
    inputs = {"mask": LegalMask(4), "action": LegalAction("mask")}
    assert bound("evaluate", **inputs) == (("observation",), ("mask", "action"))
    assert bound("get_action_and_value", **inputs) == (("observation",), ("action",))
    assert bound("get_value", **inputs) == (("observation",), ())


def test_an_optional_parameter_without_a_spec_keeps_its_default() -> None:
    assert bound("get_action_and_value") == (("observation",), ())


def test_keywords_of_any_name_are_given_everything() -> None:
    def adapter(model: Agent, x: torch.Tensor, **rest: Any) -> torch.Tensor:
        return model.actor(x)

    assert bound(adapter, mask=LegalMask(4), turn=Discrete(2)) == (("observation",), ("mask", "turn"))


def test_positional_only_parameters() -> None:
    def adapter(model: Agent, x: torch.Tensor, turn: torch.Tensor, /) -> torch.Tensor:
        return model.actor(x) + turn[:, None]

    assert bound(adapter, turn=Discrete(2)) == (("observation", "turn"), ())
    assert_passes(check(Agent, observation=Box((8,)), inputs={"turn": Discrete(2)}, methods=adapter))


def test_an_action_is_drawn_under_a_mask_that_only_another_method_takes() -> None:
    inputs = {"mask": LegalMask(4), "action": LegalAction("mask")}
    results = check_equivalence(
        Agent,
        observation=Box((8,)),
        inputs=inputs,
        methods=["get_action_and_value", "evaluate"],
        backend="eager",
        phases="rollout",
        examples=3,
    )
    for result in results:
        assert_passes(result)


def test_a_module_that_says_what_it_observes_needs_no_declaration() -> None:
    class Knowing(nn.Linear):
        observation_space = gymnasium.spaces.Box(-1.0, 1.0, (8,))

    assert_passes(check(lambda: Knowing(8, 4), examples=0))


def test_specs_may_be_functions_of_the_built_module() -> None:
    result = check(lambda: nn.Linear(6, 4), observation=lambda model: Box((model.in_features,)), examples=0)
    assert_passes(result)


def test_a_method_without_an_observation() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)

        def forward(self, *, token: torch.Tensor) -> torch.Tensor:
            return self.table(token)

    assert_passes(check(Told, inputs={"token": Discrete(5)}, examples=0))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, r"Agent has no observation spec; declare one.*observation=Box\(\(8,\)\)"),
        ({"observation": Box((8,)), "inputs": [Discrete(4)]}, r"inputs=.*accepted: a dict"),
        ({"observation": Box((8,)), "inputs": {"turn": Discrete(2)}}, "no method takes the input 'turn'"),
        ({"observation": Box((8,)), "methods": "evaluate"}, "needs 'mask', which has no spec"),
        (
            {"observation": Box((8,)), "methods": "evaluate", "inputs": {"msk": LegalMask(4)}},
            r"needs 'mask', which has no spec.*; inputs has 'msk' \(did you mean 'mask'\?\)",
        ),
        (
            {"observation": Box((8,)), "methods": "evaluate", "inputs": {"mask": LegalMask(4)}},
            "needs 'action', which has no spec",
        ),
        (
            {"observation": Box((8,)), "inputs": {"x": Box((8,))}},
            "has no parameter left for the observation|takes no observation",
        ),
        ({"observation": Box}, "observation=Box is a class"),
        (
            {"observation": lambda model: Box((model.size,))},
            "observation is a function that raised AttributeError",
        ),
        (
            {
                "observation": Box((8,)),
                "methods": "get_action_and_value",
                "inputs": {"action": LegalAction("m")},
            },
            "names no input",
        ),
        ({"observation": Box((8,)), "atoll": 1}, r"got unknown option 'atoll' \(did you mean 'atol'\?\)"),
        (
            {"observation": Box((8,)), "atol": -1},
            r"check_equivalence\(\) got atol=-1; accepted: a number >= 0",
        ),
        ({"observation": Box((8,)), "batch": 0}, "got batch=0; accepted: positive integers"),
        (
            {"observation": Box((8,)), "phases": "training"},
            "got phases='training'; accepted: some of 'rollout'",
        ),
        ({"observation": Box((8,)), "mode": "max-autotune"}, "is for the inductor backend"),
        (
            {"observation": Box((8,)), "backend": "inductor", "mode": "default", "options": {"a": 1}},
            "contradict each other",
        ),
        (
            {"observation": Box((8,)), "backend": "inductor", "mode": "max-autotun"},
            "mode='max-autotun'.* is unknown to torch .did you mean 'max-autotune",
        ),
        ({"observation": Box((8,)), "min_coverage": 50}, "min_coverage=50; accepted: a number from 0 to 1"),
    ],
)
def test_declarations_that_do_not_fit(arguments: dict[str, Any], sentence: str) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    with pytest.raises(UsageError, match=sentence):
        check_equivalence(Agent, **{"backend": backend, **arguments})
    assert graphs == [], "nothing is compiled before the declaration is known to fit"


def test_an_input_has_to_be_taken_by_one_of_the_methods() -> None:
    declared = {
        "observation": Box((8,)),
        "inputs": {"mask": LegalMask(4), "action": LegalAction("mask")},
        "backend": "eager",
        "phases": "rollout",
        "examples": 0,
    }
    for result in check_equivalence(Agent, methods=["get_value", "evaluate"], **declared):
        assert_passes(result)
    with pytest.raises(UsageError, match="no method takes the input 'mask'"):
        check_equivalence(Agent, methods=["get_value", "actor"], **declared)


def test_a_mask_that_only_an_action_refers_to_counts_as_taken() -> None:
    result = check(
        Agent,
        observation=Box((8,)),
        inputs={"mask": LegalMask(4), "action": LegalAction("mask")},
        methods="get_action_and_value",
        examples=2,
    )
    assert_passes(result)


# --- state ----------------------------------------------------------------------------------------


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("unset", None)
        self.hidden = (torch.zeros(4), {"c": torch.zeros(2)})
        self.cache: torch.Tensor | None = None
        self.rnn = nn.GRU(4, 4)

    def step(self) -> None:
        self.count += 1
        self.hidden[0].add_(1)
        self.hidden = (self.hidden[0] + 1, {"c": self.hidden[1]["c"] + 2})
        self.cache = torch.ones(3)
        with torch.no_grad():
            self.layer.bias.add_(1)


def test_what_a_call_changes_is_seen() -> None:
    model = Stateful()
    state = ModuleState(model)
    before = state.values().tensors
    assert set(before) == {"buffer count", "attribute hidden[0]", "attribute hidden[1]['c']"}
    model.step()
    after = state.values().tensors
    assert set(after) - set(before) == {"attribute cache", "parameter layer.bias"}
    assert int(after["buffer count"]) == 1
    assert float(after["attribute hidden[0]"][0]) == 2.0


def test_the_state_is_put_back_before_the_next_call() -> None:
    model = Stateful()
    bias = model.layer.bias.detach().clone()
    state = ModuleState(model)
    source = copy.deepcopy(model)
    count = model.count
    model.step()
    state.protect(state.written(), source)
    for _ in range(2):
        state.reset()
        assert int(model.count) == 0
        assert model.count is count, "in place, since compiled code may hold on to it"
        assert float(model.hidden[0].sum()) == float(model.hidden[1]["c"].sum()) == 0
        assert model.cache is None
        assert torch.equal(model.layer.bias, bias)
        model.step()


def test_a_buffer_that_was_replaced_is_the_old_one_again() -> None:
    model = Stateful()
    state, count = ModuleState(model), model.count
    model.count = torch.tensor(5)
    state.reset()
    assert model.count is count
    assert int(model.count) == 0


def test_restoring_brings_back_the_very_objects_and_the_mode() -> None:
    model = Stateful().train()
    model.rnn.eval()
    hidden, tensor = model.hidden, model.hidden[0]
    state = ModuleState(model)
    model.step()
    model.eval()
    state.restore()
    assert model.hidden is hidden
    assert model.hidden[0] is tensor
    assert float(tensor.sum()) == 0
    assert (model.training, model.layer.training, model.rnn.training) == (True, True, False)


def test_the_weights_that_an_rnn_keeps_in_a_list_are_no_state() -> None:
    paths = ModuleState(nn.GRU(4, 4)).values().tensors
    assert paths == {}


def test_state_of_a_compiled_module_has_the_names_of_the_module_inside() -> None:
    compiled = torch.compile(Stateful(), backend="eager")
    assert "buffer count" in ModuleState(compiled).values().tensors


# --- phases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "expected"),
    # An update learns in eval() too.
    [("rollout", {(False, False)}), ("update", {(True, True), (False, True)})],
    ids=["rollout", "update"],
)
def test_phases(phase: str, expected: set[tuple[bool, bool]]) -> None:
    seen: set[tuple[bool, bool]] = set()

    @torch.compiler.disable
    def note(model: nn.Module) -> None:
        seen.add((model.training, torch.is_grad_enabled()))

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            note(self)
            return self.layer(x)

    assert_passes(check(Looking, phase, observation=Box((8,)), examples=0))
    assert seen == expected


def test_every_example_begins_from_the_same_state() -> None:
    """Otherwise the order of examples would matter, and a shrunk example would not replay."""
    counts: set[float] = set()

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.note()
            self.calls += 1
            return self.layer(x) * self.calls

        @torch.compiler.disable
        def note(self) -> None:
            counts.add(float(self.calls))

    assert_passes(check(Counting, observation=Box((8,))))
    assert counts == {0.0}


def test_a_model_whose_outputs_are_never_finite_proves_nothing() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) * float("nan")

    result = check(Empty, observation=Box((8,)))
    assert not result.verdict.passed
    assert "no output was ever finite" in result.reason


def test_a_model_that_raises_on_all_but_the_first_example() -> None:
    calls = itertools.count()

    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if next(calls) > 0:
                raise RuntimeError("closed")
            return self.layer(x)

    result = check(Once, observation=Box((8,)))
    assert result.verdict is Verdict.EAGER_FAILED
    assert "closed" in " ".join([result.reason, *result.notes])


def test_compile_policy_takes_the_same_declarations() -> None:
    policy = compile_policy(
        Agent,
        "evaluate",
        observation=Box((8,)),
        inputs={"mask": LegalMask(4), "action": LegalAction("mask")},
        backend="eager",
    )
    mask = torch.ones(3, 4, dtype=torch.bool)
    out = policy(torch.zeros(3, 8), mask, action=torch.zeros(3, dtype=torch.int64))
    assert out.shape == (3, 1)


# --- inputs with a default ------------------------------------------------------------------------


class Chooses(nn.Module):
    """Draws its action unless one is given, as CleanRL's agents do."""

    def __init__(self, error: float = 0.0, *, needed: bool = False) -> None:
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.error, self.needed = error, needed

    def forward(self, x: torch.Tensor, action: torch.Tensor | None = None) -> Any:
        logits = self.actor(x)
        choices = Categorical(logits=logits)
        if action is None:
            if self.needed:
                raise ValueError("an action is needed")
            action = choices.sample()
            if torch.compiler.is_compiling():
                logits = logits + self.error
        return action, choices.log_prob(action), logits


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_an_input_whose_default_is_none_is_also_left_out(backend: str) -> None:
    arguments: dict[str, Any] = {"observation": Box((8,)), "inputs": {"action": Discrete(4)}}
    wrong = check(functools.partial(Chooses, 0.01), backend=backend, explain_seconds=60, **arguments)
    assert_differs(wrong, "output[2]")
    assert "it differs when called without action, whose default is None" in wrong.notes
    assert "action" not in wrong.example
    assert wrong.explanation is not None
    assert wrong.explanation.stage == "dynamo"
    assert_passes(check(Chooses, backend=backend, **arguments))
    assert_passes(check(Chooses, "update", backend=backend, **arguments))
    needed = check(functools.partial(Chooses, 0.01, needed=True), backend=backend, **arguments)
    assert_passes(needed)


class ActsInEager(Chooses):
    """Draws its action in a part that is not compiled, with a layer that no other call uses."""

    def __init__(self, *, on: bool) -> None:
        super().__init__()
        self.explores = nn.Linear(8, 4)
        self.on = on

    def forward(self, x: torch.Tensor, action: torch.Tensor | None = None) -> Any:
        if action is not None:
            return super().forward(x, action)
        return self.draw(x) if self.on else super().forward(x + self.explores(x).sum())

    @torch.compiler.disable
    def draw(self, x: torch.Tensor) -> Any:
        return super().forward(x)


def test_a_call_without_an_action_has_to_be_compiled_too() -> None:
    arguments: dict[str, Any] = {"observation": Box((8,)), "inputs": {"action": Discrete(4)}}
    result = check(functools.partial(ActsInEager, on=True), **arguments)
    assert result.verdict is Verdict.NOT_COMPILED
    assert result.reason.startswith("called without action: no graph was captured")
    assert_passes(check(functools.partial(ActsInEager, on=False), **arguments))


def test_what_only_a_call_without_an_action_uses_is_not_missed_in_the_others() -> None:
    result = check(
        functools.partial(ActsInEager, on=False),
        observation=Box((8,)),
        inputs={"action": Discrete(4)},
        min_coverage=1.0,
    )
    assert_passes(result)
    assert result.capture.coverage == 1.0


def test_rounding_in_a_call_without_an_action_counts() -> None:
    class Amplifies(Chooses):
        def forward(self, x: torch.Tensor, action: torch.Tensor | None = None) -> Any:
            action_, log_prob, logits = super().forward(x, action)
            if action is None:
                logits = 1e4 * (logits + (1e-7 if torch.compiler.is_compiling() else 0))
            return action_, log_prob, logits

    arguments: dict[str, Any] = {"observation": Box((8,)), "inputs": {"action": Discrete(4)}}
    assert check(Amplifies, **arguments).verdict is Verdict.WITHIN_ROUNDING
    assert check(Chooses, **arguments).verdict is Verdict.EQUAL


def test_that_no_input_was_left_out_for_want_of_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pair, "out_of_seconds", lambda pair: "the case took too long")
    wrong = functools.partial(Chooses, 0.01)
    result = check(wrong, observation=Box((8,)), inputs={"action": Discrete(4)})
    assert result.verdict is Verdict.EQUAL
    assert "6 examples without action not tried: the case took too long" in result.notes
