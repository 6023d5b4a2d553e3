"""The rounding floor must pass policies that round differently, and must not pass faults.

Nothing is compiled here. The candidate is the policy with an injected fault, or the policy itself in
other arithmetic: rounded at random, or computed in float64. Each is judged on the first example that
shows it, as in a check.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_versions import needs_torch

from pytest_torchcompile.comparing.float64 import float64_reference, widened
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.monte_carlo import MonteCarlo
from pytest_torchcompile.comparing.references import references
from pytest_torchcompile.comparing.tolerance import Judgement, judge
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.snapshots import copied, map_tensors

Function = Callable[..., Any]
INF = float("inf")
OTHER_ROUNDINGS = (101, 102, 103)
"""Runs of Monte Carlo arithmetic that no floor makes."""


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def linear(inputs: int, outputs: int, seed: int = 1) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs)


class Called:
    """A function called on the same inputs again and again, with a module whose weights it uses."""

    def __init__(
        self, function: Function, model: nn.Module | None, inputs: tuple[Any, ...], phase: str
    ) -> None:
        self.side = Side(function, model, names=tuple("xyz")[: len(inputs)])
        self._inputs = inputs
        self._phase = phase

    def __call__(self, under: Any = contextlib.nullcontext, wide: bool = False) -> Outcome:
        inputs = map_tensors(widened if wide else copied, self._inputs)
        return self.side.call(inputs, {}, phase=self._phase, seed=3, under=under)


def judged(eager: Called, compiled: Outcome) -> Judgement:
    expected = eager()
    assert expected.error is None, expected.error
    asked = references(expected, eager.side, eager)
    finite = all(bool(torch.isfinite(t).all()) for t in expected.inputs.tensors.values())
    return judge(expected, compiled, Tolerance(), asked, finite_inputs=finite, small=True)


def assert_caught(
    policy: Function, wrong: Function, *inputs: Any, model: Any = None, phase: str = "rollout"
) -> None:
    eager = Called(policy, model, inputs, phase)
    judgement = judged(eager, Called(wrong, model, inputs, phase)())
    assert judgement.differences, "the fault is excused"


def assert_silent(policy: Function, *inputs: Any, model: Any = None, phase: str = "rollout") -> None:
    """The policy in other arithmetic is no difference."""
    eager = Called(policy, model, inputs, phase)
    for run in OTHER_ROUNDINGS:
        judgement = judged(eager, eager(functools.partial(MonteCarlo, run, 0.25)))
        assert not judgement.differences, (run, judgement.differences)
    reference = float64_reference(eager.side, eager)
    if reference is not None:
        judgement = judged(eager, _narrowed(reference, eager()))
        assert not judgement.differences, ("float64", judgement.differences)


def _narrowed(wide: Outcome, like: Outcome) -> Outcome:
    """What float64 computes, in the dtypes of another outcome."""
    for mine, theirs in ((wide.outputs, like.outputs), (wide.state, like.state), (wide.inputs, like.inputs)):
        mine.tensors = {path: t.to(theirs.tensors[path].dtype) for path, t in mine.tensors.items()}
    wide.gradients = {n: g if g is None else g.to(like.gradients[n].dtype) for n, g in wide.gradients.items()}
    wide.settings = like.settings  # a reference has its own default dtype
    return wide


# --- masks ----------------------------------------------------------------------------------------

BODY = linear(12, 8)
OPEN = torch.arange(8) % 4 != 0
MASKED = (-INF, torch.finfo(torch.float32).min, -1e8, -1e9)
AFTER: dict[str, Function] = {
    "alone": lambda scores: scores,
    "a temperature": lambda scores: scores * 2.0,
    "a subtraction": lambda scores: scores - scores.amax(-1, keepdim=True),
    "noise": lambda scores: scores + torch.randn(scores.shape).abs().log().neg(),
}
HEADS: dict[str, Function] = {
    "logits": lambda scores: scores,
    "softmax": lambda scores: scores.softmax(-1),
    "log-softmax": lambda scores: scores.log_softmax(-1),
    "argmax": lambda scores: scores.argmax(-1),
    "log-prob": lambda scores: torch.distributions.Categorical(logits=scores).log_prob(scores.argmax(-1)),
    "entropy": lambda scores: -(scores.softmax(-1) * scores.log_softmax(-1).clamp(min=-1e9)).sum(-1),
    "sample": lambda scores: torch.multinomial(scores.softmax(-1), 1),
}


def masked(value: float, after: str, head: str) -> Function:
    def policy(x: torch.Tensor, legal: torch.Tensor) -> Any:
        return HEADS[head](AFTER[after](BODY(x).masked_fill(~legal, value)))

    return policy


def masks(kind: str) -> torch.Tensor:
    if kind == "fixed":
        return OPEN.expand(6, 8)
    drawn = torch.rand(6, 8, generator=torch.Generator().manual_seed(5)) < 0.5
    return drawn | F.one_hot(torch.arange(6), 8).bool()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("value", MASKED)
@pytest.mark.parametrize("kind", ["fixed", "drawn"])
def test_behind_a_mask(kind: str, value: float, head: str) -> None:
    # Each operator behind the mask with each head, and with each mask.
    after = list(AFTER)[(list(HEADS).index(head) + MASKED.index(value)) % len(AFTER)]
    policy, x, legal = masked(value, after, head), normal(6, 12), masks(kind)
    assert_silent(policy, x, legal)

    def broken(x: torch.Tensor, legal: torch.Tensor) -> Any:
        right = policy(x, legal)
        if not right.is_floating_point():
            return (~legal).long().argmax(-1).reshape(right.shape)
        wrong = right.clone()
        wrong[0] = float("nan")
        return wrong

    assert_caught(policy, broken, x, legal)


@pytest.mark.parametrize("wrong", [-1e9, INF, 0.0])
@pytest.mark.parametrize("after", AFTER)
def test_another_number_in_place_of_minus_infinity(after: str, wrong: float) -> None:
    legal = masks("fixed")
    assert_caught(masked(-INF, after, "logits"), masked(wrong, after, "logits"), normal(6, 12), legal)


@pytest.mark.parametrize("value", MASKED[1:])
def test_rows_that_are_masked_entirely(value: float) -> None:
    """Correct ones are uniform, or keep what float32 preserves of their scores beside the mask."""
    legal = masks("drawn")
    legal[2] = False
    for head in ("softmax", "log-softmax"):
        policy = masked(value, "a subtraction", head)
        assert_silent(policy, normal(6, 12), legal)
        assert_caught(policy, lambda x, m, p=policy: p(x, m).roll(1, 0), normal(6, 12), legal)


def test_a_causal_mask() -> None:
    project = linear(8, 24, seed=2)
    causal = torch.full((9, 9), -INF).triu(1)

    def attention(x: torch.Tensor) -> torch.Tensor:
        q, k, v = project(x).chunk(3, -1)
        return (q @ k.mT / 3 + causal).softmax(-1) @ v

    assert_silent(attention, normal(4, 9, 8))
    assert_caught(attention, lambda x: attention(x) * float("nan"), normal(4, 9, 8))
    assert_caught(attention, lambda x: attention(x.flip(1)).flip(1), normal(4, 9, 8))


def test_an_entropy_of_nan_in_one_row() -> None:
    policy = masked(-INF, "alone", "entropy")
    odd = torch.zeros(6, dtype=torch.bool)
    odd[3] = True
    broken = lambda x, m: policy(x, m).masked_fill(odd, float("nan"))  # noqa: E731
    assert_caught(policy, broken, normal(6, 12), masks("drawn"))


# --- gradients of choices -------------------------------------------------------------------------

CHOICES: dict[str, Function] = {
    "amax": lambda h: h.amax(-1),
    "amin": lambda h: h.amin(-1),
    "max": lambda h: h.max(-1).values,
    "min": lambda h: h.min(-1).values,
    "aminmax": lambda h: torch.stack(torch.aminmax(h, dim=-1), -1),
    "median": lambda h: h.median(-1).values,
    "sort": lambda h: h.sort(-1).values * torch.arange(h.shape[-1]).to(h),
    "topk": lambda h: h.topk(3, -1).values,
    "cummax": lambda h: h.cummax(-1).values,
    "scatter_reduce": lambda h: (
        torch.zeros(len(h), 2)
        .to(h)
        .scatter_reduce(1, (torch.arange(h.shape[-1]) % 2).expand(h.shape), h, "amax", include_self=False)
    ),
    "max pool": lambda h: F.max_pool1d(h[:, None], 2)[:, 0],
}


class _Backwards(torch.autograd.Function):
    """Hands its input on, and `wrong` of the gradient back."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, wrong: Function) -> torch.Tensor:
        ctx.wrong = wrong
        return h.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ctx.wrong(gradient), None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_torch("2.12", "differentiates it") if name == "aminmax" else ())
        for name in CHOICES
    ],
)
def test_gradients_of_choices(name: str, ties: bool, dtype: torch.dtype) -> None:
    model = linear(6, 8, seed=4)
    with torch.no_grad():
        # Far from each other, so that rounding to 16 bits makes no ties of its own.
        model.bias += 4 * torch.arange(8)[torch.randperm(8, generator=torch.Generator().manual_seed(6))]
        if ties:
            model.weight[4:] = model.weight[:4]
            model.bias[4:] = model.bias[:4]
    model = model.to(dtype)
    x = normal(5, 6, seed=7).to(dtype)

    def policy(x: torch.Tensor, wrong: Function | None = None) -> torch.Tensor:
        h = model(x)
        return CHOICES[name](h if wrong is None else _Backwards.apply(h, wrong))

    assert_silent(policy, x, model=model, phase="update")
    for wrong in (torch.zeros_like, lambda g: g * 2, lambda g: g.roll(1, -1)):
        assert_caught(policy, functools.partial(policy, wrong=wrong), x, model=model, phase="update")


# --- whole numbers --------------------------------------------------------------------------------

TABLE = normal(64, 4, seed=8)
NUMBERS: dict[str, Function] = {
    "long": lambda ids: (ids * 2 + 1).long(),
    "floor division": lambda ids: ids // 3,
    "floor of a quotient": lambda ids: (ids / 3).floor(),
    "round": lambda ids: (ids * 4 / 4).round(),
    "frac": lambda ids: (ids / 4).frac(),
    "remainder": lambda ids: ids.remainder(5),
    "one_hot": lambda ids: F.one_hot((ids + 1).long(), 64),
    "embedding": lambda ids: F.embedding((ids * 1.0 + 2).long(), TABLE),
    "cumsum": lambda ids: ids.cumsum(-1),
    "a comparison": lambda ids: ids.sum(-1, keepdim=True) > 3 * ids,
    "steps of a counter": lambda ids: torch.where((ids + 1).remainder(4) == 0, 1.0, 0.5),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_whole_numbers_off_by_one(name: str) -> None:
    ids = torch.randint(0, 40, (6, 5), generator=torch.Generator().manual_seed(9)).float()
    assert_silent(NUMBERS[name], ids)
    assert_caught(NUMBERS[name], lambda ids: NUMBERS[name](ids + 1), ids)


# --- layouts --------------------------------------------------------------------------------------

READERS: dict[str, Function] = {
    "a stride": lambda y: y * y.stride(-1),
    "as_strided": lambda y: y.as_strided((4, 3), (1, 2)) * 1.0,
    "contiguous or not": lambda y: y + 1 if y.is_contiguous() else y - 1,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "view",
    [lambda y: y, lambda y: y.t(), lambda y: y[:, ::2], lambda y: y[1:], lambda y: y[:1].expand(4, -1)],
)
def test_what_a_policy_reads_of_the_layout_stays(view: Function, reader: str) -> None:
    policy = lambda x: READERS[reader](view(x.sum(0) * 1.7))  # noqa: E731
    assert_silent(policy, normal(3, 4, 6))
    assert_caught(policy, lambda x: policy(x) + 0.01, normal(3, 4, 6))


# --- choices that rounding flips ------------------------------------------------------------------

TWO = normal(2, 4, seed=10)


def tied(x: torch.Tensor) -> Any:
    """The means of the same numbers in another order: equal, but for rounding, in every row."""
    near = x * 0.7 / 0.7
    choice = torch.stack([x.mean(-1), near.mean(-1)], -1).argmax(-1)
    return choice, TWO[choice], x.sum(-1)


def test_a_flipped_choice_excuses_what_jumps_with_it_and_nothing_beside_it() -> None:
    x = normal(16, 64)

    def other_way(x: torch.Tensor, off: float = 1.0) -> Any:
        choice, _, total = tied(x)
        return 1 - choice, TWO[1 - choice], total * off

    eager = Called(tied, None, (x,), "rollout")
    expected = eager()
    asked = references(expected, eager.side, eager)
    (*_, floor) = asked.floors(["output[0]"])
    flips = floor.flipped["output[0]"]
    assert bool(flips.any())

    def some_rows(x: torch.Tensor, off: float = 1.0) -> Any:
        mine, theirs = tied(x), other_way(x, off)
        return tuple(
            torch.where(flips.reshape(-1, *(1,) * (m.dim() - 1)), t, m)
            for m, t in zip(mine, theirs, strict=True)
        )

    assert not judged(eager, Called(some_rows, None, (x,), "rollout")()).differences
    found = judged(eager, Called(functools.partial(some_rows, off=2.0), None, (x,), "rollout")()).differences
    assert {difference.path for difference in found} == {"output[2]"}


def test_a_choice_that_is_not_returned_takes_its_row_with_it() -> None:
    """Codebooks, routing, canonical orientations: the chosen code itself is not an output."""
    assert_silent(lambda x: tied(x)[1], normal(16, 64))
    steady = lambda x: (TWO[(x[:, 0] > 0).long()], x.sum(-1))  # noqa: E731
    assert_silent(steady, normal(16, 64))
    assert_caught(steady, lambda x: (TWO[(x[:, 0] <= 0).long()], x.sum(-1)), normal(16, 64))


# --- sensitive policies ---------------------------------------------------------------------------

torch.manual_seed(11)
DEEP = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(16, 16), nn.Tanh())), nn.Linear(16, 4))
LARGE = linear(16, 4, seed=12)
with torch.no_grad():
    LARGE.weight.mul_(300)
COLD = linear(16, 4, seed=15)
NORM = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
CELL = nn.GRUCell(4, 8)
FROZEN = linear(16, 6, seed=13)


def rolled(x: torch.Tensor) -> torch.Tensor:
    h = x.new_zeros(len(x), 8)
    for step in range(16):
        h = CELL(x[:, (4 * step) % 16 : (4 * step) % 16 + 4], h)
    return h


def advantages(x: torch.Tensor) -> torch.Tensor:
    total, found = x.new_zeros(len(x)), []
    for step in range(x.shape[1]):
        total = x[:, -1 - step] + 0.99 * 0.95 * total
        found.append(total)
    return torch.stack(found, -1)


def divergence(x: torch.Tensor) -> torch.Tensor:
    mine, theirs = FROZEN(x).log_softmax(-1), FROZEN(x).detach().log_softmax(-1)
    return (mine.exp() * (mine - theirs)).sum(-1)


SENSITIVE: dict[str, tuple[Function, nn.Module | None, torch.Tensor]] = {
    "deep": (DEEP, DEEP, normal(8, 16)),
    "large weights": (LARGE, LARGE, normal(8, 16)),
    "low temperature": (lambda x: (COLD(x) / 0.05).softmax(-1), COLD, normal(8, 16)),
    "batch norm": (NORM, NORM, normal(8, 16)),
    "batch norm, near-constant": (NORM, NORM, 1 + 1e-3 * normal(8, 16)),
    "recurrence": (rolled, CELL, normal(4, 16)),
    "cumprod": (lambda x: (1 + 0.1 * x).cumprod(-1), None, normal(4, 128)),
    "advantages": (advantages, None, normal(4, 128)),
    "long sum behind a softmax": (lambda x: (x.softmax(-1) * x).sum(-1), None, normal(4, 10_000)),
    "frozen copy": (divergence, FROZEN, normal(8, 16)),
}


@pytest.mark.parametrize("phase", ["rollout", "update"])
@pytest.mark.parametrize("name", SENSITIVE)
def test_sensitive_policies_are_silent_and_one_percent_is_found(name: str, phase: str) -> None:
    policy, model, x = SENSITIVE[name]
    assert_silent(policy, x, model=model, phase=phase)
    wrong = lambda x: policy(x) * 1.01 + (0.01 if name == "frozen copy" else 0)  # noqa: E731
    assert_caught(policy, wrong, x, model=model, phase=phase)


@pytest.mark.parametrize(
    "name", [n for n, (_, model, _) in SENSITIVE.items() if model is not None and n != "frozen copy"]
)
def test_one_percent_of_a_sensitive_gradient_is_found(name: str) -> None:
    policy, model, x = SENSITIVE[name]
    wrong = lambda x: _Backwards.apply(policy(x), lambda g: g * 1.01)  # noqa: E731
    assert_caught(policy, wrong, x, model=model, phase="update")


# --- half precision -------------------------------------------------------------------------------


def half_policy(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(14)
    layers = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    return layers.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    """They pass in other arithmetic; an error of 10 % is found in one gradient, and 3 % if it is systematic."""
    model = half_policy(dtype)
    x = normal(32, 16).to(dtype)
    assert_silent(model, x, model=model, phase="update")
    eager = Called(model, model, (x,), "update")
    expected = eager()
    for factor in (1.03, 0.97):
        wrong = eager()
        wrong.gradients = {n: g * factor for n, g in expected.gradients.items() if g is not None}
        assert judged(eager, wrong).differences
    wrong = eager()
    gradient = wrong.gradients["0.weight"]
    assert gradient is not None
    largest = gradient.abs().max()
    gradient[0, 0] += 0.1 * largest
    assert judged(eager, wrong).differences


@pytest.mark.parametrize("value", [1.0, INF])
def test_autocast_inside_a_policy(value: float) -> None:
    model = half_policy(torch.float32)
    x = normal(8, 16)
    x[0, 0] = value

    def policy(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    assert_silent(policy, x, model=model, phase="update")
    if value == 1.0:
        assert_caught(policy, lambda x: policy(x) * 1.1, x, model=model, phase="update")


# --- without a floor, and small tensors -----------------------------------------------------------


THIRDS = 0.3 + torch.arange(64) / 7
TENTHS = (THIRDS * 0.1).tolist()


def never_counts(x: torch.Tensor) -> torch.Tensor:
    """Raises in any arithmetic but eager's own, and float64's."""
    if x.dtype == torch.float32 and (x * 0.1).tolist() != TENTHS:
        raise ValueError("not what was expected")
    return x * 2


def test_without_a_floor_float64_decides() -> None:
    eager = Called(never_counts, None, (THIRDS,), "rollout")
    near, far = eager(), eager()
    near.outputs.tensors["output"] += 1e-4
    far.outputs.tensors["output"] += 0.1
    assert not judged(eager, near).differences
    assert judged(eager, far).differences


def test_without_a_floor_and_without_float64_nothing_is_decided() -> None:
    def neither(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return never_counts(x)

    eager = Called(neither, None, (THIRDS,), "rollout")
    off = eager()
    off.outputs.tensors["output"] += 0.1
    judgement = judged(eager, off)
    assert judgement.undecided == ("output",)
    assert not judgement.differences
    assert not judgement.rounding


def test_a_floor_that_is_no_number_excuses_nothing() -> None:
    """Eager is finite and every run is NaN, so the floor says nothing about eager's value."""

    def policy(x: torch.Tensor) -> torch.Tensor:
        known = x.new_tensor(TENTHS) if x.dtype == torch.float32 else x * 0.1
        return x * 2 if torch.equal(x * 0.1, known) else x * float("nan")

    eager = Called(policy, None, (THIRDS,), "rollout")
    assert bool(torch.isfinite(eager().outputs.tensors["output"]).all())
    wrong = eager()
    wrong.outputs.tensors["output"] *= float("nan")
    assert judged(eager, wrong).differences


SMALL: dict[str, Function] = {
    "probabilities": lambda x: (0.01 * x).softmax(-1),
    "a value scaled down": lambda x: x.sum(-1) * 1e-8,
}


@pytest.mark.parametrize("name", SMALL)
def test_small_tensors_have_to_be_right_to_a_share_of_themselves(name: str) -> None:
    x = normal(2, 200_000)
    assert_silent(SMALL[name], x)
    assert_caught(SMALL[name], lambda x: SMALL[name](x) * 0, x)
    assert_caught(SMALL[name], lambda x: SMALL[name](x) * -1, x)


@pytest.mark.parametrize("size", [1e-44, 1e-39])
def test_what_is_smaller_than_the_smallest_normal_number_is_no_small_tensor(size: float) -> None:
    """A hundredth of 1e-44 is 0 in float32, and a processor may flush both to zero."""
    eager = Called(lambda x: x.abs().clamp(min=1) * size, None, (normal(2, 100),), "rollout")
    expected, flushed, wrong = eager(), eager(), eager()
    flushed.outputs.tensors["output"] *= 0
    wrong.outputs.tensors["output"] += 1e-3
    assert not judge(expected, flushed, Tolerance(), None, small=True).differences
    assert judge(expected, wrong, Tolerance(), None, small=True).differences


def test_who_allows_more_means_it_of_small_tensors_too() -> None:
    eager = Called(SMALL["a value scaled down"], None, (normal(2, 100),), "rollout")
    expected, wrong = eager(), eager()
    wrong.outputs.tensors["output"] += 1e-3
    assert judge(expected, wrong, Tolerance(), None, small=True).differences
    assert not judge(expected, wrong, Tolerance(atol=1e-2), None, small=True).differences


def test_what_cancels_to_next_to_nothing_is_no_small_tensor() -> None:
    """The value is exactly zero in eager, or the last digits of numbers of size 1."""
    x = normal(8, 16)
    eager = Called(divergence, FROZEN, (x,), "rollout")
    other = eager()
    other.outputs.tensors["output"] += 2.6e-7
    assert not judged(eager, other).differences
    nearly = lambda x: (1 + 1e-7 * x) - 1  # noqa: E731
    eager = Called(nearly, None, (x,), "rollout")
    other = eager()
    other.outputs.tensors["output"] = torch.zeros_like(other.outputs.tensors["output"])
    assert not judged(eager, other).differences
