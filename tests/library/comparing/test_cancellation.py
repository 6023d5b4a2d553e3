"""The largest operand of the sums that cancelled to a small tensor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_torchcompile.comparing.cancellation import largest_operands
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.outcome import Outcome

NEAR_ONE = 1 + 1e-6 * torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.full((8, 1), 0.125)


def largest(policy: Callable[[torch.Tensor], Any], x: torch.Tensor) -> float:
    side = Side(policy, nn.Linear(1, 1), names=("x",))

    def call(under: Any = contextlib.nullcontext) -> Outcome:
        return side.call((x.clone(),), {}, phase="rollout", seed=0, under=under)

    eager = call()
    assert eager.error is None, eager.error
    (path,) = eager.outputs.tensors
    return largest_operands(eager, call, [path])[path]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_difference_of_numbers_near_one(dtype: torch.dtype) -> None:
    x = NEAR_ONE.to(dtype)
    assert largest(lambda x: x - 1, x) == float(x.max())


def test_a_product_that_cancels_counts_both_of_its_factors() -> None:
    x = NEAR_ONE - NEAR_ONE.mean(-1, keepdim=True)
    assert largest(lambda x: x @ WEIGHT, x) == float(x.abs().max()) * 0.125


def test_the_elements_may_come_in_another_order() -> None:
    assert largest(lambda x: (x - 1).t().contiguous(), NEAR_ONE) == float(NEAR_ONE.max())


def test_the_sum_may_be_wider_than_the_result() -> None:
    assert largest(lambda x: (x.double() - 1).float(), NEAR_ONE) == float(NEAR_ONE.max())


def test_equal_magnitudes_do_not_make_two_tensors_alike() -> None:
    assert largest(lambda x: -(x - 1), NEAR_ONE) == 0.0


def test_what_is_no_sum_has_none() -> None:
    assert largest(lambda x: 1e-3 * x.sin(), NEAR_ONE) == 0.0
