"""Decides whether a session without a case fails, and finds misspelt markers.

pytest ignores a misspelt marker, so the test would pass without being checked. A strict session without a
case fails unless the user selected some of the tests.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from typing import Any

import pytest

from pytest_torchcompile.plugin import gate
from pytest_torchcompile.plugin.options import MARKER, enabled, merged

_SELECTING = ("keyword", "markexpr", "lf", "stepwise", "deselect")
"""Options of pytest that leave tests out."""
_SENT = "compile_check_selection"
_LEFT_OUT = pytest.StashKey[bool]()


def record(config: pytest.Config, before: Iterable[pytest.Item], after: Iterable[pytest.Item]) -> None:
    """Store whether the collection left out cases.

    Args:
        config: pytest's config.
        before: the collected items.
        after: the items that are left to run.
    """
    left = set(map(id, after))
    config.stash[_LEFT_OUT] = any(_is_ours(item) and id(item) not in left for item in before)
    if hasattr(config, "workeroutput"):
        config.workeroutput[_SENT] = config.stash[_LEFT_OUT]


def receive(config: pytest.Config, workeroutput: dict[str, Any]) -> None:
    """Add what a worker of pytest-xdist has stored."""
    config.stash[_LEFT_OUT] = config.stash.get(_LEFT_OUT, False) or workeroutput.get(_SENT, False)


def _is_ours(item: pytest.Item) -> bool:
    return item.get_closest_marker(MARKER) is not None


def misspelt_marker(item: pytest.Item) -> str:
    """Return the message about a marker of the item that is almost ours; empty if there is none.

    A marker that the project has registered is its own.
    """
    for marker in item.iter_markers():
        if _is_almost_ours(marker.name) and marker.name not in _registered(item.config):
            return (
                f"@pytest.mark.{marker.name} on {item.nodeid}: pytest knows no such marker, so nothing is "
                f"checked; write @pytest.mark.{MARKER}, or register {marker.name!r} under markers in the ini "
                f"file if it is another marker"
            )
    return ""


@functools.cache
def _is_almost_ours(name: str) -> bool:
    return name != MARKER and bool(difflib.get_close_matches(name, [MARKER], cutoff=0.8))


def _registered(config: pytest.Config) -> list[str]:
    """Return the names in pytest's list of markers, whose lines are like ``slow(seconds): what it means``."""
    return [line.partition(":")[0].partition("(")[0].strip() for line in config.getini("markers")]


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
