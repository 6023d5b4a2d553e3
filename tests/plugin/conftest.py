"""Fixtures of the tests that run pytest inside pytest."""

import contextlib

import pytest

from .project import Lasting, Project

# The backport takes the standard library's place as it is imported; what pytester drops again after a
# test would leave neither, and no plugin would be found any more.
with contextlib.suppress(ImportError):
    import importlib_metadata  # noqa: F401


@pytest.fixture
def _lasting():
    """Set up before `pytester`, so that it is torn down after it has dropped modules."""
    lasting = Lasting()
    yield lasting
    lasting.keep()


@pytest.fixture
def project(_lasting, pytester, monkeypatch):
    """An empty project, where nothing is timed or explained and no lifecycle is checked unless asked for."""
    quick = (
        "--compile-benchmark-seconds=0",
        "--compile-explain-seconds=0",
        "--compile-phases=rollout,update",
        # Half of a check's time, and the library's tests are about it.
        "--no-compile-layouts",
    )
    # What runs in here is no worker, though this process may be one.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(quick))
    # Every column of the table, and a test and its case on one line.
    monkeypatch.setenv("COLUMNS", "300")
    return Project(pytester, _lasting)
