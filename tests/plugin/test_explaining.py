"""What a failing test says about the compiler, the script that it writes, and budgets for compiling."""

import subprocess
import sys

import pytest

from .project import failure, failures, flat, table, verdicts

DISTRACTED = """
    class Distracted(Agent):
        def get_value(self, x):
            return self.critic(x) + (1 if torch.compiler.is_compiling() else 0)

    @pytest.mark.compiled_equivalence(observation=Box((2,)), methods="get_value", phases="rollout")
    def test_agent(): return Distracted()
"""

EXPLAINED = ("--compile-explain-seconds=60", "--compile-backend=aot_eager")


def test_stage_and_place(project):
    project.write(DISTRACTED)
    result = project.check(*EXPLAINED)
    result.assert_outcomes(failed=1)
    text = failure(result)
    assert "  stage     dynamo\n" in text
    asked = "where the policy's own code asks whether it is being compiled"
    assert f"  place     test_policy.py:4, {asked}\n" in text


def test_no_time_no_words(project):
    project.write(DISTRACTED)
    text = failure(project.check())
    assert "stage" not in text
    assert "place" not in text


def test_the_script_lies_in_pytests_root(project, monkeypatch):
    """It works from any directory, and the message has the command that runs it."""
    (project.path / "pytest.ini").write_text("[pytest]\n")
    project.write(DISTRACTED)
    (project.path / "below").mkdir()
    monkeypatch.chdir(project.path / "below")
    text = failure(project.check(*EXPLAINED, "../test_policy.py"))
    folder = "../.compile-failures/test_policy.py-test_agent-get_value-rollout"
    assert f"  proof     python {folder}/repro.py, which reproduces the difference\n" in text
    done = subprocess.run([sys.executable, f"{folder}/repro.py"], check=False, capture_output=True)
    assert done.returncode == 1


@pytest.mark.parametrize(
    "factory",
    [
        pytest.param("test_agent", marks=pytest.mark.thorough),
        pytest.param("TestAgent.test_agent", marks=pytest.mark.thorough),
        "test_agent[3]",
    ],
)
def test_a_script_that_imports_the_factory(project, factory):
    """A graph does not show how dynamo handles Python code."""
    source = DISTRACTED.replace("def test_agent()", "def test_agent(width)") if "[" in factory else DISTRACTED
    source = source.replace("    @pytest", '    @pytest.mark.parametrize("width", [3])\n    @pytest')
    if "." in factory:
        source = DISTRACTED.replace("    @pytest", "    class TestAgent:\n      @pytest")
        source = source.replace("    def test_agent()", "      def test_agent(self)")
    project.write(source if factory != "test_agent" else DISTRACTED)
    result = project.check(*EXPLAINED)
    result.assert_outcomes(failed=1)
    (script,) = (project.pytester.path / ".compile-failures").glob("*/repro.py")
    assert f"/{script.parent.name}/repro.py, which reproduces the difference\n" in failure(result)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "compiled differs from eager"


def test_a_script_can_not_have_a_fixture(project):
    project.write(
        DISTRACTED.replace("def test_agent()", "def test_agent(agent)")
        + """
    @pytest.fixture
    def agent(): return Distracted()
    """
    )
    text = failure(project.check(*EXPLAINED))
    assert (
        "a script could not be written: test_agent is given agent, a Distracted that can't be written in a script"
        in " ".join(text.split())
    )


def test_no_script_where_none_is_wanted(project):
    project.write(DISTRACTED)
    text = failure(project.check(*EXPLAINED, "--compile-proof=none"))
    assert "  stage     dynamo\n" in text
    assert "  proof " not in text
    assert not (project.path / ".compile-failures").exists()


def test_what_passes_leaves_nothing_behind(project):
    project.write(DISTRACTED.replace("1 if torch.compiler.is_compiling() else 0", "0"))
    project.check(*EXPLAINED).assert_outcomes(passed=1)
    assert not (project.path / ".compile-failures").exists()


BREAKING = """
    class Breaking(Agent):
        def get_value(self, x):
            torch._dynamo.graph_break()
            return self.critic(x)

    @pytest.mark.compiled_equivalence(
        observation=Box((2,)), methods=["get_value", "get_logits"], phases="rollout"
    )
    def test_agent(): return Breaking()
"""


def test_a_budget_fails_what_exceeds_it(project):
    project.write(BREAKING)
    result = project.check("--compile-max-graph-breaks=0")
    result.assert_outcomes(passed=1, failed=1)
    text = failure(result)
    assert text.startswith("over budget: get_value, rollout phase, backend eager\n")
    assert "  budget    1 graph break, max_graph_breaks=0 (the command line)\n" in text
    assert "  break     Call to `torch._dynamo.graph_break()` (at test_policy.py:" in text
    assert {row["verdict"] for row in table(result).values()} == {"equal", "equal, over budget"}


def test_a_compile_that_hangs_does_not_end_the_session(project):
    project.write(
        """
        def hanging(graph, inputs):
            import threading
            threading.Event().wait()

        @pytest.mark.compiled_equivalence(observation=Box((2,)), backend=hanging, phases="rollout")
        def test_hanging(): return Agent()

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        def test_sound(): return Agent()
        """
    )
    result = project.check("--compile-max-seconds=0.5", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*CompileTimedOut: a compile was stopped after max_seconds=0.5*"])


CRASHING = """
    def crashing(graph, inputs):
        import os, signal
        return lambda *args: os.kill(os.getpid(), signal.SIGSEGV)

    @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
    def test_sound(): return Agent()

    @pytest.mark.compiled_equivalence(observation=Box((2,)), backend=crashing, phases="rollout")
    def test_crashing(): return Agent()

    @pytest.mark.compiled_equivalence(observation=Box((2,)), backend=shifted, phases="rollout")
    def test_wrong(): return Agent()
"""


def test_a_crash_under_xdist_is_told_of_its_case(project):
    """A segmentation fault takes the worker with it; the others go on."""
    project.write(CRASHING)
    result = project.subprocess("-n1")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["*worker 'gw0' crashed while running 'test_policy.py::test_crashing[[]forward-rollout[]]'*"]
    )


def test_a_crash_in_a_process_of_its_own(project):
    """The session continues, and the other cases are reported as usual, with their rows."""
    project.write(CRASHING)
    result = project.check("--compile-isolate", "--junitxml=report.xml", "test_policy.py")
    result.assert_outcomes(passed=1, failed=2)
    crashed, wrong = failures(result).values()
    killed = "the process of this case was killed by SIGSEGV (last step: example 1, compiled call)"
    assert f" {killed}: compiled code, or the policy" in flat(crashed)
    assert "test_policy.py" in crashed
    assert wrong.startswith("compiled differs from eager: forward, rollout phase, backend shifted\n")
    assert "--compile-isolate" in wrong
    assert verdicts(result) == {
        "test_policy.py::test_crashing[forward-rollout]": "crashed",
        "test_policy.py::test_sound[forward-rollout]": "equal",
        "test_policy.py::test_wrong[forward-rollout]": "differs",
    }
    assert "test_crashing" in (project.path / "report.xml").read_text()


def test_each_case_has_a_process(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), backend=recorded)
        def test_agent(pytestconfig):
            import os
            note("processes", str(os.getpid()))
            return Agent()
        """
    )
    project.check("--compile-isolate", "-k", "test_agent", "-p", "no:cacheprovider").assert_outcomes(passed=2)
    assert len(set(project.lines("processes"))) == 2


def test_what_goes_wrong_before_the_check(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", isolate=True)
        def test_agent(): raise RuntimeError("no weights")
        """
    )
    result = project.check()
    result.assert_outcomes(failed=1)
    assert "the factory raised RuntimeError: no weights" in failure(result)
    assert list(verdicts(result).values()) == ["eager failed"]
