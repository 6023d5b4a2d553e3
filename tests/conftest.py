"""What all tests share.

torch is imported here, before pytester takes its first snapshot of ``sys.modules``: it drops what is
imported while it runs pytest in process, and torch can't be imported twice.
"""

import pytest
import torch

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _the_same_weights_in_any_order():
    """Which tests ran before, and how much they drew, decides about no test: pytest-randomly seeds no torch."""
    torch.manual_seed(0)
