"""If an earlier call makes eager raise, the verdict is `eager failed` with a remedy, never a difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_checks import PASSED, check
from torch import nn

from pytest_torchcompile import Box, Verdict
from pytest_torchcompile.checking.evidence import Evidence
from pytest_torchcompile.comparing.tolerance import Judgement
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.reports.failure import failure_text
from pytest_torchcompile.results import Difference

CALLS = {"observation": Box((5,)), "batch": (2, 5), "examples": 2}


class Counted(nn.Module):
    """Raises by how often it was called, which the check can't put back."""

    def __init__(self, raises: Callable[[int], bool]) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)
        self.raises = raises
        calls = iter(range(10**6))
        self.called = lambda: next(calls)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        if not torch.compiler.is_compiling() and self.raises(self.called()):
            raise RuntimeError("the environment was closed")
        return y


@pytest.mark.parametrize(
    ("raises", "sentence"),
    [
        (lambda call: call > 0, "once it has been called before, on any inputs"),
        (lambda call: call == 2, "on one call, and returns on the next with the same inputs"),
    ],
    ids=["from the second call on", "now and then"],
)
def test_what_depends_on_the_call_is_eager_s_trouble(raises: Any, sentence: str) -> None:
    result = check(lambda: Counted(raises), **CALLS)
    assert result.verdict is Verdict.EAGER_FAILED, failure_text(result)
    assert "RuntimeError: the environment was closed" in result.reason
    assert sentence in result.reason
    assert "reset=lambda policy: ..." in result.reason


class Picky(nn.Module):
    """Rejects what is out of its range, which is a contract."""

    def __init__(self, *, compiled_too: bool) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)
        self.compiled_too = compiled_too

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (self.compiled_too or not torch.compiler.is_compiling()) and float(x.abs().max()) > 100:
            raise ValueError("out of range")
        return self.net(x)


def test_what_inputs_bring_about_is_a_contract() -> None:
    result = check(lambda: Picky(compiled_too=True), **CALLS)
    assert result.verdict in PASSED, failure_text(result)
    result = check(lambda: Picky(compiled_too=False), **CALLS)
    assert result.verdict is Verdict.DIFFERS
    assert result.differences[0].eager == "raises ValueError: out of range"


class Remembering(nn.Module):
    """Hands its last output, with the graph behind it, to the next call, in a place nobody looks into."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)
        kept: list[torch.Tensor] = []
        self.keep = kept.append
        self.last: Callable[[], torch.Tensor] = lambda: kept[-1] if kept else torch.zeros(3)

    def reset_noise(self) -> None:
        self.keep(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x) + self.last()
        self.keep(y.mean(0).exp())
        return y


def test_a_graph_from_an_earlier_call_is_told_with_what_helps() -> None:
    result = check(Remembering, "update", **CALLS)
    assert result.verdict is Verdict.EAGER_FAILED, failure_text(result)
    assert "detach it, or create it again before each call" in result.reason
    assert "reset=lambda policy: policy.reset_noise()" in result.reason


# --- one row --------------------------------------------------------------------------------------


class KeepsState(nn.Module):
    """Keeps a hidden state of one row in an attribute, as a policy that acts in one environment."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 3)
        self.hidden = torch.zeros(1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden = self.cell(x, self.hidden).detach()
        return self.cell(x, self.hidden)


class OfNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.net(x)
        return value * value.item()


class Refuses(nn.Module):
    """Raises for some values, which one row has less often than a batch."""

    def __init__(self, refused: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.net = nn.Linear(5, 1)
        self.refused = refused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.refused(x).any():
            raise ValueError("refused")
        return self.net(x)


@pytest.mark.parametrize("policy", [KeepsState, OfNumber])
@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_policy_of_one_row_is_told_so(policy: Callable[[], nn.Module], phase: str) -> None:
    result = check(policy, phase, **CALLS)
    assert result.verdict is Verdict.EAGER_FAILED
    assert result.reason.endswith("; it returns on one row: batch=1")
    assert check(policy, phase, **{**CALLS, "batch": 1}).verdict is not Verdict.EAGER_FAILED


@pytest.mark.parametrize("refused", [lambda x: x[-1] > 0.5, lambda x: x < 9])
def test_a_policy_that_raises_for_some_values_is_not_told_a_batch_size(refused: Any) -> None:
    result = check(lambda: Refuses(refused), "rollout", **{**CALLS, "batch": (16, 5)})
    assert result.verdict is Verdict.EAGER_FAILED
    assert "one row" not in result.reason


# --- training only --------------------------------------------------------------------------------


class Imitator(nn.Module):
    """As lerobot's ACT: `forward` is the loss, and needs what only training has."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            raise KeyError("action")
        return self.net(x).pow(2).mean()

    def select_action(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize("phase", ["rollout", "lifecycle"])
def test_a_forward_for_training_only_is_told_how_to_declare(phase: str) -> None:
    result = check(Imitator, phase, **CALLS)
    assert result.verdict is Verdict.EAGER_FAILED
    assert "it was called in eval(), as a policy acts, and returns in train()" in result.reason
    assert "phases=['update', 'lifecycle'], methods=['forward', 'select_action'], " in result.reason
    assert "methods=['forward', 'select_action'], act='select_action', loss=lambda policy" in result.reason


def test_declared_so_it_passes() -> None:
    result = check(
        Imitator,
        "lifecycle",
        **CALLS,
        methods=["forward", "select_action"],
        act="select_action",
        loss=lambda policy, batch: policy(batch["observation"]),
    )
    assert result.verdict in PASSED, failure_text(result)


class Broken(Imitator):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("action")


def test_one_that_raises_anyway_is_not() -> None:
    result = check(Broken, "lifecycle", **CALLS)
    assert result.verdict is Verdict.EAGER_FAILED
    assert "eval()" not in result.reason


# --- the worst difference of a case within rounding -----------------------------------------------


def test_the_worst_difference_is_what_rounding_explained_if_nothing_else_differs() -> None:
    evidence = Evidence()
    explained = Difference(path="output", problem="values", difference=3e-4, allowed=1e-5)
    exact = Difference(path="output", allowed=1e-5, elements=4)
    evidence.add(Outcome(), Judgement(worst=exact), degenerate=False)
    assert evidence.worst == exact
    evidence.add(Outcome(), Judgement(largest=explained, rounding=True), degenerate=False)
    assert evidence.worst == explained
    closer = Difference(path="output", difference=3e-6, allowed=1e-5)
    evidence.add(Outcome(), Judgement(worst=closer), degenerate=False)
    assert evidence.worst == closer


def test_what_is_exact_says_what_was_allowed() -> None:
    result = check(lambda: nn.Linear(5, 3), **CALLS)
    assert result.worst is not None
    assert result.worst.difference == 0
    assert result.worst.allowed == 1e-5


def test_a_method_for_training_only_is_checked_as_it_trains() -> None:
    """It raises in `eval()`, where a check also tries to learn."""

    class Trains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            if not self.training:
                raise RuntimeError("forward is for training")
            loss = self.layer(x).square().mean()
            return loss, {"loss": loss.detach()}

    result = check(Trains, "update", observation=Box((8,)))
    assert result.verdict in PASSED, failure_text(result)
    assert any(note.startswith("not learnt from in eval(), where eager raises") for note in result.notes)
