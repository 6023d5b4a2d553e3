"""Decides whether a session without a case fails, and finds misspelt markers.

pytest ignores a misspelt marker, so the test passes without being checked. A strict session without a case
fails unless the user selected some of the tests.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import pytest

from pytest_torchcompile.plugin import gate
from pytest_torchcompile.plugin.options import MARKER, enabled, merged

_SELECTING = ("keyword", "markexpr", "lf", "stepwise", "deselect")
"""Options of pytest that leave tests out."""
_SENT = "compile_check_selection"
_NEAR = pytest.StashKey[list[str]]()
_LEFT_OUT = pytest.StashKey[bool]()


def record(config: pytest.Config, before: Iterable[pytest.Item], after: Iterable[pytest.Item]) -> None:
    """Store whether the collection left out cases, and which markers are almost ours.

    Args:
        config: pytest's config.
        before: the collected items.
        after: the items that are left to run.
    """
    left = set(map(id, after))
    before = list(before)
    config.stash[_LEFT_OUT] = any(_is_ours(item) and id(item) not in left for item in before)
    config.stash[_NEAR] = sorted({f"{n}: is {m!r} a misspelt {MARKER!r}?" for n, m in _near_misses(before)})
    if hasattr(config, "workeroutput"):
        config.workeroutput[_SENT] = (config.stash[_LEFT_OUT], config.stash[_NEAR])


def receive(config: pytest.Config, workeroutput: dict[str, Any]) -> None:
    """Add what a worker of pytest-xdist has stored."""
    left_out, near = workeroutput.get(_SENT, (False, []))
    config.stash[_LEFT_OUT] = config.stash.get(_LEFT_OUT, False) or left_out
    config.stash[_NEAR] = sorted({*config.stash.get(_NEAR, []), *near})


def _is_ours(item: pytest.Item) -> bool:
    return item.get_closest_marker(MARKER) is not None


def _near_misses(items: Iterable[pytest.Item]) -> Iterable[tuple[str, str]]:
    for item in items:
        for marker in item.iter_markers():
            if marker.name != MARKER and difflib.get_close_matches(marker.name, [MARKER], cutoff=0.8):
                yield item.nodeid, marker.name


def near_misses(config: pytest.Config) -> list[str]:
    """Return a sentence for each test with a marker that is almost ours."""
    return config.stash.get(_NEAR, [])


def fails_without_cases(config: pytest.Config) -> bool:
    """Return whether a session without a case fails: it is strict, and the user selected no tests."""
    if not enabled(config) or config.option.collectonly:
        return False
    strict = merged(config, "", {}).strict or gate.is_strict(config)
    return strict and not _is_selection(config)


def _is_selection(config: pytest.Config) -> bool:
    given = config.args_source is pytest.Config.ArgsSource.ARGS
    # `-p no:cacheprovider` removes the option --lf.
    options = any(getattr(config.option, name, None) for name in _SELECTING)
    return given or options or config.stash.get(_LEFT_OUT, False)
