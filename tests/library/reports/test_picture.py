"""The picture of a difference: where it lies, however large the tensor."""

from __future__ import annotations

import json

import pytest
import torch
from faults.backends import changed
from small_checks import check
from torch import nn

from pytest_torchcompile import Box, CheckResult, Difference
from pytest_torchcompile.comparing.measure import Measured, Tolerance
from pytest_torchcompile.reports.failure import failure_text
from pytest_torchcompile.reports.picture import picture_lines


def difference_of(wrong: torch.Tensor) -> Difference:
    return Measured("output", torch.ones_like(wrong), 1 + wrong, Tolerance()).difference()


def test_a_block_of_a_matrix() -> None:
    wrong = torch.zeros(4, 6)
    wrong[1:3, 2:4] = 1.0
    wrong[2, 3] = 2.0
    found = difference_of(wrong)
    assert found.grid[2][3] == 2.0
    assert picture_lines(found) == [
        "|            |",
        "|    ====    |",
        "|    ==@@    |",
        "|            |",
    ]


def test_what_is_allowed_is_not_drawn() -> None:
    wrong = torch.full((3, 3), 1e-7)
    wrong[0, 0] = 1.0
    assert picture_lines(difference_of(wrong)) == ["|@@    |", "|      |", "|      |"]


def test_a_small_difference_beside_a_huge_one_is_seen() -> None:
    wrong = torch.zeros(2, 2)
    wrong[0, 0], wrong[1, 1] = 1e6, 0.01
    assert picture_lines(difference_of(wrong)) == ["|@@  |", "|  ..|"]


def test_the_slice_that_holds_the_worst_element() -> None:
    wrong = torch.zeros(2, 3, 4, 4)
    wrong[0, 1, 0, 0] = 1.0
    wrong[1, 2, 3, 3] = 5.0
    found = difference_of(wrong)
    assert found.index == (1, 2, 3, 3)
    assert [sum(row) for row in found.grid] == [0, 0, 0, 5.0]


def test_a_large_tensor_fits_on_a_screen() -> None:
    wrong = torch.zeros(1000, 13527)
    wrong[999, 13526] = 1.0
    lines = picture_lines(difference_of(wrong))
    assert (len(lines), {len(line) for line in lines}) == (10, {50})
    assert lines[-1].endswith("@|")


@pytest.mark.parametrize("shape", [(), (5,), (1, 7), (7, 1)])
def test_no_picture_of_what_has_no_two_dimensions(shape: tuple[int, ...]) -> None:
    assert picture_lines(difference_of(torch.ones(shape))) == []


def test_the_relative_difference() -> None:
    assert (
        Measured("output", torch.tensor([4.0]), torch.tensor([5.0]), Tolerance()).difference().relative
        == 0.25
    )
    assert Measured("output", torch.zeros(1), torch.ones(1), Tolerance()).difference().relative is None


class Wide(nn.Module):
    """Twelve outputs with a matrix each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 40) for _ in range(12))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"head {number}": layer(x) for number, layer in enumerate(self.layers)}


@pytest.fixture(scope="module")
def wide() -> CheckResult:
    backend = changed(lambda outputs, call: [out + 1 for out in outputs])
    return check(Wide, observation=Box((8,)), backend=backend, examples=0, explain_seconds=60)


def test_a_failure_fits_on_a_screen(wide: CheckResult) -> None:
    """With every field set, in a terminal of 50 lines."""
    assert len(wide.differences) == 12
    assert wide.explanation is not None
    text = failure_text(wide, rerun="pytest --compile-check")
    assert "    where       . small to @ large difference, blank: equal\n    |@@@@" in text
    assert len(text.splitlines()) <= 48


def test_a_picture_is_plain_data(wide: CheckResult) -> None:
    grid = json.loads(json.dumps(wide.as_dict()))["differences"][0]["grid"]
    assert len(grid) == 4
    assert {len(row) for row in grid} == {40}
