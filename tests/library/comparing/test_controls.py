"""Correct models that are hard to compare, none of which may be reported.

Each is paired with a fault that has to be found in the same model, so that a check which passes
everything would fail here too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from faults.hard import CORRECT, ROUNDED, Frozen, Lazily, Normaliser, Unused, nudged
from faults.policies import Gated
from small_checks import assert_passes, check
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box, CheckResult, Discrete, LegalMask, State, Verdict

compiling = torch.compiler.is_compiling


@pytest.mark.parametrize("phase", ["rollout", "update"])
@pytest.mark.parametrize("name", ROUNDED)
def test_rounding(name: str, phase: str) -> None:
    """The compiled side rounds differently on purpose."""
    model, spec, _ = ROUNDED[name]
    assert_passes(check(model, phase, observation=spec, batch=4, examples=12))


@pytest.mark.parametrize("name", ROUNDED)
def test_errors_larger_than_rounding(name: str) -> None:
    """The rounding that the model above needs does not hide a real error in it."""
    model, spec, error = ROUNDED[name]
    wrong = check(lambda: model(error), observation=spec, batch=4)
    assert wrong.verdict is Verdict.DIFFERS


# --- models that change or hide something ---------------------------------------------------------


def both_phases(factory: Callable[[], nn.Module], **arguments: Any) -> list[CheckResult]:
    """The results of both phases, on AOTAutograd, which functionalises what eager does in place."""
    defaults = {"observation": Box((8,)), "backend": "aot_eager", "batch": (4, 7), "examples": 4}
    arguments = defaults | arguments
    return [check(factory, phase, **arguments) for phase in ("rollout", "update")]


@pytest.mark.parametrize("name", CORRECT)
def test_correct_models(name: str) -> None:
    for result in both_phases(CORRECT[name]):
        assert_passes(result)
        assert result.capture.coverage == 1.0


def test_a_state_that_appears_with_the_first_call() -> None:
    for result in both_phases(Lazily):
        assert_passes(result)


class Steps(nn.Module):
    """Counts its calls where dynamo does not look, and computes with the count."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.calls = 0

    @torch.compiler.disable
    def step(self) -> torch.Tensor:
        self.calls += 1
        return torch.full((), 1.0 / self.calls)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.step()


def test_a_counter_that_the_result_depends_on() -> None:
    """Both sides have the same counter, even if the floor has called eager more often."""
    rollout, update = both_phases(Steps)
    assert_passes(rollout)
    assert_passes(update)


def test_batch_norm_in_both_phases() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 9, 4))

    for result in both_phases(model, observation=Box((3, 5, 5))):
        assert_passes(result)


def test_batch_norm_that_rejects_a_batch_of_one() -> None:
    rollout, update = both_phases(
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), batch=(4, 7, 1, 33)
    )
    assert_passes(rollout)
    assert_passes(update)
    assert not any("eager itself raised" in note for note in rollout.notes)
    assert any("eager itself raised" in note and "ValueError" in note for note in update.notes)


def test_a_recurrent_cell() -> None:
    for result in both_phases(Gated, inputs={"state": State((6,))}):
        assert_passes(result)


def test_a_module_without_anything_to_differentiate() -> None:
    rollout, update = both_phases(Frozen)
    assert_passes(rollout)
    assert_passes(update)
    assert any("no output requires grad" in note for note in update.notes)


def test_gradients_that_are_zero_throughout_are_named() -> None:
    rollout, update = both_phases(Unused)
    assert_passes(rollout)
    assert_passes(update)
    assert "zero on every example: gradient of dead" in update.notes
    assert not any("value" in note for note in update.notes), "a parameter not used is none of its business"


def test_a_factory_that_shares_a_generator_with_the_outside() -> None:
    """The second run of the factory draws other weights; they are made equal, and the report says so."""
    generator = torch.Generator().manual_seed(3)

    def factory() -> nn.Module:
        model = nn.Linear(8, 4)
        with torch.no_grad():
            model.weight.copy_(torch.randn(4, 8, generator=generator))
        return model

    for result in both_phases(factory):
        assert_passes(result)
        assert any("factory is not deterministic" in note and "weight" in note for note in result.notes)


class MaskedEntropy(nn.Module):
    """Masked logits of minus infinity: the entropy's gradient is NaN in eager already."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 6)
        self.policy = nn.Linear(6, 5)
        self.value = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
        # Never all legal, so that no example has a finite gradient; never none.
        mask = (mask | (torch.arange(5) == 0)) & (torch.arange(5) != 4)
        logits = self.policy(torch.tanh(self.trunk(x))).masked_fill(~mask, float("-inf"))
        probs = logits.softmax(-1)
        entropy = -torch.where(probs > 0, probs * probs.log(), 0.0).sum(-1)
        return entropy, self.value(x)


def test_an_entropy_gradient_that_is_nan_is_named_as_nothing_compared() -> None:
    rollout, update = both_phases(MaskedEntropy, inputs={"mask": LegalMask(5)})
    assert_passes(rollout)
    assert_passes(update)
    note = next(note for note in update.notes if note.startswith("never finite"))
    assert "gradient of trunk.weight" in note
    assert "gradient of trunk.bias" in note
    # An illegal action's own weights have a gradient of zero, which is all that was compared of them.
    named = " ".join(update.notes)
    assert "gradient of policy.weight" in named
    assert "gradient of policy.bias" in named
    assert "value" not in named


@pytest.mark.parametrize("phase", ["rollout", "update"])
@pytest.mark.parametrize(
    ("dtype", "error"),
    [(torch.float16, 0.05), (torch.bfloat16, 0.5), (torch.float64, 1e-4)],
    ids=["float16", "bfloat16", "float64"],
)
def test_models_in_other_precisions(dtype: torch.dtype, error: float, phase: str) -> None:
    def model(error: float = 0.0) -> nn.Module:
        return Precise(error).to(dtype)

    declared = {"observation": Box((8,), dtype=dtype), "batch": 4}
    assert_passes(check(model, phase, **declared))
    wrong = check(lambda: model(error), phase, **declared)
    assert wrong.verdict is Verdict.DIFFERS


class Precise(nn.Module):
    """A network that is rounded differently, and may be wrong, when compiled."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(nudged(x))
        return y * (1 + self.error) if compiling() and self.error else y


def test_ties_of_an_argmax() -> None:
    """Two logits are equal except for rounding, so the last bit decides which is the largest."""

    class Tie(nn.Module):
        def __init__(self, wrong: bool = False) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 1, bias=False)
            self.wrong = wrong

        def forward(self, x: torch.Tensor) -> Any:
            y, same = self.layer(x), F.linear(x.flip(-1), self.layer.weight.flip(-1))
            logits = torch.cat([nudged(y), same, y - 1e-3], -1)
            return logits, (logits.argmin(-1) if compiling() and self.wrong else logits.argmax(-1))

    result = check(Tie, observation=Box((8,)), examples=12)
    assert_passes(result)
    assert result.verdict is Verdict.WITHIN_ROUNDING, "some action flipped"
    assert check(lambda: Tie(True), observation=Box((8,))).verdict is Verdict.DIFFERS


def test_options_of_the_users_policy_reach_it() -> None:
    """An embedding, a mask, several inputs by name, a constant: all in one policy."""

    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 6)
            self.turn = nn.Embedding(2, 6)

        def forward(
            self, x: dict[str, torch.Tensor], *, mask: torch.Tensor, turn: torch.Tensor, scale: float = 1.0
        ) -> Any:
            logits = self.layer(x["board"]) * scale + self.turn(turn)
            return {"logits": logits.masked_fill(~mask, -1e9), "greedy": logits.argmax(-1)}

    for result in both_phases(
        Full,
        observation={"board": Box((8,))},
        inputs={"mask": LegalMask(6), "turn": Discrete(2), "scale": 0.5},
    ):
        assert_passes(result)


def test_a_module_in_place_of_a_factory_is_left_as_it_was() -> None:
    model = Normaliser()
    before = copy.deepcopy(model.state_dict())
    for result in both_phases(model):
        assert_passes(result)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training


def test_functional_parameters_used_twice() -> None:
    class TwiceUsed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.layer(x), self.layer.weight)

    for result in both_phases(TwiceUsed):
        assert_passes(result)
