"""Fixtures of the tests that run pytest inside pytest."""

import hypothesis
import pytest

from .project import Lasting, Project


@pytest.fixture(autouse=True)
def _own_hypothesis_profile():
    """Examples that don't depend on earlier runs: inner ones share this process' database otherwise."""
    hypothesis.settings.register_profile("before", parent=hypothesis.settings.default)
    hypothesis.settings.register_profile("inner", database=None, derandomize=True)
    hypothesis.settings.load_profile("inner")
    yield
    hypothesis.settings.load_profile("before")


@pytest.fixture
def _lasting():
    """Set up before `pytester`, so that it is torn down after it has dropped modules."""
    lasting = Lasting()
    yield lasting
    lasting.keep()


@pytest.fixture
def project(_lasting, pytester, monkeypatch):
    """An empty project, where nothing is timed unless a test asks for it."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "--compile-benchmark-seconds=0")
    return Project(pytester, _lasting)
