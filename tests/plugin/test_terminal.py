"""What the terminal, JUnit and other plugins see of a check: progress, the table, plain properties."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from .project import failure, table, verdicts

AGENT = """
@pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", methods="get_value"{more})
def test_agent(): return Agent()
"""
ITEM = "test_policy.py::test_agent[get_value-rollout]"


def agent(more=""):
    """A marked test with further arguments."""
    return AGENT.format(more=f", {more}" if more else "")


def report_of(result):
    """The lines between the title of the report and what pytest prints next."""
    lines = result.outlines
    start = next(i for i, line in enumerate(lines) if re.fullmatch(r"=+ compiled against eager =+", line))
    end = next(i for i in range(start + 1, len(lines)) if re.match(r"=+ ", lines[i]))
    return lines[start + 1 : end]


# --- the table ------------------------------------------------------------------------------------


def test_the_report_word_for_word(project):
    project.write(
        """
        marked = pytest.mark.compiled_equivalence(
            observation=Box((2,)), phases="rollout", methods="get_value", reference="eager"
        )

        @marked
        def test_good(): return Agent()

        @pytest.mark.compiled_equivalence(backend=shifted)
        @marked
        def test_wrong(): return Agent()

        @pytest.mark.compiled_equivalence(backend=broken)
        @marked
        def test_broken(): return Agent()
        """
    )
    lines = report_of(project.check())
    broken, good, wrong = (
        f"test_policy.py::test_{name}[get_value-rollout]" for name in ("broken", "good", "wrong")
    )
    rows = [
        "case  verdict  examples  worst / allowed  compiled  graphs  breaks  recompiles  seconds",
        re.escape(broken) + r"  compile failed  0  -  0%  0  0  0  \d+\.\d",
        re.escape(good) + r"  equal  [1-9]\d*  0  100%  [1-9]  0  \d  \d+\.\d",
        re.escape(wrong) + r"  differs  [1-9]\d*  5e\+04 output\[0, 0\]  100%  1  0  0  \d+\.\d",
    ]
    for line, row in zip(lines[:4], rows, strict=True):
        assert re.fullmatch(row, re.sub("  +", "  ", line))
    assert re.fullmatch(
        re.escape(f"{broken}: compile failed: RuntimeError: no kernel for this (at agents.py:")
        + r"\d+\), on call 1 \(batch 4\)",
        lines[4],
    )
    page = "https://github.com/pytest-torchcompile/pytest-torchcompile/blob/main/docs/verdicts.md"
    assert lines[5:] == [
        f"what the verdicts mean: {page}",
        "3 cases: 1 equal, 1 differs, 1 compile failed",
    ]


def test_the_columns_are_aligned(project):
    project.write(agent() + agent("backend=shifted").replace("test_agent", "test_another_agent"))
    headings, *rows = report_of(project.check())[:3]
    for heading in ("verdict", "worst / allowed"):
        column = headings.index(heading)
        assert all(row[column - 2 : column] == "  " and row[column] != " " for row in rows)
    for heading in ("examples", "compiled", "graphs", "breaks", "recompiles", "seconds"):
        end = headings.index(heading) + len(heading)
        assert all(row[end - 1] != " " and row[end : end + 1] in ("", " ") for row in rows)


def test_one_case_is_one_case(project):
    project.write(agent())
    assert report_of(project.check())[-1] == "1 case: 1 equal"


@pytest.mark.parametrize(
    "arguments", [(), ("--compile-strict", "test_policy.py"), ("--compile-strict", "-k", "ordinary")]
)
def test_without_a_case_the_report_says_so(project, arguments):
    project.write("def test_ordinary(): pass")
    result = project.check(*arguments)
    assert report_of(result)[-1] == "0 cases: nothing was checked"
    assert result.ret == 0


def test_without_a_check_there_is_no_report(project):
    project.write("def test_ordinary(): pass")
    project.pytest().stdout.no_fnmatch_line("*compiled against eager*")


def test_a_strict_session_in_which_no_test_is_marked_fails(project):
    project.write("def test_ordinary(): pass")
    result = project.check("--compile-strict")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert report_of(result) == [
        "0 cases: nothing was checked",
        "the session fails: it is strict and ran all tests, but no test is marked compiled_equivalence",
    ]


def test_a_shard_without_a_case_does_not_fail(project):
    """A plugin that splits a suite leaves cases to others."""
    project.write(agent() + "\ndef test_ordinary(): pass")
    project.pytester.makeconftest(
        "def pytest_collection_modifyitems(items): items[:] = [i for i in items if 'ordinary' in i.name]"
    )
    result = project.check("--compile-strict")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert "0 cases: nothing was checked" in result.outlines


@pytest.mark.parametrize("argument", ["-q", "-v", "--tb=no", "--no-header"])
def test_the_report_is_there_however_quiet(project, argument):
    project.write(agent())
    assert verdicts(project.check(argument)) == {ITEM: "equal"}


def test_what_is_left_eager_is_a_share_and_breaks_are_counted(project):
    project.write(
        """
        class Partly(Agent):
            @torch.compiler.disable
            def trunk(self, x): return self.actor(x)

            def forward(self, x): return self.critic(x * 2) + self.trunk(x).sum()

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        def test_agent(): return Partly()

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", min_coverage=0.75)
        def test_most(): return Partly()
        """
    )
    result = project.check()
    row = table(result)["test_policy.py::test_agent[forward-rollout]"]
    assert (row["verdict"], row["compiled"], row["breaks"]) == ("equal", "25%", "1")
    assert verdicts(result)["test_policy.py::test_most[forward-rollout]"] == "not compiled"
    assert "left eager: actor" in failure(result)
    assert "25 %" in failure(result)


def test_recompiles_are_counted(project):
    project.write(agent())
    one, three = (table(project.check(f"--compile-batch={sizes}"))[ITEM] for sizes in ("4", "4,7,1"))
    assert int(three["graphs"]) - int(one["graphs"]) == 2
    assert int(three["recompiles"]) - int(one["recompiles"]) == 2


def test_what_rounding_excuses_is_said(project):
    """A backend computes a sum of numbers that cancel in another order."""
    project.write(
        """
        def reordered(gm, example_inputs):
            def run(*args):
                return tuple(out * (1 + 3e-7) for out in gm(*args))
            return run

        @pytest.mark.compiled_equivalence(
            observation=Box((2,)), phases="rollout", backend=reordered, atol=0, rtol=1e-7, nonfinite=False
        )
        def test_agent(): return Agent()
        """
    )
    result = project.check()
    result.assert_outcomes(passed=1)
    case = "test_policy.py::test_agent[forward-rollout]"
    assert verdicts(result) == {case: "within rounding"}
    lines = report_of(result)
    assert any(re.match(re.escape(case) + r": within rounding: \d+ of \d+ examples ", line) for line in lines)
    assert lines[-1] == "1 case: 1 within rounding"


def test_sensitivity_is_a_line_of_each_case(project):
    project.write(
        """
        class Agent(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.seen, self.unseen = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)

            def forward(self, x):
                return self.seen(x) + 0 * self.unseen(x)

        @pytest.mark.compiled_equivalence(observation=Box((2,), low=-1, high=1), phases="rollout update")
        def test_agent():
            return Agent()
        """
    )
    assert not [line for line in report_of(project.check()) if "varied" in line]
    lines = [line for line in report_of(project.check("--compile-sensitivity")) if "varied" in line]
    case = "test_policy.py::test_agent[forward-"
    assert sorted(lines) == [
        f"{case}rollout]: 100 % of the outputs varied",
        f"{case}update]: gradients reached 50 % of the parameters, never unseen; 100 % of the outputs varied",
    ]


@pytest.mark.parametrize("odd", ["x.log() - torch.inf", "x.double()"])
def test_what_has_no_size_is_told_by_its_place(project, odd):
    project.write(
        f"""
        class Agent(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(2, 3)

            def forward(self, x):
                x = self.layer(x)
                return {odd} if torch.compiler.is_compiling() else x

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        def test_agent():
            return Agent()
        """
    )
    (row,) = (line for line in report_of(project.check()) if line.startswith("test_policy.py::test_agent["))
    assert re.search(r" differs +\d+ +output(\[0, 0\])? ", row), row


def test_notes_are_in_the_report(project):
    project.write(
        """
        made = []

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        def test_agent():
            made.append(1)
            agent = Agent()
            torch.nn.init.constant_(agent.actor.bias, len(made))
            return agent
        """
    )
    result = project.check()
    result.assert_outcomes(passed=1)
    case = "test_policy.py::test_agent[forward-rollout]"
    note, others = (line for line in report_of(result) if line.startswith(f"{case}: "))
    assert "factory is not deterministic" in note
    assert "actor.bias" in note
    assert f"{case}: not checked: " in others, "the test names no methods"


def test_cases_of_a_fixtures_setup_and_teardown_are_rows(project):
    project.write(
        """
        @pytest.fixture
        def checked(compile_check):
            compile_check(Agent, observation=Box((2,)), methods="get_value", phases="rollout")
            yield
            compile_check(Agent, observation=Box((2,)), methods="get_value", phases="update")

        def test_agent(checked): pass
        """
    )
    assert verdicts(project.check()) == {
        "test_policy.py::test_agent (get_value-rollout)": "equal",
        "test_policy.py::test_agent (get_value-update)": "equal",
    }


# --- progress -------------------------------------------------------------------------------------


def test_a_slow_compile_is_announced(project):
    project.write(agent("backend=slow"))
    result = project.check()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["  compiling test_agent[[]get_value-rollout[]] ..."])


def test_nothing_is_announced_when_asked_to_be_quiet(project):
    project.write(agent("backend=slow"))
    result = project.check("-q")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*compiling test_agent*")


def test_what_runs_long_after_compiling_is_not_said_to_compile(project):
    project.write(
        """
        import time

        def fast_to_compile(gm, example_inputs):
            def run(*args):
                time.sleep(0.15)
                return gm(*args)
            return run

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", backend=fast_to_compile)
        def test_agent(): return Agent()
        """
    )
    result = project.check()
    result.assert_outcomes(passed=1)
    assert result.duration > 1.2
    result.stdout.no_fnmatch_line("*compiling test_agent*")


def test_a_fast_compile_is_not_announced(project):
    project.write(agent())
    project.check().stdout.no_fnmatch_line("*compiling test_agent*")


def test_the_header_names_the_backend(project):
    project.write(agent())
    (header,) = [line for line in project.check().outlines if line.startswith("compile check: ")]
    # What this torch can't do may follow.
    assert header.split("; ")[0] == "compile check: backend eager"
    project.pytest().stdout.no_fnmatch_line("compile check: *")


def test_the_header_shows_what_a_profile_sets(project, monkeypatch):
    project.write(agent())
    monkeypatch.delenv("PYTEST_ADDOPTS")
    result = project.pytest(
        "--compile-check", "--compile-profile=quick", "--compile-steps=3", "--collect-only"
    )
    result.stdout.fnmatch_lines(["compile check: *; profile quick (examples=10, layouts=false, beyond=off)*"])


# --- plain data -----------------------------------------------------------------------------------

FIELDS = {
    "verdict": str,
    "reason": str,
    "examples": int,
    "worst_difference": float,
    "worst_allowed": float,
    "worst_place": str,
    "coverage": float,
    "coverage_work": float,
    "graphs": int,
    "added_graphs": int,
    "breaks": int,
    "fullgraph_compiles": str,
    "recompiles": int,
    "compile_s": float,
    "from_cache": int,
    "backend": str,
    "left_eager": str,
    "notes": str,
    "remarks": str,
    "remark_count": int,
    "untimed": str,
    "sensitivity": str,
    "regressions": str,
}


class Reports:
    """Inner plugin: keeps the reports of the calls."""

    def __init__(self):
        self.calls = []

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.calls.append(report)


def test_the_properties_of_an_item_are_plain_data(project):
    project.write(agent("backend=shifted"))
    reports = Reports()
    project.check(plugins=[reports])
    (report,) = reports.calls
    prefix = "compile_check.get_value-rollout."
    properties = {name.removeprefix(prefix): value for name, value in report.user_properties}
    assert {name: type(value) for name, value in properties.items()} == FIELDS
    assert properties["verdict"] == "differs"
    assert properties["worst_difference"] == 1.0
    assert properties["worst_place"] == "output[0, 0]"
    assert properties["coverage"] == 1.0
    assert properties["backend"] == "shifted"
    assert json.loads(json.dumps(properties)) == properties


def test_other_properties_of_the_item_are_kept(project):
    project.write(
        "@pytest.fixture(autouse=True)\n"
        "def owner(record_property): record_property('owner', 'agents')\n" + agent()
    )
    reports = Reports()
    project.check(plugins=[reports])
    assert ("owner", "agents") in reports.calls[0].user_properties


def test_junit_xml_has_the_properties(project):
    project.write(agent("backend=shifted") + agent().replace("test_agent", "test_good"))
    project.check("--junit-xml=report.xml")
    cases = {case.get("name"): case for case in ET.parse(project.path / "report.xml").iter("testcase")}
    assert cases.keys() == {"test_agent[get_value-rollout]", "test_good[get_value-rollout]"}
    for name, verdict in (("test_agent", "differs"), ("test_good", "equal")):
        case = cases[f"{name}[get_value-rollout]"]
        values = {p.get("name"): p.get("value") for p in case.iter("property")}
        assert values["compile_check.get_value-rollout.verdict"] == verdict
        assert {name.rpartition(".")[2] for name in values} == FIELDS.keys()


def test_a_report_log_in_json_works(project):
    """pytest-xdist and pytest-reportlog send the report's own serialisation."""
    project.write(agent("backend=shifted"))
    reports = Reports()
    project.check(plugins=[reports])
    (report,) = reports.calls
    again = type(report)._from_json(json.loads(json.dumps(report._to_json())))
    assert [tuple(p) for p in again.user_properties] == report.user_properties
