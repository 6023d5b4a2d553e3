"""Fixtures and settings of all tests.

torch and this package are imported here, before pytester takes its first snapshot of ``sys.modules``: it
drops what is imported while it runs pytest in process. torch can't be imported twice, and a module of this
package that is would have classes that are no longer those that other modules know.
"""

import contextlib
import importlib
import pkgutil
import warnings

import hypothesis
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    # Inductor imports it at its first compile. In torch 2.13 that raises a DeprecationWarning of torch's own,
    # which `-W error` would make the failure of whichever test compiles first.
    import torch.utils.mkldnn

with contextlib.suppress(ImportError):
    # With it, torch 2.10 loads this at its first compile. Its C module can't be imported twice either.
    import triton  # noqa: F401

import pytest_torchcompile

for module in pkgutil.walk_packages(pytest_torchcompile.__path__, "pytest_torchcompile."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _the_same_weights_in_any_order():
    """Which tests ran before, and how much they drew, decides about no test: pytest-randomly seeds no torch."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_hypothesis_profile():
    """No examples of other tests or earlier runs, whose cases have the same names; the same draws in each run."""
    hypothesis.settings.register_profile("before", parent=hypothesis.settings.default)
    hypothesis.settings.register_profile("tests", database=None, derandomize=True)
    hypothesis.settings.load_profile("tests")
    yield
    hypothesis.settings.load_profile("before")
