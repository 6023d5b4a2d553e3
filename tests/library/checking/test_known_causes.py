"""Differences that torch intends are reported with a remedy; a fault beside them still fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from faults.backends import changed, float_tensors
from small_checks import assert_differs, assert_passes, check
from torch import nn
from torch_versions import needs_torch

from pytest_torchcompile import Box, CheckResult, NotEquivalent, assert_equivalent
from pytest_torchcompile.reports.failure import failure_text
from pytest_torchcompile.texts import one_line

CAUSE = "known cause"


@pytest.fixture(autouse=True)
def one_size() -> Iterator[None]:
    """Small graphs, each compiled for what it is called with."""
    with torch._dynamo.config.patch(assume_static_by_default=True):
        yield


class Low(nn.Module):
    """Rounds to bfloat16 between operators that inductor fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(x).bfloat16()
        return (hidden * 3 + x.bfloat16() * 7).tanh() * 5


class Plain(nn.Module):
    """All in float32, with little left of it: a sum that loses its last digits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layer(x) + 1e4) - 1e4


def another_order(on: bool) -> Any:
    """A backend that is off by what another order of sums may do to `Plain`, or by a thousand times that."""

    def change(outputs: list[Any], call: int) -> list[Any]:
        off = 5e-4 if on else 0.5
        return [o + off if i in float_tensors(outputs) else o for i, o in enumerate(outputs)]

    return changed(change)


def compared(factory: Any, phase: str = "rollout", **arguments: Any) -> CheckResult:
    return check(factory, phase, observation=Box((8,)), batch=(4, 7), nonfinite=False, **arguments)


def test_rounding_to_bfloat16() -> None:
    result = compared(Low, backend="inductor", reference="eager")
    assert_differs(result, "output", "values")
    (note,) = (note for note in result.notes if CAUSE in note)
    assert "Eager rounds to bfloat16 after each operator" in note
    assert note in one_line(failure_text(result))


@pytest.mark.parametrize(
    "remedy",
    [
        {"reference": "float64"},
        pytest.param(
            {"reference": "eager", "options": {"emulate_precision_casts": True}},
            marks=needs_torch("2.13", "rounds on CPU as eager does"),
        ),
    ],
)
def test_the_remedies_that_are_named(remedy: dict[str, Any]) -> None:
    assert_passes(compared(Low, backend="inductor", **remedy))


@pytest.mark.parametrize("phase", ["rollout", "lifecycle"])
@pytest.mark.parametrize("rounding", [True, False])
def test_what_rounding_does_not_explain_has_no_known_cause(rounding: bool, phase: str) -> None:
    result = compared(Plain, phase, backend=another_order(rounding), reference="eager")
    assert_differs(result, "output", "values")
    assert [CAUSE in note for note in result.notes] == ([True] if rounding else [])
    assert "bfloat16" not in " ".join(result.notes)


@pytest.mark.parametrize("rounding", [True, False])
def test_rounding_by_hand(rounding: bool) -> None:
    model, x = Plain(), torch.randn(4, 8)
    with pytest.raises(NotEquivalent) as error:
        assert_equivalent(model, torch.compile(model, backend=another_order(rounding)), x, reference="eager")
    assert (CAUSE in str(error.value)) is rounding


class Noisy(nn.Module):
    """Adds noise to a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.layer(x)
        return mean + torch.randn_like(mean)


@pytest.mark.parametrize("called", [True, False])
def test_other_random_numbers_by_hand(called: bool) -> None:
    model, x = Noisy(), torch.randn(4, 8)
    compiled = torch.compile(model)
    if not called:
        assert_equivalent(model, compiled, x)
        return
    model.eval()
    with torch.no_grad():
        compiled(x)
    with pytest.raises(NotEquivalent, match=r"known cause: the random numbers"):
        assert_equivalent(model, compiled, x)


def test_a_wrong_layer_is_no_matter_of_random_numbers() -> None:
    model, x = Noisy(), torch.randn(4, 8)
    wrong = torch.compile(model, backend=another_order(False))
    model.eval()
    with torch.no_grad():
        wrong(x)
    with pytest.raises(NotEquivalent) as error:
        assert_equivalent(model, wrong, x)
    assert CAUSE not in str(error.value)


def warmed_up(backend: Any) -> nn.Module:
    """A policy as a trainer hands it over: compiled, and called already."""
    policy: Any = torch.compile(Noisy(), backend=backend)
    policy.eval()
    with torch.no_grad():
        policy(torch.zeros(4, 8))
    return policy  # type: ignore[no-any-return]


@pytest.mark.parametrize("phase", ["rollout", "lifecycle"])
def test_what_its_factory_called_draws_eagers_numbers(phase: str) -> None:
    assert_passes(compared(lambda: warmed_up("inductor"), phase))


def test_a_fault_of_what_its_factory_called() -> None:
    assert_differs(compared(lambda: warmed_up(another_order(False))), "output", "values")
