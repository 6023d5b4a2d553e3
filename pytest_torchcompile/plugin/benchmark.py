"""Writes timings to pytest-benchmark. Its private names are used in this module only.

A case becomes two entries of one group. pytest-benchmark makes one entry per `benchmark` fixture, so this
module makes the entries itself, from pytest-benchmark's own classes, and fills them with the measured rounds.
pytest-benchmark's files, tables, comparisons and histograms then handle them like any other entry.

Written for pytest-benchmark 5.3.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import platform
import time
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.plugin import turns
from pytest_torchcompile.plugin.options import MARKER

if TYPE_CHECKING:
    from pytest_torchcompile.checking.pair import Pair
    from pytest_torchcompile.options import CheckOptions
    from pytest_torchcompile.results import CheckResult, Speedup

FIXTURE = "benchmark"
DEFAULT_MAX_TIME_S = 1.0
"""The default of ``--benchmark-max-time``."""
CONTROL_S = 2.0
"""Seconds for which eager is timed against itself, once per session."""
_NUMBERED = "[0-9][0-9][0-9][0-9]_"
"""Glob for the start of the names of saved files."""
_MARK = "control"
"""The field of `extra_info` that all entries of this plugin have."""
_CONTROL = pytest.StashKey["Speedup"]()
_ENTRIES = pytest.StashKey[list[Any]]()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The timing settings of a case that come from pytest-benchmark's options.

    Args:
        seconds: ``--benchmark-max-time`` of both sides together; None if it has its default value.
        min_rounds: ``--benchmark-min-rounds``.
        timer: ``--benchmark-timer``.
    """

    seconds: float | None = None
    min_rounds: int = 1
    timer: Callable[[], float] = time.perf_counter


def why_not_timed(config: pytest.Config) -> str:
    """Return the flag that turns timing off in this session; empty if timing is on."""
    session = _session(config)
    if session is not None and session.skip:
        return "--benchmark-skip"
    # pytest-benchmark also disables itself in pytest-xdist's workers. This plugin times there: workers wait
    # for each other, see `turns`.
    disabled = session is not None and session.disabled
    if disabled and (not _is_worker(config) or config.getoption("benchmark_disable")):
        return "--benchmark-disable"
    return ""


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def why_not_recorded(config: pytest.Config) -> str:
    """Return why speedups are not written to pytest-benchmark; empty if they are."""
    if _session(config) is not None:
        return ""
    if importlib.util.find_spec("pytest_benchmark") is None:
        return "pytest-benchmark is not installed"
    return "pytest-benchmark is not active"


def timing_of(
    item: pytest.Item, options: CheckOptions, *, default: float
) -> Callable[[Pair], Speedup] | None:
    """Return a function that times a case of the item; None if there is nothing to time.

    Under pytest-xdist it waits until no other test runs on this host. It raises `NotTimed` if timing is off
    in this session.

    Args:
        item: the item.
        options: its options.
        default: for how many seconds to time if no option says so; 0 for no timing.
    """
    from pytest_torchcompile.timing.speed import NotTimed, seconds_to_time, time_pair

    ours = seconds_to_time(options, default=default)
    if not ours:
        return None
    theirs = plan(item)
    seconds = ours if options.benchmark_seconds is not None else theirs.seconds or ours

    def measure(pair: Pair) -> Speedup:
        reason = why_not_timed(item.config)
        if reason:
            raise NotTimed(reason)
        with turns.alone(item.config):
            if control_of(item.config) is None:
                control = time_pair(pair, options, seconds=min(CONTROL_S, seconds), control=True)
                item.config.stash[_CONTROL] = control
            return time_pair(pair, options, seconds=seconds, min_rounds=theirs.min_rounds, timer=theirs.timer)

    return measure


def plan(item: pytest.Item) -> Plan:
    """Return how to time this item. Its `benchmark` marker overrides the command line."""
    session = _session(item.config)
    if session is None:
        return Plan()
    marker = item.get_closest_marker("benchmark")
    given = {} if marker is None else dict(marker.kwargs)
    max_time = given.get("max_time", session.options["max_time"])
    is_default = "max_time" not in given and float(max_time) == DEFAULT_MAX_TIME_S
    timer = given.get("timer", session.options["timer"])
    return Plan(
        seconds=None if is_default else 2 * float(max_time),
        min_rounds=int(given.get("min_rounds", session.options["min_rounds"])),
        timer=getattr(timer, "target", timer),
    )


def record_case(item: pytest.Item, result: CheckResult) -> None:
    """Add the two entries of a timed case to pytest-benchmark's session, if there is one."""
    if result.speedup is not None:
        record(item, result.speedup, result.row(), method=result.method, phase=result.phase)


def record(item: pytest.Item, speedup: Speedup, figures: dict[str, Any], **params: str) -> None:
    """Add the entries of eager and compiled, in one group, with `figures` in their `extra_info`."""
    import torch

    session = _session(item.config)
    if session is None:
        return
    control = control_of(item.config)
    extra = {**figures, "torch": torch.__version__, _MARK: "" if control is None else str(control)}
    if _is_worker(item.config):
        extra["host"] = platform.node()
    for side, times in (("eager", speedup.eager_s), ("compiled", speedup.compiled_s)):
        _add_entry(session, item, side, times, extra, {**params, "side": side})


def _add_entry(
    session: Any,
    item: pytest.Item,
    side: str,
    times: tuple[float, ...],
    extra: dict[str, Any],
    params: dict[str, str],
) -> None:
    from pytest_benchmark.fixture import BenchmarkFixture

    marker = item.get_closest_marker("benchmark")
    options = {**session.options, **({} if marker is None else marker.kwargs)}
    group = options.pop("group", None) or item.nodeid
    options["timer"] = session.options["timer"]
    fixture = BenchmarkFixture(  # type: ignore[no-untyped-call]
        item,
        # A worker sends its entries to the controller. If it also kept them, it would write files of its own.
        add_stats=_discard if _is_worker(item.config) else session.benchmarks.append,
        logger=session.logger,
        warner=item.warn,
        disabled=False,
        group=group,
        **options,
    )
    entries = item.stash.setdefault(_ENTRIES, [])
    # A test may record several pairs. pytest-benchmark identifies entries by name, so names must differ.
    number = f"#{len(entries) // 2 + 1}" if len(entries) > 1 else ""
    fixture.name, fixture.fullname = f"{item.name}{number}[{side}]", f"{item.nodeid}{number}[{side}]"
    fixture.param = "-".join(filter(None, (fixture.param, side)))
    users = {n: v for n, v in (fixture.params or {}).items() if isinstance(v, str | int | float | bool)}
    fixture.params = {**users, **params}
    fixture.extra_info.update(extra)
    entry = fixture._make_stats(iterations=1)  # type: ignore[no-untyped-call]
    for seconds in times:
        entry.update(seconds)
    entries.append(entry)


def _discard(entry: Any) -> None:
    """Do nothing with an entry."""


def send(item: pytest.Item, report: Any) -> None:
    """Put a worker's entries on the report of its test, as JSON."""
    if _is_worker(item.config) and report.when == "call" and item.stash.get(_ENTRIES, []):
        sent = [
            {name: getattr(entry, name) for name in _SENT}
            | {"data": list(entry.stats.data), "options": {**entry.options, "timer": _timer_name(entry)}}
            for entry in item.stash[_ENTRIES]
        ]
        # As text, because execnet rejects subclasses of str, such as torch's version.
        report.compile_benchmarks = json.dumps(sent, default=str)


def receive(config: pytest.Config, report: Any) -> None:
    """Add the entries that a worker sent to pytest-benchmark's session."""
    session = _session(config)
    sent = json.loads(getattr(report, "compile_benchmarks", "[]"))
    if session is None or not sent or _is_worker(config):
        return
    from pytest_benchmark.stats import Metadata

    names = {entry["fullname"] for entry in sent}
    session.benchmarks[:] = [entry for entry in session.benchmarks if entry.fullname not in names]
    for entry in sent:
        fixture = types.SimpleNamespace(
            **{name: entry[name] for name in _SENT}, cprofile_stats=None, has_error=False
        )
        received = Metadata(fixture, iterations=1, options=entry["options"])  # type: ignore[no-untyped-call]
        for seconds in entry["data"]:
            received.update(seconds)  # type: ignore[no-untyped-call]
        session.benchmarks.append(received)


_SENT = ("name", "fullname", "group", "param", "params", "extra_info")


def _timer_name(entry: Any) -> str:
    timer = entry.options["timer"]
    return str(getattr(timer, "__name__", timer))


def forget(item: pytest.Item) -> None:
    """Remove the entries that an earlier run of this item recorded."""
    entries = item.stash.get(_ENTRIES, [])
    if entries:
        session = _session(item.config)
        session.benchmarks[:] = [b for b in session.benchmarks if not any(b is e for e in entries)]
        entries.clear()


def hide_table_unless_asked(config: pytest.Config) -> None:
    """Hide pytest-benchmark's table if all its entries are of this plugin and no option of its was given.

    The report has the speedups already, and the table is 45 lines of up to 230 columns for 10 cases.
    """
    session = _session(config)
    if session is None or not session.benchmarks or not all(map(_is_of_ours, session.benchmarks)):
        return
    given = (*config.invocation_params.args, *config.getini("addopts"), os.environ.get("PYTEST_ADDOPTS", ""))
    if not any("--benchmark" in str(argument) for argument in given):
        session.quiet = True


def _is_of_ours(entry: Any) -> bool:
    return _MARK in entry.extra_info


def latest_saved(config: pytest.Config, source: str) -> str:
    """Return the newest file that ``--benchmark-save`` or ``--benchmark-autosave`` wrote.

    Raises:
        UsageError: if there is none; the message names `source`.
    """
    session = _session(config)
    if session is None:
        raise UsageError(f"{source}=latest needs pytest-benchmark: {why_not_recorded(config)}")
    saved: list[Any] = getattr(session.storage, "query", lambda glob: [])(_NUMBERED)
    if not saved:
        raise UsageError(
            f"{source}=latest found no saved file in {session.storage}: run once with --benchmark-autosave, "
            f"or give the path of a report"
        )
    return str(saved[-1])


def control_of(config: pytest.Config) -> Speedup | None:
    """Return the session's timing of eager against itself; None if it was not done yet."""
    return config.stash.get(_CONTROL, None)


@contextlib.contextmanager
def counted_as_benchmarks(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """In the body, make ``--benchmark-only`` keep the items that this plugin times.

    pytest-benchmark keeps items that use its `benchmark` fixture, so the body sees that name among their
    fixtures. Nothing is done for ``--benchmark-skip``, which only turns the timing off.
    """
    session = _session(config)
    only = session is not None and session.only
    counted = [item for item in items if only and _times(item)]
    for item in counted:
        item.fixturenames.append(FIXTURE)  # type: ignore[attr-defined]  # items of functions have it
    try:
        yield
    finally:
        for item in counted:
            item.fixturenames.remove(FIXTURE)  # type: ignore[attr-defined]


def _times(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", None)
    if names is None or FIXTURE in names:
        return False
    return item.get_closest_marker(MARKER) is not None or "record_speedup" in names


def _session(config: pytest.Config) -> Any:
    return getattr(config, "_benchmarksession", None)
