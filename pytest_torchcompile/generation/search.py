"""Searches for a failing example with Hypothesis, and shrinks it.

The search uses the Hypothesis profile that the project has loaded: its database, seed, phases and verbosity.
`_settings` overrides the settings that a check needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

DEFAULT_EXAMPLES = 50
_HYPOTHESIS_DEFAULT = 100


class _Fails(Exception):
    """Reports a failing example to Hypothesis; does not leave this module."""


def examples_of_profile() -> int:
    """Return the number of examples of the Hypothesis profile; 50 if it is Hypothesis' default."""
    found = settings().max_examples
    return DEFAULT_EXAMPLES if found == _HYPOTHESIS_DEFAULT else found


def search(
    strategy: st.SearchStrategy[Any],
    fails: Callable[[Any], bool],
    *,
    examples: int,
    shrink_s: float,
    digest: str,
) -> bool:
    """Draw examples until one fails, then shrink it. The caller keeps the failing examples that `fails` gets.

    Args:
        strategy: strategy of the examples, which must be hashable.
        fails: returns whether an example fails; called with every example. A `BaseException` that is no
            `Exception` ends the search at once.
        examples: how many to draw.
        shrink_s: seconds to spend on shrinking.
        digest: identifies this case in Hypothesis' database.

    Returns:
        Whether the failure was reproduced at the end. False if no example failed, or if the one that failed
        passed when it was tried again.
    """
    if examples == 0:
        return False
    deadline = float("inf")
    smallest: Any = None

    def example(recipe: Any) -> None:
        nonlocal deadline, smallest
        # After the deadline, only the smallest failing example still fails, so shrinking ends.
        if time.monotonic() > deadline and recipe != smallest:
            return
        if fails(recipe):
            deadline = min(deadline, time.monotonic() + shrink_s)
            smallest = recipe
            raise _Fails

    test = _settings(examples)(given(strategy)(example))
    # Without separate digests, all cases would share one database entry and one derandomized seed.
    test.hypothesis.inner_test._hypothesis_internal_add_digest = digest.encode()  # type: ignore[attr-defined]
    try:
        test()
    except _Fails:
        return True
    except Flaky:
        return False
    return False


def _settings(examples: int) -> settings:
    profile = settings()
    wanted = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
    return settings(
        profile,
        max_examples=examples,
        deadline=None,
        phases=[phase for phase in profile.phases if phase in wanted],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        verbosity=min(profile.verbosity, Verbosity.normal, key=lambda v: v.value),
    )
