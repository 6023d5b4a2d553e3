"""Models without a test file: ``--compile-model`` and tables in pyproject.toml."""

import shlex
import subprocess
import sys

import pytest

from pytest_torchcompile import Box, Discrete, LegalMask, State, UsageError
from pytest_torchcompile.specs.notation import read_spec

from .project import failure, failures, verdicts

TABLE = """
[tool.pytest-torchcompile.models.policy]
factory = "agents:Agent"
observation = "Box((2,))"
methods = ["get_value"]
phases = "rollout"
"""
ITEM = "pyproject.toml::policy[get_value-rollout]"
FLAGS = ("--compile-model=agents:Agent", "--compile-observation=2", "--compile-methods=get_value")
BY_FLAG = "agents:Agent[get_value-rollout]"


@pytest.fixture
def tables(project):
    """Writes pyproject.toml."""

    def write(*tables):
        (project.path / "pyproject.toml").write_text("\n".join(tables))

    return write


def ids(result):
    """What was collected with ``--collect-only -q``."""
    return [line for line in result.outlines if "[" in line and " " not in line]


# --- as items -------------------------------------------------------------------------------------


def test_a_table_is_the_whole_job(project, tables):
    tables(TABLE)
    result = project.check()
    result.assert_outcomes(passed=1)
    assert verdicts(result) == {ITEM: "equal"}


def test_a_flag_is_a_model(project):
    result = project.check(*FLAGS, "--compile-phases=rollout")
    result.assert_outcomes(passed=1)
    assert verdicts(result) == {BY_FLAG: "equal"}


def test_several_of_each_beside_test_files(project, tables):
    tables(TABLE, TABLE.replace(".policy", ".other"))
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", methods="get_value")
        def test_agent(): return Agent()
        """
    )
    more = ("--compile-model=agents:Agent", *FLAGS, "--compile-phases=rollout", "-k", "not other")
    assert ids(project.check("--collect-only", "-q", *more)) == [
        ITEM,
        "test_policy.py::test_agent[get_value-rollout]",
        BY_FLAG,
        BY_FLAG,
    ]


def test_a_flag_in_a_process_of_its_own_collects_what_the_session_does(project):
    """Not the whole project, in which a file may be broken."""
    project.write("import not_there", name="test_broken")
    project.write("def test_plain(): pass")
    arguments = ("--compile-isolate", "--compile-phases=rollout", "test_policy.py")
    result = project.check(*FLAGS, *arguments)
    result.assert_outcomes(passed=2)
    assert verdicts(result) == {BY_FLAG: "equal"}


WRONG_ONCE_COMPILED = """
import torch

class Agent(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 1)

    def get_value(self, x):
        return self(x) + torch.compiler.is_compiling()
"""


@pytest.mark.parametrize(("arguments", "item"), [((), ITEM), (FLAGS, BY_FLAG)])
def test_one_that_differs_fails_and_its_command_reruns_it(project, tables, arguments, item):
    (project.path / "agents.py").write_text(WRONG_ONCE_COMPILED)
    if not arguments:
        tables(TABLE)
    result = project.check(*arguments, "--compile-phases=rollout")
    result.assert_outcomes(failed=1)
    command = shlex.split(failure(result).rpartition("rerun     ")[2])
    assert command[:2] == ["pytest", "--compile-check"]
    again = project.pytest(*command[1:])
    assert verdicts(result) == verdicts(again) == {item: "differs"}


def test_one_that_differs_has_a_script(project):
    (project.path / "agents.py").write_text(WRONG_ONCE_COMPILED)
    project.check(*FLAGS, "--compile-phases=rollout", "--compile-explain-seconds=60")
    (script,) = (project.path / ".compile-failures").glob("*/repro.py")
    done = subprocess.run([sys.executable, script], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "compiled differs from eager"


def test_selecting_by_id_keyword_and_marker(project, tables):
    tables(TABLE, TABLE.replace(".policy", ".other"))
    other = ITEM.replace("policy", "other")
    assert ids(project.check("--collect-only", "-q", other)) == [other]
    assert ids(project.check("--collect-only", "-q", "-k", "other")) == [other]
    assert ids(project.check("--collect-only", "-q", "-m", "compiled_equivalence")) == [ITEM, other]
    assert ids(project.check("--collect-only", "-q", "-m", "not compiled_equivalence")) == []


def test_without_compile_check_they_are_skipped_and_nothing_is_imported(project, tables):
    tables(TABLE.replace("agents:Agent", "not_there:at_all"))
    result = project.pytest("-rs", "--compile-model=neither:here")
    result.assert_outcomes(skipped=3)
    assert "run with --compile-check" in result.stdout.str()


# --- which runs take them in ----------------------------------------------------------------------


@pytest.mark.parametrize("paths", ['["tests"]', '["."]', '["tests", "pyproject.toml"]'])
def test_testpaths_do_not_lose_them(project, tables, paths):
    tables(TABLE, f"[tool.pytest.ini_options]\ntestpaths = {paths}\n")
    (project.path / "tests").mkdir()
    assert ids(project.check("--collect-only", "-q")) == [ITEM]


def test_a_run_of_other_files_leaves_them_out(project, tables):
    tables(TABLE)
    project.write("def test_plain(): pass")
    project.check("test_policy.py").assert_outcomes(passed=1)
    project.check("test_policy.py", "pyproject.toml").assert_outcomes(passed=2)


def test_a_src_layout(project, tables):
    (project.path / "src" / "package").mkdir(parents=True)
    (project.path / "agents.py").rename(project.path / "src" / "package" / "nets.py")
    tables(TABLE.replace("agents:", "package.nets:"))
    assert verdicts(project.subprocess()) == {ITEM: "equal"}


def test_under_xdist(project, tables):
    pytest.importorskip("xdist")
    tables(TABLE)
    result = project.subprocess("-n1", *FLAGS, "--compile-phases=rollout")
    assert verdicts(result) == {ITEM: "equal", BY_FLAG: "equal"}


# --- what is wrong is told ------------------------------------------------------------------------

SOURCE = "[tool.pytest-torchcompile.models.policy] in pyproject.toml"
WRONG = {
    "no module": (
        "agents:Agent",
        "zzz_no_module:Agent",
        "factory='zzz_no_module:Agent': there is no module 'zzz_no_module'",
    ),
    "no attribute": ("agents:Agent", "agents:Agnet", "agents has no 'Agnet' (did you mean 'Agent'?)"),
    "nothing like it": ("agents:Agent", "agents:zzz", "agents has no 'zzz'; it has "),
    "a path": (
        "agents:Agent",
        "./agents.py:Agent",
        "is no module's name, such as package.module; write agents:Agent",
    ),
    "not callable": ("agents:Agent", "agents:__name__", "factory='agents:__name__' is a str, which can't be"),
    "raises": ("agents:Agent", "agents:raising", "the factory raised RuntimeError: no weights"),
    "no factory": ("agents:Agent", "agents", "got factory='agents'; accepted: 'package.module:function'"),
    "no spec": ("Box((2,))", "Bax((2,))", "got observation='Bax((2,))' is no spec (there is no spec Bax)"),
    "code": ("Box((2,))", "Box(open(1))", "is no spec"),
    "bounds": (
        "Box((2,))",
        "Box((2,), low=1, high=0)",
        "got observation='Box((2,), low=1, high=0)': Box((2,), low=1, high=0): low exceeds high",
    ),
    "no argument of a spec": ("Box((2,))", "Box((2,), up=1)", "is no spec (Box.__init__() got an unexpected"),
    "unknown": ("phases", "phasses", "got unknown setting 'phasses' (did you mean 'phases'?)"),
    "value": ('"rollout"', '"walk"', "got phases='walk'; accepted:"),
}


@pytest.mark.parametrize("what", WRONG)
def test_mistakes_name_the_table(project, tables, what):
    with (project.path / "agents.py").open("a") as agents:
        agents.write("\ndef raising(): raise RuntimeError('no weights')\n")
    right, wrong, sentence = WRONG[what]
    tables(TABLE.replace(right, wrong), TABLE.replace(".policy", ".sound"))
    result = project.check()
    outcomes = result.parseoutcomes()
    assert (outcomes["passed"], outcomes.get("failed", 0) + outcomes.get("errors", 0)) == (1, 1)
    text = failure(result)
    assert text.startswith(SOURCE)
    assert sentence in text
    assert "notation.py" not in text


def test_mistakes_name_the_flag(project):
    result = project.check("--compile-model=zzz_no_module:Agent", "--compile-phases=rollout")
    assert failures(result)["zzz_no_module:Agent[usage-error]"] == (
        "--compile-model zzz_no_module:Agent: factory='zzz_no_module:Agent': there is no module 'zzz_no_module'"
    )


def test_a_module_that_can_not_be_imported_is_told_when_it_is(project):
    project.pytester.makepyfile(broken="import nowhere_else\nclass Agent: pass")
    result = project.check("--compile-model=broken:Agent", "--compile-phases=rollout")
    assert failures(result)["broken:Agent[forward-rollout]"].startswith(
        "--compile-model broken:Agent: factory='broken:Agent': importing broken raised ModuleNotFoundError"
    )


# --- specs as text --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "spec"),
    [
        ("46,9,9", Box((46, 9, 9))),
        ("8", Box((8,))),
        ([46, 9, 9], Box((46, 9, 9))),
        ("('T', 8)", Box(("T", 8))),
        ("Box((8,), low=-1, high=1.5)", Box((8,), low=-1, high=1.5)),
        ("LegalMask(82)", LegalMask(82)),
        ("{'board': Box((3, 9, 9)), 'turn': Discrete(2)}", {"board": Box((3, 9, 9)), "turn": Discrete(2)}),
        ({"board": "3,9,9", "turn": "Discrete(2)"}, {"board": Box((3, 9, 9)), "turn": Discrete(2)}),
        ("(State((1, 64), batch_dim=1), (8,))", (State((1, 64), batch_dim=1), Box((8,)))),
    ],
)
def test_a_spec_is_read(written, spec):
    assert read_spec(written, "observation") == spec


@pytest.mark.parametrize(
    "written", ["", "8,", "Box(8", "Box", "__import__('os').getcwd()", "Box(shape=exit())", "a + b", "Box()"]
)
def test_no_text_is_run(written):
    if written == "8,":
        assert read_spec(written, "observation") == Box((8,))
        return
    with pytest.raises(UsageError, match="observation="):
        read_spec(written, "observation")
