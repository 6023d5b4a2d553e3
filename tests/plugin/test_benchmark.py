"""Speedups in the report and in pytest-benchmark, whose options work as usual."""

import contextlib
import csv
import importlib.util
import json
import platform
import re
import subprocess
import sys

import pytest

from pytest_torchcompile import Speedup

from .project import failure, flat, table, verdicts

AGENT = """
@pytest.mark.compiled_equivalence(observation=Box((2,)), methods="get_value"{more})
def test_agent(): return Agent()
"""
ITEM = "test_policy.py::test_agent[get_value-rollout]"
ITEMS = [f"test_policy.py::test_agent[get_value-{phase}]" for phase in ("rollout", "update")]
SIDES = ("eager", "compiled")
TIMED = "--compile-benchmark-seconds=0.05 --compile-phases=rollout,update"


@pytest.fixture(autouse=True)
def _few_pairs(monkeypatch):
    monkeypatch.setattr("pytest_torchcompile.timing.blocks.PAIRS", (5, 6))
    # pytest-benchmark goes by it, and these tests may themselves run under pytest-xdist.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture
def timed(project, monkeypatch):
    """A project in which cases are timed, for a moment."""
    monkeypatch.setenv("PYTEST_ADDOPTS", TIMED)
    project.write(AGENT.format(more=""))
    return project


def entries(project, *arguments):
    """What ``--benchmark-json`` holds after a check."""
    result = project.check("--benchmark-json=benchmarks.json", *arguments)
    return result, json.loads((project.path / "benchmarks.json").read_text())["benchmarks"]


# --- entries --------------------------------------------------------------------------------------


def test_each_case_is_two_entries_of_one_group(timed):
    result, found = entries(timed)
    assert [entry["fullname"] for entry in found] == [
        f"{item}[{side}]" for item in ITEMS for side in ("eager", "compiled")
    ]
    assert [entry["group"] for entry in found] == [ITEMS[0], ITEMS[0], ITEMS[1], ITEMS[1]]
    assert found[0]["name"] == "test_agent[get_value-rollout][eager]"
    assert found[0]["params"] == {"method": "get_value", "phase": "rollout", "side": "eager"}
    assert f"benchmark '{ITEM}': 2 tests" in result.stdout.str()


def test_statistics_are_those_of_the_rounds(timed):
    import statistics

    _, found = entries(timed)
    for entry in found:
        stats = entry["stats"]
        assert stats["rounds"] == len(stats["data"]) >= 5
        assert stats["iterations"] == 1
        assert stats["median"] == statistics.median(stats["data"])
        assert stats["ops"] == pytest.approx(stats["rounds"] / sum(stats["data"]))
        assert entry["options"]["timer"] == "perf_counter"


def test_the_figures_are_in_extra_info(timed):
    result, (entry, *_) = entries(timed)
    info = entry["extra_info"]
    expected = {"verdict": "equal", "backend": "eager", "batch": 4, "graphs": info["graphs"]}
    assert expected.items() <= info.items()
    assert info["speedup_low"] <= info["speedup"] <= info["speedup_high"]
    assert {"conclusion", "compile_s", "torch", "threads", "control", "speedup_quiet"} <= info.keys()
    assert info["speedup"] == pytest.approx(float(table(result)[ITEM]["speedup"].split()[0]), abs=0.006)


def test_parameters_of_the_user_stay(project, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", TIMED)
    project.write(
        """
        @pytest.mark.parametrize("width", [8, 16])
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", methods="get_value")
        def test_agent(width): return Agent()
        """
    )
    _, found = entries(project, "--benchmark-group-by=param:width")
    assert [entry["params"]["width"] for entry in found] == [8, 8, 16, 16]


def test_a_group_of_the_users_own(project, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", TIMED)
    project.write(
        'pytestmark = pytest.mark.benchmark(group="policies", min_rounds=9)\n' + AGENT.format(more="")
    )
    _, found = entries(project)
    assert {entry["group"] for entry in found} == {"policies"}
    assert all(entry["stats"]["rounds"] >= 9 for entry in found)


def test_a_rerun_replaces_the_entries(timed):
    timed.write(
        AGENT.format(more=', phases="rollout"')
        + """
runs = []

@pytest.fixture(autouse=True)
def _fails_once():
    yield
    runs.append(1)
    assert len(runs) > 1
"""
    )
    result, found = entries(timed, "--reruns=1")
    assert result.parseoutcomes()["rerun"] == 1
    assert [entry["fullname"] for entry in found] == [f"{ITEM}[eager]", f"{ITEM}[compiled]"]


# --- the report -----------------------------------------------------------------------------------


def test_the_report_has_the_speedup_and_the_control(timed):
    result = timed.check()
    for item in ITEMS:
        assert re.fullmatch(
            r"\d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\] (faster|slower|no clear difference|too few rounds)",
            table(result)[item]["speedup"],
        )
    (line,) = [line for line in result.outlines if line.startswith("eager timed against itself: ")]
    assert re.match(r".*: \d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\](; this machine is too noisy.*)?$", line)


@pytest.mark.parametrize(("high", "noisy"), [(1.02, False), (1.3, True)])
def test_a_control_that_misses_one_is_told(timed, monkeypatch, high, noisy):
    from pytest_torchcompile.timing import speed

    def time_pair(pair, options, *, control=False, **_):
        return Speedup(
            ratio=1.0, interval=(0.99, high), quiet=1.0, eager_s=(1.0,), compiled_s=(1.0,), batch=4
        )

    monkeypatch.setattr(speed, "time_pair", time_pair)
    text = timed.check().stdout.str()
    assert f"eager timed against itself: 1.00 [0.99, {high:.2f}]" in text
    assert ("too noisy" in text) is noisy


def test_the_control_is_timed_once(timed, monkeypatch):
    from pytest_torchcompile.timing import speed

    controls = []
    original = speed.time_pair

    def time_pair(*args, control=False, **kwargs):
        controls.append(control)
        return original(*args, control=control, **kwargs)

    monkeypatch.setattr(speed, "time_pair", time_pair)
    timed.check()
    assert controls == [True, False, False]


# --- pytest-benchmark's table -----------------------------------------------------------------------


def test_the_table_of_pytest_benchmark_is_hidden_unless_asked_for(timed):
    assert "2 tests" not in timed.check().stdout.str()
    text = timed.check("--benchmark-columns=median").stdout.str()
    assert text.index(f"benchmark '{ITEM}': 2 tests") < text.index("= compiled against eager =")


def test_a_benchmark_of_the_users_own_shows_the_table(timed):
    timed.write("def test_own(benchmark): benchmark(list)", name="test_own")
    assert f"benchmark '{ITEM}': 2 tests" in timed.check().stdout.str()


# --- pytest-benchmark's options -------------------------------------------------------------------


def test_save_and_compare(timed):
    timed.check("--benchmark-save=before").stderr.fnmatch_lines(["*Saved benchmark data in: *before*"])
    result = timed.check("--benchmark-compare", "--benchmark-columns=median,rounds")
    result.stdout.fnmatch_lines(["*test_agent[[]get_value-rollout[]][[]eager[]] (0001_before*)*"])
    assert verdicts(result) == dict.fromkeys(ITEMS, "equal")


def test_autosave(timed):
    timed.check("--benchmark-autosave")
    assert len(list((timed.path / ".benchmarks").rglob("0001_*.json"))) == 1


def test_compare_fail(timed):
    timed.check("--benchmark-save=before")
    (saved,) = (timed.path / ".benchmarks").rglob("*.json")
    report = json.loads(saved.read_text())
    for entry in report["benchmarks"]:
        entry["stats"]["mean"] /= 1000
    saved.write_text(json.dumps(report))
    result = timed.check("--benchmark-compare", "--benchmark-compare-fail=mean:50%")
    assert "Performance has regressed" in result.stderr.str() + result.stdout.str()


@pytest.mark.skipif(importlib.util.find_spec("pygal") is None, reason="histograms need pygal")
def test_histogram(timed):
    # In a process of its own: pygal changes how plugins are found, where it is imported a second time.
    timed.subprocess("--benchmark-histogram=picture")
    assert list(timed.path.glob("picture*.svg"))


def test_the_command_of_pytest_benchmark_reads_the_entries(timed):
    """Its table, its CSV and its histogram, from what two runs saved."""
    for name in ("before", "after"):
        timed.check(f"--benchmark-save={name}")
    command = [sys.executable, "-m", "pytest_benchmark", "compare", "--csv=runs.csv", "--columns=median"]
    done = subprocess.run(command, cwd=timed.path, capture_output=True, text=True, check=True)
    for item in ITEMS:
        assert f"benchmark '{item}': 4 tests" in done.stdout
    with (timed.path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [row["name"].rpartition("::")[2] for row in rows]
    assert all(names.count(f"{item.rpartition('::')[2]}[{side}]") == 2 for item in ITEMS for side in SIDES)
    assert all(float(row["median"]) > 0 for row in rows)
    assert {row["param:side"] for row in rows} == set(SIDES)


def test_group_by_side(timed):
    result = timed.check("--benchmark-group-by=param:side")
    result.stdout.fnmatch_lines(["*benchmark 'side=compiled': 2 tests*", "*benchmark 'side=eager': 2 tests*"])


@pytest.mark.parametrize("flag", ["--benchmark-disable", "--benchmark-skip"])
def test_no_timing_where_it_is_switched_off(timed, flag):
    result = timed.check(flag)
    assert verdicts(result) == dict.fromkeys(ITEMS, "equal")
    assert "speedup" not in table(result)[ITEM]
    result.stdout.fnmatch_lines([f"all 2 cases: not timed: {flag}"])
    result.stdout.no_fnmatch_line("*eager timed against itself*")


def test_only_benchmarks(timed):
    timed.write(AGENT.format(more="") + "\ndef test_ordinary(): pass\n")
    result, found = entries(timed, "--benchmark-only")
    result.assert_outcomes(passed=2, skipped=1)
    assert len(found) == 4


def test_min_rounds(timed):
    _, found = entries(timed, "--benchmark-min-rounds=23")
    assert all(entry["stats"]["rounds"] >= 23 for entry in found)


@pytest.mark.parametrize(
    ("ours", "theirs", "seconds"),
    [
        ((), (), 5.0),
        ((), ("--benchmark-max-time=0.25",), 0.5),
        (("--compile-benchmark-seconds=0.125",), ("--benchmark-max-time=0.25",), 0.125),
    ],
)
def test_max_time_is_for_each_side(timed, monkeypatch, ours, theirs, seconds):
    from pytest_torchcompile.timing import speed

    seen = []

    def time_pair(pair, options, *, seconds, control=False, **_):
        seen.append(seconds)
        return Speedup(ratio=1.0, interval=(1.0, 1.0), quiet=1.0, eager_s=(1.0,), compiled_s=(1.0,), batch=4)

    monkeypatch.setattr(speed, "time_pair", time_pair)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--compile-phases=rollout,update")
    timed.check(*ours, *theirs)
    assert seen == [min(seconds, 2.0), seconds, seconds]


def test_the_timer(timed):
    _, found = entries(timed, "--benchmark-timer=time.process_time")
    assert {entry["options"]["timer"] for entry in found} == {"process_time"}


# --- without it -----------------------------------------------------------------------------------


def test_without_pytest_benchmark_nothing_is_recorded_and_that_is_said(timed):
    result = timed.check("-p", "no:benchmark")
    assert verdicts(result) == dict.fromkeys(ITEMS, "equal")
    assert "speedup" in table(result)[ITEM]
    (header,) = [line for line in result.outlines if line.startswith("compile check: ")]
    assert "speedups are measured but not recorded: pytest-benchmark is not active" in header.split("; ")


def test_under_xdist_cases_are_timed_and_recorded_by_the_controller(timed):
    result = timed.subprocess("-n2", "--benchmark-json=benchmarks.json")
    assert verdicts(result) == dict.fromkeys(ITEMS, "equal")
    assert "speedup" in table(result)[ITEM]
    found = json.loads((timed.path / "benchmarks.json").read_text())["benchmarks"]
    assert sorted(entry["fullname"] for entry in found) == sorted(
        f"{item}[{side}]" for item in ITEMS for side in ("eager", "compiled")
    )
    for entry in found:
        assert entry["stats"]["rounds"] == len(entry["stats"]["data"]) >= 5
        assert entry["options"]["timer"] == "perf_counter"
        assert entry["extra_info"]["verdict"] == "equal"
        assert entry["extra_info"]["host"] == platform.node()
    assert f"benchmark '{ITEM}': 2 tests" in result.stdout.str()


def test_under_xdist_benchmark_disable_is_still_that(timed):
    result = timed.subprocess("-n1", "--benchmark-disable")
    result.stdout.fnmatch_lines(["all 2 cases: not timed: --benchmark-disable"])


# --- min_speedup ----------------------------------------------------------------------------------


def test_less_than_min_speedup_fails(timed):
    timed.write(AGENT.format(more=', phases="rollout"'))
    result = timed.check("--compile-min-speedup=1000")
    result.assert_outcomes(failed=1)
    text = failure(result)
    assert text.startswith("too slow: get_value, rollout phase, backend eager\n\n  speedup   ")
    assert "all of it below min_speedup=1000" in flat(text)
    assert "calls each with batch 4 on" in flat(text)
    assert "--compile-min-speedup=1000" in text.splitlines()[-1]
    assert verdicts(result) == {ITEM: "equal, too slow"}


def test_more_than_min_speedup_passes(timed):
    timed.check("--compile-min-speedup=0.0001").assert_outcomes(passed=2)


CHECKED_BY_FIXTURE = """
def test_agent(compile_check):
    compile_check(Agent, observation=Box((2,)), methods="get_value", phases="rollout"{more})
"""
CHECKED = {"marker": AGENT.replace("{more}", ", phases='rollout'{more}"), "fixture": CHECKED_BY_FIXTURE}


@pytest.mark.parametrize("by", CHECKED)
def test_a_case_is_timed_in_a_turn_of_its_own(timed, monkeypatch, by):
    """Under pytest-xdist no other test runs meanwhile; here the turn is only watched."""
    from pytest_torchcompile.plugin import turns
    from pytest_torchcompile.timing import speed

    turn, calls = [], []
    time_pair = speed.time_pair

    @contextlib.contextmanager
    def alone(config):
        turn.append(config)
        yield
        turn.pop()

    def watched(*args, **kwargs):
        calls.append(len(turn))
        return time_pair(*args, **kwargs)

    monkeypatch.setattr(turns, "alone", alone)
    monkeypatch.setattr(speed, "time_pair", watched)
    timed.write(CHECKED[by].format(more=""))
    timed.check().assert_outcomes(passed=1)
    assert calls == [1, 1], "eager against itself, then against compiled"


@pytest.mark.parametrize("by", CHECKED)
def test_a_case_that_is_not_timed_says_why(timed, by):
    timed.write(CHECKED[by].format(more=", min_speedup=1000"))
    result = timed.check("--benchmark-disable")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*not timed: --benchmark-disable"])


def test_min_speedup_of_a_marker_over_the_projects(timed):
    timed.write(AGENT.format(more=', phases="rollout", min_speedup=0.0001'))
    timed.check("--compile-min-speedup=1000").assert_outcomes(passed=1)


# --- the fixture ----------------------------------------------------------------------------------

BY_HAND = """
def test_speed(record_speedup):
    layer = torch.nn.Linear(2, 2)
    speedup = record_speedup(layer, torch.compile(layer, backend="eager"), torch.ones(3, 2){more})
    assert speedup.interval[0] <= speedup.ratio
"""


def test_record_speedup(timed):
    timed.write(BY_HAND.format(more=""))
    result, found = entries(timed)
    result.assert_outcomes(passed=1)
    assert [entry["name"] for entry in found] == ["test_speed[eager]", "test_speed[compiled]"]
    assert {"speedup", "conclusion", "threads", "torch"} <= found[0]["extra_info"].keys()


def test_record_speedup_without_compile_check(timed):
    timed.write(BY_HAND.format(more=""))
    timed.pytest().assert_outcomes(passed=1)


def test_two_in_one_test(timed):
    timed.write(
        """
        def test_speed(record_speedup):
            for _ in range(2): record_speedup(torch.sin, torch.sin, torch.ones(3))
        """
    )
    _, found = entries(timed)
    names = ["test_speed[eager]", "test_speed[compiled]", "test_speed#2[eager]", "test_speed#2[compiled]"]
    assert [entry["name"] for entry in found] == names


def test_record_speedup_below_min_speedup_fails(timed):
    timed.write(BY_HAND.format(more=", min_speedup=1000"))
    result = timed.pytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*too slow: *, min_speedup=1000"])


@pytest.mark.parametrize("flag", ["--benchmark-disable", "--benchmark-skip"])
def test_record_speedup_where_timing_is_off(timed, flag):
    timed.write(BY_HAND.format(more=""))
    result = timed.pytest(flag, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED * not timed: {flag}"])


@pytest.mark.parametrize("more", ["", ", seconds=0.05"])
def test_record_speedup_with_no_seconds_to_time(timed, more):
    """As everywhere, an argument of the call goes before the project's option."""
    timed.write(BY_HAND.format(more=more))
    result = timed.pytest("--compile-benchmark-seconds=0", "-rs")
    if more:
        result.assert_outcomes(passed=1)
    else:
        result.assert_outcomes(skipped=1)
        result.stdout.fnmatch_lines(["SKIPPED * not timed: benchmark_seconds=0"])


def test_record_speedup_among_only_benchmarks(timed):
    timed.write(BY_HAND.format(more=""))
    timed.pytest("--benchmark-only").assert_outcomes(passed=1)


# --- names that are not public --------------------------------------------------------------------


def test_the_private_names_of_pytest_benchmark_are_there(timed):
    """If this fails with a new pytest-benchmark, fix `plugin/benchmark.py`."""
    timed.write(
        """
        def test_names(request):
            from pytest_benchmark.fixture import BenchmarkFixture
            session = request.config._benchmarksession
            assert isinstance(session.benchmarks, list)
            assert {"max_time", "min_rounds", "timer"} <= session.options.keys()
            assert callable(session.options["timer"].target)
            assert (session.skip, session.disabled, session.only) == (False, False, False)
            assert request.config.getoption("benchmark_max_time") == "1.0"
            assert callable(BenchmarkFixture._make_stats)
        """
    )
    timed.pytest().assert_outcomes(passed=1)
