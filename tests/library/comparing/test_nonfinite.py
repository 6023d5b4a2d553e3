"""A NaN or an infinity in the input: compiled must not hide it; spreading it further is a remark."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_checks import assert_differs, assert_passes, check
from torch import nn

from pytest_torchcompile import Box, CheckResult

compiling = torch.compiler.is_compiling
OBSERVATION = Box((8,))
LEAD = "on inputs with a NaN or an infinity "


class Policy(nn.Module):
    """Does something else when compiled, by the name of it."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.as_tensor(self.layer(x))
        odd = ~torch.isfinite(x).all(-1, keepdim=True)
        if self.how.startswith("float32"):
            # NaN in float32 where the row is odd, and 0 in float64.
            large = torch.where(odd, 1e30, 0.0)
            y = torch.where(odd, 1.0, y)
            if not (compiling() and self.how == "float32 hidden"):
                y = y + (large * large - large * large)
        if self.how == "NaN on finite inputs":
            y = torch.where(x[:, :4] > 0, y, torch.nan)
        return self.compiled(x, y, odd) if compiling() else y

    def compiled(self, x: torch.Tensor, y: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
        match self.how:
            case "spread over the batch":
                return y + 0 * x.sum()
            case "zeros":
                return torch.nan_to_num(y, posinf=0.0, neginf=0.0)
            case "finite infinity":
                return torch.where(y.isinf(), 1e30, y)
            case "NaN for infinity":
                return torch.where(y.isinf(), torch.nan, y)
            case "infinity for NaN":
                return torch.where(y.isnan(), torch.inf, y)
            case "other rows":
                return torch.where(odd.any() & ~odd, y + 1, y)
            case "NaN on finite inputs":
                return torch.nan_to_num(y)
        return y


def checked(how: str, **arguments: Any) -> CheckResult:
    return check(lambda: Policy(how), **{"observation": OBSERVATION} | arguments)


@pytest.mark.parametrize("how", ["zeros", "finite infinity", "infinity for NaN", "NaN on finite inputs"])
def test_what_is_hidden_fails(how: str) -> None:
    result = checked(how)
    assert_differs(result, "output", "NaN or infinity")
    assert not result.remarks


@pytest.mark.parametrize("phase", ["rollout", "update"])
@pytest.mark.parametrize("how", ["spread over the batch", "NaN for infinity"])
def test_what_is_spread_is_a_remark(how: str, phase: str) -> None:
    result = checked(how, phase=phase)
    assert_passes(result)
    (remark,) = result.remarks
    assert remark.startswith(f"{LEAD}compiled spreads it: output[")
    assert remark.endswith(" in eager, nan in compiled")
    assert not checked("", phase=phase).remarks


def test_what_eager_alone_shows_is_a_remark() -> None:
    """Eager's gelu of an infinity is NaN, and the float64 reference's is not."""
    result = checked("float32 hidden")
    assert_passes(result)
    (remark,) = result.remarks
    assert remark.startswith(f"{LEAD}eager spreads it, unlike its float64 reference: output[")
    right = checked("float32")
    assert_passes(right)
    assert not right.remarks


def test_without_a_reference_nothing_of_it_fails() -> None:
    result = checked("zeros", reference="eager")
    assert_passes(result)
    assert result.remarks


def test_the_finite_rest_is_compared() -> None:
    assert_differs(checked("other rows"), "output", "values")


def test_a_spread_fails_for_who_asks_and_is_not_told_to_who_does_not_look() -> None:
    assert checked("spread over the batch", beyond="fail").reason.startswith(
        "beyond what was declared: on inp"
    )
    assert not checked("spread over the batch", beyond="off").remarks
    assert_passes(checked("spread over the batch", nonfinite=False, examples=0))


class Raising(nn.Module):
    """Compiled rejects what eager takes, by a kernel's check or on purpose."""

    def __init__(self, on_purpose: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.on_purpose = on_purpose

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.as_tensor(self.layer(x))
        if compiling() and not bool(torch.isfinite(x).all()):
            if self.on_purpose:
                raise ValueError("no numbers")
            return y + torch.zeros(3)[torch.full((4,), 7)]
        return y


def test_an_exception_of_compiled_alone() -> None:
    result = check(lambda: Raising(False), observation=OBSERVATION)
    assert_passes(result)
    (remark,) = result.remarks
    assert remark.startswith(f"{LEAD}eager returns and compiled raises IndexError")
    assert_differs(check(lambda: Raising(True), observation=OBSERVATION), "output", "exception")
