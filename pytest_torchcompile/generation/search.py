"""Hypothesis looks for a failing example and makes it small.

The search runs under the profile that the project has loaded: its database, seed, phases and
verbosity are the user's. What the check needs on top stands in `_settings`.
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
    """Tells Hypothesis that an example fails; never seen by a user."""


def examples_of_profile() -> int:
    """How many examples to draw where no option says it: the profile's, 50 if it left the default."""
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
    """Draw examples until one fails, then shrink it; `fails` sees every one and remembers what it likes.

    Args:
        strategy: of the examples, which must be hashable.
        fails: whether an example fails. Exceptions that are no `Exception` stop the search at once.
        examples: how many to draw.
        shrink_s: seconds to spend on shrinking.
        digest: tells apart the entries of different cases in Hypothesis' database.

    Returns:
        Whether the search ended with the failure replayed: False if the example that failed passed
        when it was tried again, and if none failed.
    """
    if examples == 0:
        return False
    deadline = float("inf")
    smallest: Any = None

    def example(recipe: Any) -> None:
        nonlocal deadline, smallest
        # Past the deadline only the best example so far fails, which makes the shrinker give up.
        if time.monotonic() > deadline and recipe != smallest:
            return
        if fails(recipe):
            deadline = min(deadline, time.monotonic() + shrink_s)
            smallest = recipe
            raise _Fails

    test = _settings(examples)(given(strategy)(example))
    # Without a digest of its own each case would share one database entry and one derandomized seed.
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
