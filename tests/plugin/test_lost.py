"""No case is lost: however it ends, it has a row in every report and is counted."""

import json
import tempfile
import xml.etree.ElementTree as ET

import pytest

from pytest_torchcompile.plugin.lost import result_of_process

from .project import failure, flat, verdicts

MARKED = '@pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")'
REPORTS = ("--compile-report=report.json", "--compile-report=report.md", "--junitxml=report.xml")

# what a policy does when it is called: its verdict, and what the reason says
CALLED = {
    "raise SystemExit(3)": ("eager failed", "SystemExit: 3 (at test_policy.py:"),
    "raise GeneratorExit": ("eager failed", "GeneratorExit (at test_policy.py:"),
    "raise MemoryError('no room')": ("crashed", "MemoryError: no room"),
    "pytest.skip('no GPU')": ("skipped", "no GPU"),
    "pytest.fail('no weights')": ("eager failed", "no weights"),
    "pytest.exit('enough')": ("eager failed", "Exit: enough"),
    "pytest.xfail('known')": ("skipped", "expected to fail: known"),
}
MADE = {
    **{call: told for call, told in CALLED.items() if "exit(" not in call},
    "raise ValueError('no weights')": ("eager failed", "ValueError: no weights (at test_policy.py:"),
    "import not_there": ("eager failed", "ModuleNotFoundError: No module named 'not_there'"),
}


def policy(call="return super().forward(x)", make="return Ending()"):
    return f"class Ending(Agent):\n    def forward(self, x): {call}\n\n{MARKED}\ndef test_ending(): {make}\n"


SOUND = f"\n{MARKED}\ndef test_sound(): return Agent()\n"
ENDING, SOUND_ID = (f"test_policy.py::test_{name}[forward-rollout]" for name in ("ending", "sound"))


def assert_told(project, result, verdict, reason):
    """The case is a row everywhere, beside one that is sound."""
    assert verdicts(result) == {ENDING: verdict, SOUND_ID: "equal"}
    assert any(line.startswith("2 cases: 1 equal") and f"1 {verdict}" in line for line in result.outlines)
    cases = {case["id"]: case for case in json.loads((project.path / "report.json").read_text())["cases"]}
    assert cases.keys() == {ENDING, SOUND_ID}
    assert cases[ENDING]["verdict"] == verdict
    assert reason in cases[ENDING]["reason"]
    assert verdict in (project.path / "report.md").read_text()
    values = {p.get("value") for p in ET.parse(project.path / "report.xml").iter("property")}
    assert {verdict, "equal"} <= values


@pytest.mark.parametrize("call", CALLED)
def test_whatever_a_call_raises_is_a_row(project, call):
    project.write(policy(call=call) + SOUND)
    assert_told(project, project.check(*REPORTS), *CALLED[call])


@pytest.mark.parametrize("make", MADE)
def test_whatever_a_factory_raises_is_a_row(project, make):
    project.write(policy(make=make) + SOUND)
    assert_told(project, project.check(*REPORTS), *MADE[make])


@pytest.mark.parametrize("how", ["raise OSError('no disk')", "pytest.skip('no disk')"])
def test_a_fixture_that_ends_it_leaves_a_row(project, how):
    fixture = f"@pytest.fixture\ndef disk(): {how}\n\n"
    project.write(fixture + policy().replace("test_ending()", "test_ending(disk)") + SOUND)
    verdict = "skipped" if "skip" in how else "eager failed"
    assert_told(project, project.check(*REPORTS), verdict, "no disk")


def test_a_mark_that_skips_it_leaves_a_row(project):
    project.write(policy().replace(MARKED, f"@pytest.mark.skip(reason='slow')\n{MARKED}") + SOUND)
    assert_told(project, project.check(*REPORTS), "skipped", "slow")


def test_a_defect_of_ours_is_a_row_that_says_so(project, monkeypatch):
    from pytest_torchcompile.checking.fixed_examples import FixedExamples

    monkeypatch.setattr(FixedExamples, "_try_eager", None)
    project.write(policy())
    result = project.check("--compile-report=report.json")
    assert list(verdicts(result).values()) == ["crashed"]
    (case,) = json.loads((project.path / "report.json").read_text())["cases"]
    assert case["reason"].startswith("a defect of pytest-torchcompile: TypeError: ")
    assert "fixed_examples.py:" in case["reason"]


def test_what_ends_the_session_is_a_row(project):
    project.write(SOUND + policy(call="raise KeyboardInterrupt"))
    result = project.check("--compile-report=report.json", no_reraise_ctrlc=True)
    assert result.ret != 0
    assert verdicts(result) == {ENDING: "crashed", SOUND_ID: "equal"}


def test_a_case_that_is_skipped_got_worse_than_a_baseline(project):
    project.write(policy() + SOUND)
    project.check("--compile-report=base.json").assert_outcomes(passed=2)
    project.write(policy(make="pytest.skip('no GPU')") + SOUND)
    project.check("--compile-baseline=base.json").assert_outcomes(passed=1, skipped=1)
    result = project.check("--compile-baseline=base.json", "--compile-fail-on=verdict")
    result.assert_outcomes(passed=1, failed=1)
    assert "verdict equal -> skipped" in failure(result)


def test_what_a_policy_says_is_obeyed_by_no_terminal(project):
    project.write(policy(make='raise ValueError("\\x1b[2J\\u202e\\n2 cases: 2 equal")'))
    result = project.check("--color=no")
    text = result.stdout.str()
    assert not {"\x1b", "\u202e"} & set(text)
    assert "\\x1b[2J" in text
    assert "2 cases: 2 equal" not in result.outlines


# --- processes ------------------------------------------------------------------------------------

CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
QUIET = "import os; os._exit(0)"
OURS = ("pytest-torchcompile-", "compile-isolate-")


IN_CALL = policy(call=CRASH)
IN_BACKEND = f"""
def dying(gm, example_inputs):
    {QUIET}

{MARKED[:-1]}, backend=dying)
def test_ending(): return Agent()
"""


@pytest.mark.parametrize(
    ("dying", "reason"),
    [
        (IN_CALL, "killed by SIGSEGV (last step: the first eager call)"),
        (
            IN_BACKEND,
            "ended with status 0 and without a result (last step: example 1, compiled call, compiling)",
        ),
    ],
    ids=["by signal in eager", "by status 0 while compiling"],
)
@pytest.mark.parametrize("how", ["-n1", pytest.param("--compile-isolate", marks=pytest.mark.thorough)])
def test_a_process_that_died_is_a_row(project, monkeypatch, tmp_path_factory, how, dying, reason):
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    project.write(dying + SOUND)
    run = project.subprocess if how == "-n1" else project.check
    result = run(how, *REPORTS[:2], "--junitxml=report.xml")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(result) == {ENDING: "crashed", SOUND_ID: "equal"}
    cases = {case["id"]: case for case in json.loads((project.path / "report.json").read_text())["cases"]}
    assert reason in cases[ENDING]["reason"]
    assert [path.name for path in folder.iterdir() if path.name.startswith(OURS)] == []
    assert "crashed: forward, rollout phase" in (project.path / "report.xml").read_text()


def test_a_test_that_is_no_case_is_none_whatever_its_id(project):
    project.write(
        f"""
@pytest.mark.parametrize("where", ["postgres-update"])
def test_plain(where): {CRASH}

@pytest.fixture
def dying(): {CRASH}

{MARKED}
def test_ending(dying): return Agent()
"""
    )
    result = project.subprocess("-n1", "--compile-report=report.json")
    result.assert_outcomes(failed=2)
    assert verdicts(result) == {ENDING: "crashed"}
    (case,) = json.loads((project.path / "report.json").read_text())["cases"]
    assert "(last step: before the check)" in case["reason"]


@pytest.mark.parametrize(
    ("nodeid", "step", "is_case"),
    [(ENDING, None, True), (ENDING, "", False), ("test_policy.py::test_a", None, False)],
)
def test_of_a_process_that_wrote_no_step_the_id_decides(nodeid, step, is_case):
    """As of one on another host, whose file can't be read."""
    assert (result_of_process(nodeid, None, step) is not None) == is_case


@pytest.mark.parametrize(
    ("status", "step", "cause"),
    [
        (-9, "compiling", "often the system does this when memory runs out"),
        (-11, "compiling", "compiled code, or the policy itself, ended it"),
        (2, "compiling", "compiled code, or the policy itself, ended it"),
        (2, None, "pytest did not reach the case there"),
        (-11, None, "compiled code, or the policy itself, ended it"),
        (None, None, "compiled code, or the policy itself, ended it"),
    ],
)
def test_the_reason_names_what_may_have_ended_the_process(status, step, cause):
    assert result_of_process(ENDING, status, step).reason.endswith(f": {cause}")


def test_a_process_of_its_own_that_does_not_reach_its_case_does_not_blame_the_policy(project):
    once = "import pathlib\nif pathlib.Path('read').exists(): raise ImportError('no second time')\n"
    project.write(once + 'note("read")\n' + policy())
    result = project.check("--compile-isolate")
    result.assert_outcomes(failed=1)
    assert "and without a result: pytest did not reach the case there" in flat(failure(result))
    assert "ImportError: no second time" in failure(result)


@pytest.mark.parametrize("arguments", [(), ("--lf", "--lfnf=none"), ("-k", "ending")], ids=" ".join)
def test_a_process_of_its_own_runs_its_case_whatever_narrows_the_session(project, arguments):
    call = "import os; os.environ.clear(); return super().forward(x)"
    project.write(policy(call=call))
    if arguments[:1] == ("--lf",):
        # The session has one that failed, and the process has a cache of its own.
        cache = project.path / ".pytest_cache" / "v" / "cache"
        cache.mkdir(parents=True)
        (cache / "lastfailed").write_text(json.dumps({ENDING: True}))
    result = project.check("--compile-isolate", *arguments)
    result.assert_outcomes(passed=1)
    assert verdicts(result) == {ENDING: "equal"}


def test_a_skip_in_a_process_of_its_own_is_one(project):
    project.write(policy(make="pytest.skip('no GPU')"))
    result = project.check("--compile-isolate", "-rs")
    result.assert_outcomes(skipped=1)
    assert verdicts(result) == {ENDING: "skipped"}
    result.stdout.fnmatch_lines(["SKIPPED*no GPU"])


KEEPING = f"""
import logging

@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    (folder / "file").touch()
    return folder

def test_before(kept): logging.getLogger().warning("before")

{MARKED}
def test_agent(tmp_path):
    note("folders", str(tmp_path))
    return Agent()

def test_after(kept):
    assert (kept / "file").exists()
    logging.getLogger().warning("after")
"""


@pytest.mark.parametrize("without", [(), ("-p", "no:logging", "-p", "no:junitxml")], ids=["all", "some"])
def test_a_process_of_its_own_leaves_the_files_of_the_session_alone(project, without):
    project.write(KEEPING)
    files = () if without else ("--log-file=log.txt", "--junit-xml=report.xml")
    result = project.check("--compile-isolate", "--basetemp=base", *files, *without)
    result.assert_outcomes(passed=3)
    # It makes the policy twice.
    assert len(set(project.lines("folders"))) == 1
    assert not any(str(project.path / "base") in folder for folder in project.lines("folders"))
    if files:
        assert [line.split()[-1] for line in project.lines("log.txt")] == ["before", "after"]
        names = [case.get("name") for case in ET.parse(project.path / "report.xml").iter("testcase")]
        assert len(names) == 3


def test_coverage_adds_up_over_processes_of_their_own(project):
    project.write(
        "".join(
            f"class {name}(Agent):\n"
            "    def forward(self, x):\n"
            "        return self.critic(x)\n\n"
            f"{MARKED}\n"
            f"def test_{name}():\n"
            f"    return {name}()\n\n"
            for name in ("One", "Other")
        )
    )
    result = project.subprocess("--compile-isolate", "--cov=test_policy", "--cov-report=term-missing")
    result.assert_outcomes(passed=2)
    result.stdout.re_match_lines([r"test_policy.py +\d+ +0 +100%"])


# --- compiled code that ends the process, where eager returns ---------------------------------------

EXITING = """
import sys

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x
    @staticmethod
    def backward(ctx, gradient): sys.exit(3)

def in_backward(gm, example_inputs):
    return lambda *args: [Backward.apply(t) if t.requires_grad else t for t in gm(*args)]

def in_forward(gm, example_inputs):
    def run(*args): sys.exit(3)
    return run

def stopping(gm, example_inputs):
    def run(*args): raise GeneratorExit
    return run

def while_compiling(gm, example_inputs):
    sys.exit(3)

@pytest.mark.compiled_equivalence(observation=Box((2,)), phases={phase!r}, backend={backend})
def test_ending(): return Agent()
"""


@pytest.mark.parametrize(
    ("backend", "phase", "raised"),
    [
        ("in_forward", "rollout", "SystemExit: 3"),
        ("in_forward", "lifecycle", "SystemExit: 3"),
        ("in_backward", "update", "SystemExit: 3"),
        ("in_backward", "lifecycle", "SystemExit: 3"),
        ("stopping", "update", "GeneratorExit"),
    ],
)
def test_an_exit_of_compiled_code_alone_differs(project, backend, phase, raised):
    project.write(EXITING.format(backend=backend, phase=phase) + SOUND)
    result = project.check("--compile-explain-seconds=10")
    ending = ENDING.replace("rollout", phase)
    assert verdicts(result) == {ending: "differs", SOUND_ID: "equal"}
    assert f"compiled    raises {raised}" in failure(result)


def test_an_exit_while_compiling_is_a_compile_failure(project):
    project.write(EXITING.format(backend="while_compiling", phase="rollout"))
    result = project.check("-rs")
    assert verdicts(result) == {ENDING: "compile failed"}
    result.stdout.fnmatch_lines(["SKIPPED*compile failed: forward-rollout: SystemExit: 3*"])


def test_an_exit_that_comes_of_asking_whether_it_is_compiled_differs(project):
    call = "sys.exit(3) if torch.compiler.is_compiling() else None; return super().forward(x)"
    project.write("import sys\n" + policy(call=call))
    result = project.check("--compile-explain-seconds=120")
    assert verdicts(result) == {ENDING: "differs"}
    assert "which reproduces the difference" in failure(result)
