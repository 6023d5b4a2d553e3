"""Fixtures: the library's functions, with the project's options applied."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchcompile.plugin import benchmark, turns
from pytest_torchcompile.plugin.cases import conclude, finish
from pytest_torchcompile.plugin.options import Marked, project_layers

if TYPE_CHECKING:
    from pytest_torchcompile.results import CheckResult, Speedup

CURRENT_ITEM = pytest.StashKey[pytest.Item]()


def _nth(check: Callable[[], list[CheckResult]], number: int) -> CheckResult:
    return check()[number]


def _project_options(config: pytest.Config) -> dict[str, Any]:
    return {name: value for _, layer in project_layers(config) for name, value in layer.items()}


@pytest.fixture(scope="session")
def observations() -> Callable[..., Any]:
    """`pytest_torchcompile.observations`: returns a Hypothesis strategy of tensors for a spec."""
    import pytest_torchcompile

    return pytest_torchcompile.observations


@pytest.fixture(scope="session")
def compile_policy(pytestconfig: pytest.Config) -> Callable[..., Any]:
    """`pytest_torchcompile.compile_policy` with the project's options. Skips the test if compiling fails."""
    import pytest_torchcompile

    def compile_with_options(factory: Any, method: Any = "forward", **arguments: Any) -> Any:
        options = _project_options(pytestconfig)
        # `compile_policy` takes a single `phase`. The setting `phases` is for marked tests.
        options.pop("phases", None)
        return pytest_torchcompile.compile_policy(factory, method, **{**options, **arguments})

    return compile_with_options


@pytest.fixture(scope="session")
def assert_equivalent(pytestconfig: pytest.Config) -> Callable[..., None]:
    """`pytest_torchcompile.assert_equivalent` with the project's tolerance, reference and seed."""
    import pytest_torchcompile

    def assert_with_options(eager: Any, compiled: Any, *args: Any, **arguments: Any) -> None:
        __tracebackhide__ = True
        taken = ("atol", "rtol", "reference", "seed")
        options = {n: v for n, v in _project_options(pytestconfig).items() if n in taken}
        pytest_torchcompile.assert_equivalent(eager, compiled, *args, **{**options, **arguments})

    return assert_with_options


@pytest.fixture(scope="session")
def record_speedup(pytestconfig: pytest.Config) -> Callable[..., Speedup]:
    """`pytest_torchcompile.measure_speedup` with the project's options and entries in pytest-benchmark.

    Skips the test if timing is turned off. Under pytest-xdist it waits until no other test runs on this host.
    Fails the test if the speedup is below `min_speedup`, from the argument or the project's options.
    """
    import pytest_torchcompile

    def measure_and_record(eager: Any, compiled: Any, *args: Any, **arguments: Any) -> Speedup:
        __tracebackhide__ = True
        project = _project_options(pytestconfig)
        seconds = project.get("benchmark_seconds")
        is_off = arguments.get("seconds", seconds) == 0
        reason = "benchmark_seconds=0" if is_off else benchmark.why_not_timed(pytestconfig)
        if reason:
            pytest.skip(f"not timed: {reason}")
        item = pytestconfig.stash[CURRENT_ITEM]
        if seconds is None:
            seconds = benchmark.plan(item).seconds
        options = {"seconds": seconds, "min_speedup": project.get("min_speedup")}
        given = {name: value for name, value in options.items() if value is not None}
        with turns.alone(pytestconfig):
            speedup = pytest_torchcompile.measure_speedup(eager, compiled, *args, **{**given, **arguments})
        benchmark.record(item, speedup, speedup.figures())
        if speedup.too_slow:
            pytest.fail(f"too slow: {speedup}, min_speedup={speedup.least:g}", pytrace=False)
        return speedup

    return measure_and_record


@pytest.fixture(scope="session")
def compile_check(pytestconfig: pytest.Config) -> Callable[..., list[CheckResult]]:
    """`pytest_torchcompile.check_equivalence` with the project's options. Fails or skips the test."""
    from pytest_torchcompile.check import check_methods

    def check_with_options(factory: Any, **arguments: Any) -> list[CheckResult]:
        __tracebackhide__ = True
        marked = Marked.from_values("compile_check()", arguments, pytestconfig)
        item = pytestconfig.stash[CURRENT_ITEM]
        time = benchmark.timing_of(item, marked.options, default=0.0)
        check = functools.partial(check_methods, factory, marked.declaration, marked.options, time=time)
        again = functools.cache(check)
        results = [
            finish(item, result, functools.partial(_nth, again, number))
            for number, result in enumerate(check())
        ]
        conclude(results, strict=marked.options.strict, item=item)
        return results

    return check_with_options
