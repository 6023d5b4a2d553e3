"""Draws many examples from a Hypothesis strategy, for tests."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st


def draws(strategy: st.SearchStrategy[Any], count: int = 60, *, under: int = 0) -> list[Any]:
    """`count` examples of `strategy`, the same ones under the same seed, whatever profile is loaded."""
    found: list[Any] = []

    @seed(under)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found
