"""Fixtures of the library's tests."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
import torch

from pytest_torchcompile.generation import recipes

DRAW_EVERY_LAYOUT = {"test_inputs", "test_budgets", "test_explanation"}
"""The files whose tests are about memory layouts, all that a check does, or what torch gets wrong in some."""


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No test sees what another one compiled, whatever the order; compiled code is dropped at once."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A `CompileFailed` that a test of ours did not expect is a failure, not the skip that users get."""
    report = yield
    if report.skipped and "compile failed" in str(report.longrepr):
        report.outcome = "failed"
    return report


@pytest.fixture(autouse=True)
def dense_inputs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs lie dense in memory where no test is about layouts: they take half of a check's time."""
    if request.path.stem not in DRAW_EVERY_LAYOUT and "layout" not in request.node.name:
        monkeypatch.setattr(recipes, "in_other_memory", lambda *arguments: ([], []))
