"""Reports of a session: every case once, whatever runs it, and every test without a result."""

import json
import os
import socket
import subprocess
import sys

import pytest

from .project import verdicts

TESTS = """
    pytestmark = pytest.mark.compiled_equivalence(
        observation=Box((2,)), phases="rollout", methods=["get_value", "get_logits"]
    )

    def test_good(): return Agent()

    @pytest.mark.compiled_equivalence(backend=shifted)
    def test_wrong(): return Agent()

    @pytest.mark.xfail(strict=True)
    @pytest.mark.compiled_equivalence(backend=shifted)
    def test_known(): return Agent()

    @pytest.mark.compiled_equivalence(backend=broken)
    def test_broken(): return Agent()

    def test_raises(): raise ValueError("no weights")
"""
BY_HAND = """
    def test_by_hand(compile_check):
        compile_check(Agent, observation=Box((2,)), methods="get_value")
        compile_check(Agent, observation=Box((2,)), methods="get_value")

    @pytest.fixture
    def checked(compile_check):
        compile_check(Agent, observation=Box((2,)), methods="get_logits", phases="rollout")
        yield
        compile_check(Agent, observation=Box((2,)), methods="get_logits", phases="update")

    def test_in_a_fixture(checked): pass
"""
OUTCOMES = {
    f"test_policy.py::test_{name}[{method}-rollout]": (verdict, outcome)
    for name, verdict, outcome in (
        ("good", "equal", "passed"),
        ("wrong", "differs", "failed"),
        ("known", "differs", "xfailed"),
        ("broken", "compile failed", "skipped"),
        ("raises", "eager failed", "failed"),
    )
    for method in ("get_value", "get_logits")
}
HAND = {
    f"test_hand.py::{test} ({case})": ("equal", "passed")
    for test, cases in {
        "test_by_hand": (
            "get_value-rollout",
            "get_value-update",
            "get_value-rollout#2",
            "get_value-update#2",
        ),
        "test_in_a_fixture": ("get_logits-rollout", "get_logits-update"),
    }.items()
    for case in cases
}
REPORT = "--compile-report=report.json"


@pytest.fixture
def written(project):
    """A project with every kind of outcome."""
    project.write(TESTS)
    project.write(BY_HAND, name="test_hand")
    return project


def report_of(project, name="report.json"):
    """The document that a run wrote."""
    return json.loads((project.path / name).read_text())


def outcomes(document):
    """Verdict and outcome of each case; a case that is there twice is an error."""
    found = {case["id"]: (case["verdict"], case["outcome"]) for case in document["cases"]}
    assert len(found) == len(document["cases"])
    return found


def assert_complete(project):
    document = report_of(project)
    assert outcomes(document) == OUTCOMES | HAND
    assert document["unchecked"] == []
    raised = [case for case in document["cases"] if case["verdict"] == "eager failed"]
    assert all("no weights" in case["message"] for case in raised)


def test_every_case_is_in_the_report_once(written):
    written.check(REPORT)
    assert_complete(written)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-n2",),
        pytest.param(("-n2", "--dist=loadgroup"), marks=pytest.mark.thorough),
        pytest.param(("-n2", "-p", "no:benchmark"), marks=pytest.mark.thorough),
        pytest.param(("-p", "no:benchmark"), marks=pytest.mark.thorough),
    ],
    ids=" ".join,
)
def test_every_case_is_in_the_report_once_whatever_runs_it(written, arguments):
    written.subprocess(REPORT, *arguments, "--junit-xml=junit.xml")
    assert_complete(written)
    properties = (written.path / "junit.xml").read_text()
    assert properties.count('.verdict"') == len(OUTCOMES | HAND)


def test_every_case_is_in_the_report_once_over_sockets(written):
    """Workers on other hosts are execnet sockets, which do not have the controller's working directory."""
    elsewhere = written.path / "elsewhere"
    elsewhere.mkdir()
    with socket_server(elsewhere) as first, socket_server(elsewhere) as second:
        addresses = [f"--tx=socket=127.0.0.1:{port}//chdir={written.path}" for port in (first, second)]
        written.subprocess(REPORT, "--dist=load", *addresses)
    assert_complete(written)
    assert sorted(path.name for path in elsewhere.iterdir()) == []


class socket_server:
    """A process that runs a worker for whoever connects first."""

    def __init__(self, directory):
        self._directory = directory

    def __enter__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # Unbuffered, or its first line would not arrive before it is done.
        command = [sys.executable, "-u", "-m", "execnet.script.socketserver", f"127.0.0.1:{port}", "--once"]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            command, cwd=self._directory, env=environment, stdout=subprocess.PIPE, text=True
        )
        self._process.stdout.readline()
        return port

    def __exit__(self, *_):
        self._process.terminate()
        self._process.communicate()


def test_of_a_test_that_is_rerun_the_last_run_counts(written):
    written.check(REPORT, "--reruns=2")
    assert_complete(written)


def test_a_test_that_passes_when_rerun_has_passed(project):
    project.write(
        """
        made = []

        def wrong_at_first(gm, example_inputs):
            return (shifted if len(made) <= 2 else recorded)(gm, example_inputs)

        @pytest.mark.compiled_equivalence(
            observation=Box((2,)), phases="rollout", methods="get_value", backend=wrong_at_first
        )
        def test_agent():
            made.append(1)
            return Agent()
        """
    )
    project.check(REPORT, "--reruns=2")
    assert outcomes(report_of(project)) == {
        "test_policy.py::test_agent[get_value-rollout]": ("equal", "passed")
    }


def test_a_crash_of_a_worker_is_in_the_report(project):
    project.write(
        """
        import os

        pytestmark = pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")

        def crashing(gm, example_inputs): os._exit(1)

        @pytest.mark.compiled_equivalence(backend=crashing)
        def test_crashes(): return Agent()

        def test_good(): return Agent()
        """
    )
    project.subprocess(REPORT, "-n1")
    document = report_of(project)
    assert outcomes(document) == {
        "test_policy.py::test_good[forward-rollout]": ("equal", "passed"),
        "test_policy.py::test_crashes[forward-rollout]": ("crashed", "error"),
    }
    (case,) = (case for case in document["cases"] if case["verdict"] == "crashed")
    assert "status 1" in case["reason"]


def test_a_teardown_that_fails_is_an_error_of_a_case_that_is_there(project):
    project.write(
        """
        @pytest.fixture
        def resource():
            yield
            raise OSError("gone")

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        def test_agent(resource): return Agent()
        """
    )
    project.check(REPORT)
    document = report_of(project)
    assert outcomes(document) == {"test_policy.py::test_agent[forward-rollout]": ("equal", "error")}
    assert "gone" in document["cases"][0]["message"]


def test_all_forms_are_of_the_same_results(written):
    forms = ("report.json", "report.md", "report.html", "report.ratios.json", "deep/er/report.md")
    result = written.subprocess(*(f"--compile-report={form}" for form in forms))
    assert f"compile report: {', '.join(forms)}" in result.outlines
    for form in forms:
        assert (written.path / form).stat().st_size > 0
    for form in ("report.md", "report.html"):
        text = (written.path / form).read_text()
        assert "16 cases: 8 equal, 4 differs, 2 compile failed, 2 eager failed" in text
    assert json.loads((written.path / "report.ratios.json").read_text()) == []
    assert (written.path / "deep/er/report.md").read_text() == (written.path / "report.md").read_text()


def test_a_lifecycle_is_a_case(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), methods="get_value", phases="lifecycle")
        def test_agent(): return Agent()
        """
    )
    project.subprocess(REPORT, "--compile-report=report.html")
    assert outcomes(report_of(project)) == {
        "test_policy.py::test_agent[get_value-lifecycle]": ("equal", "passed")
    }
    assert "test_agent[get_value-lifecycle]" in (project.path / "report.html").read_text()


def test_places_are_those_of_the_tests(written):
    written.check(REPORT)
    lines = (written.path / "test_policy.py").read_text().splitlines()
    for case in report_of(written)["cases"]:
        if case["file"] == "test_policy.py":
            name = case["nodeid"].partition("::")[2].partition("[")[0]
            # pytest's line of a decorated function is the first decorator's.
            assert any(f"def {name}(" in line for line in lines[case["line"] - 1 : case["line"] + 3])


def test_a_session_without_cases_has_an_empty_report(project):
    project.write("def test_ordinary(): pass")
    project.check(REPORT, "--compile-report=report.md")
    assert report_of(project)["cases"] == []
    assert "0 cases" in (project.path / "report.md").read_text()


@pytest.mark.parametrize(
    "arguments", [(), ("--compile-check", "--collect-only")], ids=["no check", "collected"]
)
def test_a_run_that_checks_nothing_leaves_an_old_report_alone(written, arguments):
    (written.path / "pytest.ini").write_text("[pytest]\ncompile_report = report.json\n")
    (written.path / "report.json").write_text("old")
    result = written.pytest(*arguments, "test_policy.py")
    assert (written.path / "report.json").read_text() == "old"
    result.stdout.no_fnmatch_line("compile report*")


def test_the_setting_of_the_project(written):
    (written.path / "pytest.ini").write_text("[pytest]\ncompile_report = a.json b.md\n")
    written.check()
    assert (written.path / "a.json").exists()
    assert (written.path / "b.md").exists()
    written.check("--compile-report=c.json")
    assert {path.name for path in written.path.glob("[a-c].*")} == {"a.json", "b.md", "c.json"}


def test_an_old_report_is_replaced_and_nothing_is_left_beside_it(written):
    (written.path / "report.json").write_text("old")
    before = {path.name for path in written.path.iterdir()}
    written.check(REPORT, "-p", "no:cacheprovider")
    assert_complete(written)
    ours = {path.name for path in written.path.iterdir()} - before
    assert ours <= {"__pycache__", ".benchmarks", "compiled"}


# --- what can't be written ------------------------------------------------------------------------


def usage_error(result):
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = filter(None, result.stderr.lines)
    return line


def test_an_unknown_suffix_is_told_before_anything_runs(written):
    assert usage_error(written.check("--compile-report=report.txt")) == (
        "ERROR: --compile-report got 'report.txt'; accepted: a file that ends in .ratios.json, .json, .md, .html"
    )
    (written.path / "pytest.ini").write_text("[pytest]\ncompile_report = report\n")
    assert usage_error(written.check()).startswith(
        "ERROR: compile_report in pytest.ini got 'report'; accepted"
    )


def test_a_missing_package_is_told_before_anything_runs(written, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert usage_error(written.check("--compile-report=report.html")) == (
        "ERROR: --compile-report got 'report.html', which needs jinja2, not installed: "
        'pip install "pytest-torchcompile[report]"'
    )


def test_a_file_that_cannot_be_written_is_an_error_at_the_end(written):
    (written.path / "report.json").mkdir()
    result = written.check(REPORT, "--compile-report=other.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["--compile-report can't write 'report.json': *"])
    result.stdout.fnmatch_lines(["16 cases: *"])
    assert outcomes(report_of(written, "other.json")) == OUTCOMES | HAND


def test_the_rerun_command_does_not_write_the_report_again(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", backend=shifted)
        def test_agent(): return Agent()
        """
    )
    result = project.check("--compile-report", "report.md", REPORT, "--compile-seed", "3")
    (line,) = (line for line in result.outlines if line.startswith("  rerun "))
    assert "report" not in line
    assert "--compile-seed 3" in line
    assert verdicts(result).keys() == {"test_policy.py::test_agent[forward-rollout]"}


# --- GitHub ---------------------------------------------------------------------------------------


@pytest.fixture
def on_github(written, monkeypatch):
    """The same project in a job of GitHub Actions."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(written.path.parent))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(written.path / "summary.md"))
    return written


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), marks=pytest.mark.thorough),
        pytest.param(("-q",), marks=pytest.mark.thorough),
        ("-n2",),
    ],
    ids=" ".join,
)
def test_on_github_failures_are_annotated_and_the_summary_is_written(on_github, arguments):
    result = on_github.subprocess(*arguments)
    commands = [line for line in result.outlines if line.startswith("::")]
    assert len(commands) == 4
    assert commands == sorted(commands, key=lambda line: "test_raises" in line)
    for command in commands:
        assert command.startswith(f"::error file={on_github.path.name}/test_policy.py,line=")
    summary = (on_github.path / "summary.md").read_text()
    assert "16 cases: 8 equal, 4 differs, 2 compile failed, 2 eager failed" in summary


def test_a_summary_that_cannot_be_written_is_told_and_fails_nothing(project, monkeypatch):
    """In a container of the job, the variable is set and the folder does not exist."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "not" / "there.md"))
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        def test_agent(): return Agent()
        """
    )
    result = project.check(REPORT)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["GITHUB_STEP_SUMMARY can't be written: *"])
    assert len(report_of(project)["cases"]) == 1


def test_on_github_a_run_without_cases_writes_nothing(project, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
    project.write("def test_ordinary(): assert False")
    result = project.check()
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("::*")
    assert not (project.path / "summary.md").exists()


def test_elsewhere_nothing_is_annotated(written, monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(written.path / "summary.md"))
    written.check().stdout.no_fnmatch_line("::error*")
    assert not (written.path / "summary.md").exists()
