"""Other plugins and pytest's own flags: a check works with them like any test."""

import importlib.util
import json
import re
import shlex

import pytest

from .project import failures, table, verdicts

THREE = """
    pytestmark = pytest.mark.compiled_equivalence(
        observation=Box((2,)), phases="rollout", methods=["get_value", "get_logits"]
    )

    def test_good(): return Agent()

    @pytest.mark.compiled_equivalence(backend=shifted)
    def test_wrong(): return Agent()

    @pytest.mark.compiled_equivalence(backend=broken)
    def test_broken(): return Agent()
"""
VERDICTS = {
    f"test_policy.py::test_{name}[{method}-rollout]": verdict
    for name, verdict in (("broken", "compile failed"), ("good", "equal"), ("wrong", "differs"))
    for method in ("get_logits", "get_value")
}


def without_seconds(result):
    """The table without what the machine's speed decides."""
    return {case: {h: c for h, c in row.items() if h != "seconds"} for case, row in table(result).items()}


def test_xdist_shows_the_same_rows(project):
    project.write(THREE)
    alone = project.check()
    parallel = project.subprocess("-n2", "-rs", "--junit-xml=report.xml")
    parallel.assert_outcomes(passed=2, failed=2, skipped=2)
    assert verdicts(parallel) == VERDICTS
    assert without_seconds(parallel) == without_seconds(alone)
    parallel.stdout.fnmatch_lines(["6 cases: 2 equal, 2 differs, 2 compile failed"])
    parallel.stdout.fnmatch_lines(["SKIPPED [[]1[]] test_policy.py:*: compile failed: get_value-rollout: *"])
    assert failures(parallel).keys() == {
        f"test_wrong[{method}-rollout]" for method in ("get_value", "get_logits")
    }
    assert (project.path / "report.xml").read_text().count(
        'name="compile_check.get_value-rollout.verdict"'
    ) == 3


@pytest.mark.skipif(importlib.util.find_spec("pytest_codspeed") is None, reason="needs pytest-codspeed")
def test_codspeed_measures_its_own_benchmarks_and_leaves_cases_alone(project):
    project.write(THREE)
    project.write("def test_theirs(benchmark): benchmark(lambda: None)", name="test_theirs")
    beside = project.subprocess()
    beside.assert_outcomes(passed=3, failed=2, skipped=2)
    assert verdicts(beside) == VERDICTS
    measured = project.subprocess("--codspeed", "--codspeed-max-time=0.1")
    measured.assert_outcomes(passed=1, deselected=6)
    measured.stdout.fnmatch_lines(["*test_theirs*"])


def test_reruns_do_not_double_rows(project):
    project.write(THREE)
    result = project.check("--reruns=2")
    result.assert_outcomes(passed=2, failed=2, skipped=2)
    assert result.parseoutcomes()["rerun"] == 4
    assert verdicts(result) == VERDICTS


def test_a_rerun_that_passes_has_the_row_of_the_last_run(project):
    project.write(
        """
        def wrong_at_first(gm, example_inputs):
            return (shifted if len(made) <= 2 else recorded)(gm, example_inputs)

        made = []

        @pytest.mark.compiled_equivalence(
            observation=Box((2,)), phases="rollout", methods="get_value", backend=wrong_at_first
        )
        def test_agent():
            made.append(1)
            return Agent()
        """
    )
    result = project.check("--reruns=2")
    assert result.parseoutcomes() == {"passed": 1, "rerun": 1}
    assert verdicts(result) == {"test_policy.py::test_agent[get_value-rollout]": "equal"}


def test_lf_runs_the_cases_that_failed(project):
    project.write(THREE)
    project.check("--cache-clear")
    result = project.check("--lf")
    result.assert_outcomes(failed=2)
    assert verdicts(result).keys() == {case for case, verdict in VERDICTS.items() if verdict == "differs"}


def test_lf_works_for_a_single_phase(project):
    project.write(
        """
        def wrong_in_update(gm, example_inputs):
            return (shifted if torch.is_grad_enabled() else recorded)(gm, example_inputs)

        @pytest.mark.compiled_equivalence(observation=Box((2,)), methods="get_value", backend=wrong_in_update)
        def test_agent(): return Agent()
        """
    )
    project.check("--cache-clear").assert_outcomes(passed=1, failed=1)
    result = project.check("--lf")
    assert verdicts(result) == {"test_policy.py::test_agent[get_value-update]": "differs"}


def test_x_stops_at_the_first_difference(project):
    project.write(THREE)
    result = project.check("-x", "-k", "wrong or broken")
    result.assert_outcomes(failed=1)
    assert verdicts(result) == {"test_policy.py::test_wrong[get_value-rollout]": "differs"}
    result.stdout.fnmatch_lines(["*stopping after 1 failures*"])


def test_x_does_not_stop_at_a_skip(project):
    project.write(THREE)
    project.check("-x", "-k", "broken").assert_outcomes(skipped=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-p", "no:cacheprovider"),
        ("-W", "error"),
        ("--strict-markers", "--strict-config"),
        ("-p", "no:capture"),
        ("-s",),
        ("-p", "no:logging"),
        ("-p", "no:warnings"),
        ("-p", "no:xdist", "-p", "no:benchmark", "-p", "no:rerunfailures", "-p", "no:timeout"),
        ("--import-mode=importlib", "-p", "no:unraisableexception"),
        ("--timeout=60",),
        ("--log-level=DEBUG",),
    ],
    ids=" ".join,
)
def test_flags_that_change_nothing(project, arguments):
    (project.path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    project.write(THREE.replace(', "get_logits"', ""))
    result = project.check(*arguments)
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    assert verdicts(result) == {case: v for case, v in VERDICTS.items() if "get_value" in case}


def test_the_table_needs_a_terminal_only(project):
    project.write(THREE)
    result = project.check("-p", "no:terminal", "-k", "good or broken")
    assert result.ret == pytest.ExitCode.OK
    assert verdicts(result) == {}


def test_random_order(project):
    project.write(THREE)
    result = project.check("-p", "randomly", "--randomly-seed=7")
    result.stdout.fnmatch_lines(["Using --randomly-seed=*"])
    result.assert_outcomes(passed=2, failed=2, skipped=2)
    assert verdicts(result) == VERDICTS
    assert without_seconds(result) == without_seconds(project.check())


def test_coverage_of_the_users_policy(project):
    """What runs inside compiled graphs was traced from Python lines, which count as covered."""
    project.pytester.makepyfile(
        policy="""
        from torch import nn

        class Policy(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(2, 1)

            def forward(self, x):
                return self.layer(x)
        """
    )
    project.write(
        """
        import policy

        @pytest.mark.compiled_equivalence(observation=Box((2,)))
        def test_agent(): return policy.Policy()
        """
    )
    result = project.subprocess("--cov=policy", "--cov-report=json")
    result.assert_outcomes(passed=2)
    assert set(verdicts(result).values()) == {"equal"}
    covered = json.loads((project.path / "coverage.json").read_text())
    assert covered["files"]["policy.py"]["summary"]["percent_covered"] == 100


def test_the_rerun_command_of_a_parametrized_item_is_quoted(project):
    project.write(
        """
        @pytest.mark.parametrize("name", ["it's", "a b"])
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", backend=shifted)
        def test_agent(name): return Agent()
        """
    )
    result = project.check()
    items = set()
    for text in failures(result).values():
        command = shlex.split(re.search(r"\n  rerun     (.*)", text)[1])
        assert command[:2] == ["pytest", "--compile-check"]
        items.add(command[-1])
    assert items == {
        "test_policy.py::test_agent[it's-forward-rollout]",
        "test_policy.py::test_agent[a b-forward-rollout]",
    }


def test_a_rerun_from_the_command_line_runs_the_one_case(project):
    project.write(THREE)
    result = project.check("test_policy.py::test_wrong[get_logits-rollout]")
    assert verdicts(result) == {"test_policy.py::test_wrong[get_logits-rollout]": "differs"}


def test_a_timeout_in_the_compiler_is_a_failure_of_its_own(project):
    """pytest-timeout raises at any point of the test; that is no compile failure."""
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", backend=slow)
        def test_agent(): return Agent()
        """
    )
    result = project.check("--timeout=0.5", "--timeout-method=signal")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Timeout (>0.5s) from pytest-timeout*"])


def test_benchmarks_of_other_tests_go_on(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        def test_agent(): return Agent()

        def test_speed(benchmark): benchmark(lambda: None)
        """
    )
    result = project.check("--benchmark-max-time=0.01", "--benchmark-min-rounds=1")
    result.assert_outcomes(passed=2)
    assert verdicts(result) == {"test_policy.py::test_agent[forward-rollout]": "equal"}


def test_unmarked_tests_are_not_touched(project):
    """pytest handles their warnings, return values, fixtures and failures."""
    project.write(
        """
        def test_passes(tmp_path): assert tmp_path.exists()

        def test_fails(): assert 1 == 2

        @pytest.mark.parametrize("n", [1, 2])
        def test_parametrized(n): assert n

        class TestClass:
            def test_method(self): pass
        """
    )
    for arguments in (("--compile-check",), ()):
        result = project.pytest(*arguments)
        result.assert_outcomes(passed=4, failed=1)
        result.stdout.fnmatch_lines(["E * assert 1 == 2"])
        result.stdout.no_fnmatch_line("*pytest_torchcompile*")
