"""Sensitivity: a check that reaches half of a policy says so, and names the other half."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from small_checks import assert_passes, check
from torch import nn

from pytest_torchcompile import Box, CheckResult, Sensitivity, State


def check_sensitivity(factory: Any, phase: str = "update", **arguments: Any) -> CheckResult:
    result = check(factory, phase, **{"observation": Box((8,)), "sensitivity": True} | arguments)
    assert_passes(result)
    assert result.sensitivity is not None
    return result


class Halves(nn.Module):
    """Two experts of equal size, of which `gate` lets the second through for large observations only."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 4), nn.Linear(8, 4)
        self.gate = gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = (x.mean(-1, keepdim=True) > self.gate).to(x)
        return self.left(x) * (1 - chosen) + self.right(x) * chosen


BOUNDED = Box((8,), low=-1, high=1)


def test_half_of_a_policy_is_never_reached() -> None:
    sensitivity = check_sensitivity(lambda: Halves(2.0), observation=BOUNDED).sensitivity
    assert sensitivity == Sensitivity(
        parameters=36, of_parameters=72, outputs=4, of_outputs=4, unreached=("right",)
    )
    assert str(sensitivity) == (
        "gradients reached 50 % of the parameters, never right; 100 % of the outputs varied"
    )


def test_the_control_is_reached() -> None:
    sensitivity = check_sensitivity(lambda: Halves(0.0), observation=BOUNDED).sensitivity
    assert sensitivity == Sensitivity(parameters=72, of_parameters=72, outputs=4, of_outputs=4)
    assert str(sensitivity) == "gradients reached 100 % of the parameters; 100 % of the outputs varied"


class Partly(nn.Module):
    """Ignores half of a layer's inputs; returns a constant, and a row of which one element is one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.layer(x * (torch.arange(8) < 4))
        return {"y": y, "mixed": torch.cat([y[:, :1], torch.ones(len(y), 1)], 1), "table": self.table}


def test_constant_outputs_and_elements() -> None:
    sensitivity = check_sensitivity(Partly).sensitivity
    assert sensitivity is not None
    assert (sensitivity.parameters, sensitivity.of_parameters) == (4 * 4 + 4, 4 * 8 + 4)
    assert (sensitivity.outputs, sensitivity.of_outputs) == (5, 9)
    assert sensitivity.unreached == ()
    assert sensitivity.constant == ("output['table']",)
    assert str(sensitivity) == (
        "gradients reached 56 % of the parameters; 56 % of the outputs varied, never output['table']"
    )


def test_a_bias_without_effect_is_named_alone() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.layer.weight.t() + self.layer.bias.detach()

    sensitivity = check_sensitivity(Shifted).sensitivity
    assert sensitivity is not None
    assert sensitivity.unreached == ("layer.bias",)


def test_acting_tells_of_outputs_only() -> None:
    result = check_sensitivity(lambda: Halves(2.0), "rollout", observation=BOUNDED)
    assert str(result.sensitivity) == "100 % of the outputs varied"


def test_rows_of_a_state_that_has_its_batch_elsewhere_and_of_sequences() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor, state: torch.Tensor) -> Any:
            states = torch.tanh(self.layer(x) + state.transpose(0, 1))
            return states, states[:, -1][None]

    inputs = {"state": State((1, 4), batch_dim=1)}
    sensitivity = check_sensitivity(
        Recurrent, observation=Box(("T", 8)), inputs=inputs, examples=2
    ).sensitivity
    assert sensitivity is not None
    assert sensitivity.parameters == sensitivity.of_parameters
    assert sensitivity.outputs == sensitivity.of_outputs


@pytest.mark.parametrize("part", [0, 1, 500, 999, 1000])
def test_none_and_all_are_said_of_none_and_all_only(part: int) -> None:
    shown = {0: "0 %", 1: "1 %", 500: "50 %", 999: "99 %", 1000: "100 %"}[part]
    assert str(Sensitivity(outputs=part, of_outputs=1000)) == f"{shown} of the outputs varied"


def test_it_is_off_by_default_and_plain_data() -> None:
    result = check(lambda: Halves(0.0), observation=BOUNDED)
    assert result.sensitivity is None
    assert result.row()["sensitivity"] == ""
    asked = check_sensitivity(lambda: Halves(2.0), observation=BOUNDED)
    assert json.loads(json.dumps(asked.as_dict()))["sensitivity"]["unreached"] == ["right"]
    assert asked.row()["sensitivity"] == str(asked.sensitivity)
