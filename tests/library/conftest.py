"""Fixtures of the library's tests."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
import torch


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
