"""What the tests of explanations share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture
def wrong_decomposition(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Softplus is decomposed into something near it."""
    from torch._inductor import decomposition

    def wrong(x: torch.Tensor, *args: Any) -> torch.Tensor:
        return torch.log1p(torch.exp(x)) + 0.125

    monkeypatch.setitem(decomposition.decompositions, torch.ops.aten.softplus.default, wrong)
    decomposition.fast_random_decomps.cache_clear()
    yield
    decomposition.fast_random_decomps.cache_clear()
