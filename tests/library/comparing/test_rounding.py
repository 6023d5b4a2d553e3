"""The rounding floor, the float64 reference, and the judgement from both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from faults.backends import changed_backward
from small_checks import assert_differs, check
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box, CheckResult, Verdict, internals
from pytest_torchcompile.comparing.float64 import MOST_GRADIENTS, float64_reference, widened
from pytest_torchcompile.comparing.measure import MULTIPLE, Measured, Tolerance
from pytest_torchcompile.comparing.monte_carlo import HALF_SHIFT, SHIFT, TERMS_AT_SHIFT, MonteCarlo
from pytest_torchcompile.comparing.rounding import FINITE, RUNS, Floor, Movement, rounding_floors
from pytest_torchcompile.comparing.tolerance import judge
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.snapshots import copied, map_tensors

EPS = torch.finfo(torch.float32).eps


class Eager:
    """A function or module with one input, called again and again as the check does."""

    def __init__(self, function: Callable[..., Any], x: torch.Tensor, phase: str = "rollout") -> None:
        model = function if isinstance(function, nn.Module) else None
        self.side = Side(function, model, names=("x",))
        self._x = x
        self._phase = phase

    def call(self, under: Any = contextlib.nullcontext, wide: bool = False) -> Outcome:
        x = map_tensors(widened if wide else copied, self._x)
        return self.side.call((x,), {}, phase=self._phase, seed=3, under=under)

    def floor(self, scale: float = 1.0) -> Floor:
        called = self.call()
        paths = [*called.elementwise(), *called.differentiated()]
        *_, floor = rounding_floors(called, self.call, paths, scale)
        return floor

    def movement(self, path: str = "output", scale: float = 1.0) -> float:
        return self.floor(scale).moved[path].whole

    def in_float64(self) -> Outcome | None:
        return float64_reference(self.side, self.call)


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


# --- the rounding floor ---------------------------------------------------------------------------

OPERATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]] = {
    "matrix product": (lambda x: x @ x.t(), normal(16, 64)),
    "long sum": (lambda x: x.sum(-1), normal(4, 4096)),
    "mean": (lambda x: x.mean(0), normal(512, 4) + 100),
    "variance far from zero": (lambda x: x.var(-1), normal(4, 256) + 100),
    "textbook variance": (lambda x: (x * x).mean(-1) - x.mean(-1) ** 2, normal(4, 64) + 30),
    "difference of nearly equal numbers": (lambda x: (x + 1e4) - 1e4, normal(4, 8)),
    "softmax": (lambda x: x.softmax(-1), normal(8, 16, scale=30)),
    "log-softmax": (lambda x: x.log_softmax(-1), normal(8, 16, scale=30)),
    "logsumexp": (lambda x: x.logsumexp(-1), normal(8, 16, scale=30)),
    "layer norm": (lambda x: F.layer_norm(x, (32,)), normal(8, 32) + 50),
    "group norm": (lambda x: F.group_norm(x, 2), normal(4, 8, 5) + 50),
    "batch norm": (lambda x: F.batch_norm(x, None, None, training=True), normal(16, 8) + 50),
    "convolution": (lambda x: F.conv2d(x, normal(8, 4, 3, 3, seed=1).to(x)), normal(2, 4, 6, 6)),
    "exp of large numbers": (lambda x: x.exp(), normal(4, 8, scale=8)),
    "tanh, sigmoid, gelu": (lambda x: F.gelu(torch.tanh(x) + torch.sigmoid(x)), normal(4, 8)),
    "cumulative sum": (lambda x: x.cumsum(-1), normal(2, 512)),
    "norm": (lambda x: x / x.norm(dim=-1, keepdim=True), normal(8, 64)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_floor_covers_eagers_own_error_and_not_much_more(name: str) -> None:
    function, x = OPERATIONS[name]
    eager = Eager(function, x)
    movement = eager.movement()
    exact = function(x.double())
    error = float((eager.call().outputs.tensors["output"].double() - exact).abs().max())
    assert error <= MULTIPLE * movement
    assert movement < 1e-3 * float(exact.abs().max()) or movement < 200 * error


def test_the_floor_is_zero_where_nothing_is_computed() -> None:
    assert Eager(lambda x: x[1:], normal(4, 8)).movement() == 0
    assert Eager(lambda x: x.reshape(-1), normal(4, 8)).movement() == 0


def test_equal_values_move_equally() -> None:
    """Otherwise a wrong zero would pass, and ties would be broken at random."""
    x = normal(4, 8)
    assert Eager(lambda x: x - x.view_as(x), x).movement() == 0
    equal = Eager(lambda x: (x.expand(4, 8) * 3).argmax(-1), torch.tensor([[0.7]])).floor()
    assert not bool(equal.flipped["output"].any())


def test_a_larger_shift_moves_further() -> None:
    eager = Eager(OPERATIONS["matrix product"][0], OPERATIONS["matrix product"][1])
    small, large = eager.movement(), eager.movement(scale=16.0)
    assert 8 * small < large < 32 * small


def test_the_same_floor_each_time() -> None:
    eager = Eager(*OPERATIONS["matrix product"])
    assert eager.movement() == eager.movement()


@pytest.mark.parametrize(
    "rows,excused",
    [([128.0, 64.0, 0.0, 128.0], True), ([1e-3, 1e-3, 1e-3, 128.0], False), ([0.0, 128.0], False)],
    ids=["one that no run moved", "beside one huge row", "of two, the other huge"],
)
def test_a_row_is_held_against_its_own_floor_and_typical_ones(rows: list[float], excused: bool) -> None:
    moved = torch.tensor(rows)
    floor = Floor(runs=8)
    floor.moved["output"] = Movement(
        whole=max(rows), rows=moved, seen_without_flip=moved >= 0, slope=1.0, runs=8
    )
    wrong = torch.zeros(len(rows))
    wrong[0 if len(rows) == 2 else 2] = 64.0
    measured = Measured("output", torch.zeros(len(rows)), wrong, Tolerance())
    assert (measured.unexplained(floor) is None) is excused


def test_gradients_have_a_floor_of_their_own() -> None:
    floor = Eager(nn.Linear(8, 4), normal(16, 8), "update").floor()
    assert set(floor.moved) >= {"output", "gradient of weight", "gradient of bias"}
    assert all(0 < floor.moved[path].whole < 1e-4 for path in ("gradient of weight", "gradient of bias"))


def test_an_integer_that_rounding_flips_is_noted_and_what_jumps_with_it_kept_apart() -> None:
    """Values computed from another choice move by more than rounding."""

    def choose(x: torch.Tensor) -> Any:
        # Nearly equal in the first half of the batch alone.
        other = x * 0.3 / 0.3 + (torch.arange(32) >= 16)[:, None]
        logits = torch.stack([x.sum(-1), other.sum(-1)], -1)
        action = logits.argmax(-1)
        return action, action.float() * 100, logits.sum(-1)

    floor = Eager(choose, normal(32, 64)).floor()
    flips = floor.flipped["output[0]"]
    assert bool(flips.any())
    assert not bool(flips.all())
    jumps = floor.moved["output[1]"].largest_with_flip
    assert jumps is not None
    assert torch.equal(jumps > 1, flips)
    assert floor.moved["output[1]"].whole == 0
    beside = floor.moved["output[2]"]
    assert beside.largest_with_flip is not None
    assert float(beside.largest_with_flip.max()) < 1e-3
    steady = Eager(lambda x: (x > 0).long(), normal(32, 64).sign() * 2).floor()
    assert not bool(steady.flipped["output"].any())


def test_operators_that_copy_choose_and_compare_are_exact() -> None:
    """Perturbing their inputs would change an equality or an index."""

    def exact(x: torch.Tensor) -> Any:
        chosen = x.relu(), x.clamp(-1, 1), x.max(), x.amax(0), x.sort().values, x.topk(2).values, x.median()
        copied = (
            x[[0, 2]],
            torch.where(x > 0, x, -x),
            x.masked_fill(x > 1, -1e9),
            torch.cat([x, x]),
            x.flip(0),
        )
        pooled = (
            F.max_pool1d(x[None, None], 2),
            F.pad(x, (1, 1)),
            x.double(),
            x.abs(),
            -x,
            F.one_hot(x.long() + 2),
        )
        return (
            x == 1,
            x >= 2,
            torch.floor(x),
            x.long(),
            x.round(),
            x.sign(),
            x.argmax(),
            chosen,
            copied,
            pooled,
        )

    floor = Eager(exact, torch.tensor([1.5, 2.0, 3.3, 0.1, -1.0])).floor()
    assert floor.runs == RUNS
    assert not any(bool(flipped.any()) for flipped in floor.flipped.values())
    assert all(moved.whole == 0 for moved in floor.moved.values())


WHOLE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "added": lambda x: x + 3,
    "multiplied": lambda x: x * x,
    "divided": lambda x: torch.div(x * 6, 3),
    "summed": lambda x: x.sum(-1),
    "scanned": lambda x: x.cumsum(-1),
    "scanned beside others": lambda x: torch.stack([x, x + 0.3], 1).cumsum(-1)[:, 0],
    "remainder": lambda x: x.remainder(3),
    "looked up by a product": lambda x: F.one_hot(x.long(), 16).float() @ torch.arange(16.0),
    "cast": lambda x: x.to(torch.bfloat16).float(),
    "floor division": lambda x: x // 3,
    "floor of a quotient": lambda x: (x / 3).floor(),
    "an index": lambda x: (x * 2 - x).long(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_stay_whole(name: str) -> None:
    """An entity's number, a counter, a plane of a board: rounding never makes them wrong by one."""
    floor = Eager(WHOLE[name], torch.arange(12.0).reshape(3, 4)).floor()
    assert floor.moved["output"].whole == 0 if name != "an index" else not floor.flipped["output"].any()


def test_arithmetic_that_does_not_round_moves_nothing() -> None:
    """A new bias is zero and a new norm's weight is 1, so two equal features stay equal after them."""
    x, zeros = normal(4, 6), torch.zeros(6)
    for function in (
        lambda x: x + zeros,
        lambda x: x - 0.0,
        lambda x: x * 1.0,
        lambda x: x / (1 + zeros),
        lambda x: x / 4,
        lambda x: -0.5 * x,
    ):
        assert Eager(function, x).movement() == 0
    assert Eager(lambda x: x + 0.1, x).movement() > 0
    assert Eager(lambda x: 1 / x, x).movement() > 0


def test_whole_numbers_that_rounding_made_do_move() -> None:
    """A saturated tanh is 1, or the next smaller float."""
    assert Eager(lambda x: torch.tanh(x), torch.full((4,), 20.0)).movement() > 0
    assert Eager(lambda x: x * 1.25, torch.full((4,), 0.8)).movement() > 0


@pytest.mark.parametrize("value", [-float("inf"), float("inf"), float("nan"), torch.finfo(torch.float32).min])
def test_what_is_no_number_or_next_to_the_largest_stays(value: float) -> None:
    x = torch.tensor([[value, 1.0, 2.5]])
    floor = Eager(lambda x: (x * 0.999) + 0.5, x).floor()
    assert floor.moved["output"].kinds is None or not bool((floor.moved["output"].kinds & FINITE)[0, 0] > 0)
    moved = Eager(lambda x: (x + 0.25).clamp_max(-1e38), x).floor().moved["output"]
    assert moved.whole == 0
    assert 0 < Eager(lambda x: (x + 0.3)[:, 1:], x).movement() < 1e-5


def test_running_statistics_are_moved_by_rounding_only() -> None:
    """`native_batch_norm` does not declare that it writes to them; perturbed before, they would hide a fault."""
    model = nn.BatchNorm1d(8)
    eager = Eager(model, normal(16, 8) + 3, "update")
    floor = eager.floor()
    assert floor.moved["buffer running_mean"].whole < 1e-5
    assert floor.moved["buffer running_var"].whole < 1e-5
    assert not bool(floor.flipped["buffer num_batches_tracked"].any())
    mean = eager.call().state.tensors["buffer running_mean"]
    assert float((mean - 0.1 * (normal(16, 8) + 3).mean(0)).abs().max()) < 1e-6


def test_half_precision_has_a_floor_in_its_own_eps() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        floor = Eager(lambda x: x * 3, normal(4, 8).to(dtype)).movement()
        eps = torch.finfo(dtype).eps
        assert eps < floor < 100 * eps


def test_the_floor_draws_what_eager_drew() -> None:
    assert Eager(lambda x: F.dropout(x, 0.5, True) + torch.randn_like(x), normal(4, 64)).movement() < 1e-4


# --- the float64 reference ------------------------------------------------------------------------


class Network(nn.Module):
    """A body for the reference: parameters, buffers, a hidden state, a cast, draws."""

    def __init__(self, body: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("scale", torch.rand(4))
        self.hidden = torch.rand(4)
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self, x)


BODIES: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "plain": lambda m, x: m.layer(x),
    "buffers and state": lambda m, x: m.layer(x) * m.scale + m.hidden,
    "input cast": lambda m, x: m.layer(x.float()),
    "input cast by to()": lambda m, x: m.layer(x.to(torch.float32)),
    "input cast by dtype=": lambda m, x: m.layer(x.to(dtype=torch.float32)),
    "output cast back": lambda m, x: (m.layer(x).double() * 2).float(),
    "output cast to half": lambda m, x: m.layer(x).half(),
    "autocast of a weight": lambda m, x: F.linear(x, m.layer.weight.float(), m.layer.bias),
    "a constant": lambda m, x: m.layer(x) + torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "a table of float32": lambda m, x: m.layer(x) @ torch.eye(4, dtype=torch.float32),
    "zeros like the input": lambda m, x: m.layer(x) + torch.zeros(4, dtype=x.dtype),
    "softmax in float32": lambda m, x: F.softmax(m.layer(x), -1, dtype=torch.float32),
    "sum in float32": lambda m, x: m.layer(x).sum(-1, keepdim=True, dtype=torch.float32),
    "cast to the type of a tensor": lambda m, x: m.layer(x).type_as(m.scale),
    "cast by type()": lambda m, x: m.layer(x.type(torch.float32)),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_reference_is_what_float64_computes(name: str) -> None:
    torch.manual_seed(0)
    model = Network(BODIES[name])
    x = normal(5, 8)
    reference = Eager(model, x).in_float64()
    assert reference is not None
    value = reference.outputs.tensors["output"]
    assert value.dtype == torch.float64
    exact = nn.Linear(8, 4).double()
    exact.load_state_dict(model.layer.state_dict())
    with torch.no_grad():
        eager = model(x).double()
        linear = exact(x.double())
    # Only that of float64 is closer to the exact layer than a float32 can be.
    if name == "plain":
        assert float((value - linear).abs().max()) < 1e-14
        assert float((eager - linear).abs().max()) > 1e-10
    assert float((value - eager).abs().max()) < (1e-2 if name == "output cast to half" else 1e-5)
    assert not torch.equal(value, eager)


DRAWS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "dropout": lambda m, x: F.dropout(m.layer(x), 0.5, True),
    "randn_like": lambda m, x: m.layer(x) + torch.randn_like(m.hidden),
    "randn": lambda m, x: m.layer(x) + torch.randn(4),
    "rand": lambda m, x: m.layer(x) + torch.rand(4),
    "normal_": lambda m, x: m.layer(x) + torch.empty(4).normal_(),
    "uniform_": lambda m, x: m.layer(x) + torch.empty(4).uniform_(),
    "exponential_": lambda m, x: m.layer(x) - torch.empty(4).exponential_().log(),
    "bernoulli": lambda m, x: m.layer(x) * torch.bernoulli(torch.full((4,), 0.5)),
    "multinomial": lambda m, x: m.layer(x) + torch.multinomial(m.layer(x).softmax(-1), 1),
    "Normal.rsample": lambda m, x: torch.distributions.Normal(m.layer(x), 1.0).rsample(),
    "Categorical.sample": lambda m, x: (
        m.layer(x) + torch.distributions.Categorical(logits=m.layer(x)).sample()[:, None]
    ),
    "randperm": lambda m, x: m.layer(x)[torch.randperm(len(x))],
    "randint": lambda m, x: m.layer(x) + torch.randint(0, 9, (4,)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_reference_draws_what_eager_drew(name: str) -> None:
    torch.manual_seed(0)
    eager = Eager(Network(DRAWS[name]), normal(5, 8))
    reference = eager.in_float64()
    assert reference is not None
    value, narrow = reference.outputs.tensors["output"], eager.call().outputs.tensors["output"]
    assert value.dtype == torch.float64
    assert float((value - narrow).abs().max()) < 1e-5


def test_the_reference_has_gradients_and_state() -> None:
    torch.manual_seed(0)
    reference = Eager(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), normal(5, 8), "update").in_float64()
    assert reference is not None
    assert reference.gradients["0.weight"].dtype == torch.float64
    assert reference.state.tensors["buffer 1.running_mean"].dtype == torch.float64


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: torch.from_numpy(m.layer(x).detach().numpy().astype("float32")),
        lambda m, x: _only_float32(m.layer(x)),
    ],
    ids=["through numpy", "raises"],
)
def test_where_float64_does_not_run_there_is_no_reference(body: Any) -> None:
    assert Eager(Network(body), normal(5, 8)).in_float64() is None


def _only_float32(x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32:
        raise TypeError("expected float32")
    return x


@pytest.mark.parametrize("body", [BODIES["buffers and state"], lambda m, x: _only_float32(m.layer(x))])
def test_the_module_is_float32_again_after_it(body: Any) -> None:
    model = Network(body)
    weight, pointer = model.layer.weight, model.layer.weight.data_ptr()
    eager = Eager(model, normal(5, 8))
    before = eager.call().outputs.tensors["output"]
    eager.in_float64()
    assert model.layer.weight is weight
    assert weight.data_ptr() == pointer
    assert torch.equal(eager.call().outputs.tensors["output"], before)
    eager.side.state.restore()
    assert {t.dtype for t in [*model.parameters(), *model.buffers(), model.hidden]} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32


# --- the judgement --------------------------------------------------------------------------------


def outcome(function: Callable[..., Any], x: torch.Tensor) -> Outcome:
    return Eager(function, x).call()


@pytest.mark.parametrize(
    ("value", "off", "equal"),
    [
        (0.25, 9e-6, True),
        (0.25, 1.2e-5, False),
        (100.0, 9e-4, True),
        (100.0, 1.2e-3, False),
        (1e4, 9e-2, True),
        (1e4, 0.12, False),
        (0.0, 9e-6, True),
        (0.0, 1.2e-5, False),
    ],
)
def test_allowed_is_1e_5_times_the_larger_of_1_and_eager(value: float, off: float, equal: bool) -> None:
    x = torch.full((3,), value, dtype=torch.float64)
    judgement = judge(outcome(lambda x: x, x), outcome(lambda x: x + off, x), Tolerance(), None)
    assert bool(judgement.differences) is not equal


def test_the_tolerance_is_by_element_in_outputs_and_by_tensor_in_gradients() -> None:
    """A small output beside a large one has its own tolerance; a small gradient is one of its tensor."""
    x = torch.tensor([1000.0, 1.0], dtype=torch.float64)
    moved = torch.tensor([0.0, 1e-3], dtype=torch.float64)
    mine, theirs = outcome(lambda x: x.clone(), x), outcome(lambda x: x + moved, x)
    assert judge(mine, theirs, Tolerance(), None).differences[0].index == (1,)
    mine, theirs = outcome(lambda x: x[:0], x), outcome(lambda x: x[:0], x)
    mine.gradients, theirs.gradients = {"w": x}, {"w": x + moved}
    assert judge(mine, theirs, Tolerance(), None).differences == ()
    theirs.gradients = {"w": x + 20 * moved}
    assert judge(mine, theirs, Tolerance(), None).differences[0].path == "gradient of w"


def test_all_tensors_of_an_outcome_are_gathered_as_often_for_many_as_for_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gathered anew for each of them, hundreds of buffers would take hundreds of times as long."""
    gathered = []
    original = Outcome.elementwise

    def counted(self: Outcome) -> dict[str, torch.Tensor]:
        gathered.append(self)
        return original(self)

    def times(outputs: int) -> int:
        gathered.clear()
        mine, theirs = (outcome(lambda x: tuple(x + i for i in range(outputs)), torch.ones(2)) for _ in "ab")
        assert judge(mine, theirs, Tolerance(), None).differences == ()
        return len(gathered)

    monkeypatch.setattr(Outcome, "elementwise", counted)
    assert times(20) == times(2) > 0


def test_the_worst_element_is_the_one_that_exceeds_its_allowance_most() -> None:
    x = torch.tensor([[1e4, 1.0], [1.0, 1.0]], dtype=torch.float64)
    moved = torch.tensor([[1.0, 0.0], [0.0, 0.01]], dtype=torch.float64)
    (found,) = judge(outcome(lambda x: x, x), outcome(lambda x: x + moved, x), Tolerance(), None).differences
    assert found.index == (1, 1)
    assert (found.unequal, found.elements, found.rows) == (2, 4, (0, 1))
    assert found.place == "output[1, 1]"


@pytest.mark.parametrize(
    ("mine", "theirs", "equal"),
    [
        ([float("nan")], [float("nan")], True),
        ([float("inf")], [float("inf")], True),
        ([float("inf")], [-float("inf")], False),
        ([float("nan")], [0.0], False),
        ([0.0], [float("nan")], False),
        ([float("inf")], [3e38], False),
        ([float("nan")], [float("inf")], False),
        ([0.0], [-0.0], True),
    ],
)
def test_nan_and_infinities_have_to_be_in_the_same_places(mine: Any, theirs: Any, equal: bool) -> None:
    one, other = (outcome(lambda x: x, torch.tensor(value)) for value in (mine, theirs))
    judgement = judge(one, other, Tolerance(), None)
    assert bool(judgement.differences) is not equal
    if not equal:
        assert judgement.differences[0].problem == "NaN or infinity"


def test_what_was_compared_is_known() -> None:
    x = torch.tensor([float("nan"), 1.0])
    one, other = (outcome(lambda x: (x, x * float("nan")), x) for _ in range(2))
    judgement = judge(one, other, Tolerance(), None)
    assert "output[0]" in judgement.finite
    assert "output[1]" not in judgement.finite


def test_a_wrong_element_cannot_hide_behind_a_large_one_in_the_same_tensor() -> None:
    """The floor is the tensor's largest movement: for a well-conditioned tensor it is small."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.layer(x) * torch.tensor([1.0, 1.0, 1.0, 100.0])
        return y + 1e-3 * (torch.arange(4) == 0) if torch.compiler.is_compiling() else y

    assert_differs(check(lambda: Network(body), observation=Box((8,))), "output", "values")


# --- in a check -----------------------------------------------------------------------------------


def _off(amount: float) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    return lambda m, x: m.layer(x) + (amount if torch.compiler.is_compiling() else 0)


def test_a_difference_shows_the_value_of_float64_and_who_is_closer() -> None:
    result = check(lambda: Network(_off(1e-3)), observation=Box((8,)))
    worst = result.worst
    assert result.verdict is Verdict.DIFFERS
    assert worst is not None
    assert worst.float64 is not None
    assert worst.closer == "eager"
    assert abs(float(worst.float64) - float(worst.eager)) < 1e-5
    assert worst.difference == pytest.approx(1e-3, rel=0.1)


def test_the_worst_gradients_show_the_value_of_float64() -> None:
    """In float64 all gradients take twice the memory of the policy: those that no text shows are not kept."""

    wrong = changed_backward(lambda gradients: [None if one is None else 2 * one for one in gradients])
    result = check(
        lambda: nn.Sequential(*(nn.Linear(4, 4) for _ in range(5))),
        phase="update",
        observation=Box((4,)),
        backend=wrong,
    )
    assert len(result.differences) > MOST_GRADIENTS
    shown = [difference.float64 is not None for difference in result.differences]
    assert all(shown[:MOST_GRADIENTS])
    assert not any(shown[MOST_GRADIENTS:])
    for difference in result.differences[:MOST_GRADIENTS]:
        assert difference.closer == "eager"


def test_float64_sides_with_compiled_where_eager_is_the_worse_one() -> None:
    """The report says so, and the two sides still differ."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.layer(x)
        return y if torch.compiler.is_compiling() else y + _lost(y)

    def _lost(y: torch.Tensor) -> torch.Tensor:
        # Nothing in float64, 1e-3 in float32.
        return torch.full_like(y, 1e-3) if y.dtype == torch.float32 else torch.zeros_like(y)

    result = check(lambda: Network(body), observation=Box((8,)))
    assert result.verdict is Verdict.DIFFERS
    assert result.worst is not None
    assert result.worst.closer == "compiled"


def test_without_a_reference_nothing_is_excused_or_shown() -> None:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.layer(x) + 1e4
        return (
            (y - 1e4)
            if not torch.compiler.is_compiling()
            else y - torch.nextafter(torch.tensor(1e4), torch.tensor(2e4))
        )

    rounded = check(lambda: Network(body), observation=Box((8,)))
    assert rounded.verdict is Verdict.WITHIN_ROUNDING
    assert rounded.rounding > 0
    assert "by no more than rounding moves eager itself" in rounded.reason
    strict = check(lambda: Network(body), observation=Box((8,)), reference="eager")
    assert strict.verdict is Verdict.DIFFERS
    assert strict.worst is not None
    assert strict.worst.float64 is None
    assert strict.worst.floor is None


def test_tolerances_of_the_options() -> None:
    def result(**options: Any) -> CheckResult:
        return check(lambda: Network(_off(1e-3)), observation=Box((8,)), examples=0, **options)

    assert result(atol=1e-2).verdict is Verdict.EQUAL
    assert result().verdict is Verdict.DIFFERS
    assert result(atol=1e-4).verdict is Verdict.DIFFERS


def test_ill_conditioned_tensors_are_named() -> None:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.layer(x) * 1e-3 + 1e3
        return (
            y - 1e3
            if not torch.compiler.is_compiling()
            else y - torch.nextafter(torch.tensor(1e3), torch.tensor(2e3))
        )

    result = check(lambda: Network(body), observation=Box((8,)))
    assert result.verdict is Verdict.WITHIN_ROUNDING
    assert any(
        "rounding alone moves eager by more than 0.1 %" in note and "output" in note for note in result.notes
    )


# --- memory layouts -------------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda: torch.randn(6, 8),
    "transposed": lambda: torch.randn(8, 6).t(),
    "every other column": lambda: torch.randn(6, 16)[:, ::2],
    "every other row, transposed": lambda: torch.randn(16, 6).t()[:, ::2],
    "permuted, with gaps": lambda: torch.randn(4, 6, 8).permute(2, 0, 1)[:, ::2],
    "expanded rows": lambda: torch.randn(1, 8).expand(6, 8),
    "expanded columns": lambda: torch.randn(6, 1).expand(6, 8),
    "expanded in the middle": lambda: torch.randn(6, 1, 8).expand(6, 4, 8),
    "channels last": lambda: torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "channels last, sliced": lambda: torch.randn(2, 6, 4, 4).contiguous(memory_format=torch.channels_last)[
        :, :3
    ],
    "beyond one block": lambda: torch.randn(3, 2**17).t(),
    "a number": lambda: torch.randn(()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_element_moves_by_a_few_units_in_its_last_place(layout: str, dtype: torch.dtype) -> None:
    value = LAYOUTS[layout]().to(dtype)
    (moved,) = jittered(value)
    assert moved.shape == value.shape
    assert value.dim() == 0 or not torch.equal(moved, value)
    # As far as it may, which is further for many terms, and one more for its own rounding.
    shift = (SHIFT if dtype != torch.bfloat16 else HALF_SHIFT) * max(
        1.0, value.numel() / TERMS_AT_SHIFT
    ) ** 0.5
    allowed = (shift + 1) * torch.finfo(dtype).eps * value.abs().double()
    assert bool(((moved.double() - value.double()).abs() <= allowed).all())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_elements_move_equally_in_any_layout(layout: str) -> None:
    value = LAYOUTS[layout]()
    (moved,) = jittered(value)
    (same,) = jittered(value.clone(memory_format=torch.contiguous_format))
    assert torch.equal(moved, same)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_moved_lies_in_memory_as_the_original(layout: str) -> None:
    value = LAYOUTS[layout]()
    (moved,) = jittered(value)
    assert moved.stride() == value.stride()


def jittered(value: torch.Tensor) -> list[torch.Tensor]:
    """What an operator that accumulates is given in place of `value`."""
    given: list[torch.Tensor] = []

    class Seen(internals.DispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.name() == "aten::prod":
                given.append(args[0])
            return func(*args, **(kwargs or {}))

    with Seen(), MonteCarlo(0):
        torch.prod(value)
    return given
