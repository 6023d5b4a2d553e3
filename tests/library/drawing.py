"""Draws many examples from a Hypothesis strategy, for tests."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

RUN = 50
"""Examples of one run. Hypothesis varies earlier examples, so that one long run may leave out a kind of them.

What it draws under a seed depends on its version, on the modules that are loaded, and on whether the process
flushes subnormal numbers to zero, as it does once a library that inductor compiled is loaded.
"""


def draws(strategy: st.SearchStrategy[Any], count: int = 60, *, under: int = 0) -> list[Any]:
    """`count` examples of `strategy` in several runs, with seeds from `under` on, whatever profile is loaded."""
    found: list[Any] = []
    while len(found) < count:
        found += _run(strategy, min(RUN, count - len(found)), under)
        under += 1
    return found


def _run(strategy: st.SearchStrategy[Any], count: int, under: int) -> list[Any]:
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
