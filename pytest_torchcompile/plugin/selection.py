"""A session that was to check and had no case: whether somebody narrowed it, or nothing is ever checked.

A misspelt marker is no marker to pytest, so that the test passes as an ordinary one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import pytest

from pytest_torchcompile.plugin import gate
from pytest_torchcompile.plugin.options import MARKER, enabled, merged

_NARROWING = ("keyword", "markexpr", "lf", "stepwise", "deselect")
"""Options of pytest that leave tests out."""
_SENT = "compile_check_selection"
_NEAR = pytest.StashKey[list[str]]()
_LEFT_OUT = pytest.StashKey[bool]()


def seen(config: pytest.Config, before: Iterable[pytest.Item], after: Iterable[pytest.Item]) -> None:
    """Remember what a collection shows: cases that were left out, markers that are almost ours.

    Args:
        config: pytest's.
        before: the items that were found.
        after: those that are left to run.
    """
    left = set(map(id, after))
    before = list(before)
    config.stash[_LEFT_OUT] = any(_is_ours(item) and id(item) not in left for item in before)
    config.stash[_NEAR] = sorted({f"{n}: is {m!r} a misspelt {MARKER!r}?" for n, m in _near_misses(before)})
    if hasattr(config, "workeroutput"):
        config.workeroutput[_SENT] = (config.stash[_LEFT_OUT], config.stash[_NEAR])


def receive(config: pytest.Config, workeroutput: dict[str, Any]) -> None:
    """Take what a worker of pytest-xdist has seen."""
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
    """A sentence for each test with a marker that is almost ours."""
    return config.stash.get(_NEAR, [])


def fails_without_cases(config: pytest.Config) -> bool:
    """Whether a session without a case is a failure: it was to be strict, and nobody narrowed it."""
    if not enabled(config) or config.option.collectonly:
        return False
    strict = merged(config, "", {}).strict or gate.is_strict(config)
    return strict and not _was_narrowed(config)


def _was_narrowed(config: pytest.Config) -> bool:
    given = config.args_source is pytest.Config.ArgsSource.ARGS
    # Without the cache provider there is no --lf.
    options = any(getattr(config.option, name, None) for name in _NARROWING)
    return given or options or config.stash.get(_LEFT_OUT, False)
