"""Options: marker over command line over ini over default, and which values are rejected with which message."""

import dataclasses

import pytest
import torch._inductor

from pytest_torchcompile.options import OPTIONS, CheckOptions
from pytest_torchcompile.reports.metrics import METRICS
from pytest_torchcompile.results import CheckResult, Verdict

from .project import failure, failures, since_pytest_9, table, verdicts

# Each option with a value as text for the ini file and the command line, and one for the marker:
# name: (ini text, its meaning, command line text, its meaning, marker value, its meaning)
LAYERS = {
    "profile": ("quick", "quick", "default", "default", "quick", "quick"),
    "backend": ("aot_eager", "aot_eager", "eager", "eager", "inductor", "inductor"),
    "mode": ("default", "default", "max-autotune", "max-autotune", None, None),
    "dynamic": ("true", True, "false", False, None, None),
    "fullgraph": ("true", True, "--no-", False, True, True),
    "options": (
        "max_autotune=true, shape_padding=False",
        {"max_autotune": True, "shape_padding": False},
        "cpp.threads=2",
        {"cpp.threads": 2},
        {"shape_padding": True},
        {"shape_padding": True},
    ),
    "phases": ("update", ("update",), "rollout update", ("rollout", "update"), ["rollout"], ("rollout",)),
    "batch": ("2 3", (2, 3), "4,5", (4, 5), 6, (6,)),
    "examples": ("7", 7, "8", 8, None, None),
    "autocast": ("bfloat16", "bfloat16", "float16", "float16", "none", None),
    "layouts": ("no", False, "--", True, False, False),
    "nonfinite": ("false", False, "--", True, False, False),
    "steps": ("0", 0, "8", 8, 9, 9),
    "seed": ("7", 7, "8", 8, 9, 9),
    "atol": ("1e-3", 1e-3, "1e-4", 1e-4, 0, 0.0),
    "rtol": ("1e-3", 1e-3, "0", 0.0, 1e-4, 1e-4),
    "reference": ("eager", "eager", "float64", "float64", "eager", "eager"),
    "beyond": ("off", "off", "fail", "fail", "remark", "remark"),
    "copies": ("yes", True, "--no-", False, True, True),
    "samples": ("100", 100, "200", 200, 0, 0),
    "sensitivity": ("yes", True, "--no-", False, True, True),
    "min_coverage": ("0.5", 0.5, "1", 1.0, 0.25, 0.25),
    "min_coverage_work": ("0.5", 0.5, "1", 1.0, 0.25, 0.25),
    "strict": ("yes", True, "--no-", False, True, True),
    "isolate": ("yes", True, "--no-", False, True, True),
    "shrink_seconds": ("1", 1.0, "2.5", 2.5, 3, 3.0),
    "max_seconds": ("1", 1.0, "2.5", 2.5, 3, 3.0),
    "max_graph_breaks": ("1", 1, "2", 2, 0, 0),
    "max_recompiles": ("1", 1, "2", 2, None, None),
    "max_compile_seconds": ("1", 1.0, "2.5", 2.5, 3, 3.0),
    "explain_seconds": ("1", 1.0, "2.5", 2.5, 0, 0.0),
    "proof": ("here", "here", "there", "there", "none", None),
    "benchmark_seconds": ("1", 1.0, "2.5", 2.5, 0, 0.0),
    "benchmark_batch": ("2", 2, "3", 3, None, None),
    "min_speedup": ("0.5", 0.5, "1", 1.0, None, None),
    "threads": ("2", 2, "3", 3, 1, 1),
}

TWO_TESTS = """
    @pytest.mark.compiled_equivalence(observation=Box((2,)))
    def test_plain(): return Agent()

    @pytest.mark.compiled_equivalence(observation=Box((2,)), {name}={value!r})
    def test_marked(): return Agent()
"""


@pytest.fixture
def seen(project, monkeypatch):
    """The options with which each test would be checked, by test name; nothing is checked."""
    options = {}

    def check_case(factory, method, phase, *, name, **arguments):
        test = name.partition("[")[0].rpartition("::")[2]
        options[test] = arguments["options"]
        return CheckResult(method=method.name, phase=phase, verdict=Verdict.EQUAL)

    monkeypatch.delenv("PYTEST_ADDOPTS")
    monkeypatch.setattr("pytest_torchcompile.check.check_case", check_case)
    monkeypatch.setattr("pytest_torchcompile.plugin.isolate.is_wanted", lambda item, isolate: False)
    monkeypatch.setattr(
        "pytest_torchcompile.check.check_lifecycle",
        lambda *args, **arguments: CheckResult(method="", phase="lifecycle", verdict=Verdict.EQUAL),
    )
    return options


def flag(name, text):
    """The command line's way to say it: ``--compile-atol=1``, ``--no-compile-strict``."""
    dashed = f"compile-{name.replace('_', '-')}"
    return text + dashed if text.startswith("--") else f"--{dashed}={text}"


def test_every_option_is_in_the_table_below():
    assert LAYERS.keys() == OPTIONS.keys() == WRONG.keys()


@pytest.mark.parametrize("name", LAYERS)
def test_marker_over_command_line_over_ini(project, seen, name):
    ini, from_ini, given, from_command_line, marked, from_marker = LAYERS[name]
    (project.path / "pytest.ini").write_text(f"[pytest]\ncompile_check = true\ncompile_{name} = {ini}\n")
    project.write(TWO_TESTS.format(name=name, value=marked))
    assert project.pytest().ret == 0
    assert getattr(seen["test_plain"], name) == from_ini
    assert getattr(seen["test_marked"], name) == from_marker
    seen.clear()
    assert project.pytest(flag(name, given)).ret == 0
    assert getattr(seen["test_plain"], name) == from_command_line
    assert getattr(seen["test_marked"], name) == from_marker


def test_what_is_given_by_itself_wins_over_the_profile(project, seen):
    (project.path / "pytest.ini").write_text("[pytest]\ncompile_check = true\ncompile_examples = 7\n")
    project.write(TWO_TESTS.format(name="profile", value="default"))
    assert project.pytest("--compile-profile=quick").ret == 0
    assert (seen["test_plain"].examples, seen["test_plain"].layouts) == (7, False)
    assert (seen["test_marked"].examples, seen["test_marked"].layouts) == (7, True)
    assert seen["test_plain"].source("layouts") == "the profile quick"
    assert not seen["test_plain"].is_set("layouts")


def test_changed_options_know_where_the_others_come_from():
    merged = CheckOptions.merge(("a file", {"profile": "quick"}), ("a marker", {"batch": (4, 7, 1, 33)}))
    changed = dataclasses.replace(merged, fullgraph=True)
    for options in (merged, changed):
        sources = [options.source(name) for name in ("profile", "batch", "examples", "seed")]
        assert sources == ["a file", "a marker", "the profile quick", "default"]
        assert [options.is_set(name) for name in ("profile", "batch", "examples", "seed")] == [1, 1, 0, 0]
    assert changed != merged == CheckOptions.merge(("others", {"profile": "quick", "batch": (4, 7, 1, 33)}))
    assert "a marker" not in repr(merged)


def test_what_nobody_sets_has_its_default(project, seen):
    project.write(TWO_TESTS.format(name="seed", value=3))
    assert project.pytest("--compile-check").ret == 0
    assert {name: getattr(seen["test_plain"], name) for name in OPTIONS} == {
        **{name: field.default for name, field in OPTIONS.items()},
        "proof": str(project.path / ".compile-failures"),
    }


NATIVE = """
compile_check = true
compile_dynamic = false
compile_fullgraph = true
compile_phases = ["update"]
compile_batch = [4, 7]
compile_examples = 5
compile_nonfinite = false
compile_steps = 5
compile_seed = 3
compile_atol = 1e-4
compile_rtol = 0
compile_beyond = "off"
compile_copies = true
compile_autocast = "bfloat16"
compile_reference = "eager"
compile_samples = 500
compile_sensitivity = true
compile_min_coverage = 1
compile_min_coverage_work = 1
compile_strict = true
compile_isolate = true
compile_shrink_seconds = 5
compile_max_seconds = 5.5
compile_max_graph_breaks = 1
compile_max_recompiles = 6
compile_max_compile_seconds = 60
compile_explain_seconds = 30
compile_benchmark_batch = 3
compile_min_speedup = 0.01
compile_threads = 2
"""
NATIVE_VALUES = {
    "dynamic": False,
    "fullgraph": True,
    "phases": ("update",),
    "batch": (4, 7),
    "examples": 5,
    "autocast": "bfloat16",
    "nonfinite": False,
    "steps": 5,
    "seed": 3,
    "atol": 1e-4,
    "rtol": 0.0,
    "reference": "eager",
    "beyond": "off",
    "copies": True,
    "samples": 500,
    "sensitivity": True,
    "min_coverage": 1.0,
    "min_coverage_work": 1.0,
    "strict": True,
    "isolate": True,
    "shrink_seconds": 5.0,
    "max_seconds": 5.5,
    "max_graph_breaks": 1,
    "max_recompiles": 6,
    "max_compile_seconds": 60.0,
    "explain_seconds": 30.0,
    "benchmark_batch": 3,
    "min_speedup": 0.01,
    "threads": 2,
}


@pytest.mark.parametrize("name", NATIVE_VALUES)
@pytest.mark.parametrize(
    "table", [pytest.param("tool.pytest", marks=since_pytest_9), "tool.pytest.ini_options"]
)
def test_toml_values_of_their_own_type(project, seen, recwarn, table, name):
    line = next(line for line in NATIVE.splitlines() if line.startswith(f"compile_{name} ="))
    (project.path / "pyproject.toml").write_text(f"[{table}]\n{line}\n")
    project.write(TWO_TESTS.format(name="seed", value=3))
    result = project.pytest("--compile-check", "-k", "test_plain")
    assert (result.ret, result.stderr.lines) == (0, [])
    assert getattr(seen["test_plain"], name) == NATIVE_VALUES[name]
    assert [str(warning.message) for warning in recwarn] == []


def test_methods_are_an_option_too(project, seen):
    (project.path / "pytest.ini").write_text("[pytest]\ncompile_methods = get_value get_logits\n")
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        def test_agent(): return Agent()
        """
    )
    assert list(verdicts(project.pytest("--compile-check"))) == [
        "test_policy.py::test_agent[get_logits-rollout]",
        "test_policy.py::test_agent[get_value-rollout]",
    ]
    assert list(verdicts(project.pytest("--compile-check", "--compile-methods=get_value"))) == [
        "test_policy.py::test_agent[get_value-rollout]"
    ]


# --- what is rejected -----------------------------------------------------------------------------

# Each option with values that are no good: one that can be written in a file and on the command
# line (None if its flag takes no value), one that only a marker can hold.
WRONG = {
    "profile": ("fast", True),
    "backend": ("", 3),
    "mode": (None, 3),
    "dynamic": ("auto", 2),
    "fullgraph": ("maybe", 2),
    "options": ("max_autotune", ["max_autotune"]),
    "phases": ("rollout train", ["eval"]),
    "batch": ("4 0", [4, 2.5]),
    "examples": ("-1", True),
    "autocast": ("half", True),
    "layouts": ("maybe", 2),
    "nonfinite": ("maybe", "maybe"),
    "steps": ("-1", 1.5),
    "seed": ("x", -1),
    "atol": ("-1", float("nan")),
    "rtol": ("small", None),
    "reference": ("float32", True),
    "beyond": ("warn", False),
    "copies": ("maybe", 2),
    "samples": ("10", 10.5),
    "sensitivity": ("maybe", 2),
    "min_coverage": ("1.5", -0.1),
    "min_coverage_work": ("1.5", -0.1),
    "strict": ("maybe", None),
    "isolate": ("maybe", 2),
    "shrink_seconds": ("-1", "long"),
    "max_seconds": ("nan", [1]),
    "max_graph_breaks": ("-1", 1.5),
    "max_recompiles": ("few", True),
    "max_compile_seconds": ("-1", "long"),
    "explain_seconds": ("-1", None),
    "proof": (None, 3),
    "benchmark_seconds": ("-1", True),
    "benchmark_batch": ("0", 1.5),
    "min_speedup": ("-1", "fast"),
    "threads": ("0", 0),
}
TAKE_NO_VALUE = {name for name, field in OPTIONS.items() if isinstance(field.default, bool)}


def expected(name):
    """What the documentation says is accepted."""
    return OPTIONS[name].metadata["expected"]


def usage_error(result):
    """The one line that pytest prints for a usage error."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in result.stderr.str()
    (line,) = filter(None, result.stderr.lines)
    return line


@pytest.mark.parametrize("name", [n for n, (text, _) in WRONG.items() if text is not None])
def test_wrong_values_in_the_ini_file(project, name):
    text = WRONG[name][0]
    (project.path / "pytest.ini").write_text(f"[pytest]\ncompile_{name} = {text}\n")
    line = usage_error(project.pytest())
    assert line.startswith(f"ERROR: compile_{name} in pytest.ini")
    assert f"accepted: {expected(name)}" in line
    assert text in line


@pytest.mark.parametrize(
    "name", [n for n, (text, _) in WRONG.items() if text is not None and n not in TAKE_NO_VALUE]
)
def test_wrong_values_on_the_command_line(project, name):
    text = WRONG[name][0]
    option = f"--compile-{name.replace('_', '-')}"
    assert usage_error(project.pytest(f"{option}={text}")) == (
        f"ERROR: {option} got {name}={text!r}; accepted: {expected(name)}"
    )


def test_wrong_values_in_markers(project):
    project.write(
        "\n".join(
            f"@pytest.mark.compiled_equivalence(observation=Box((2,)), {name}={shown(value)})\n"
            f"def test_{name}(): return note('factory ran')\n"
            for name, (_, value) in WRONG.items()
        )
    )
    result = project.check()
    assert {result.parseoutcomes().get(outcome, 0) for outcome in ("passed", "skipped")} == {0}
    for name, (_, value) in WRONG.items():
        assert failures(result)[f"test_{name}[usage-error]"] == (
            f"@pytest.mark.compiled_equivalence on test_policy.py::test_{name} got {name}={value!r}; "
            f"accepted: {expected(name)}"
        )
    assert project.lines("factory ran") == []


def shown(value):
    """The expression that yields `value`."""
    return 'float("nan")' if value != value else repr(value)


@pytest.mark.parametrize("value", ["maybe", "2"])
def test_a_wrong_compile_check_in_the_ini_file(project, value):
    (project.path / "pytest.ini").write_text(f"[pytest]\ncompile_check = {value}\n")
    line = usage_error(project.pytest())
    assert line.startswith("ERROR: compile_check in pytest.ini")
    assert "accepted: true or false" in line
    assert value in line


def test_an_unknown_argument_of_the_marker_is_told_with_a_suggestion(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), atoll=1e-4)
        def test_option(): return note("factory ran")

        @pytest.mark.compiled_equivalence(observatoin=Box((2,)))
        def test_declaration(): return note("factory ran")

        @pytest.mark.compiled_equivalence(observation=Box((2,)), precision="high")
        def test_nothing_near(): return note("factory ran")
        """
    )
    result = project.check()
    page = "https://github.com/pytest-torchcompile/pytest-torchcompile/blob/main/docs/reference.md"
    where = "@pytest.mark.compiled_equivalence on test_policy.py::test_"
    assert failures(result)["test_option[usage-error]"] == (
        f"{where}option got unknown argument 'atoll' (did you mean 'atol'?); accepted: atol, rtol, and the others in {page}"
    )
    assert failures(result)["test_declaration[usage-error]"] == (
        f"{where}declaration got unknown argument 'observatoin' (did you mean 'observation'?); accepted: observation, observe, and the others in {page}"
    )
    assert failures(result)["test_nothing_near[usage-error]"] == (
        f"{where}nothing_near got unknown argument 'precision'; accepted: those in {page}"
    )
    assert project.lines("factory ran") == []


def test_an_unknown_flag_is_pytests_own_error(project):
    result = project.pytest("--compile-exampels=3")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unrecognized arguments: --compile-exampels=3"])


CONTRADICTIONS = {
    "mode and options": (
        {"mode": "max-autotune", "options": {"max_autotune": True}},
        "mode='max-autotune' ({source}) and options={{'max_autotune': True}} ({source}) contradict each "
        "other: torch.compile takes one of them; drop one, or put what the mode sets into options",
    ),
    "mode and backend": (
        {"mode": "max-autotune", "backend": "aot_eager"},
        "mode='max-autotune' ({source}) is for the inductor backend, but backend='aot_eager' ({source}); "
        "drop one of them",
    ),
    "options and backend": (
        {"options": {"max_autotune": True}, "backend": "aot_eager"},
        "options={{'max_autotune': True}} ({source}) is for the inductor backend, but "
        "backend='aot_eager' ({source}); drop one of them",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_in_a_marker(project, case):
    values, sentence = CONTRADICTIONS[case]
    project.write(
        f"""
        @pytest.mark.compiled_equivalence(observation=Box((2,)), **{values!r})
        def test_agent(): return note("factory ran")
        """
    )
    result = project.pytest("--compile-check")
    source = "@pytest.mark.compiled_equivalence on test_policy.py::test_agent"
    assert failure(result) == sentence.format(source=source)
    assert project.lines("factory ran") == []


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_between_the_command_line_and_the_ini_file(project, case):
    values, sentence = CONTRADICTIONS[case]
    (first, one), (second, two) = (
        (name, "max_autotune=True" if name == "options" else value) for name, value in values.items()
    )
    (project.path / "pytest.ini").write_text(f"[pytest]\ncompile_{first} = {one}\n")
    expected = sentence.replace("({source})", "(pytest.ini)", 1).replace("({source})", "(the command line)")
    assert usage_error(project.pytest(flag(second, two))) == f"ERROR: {expected.format()}"


def test_a_marker_resolves_a_contradiction_with_none(project, seen):
    (project.path / "pytest.ini").write_text("[pytest]\ncompile_mode = max-autotune\n")
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), mode=None, backend="aot_eager")
        def test_agent(): return Agent()
        """
    )
    assert project.pytest("--compile-check").ret == 0
    assert (seen["test_agent"].mode, seen["test_agent"].backend) == (None, "aot_eager")


def test_a_marker_contradicts_the_command_line(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), backend="aot_eager")
        def test_agent(): return note("factory ran")
        """
    )
    result = project.pytest("--compile-check", "--compile-mode=max-autotune")
    assert failure(result) == (
        "mode='max-autotune' (the command line) is for the inductor backend, but backend='aot_eager' "
        "(@pytest.mark.compiled_equivalence on test_policy.py::test_agent); drop one of them"
    )


# --- names that only torch knows ------------------------------------------------------------------


def test_an_unknown_backend_in_a_marker(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", backend="indcutor")
        def test_agent(): return Agent()
        """
    )
    result = project.pytest("--compile-check")
    result.assert_outcomes(errors=1)
    text = failure(result)
    assert text.startswith(
        "@pytest.mark.compiled_equivalence on test_policy.py::test_agent: backend='indcutor' is unknown to "
        "torch (did you mean 'inductor'?); accepted: "
    )
    accepted = text.rpartition("accepted: ")[2].split(", ")
    assert {"aot_eager", "aot_eager_decomp_partition", "eager", "inductor"} <= set(accepted)
    assert "\n" not in text


@pytest.mark.parametrize(
    ("ini", "arguments", "source"),
    [
        ("", ["--compile-backend=indcutor"], "--compile-backend"),
        ("compile_backend = indcutor", [], "compile_backend in pytest.ini"),
    ],
)
def test_an_unknown_backend_from_elsewhere_names_its_source(project, ini, arguments, source):
    (project.path / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        def test_agent(): return Agent()
        """
    )
    result = project.pytest("--compile-check", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (text,) = [line for line in result.errlines if line.startswith("ERROR: ")]
    assert "backend='indcutor'" in text
    assert "did you mean 'inductor'?" in text
    assert source in text


def test_an_unknown_mode_is_told_with_a_suggestion(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", mode="max-autotun")
        def test_agent(): return Agent()
        """
    )
    result = project.pytest("--compile-check")
    result.assert_outcomes(errors=1)
    # "lite" came with torch 2.10.
    lite = "lite, " if "lite" in torch._inductor.list_mode_options() else ""
    assert failure(result) == (
        "@pytest.mark.compiled_equivalence on test_policy.py::test_agent: mode='max-autotun' is unknown to "
        f"torch (did you mean 'max-autotune'?); accepted: default, {lite}max-autotune, "
        "max-autotune-no-cudagraphs, reduce-overhead"
    )


@pytest.mark.parametrize(
    ("options", "value", "fix", "outcome"),
    [
        ({"max_autotun": True}, "max_autotun", "max_autotune", "errors"),
        ({"max_autotune": "very"}, "max_autotune", "bool", "failed"),
    ],
)
def test_an_inductor_option_that_torch_rejects(project, options, value, fix, outcome):
    project.write(
        f"""
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", options={options})
        def test_agent(): return Agent()
        """
    )
    result = project.pytest("--compile-check")
    result.assert_outcomes(**{outcome: 1})
    text = failure(result)
    assert text.startswith("@pytest.mark.compiled_equivalence on test_policy.py::test_agent: ")
    assert value in text
    assert fix in text
    assert "\n" not in text
    assert set(verdicts(result).values()) <= {"eager failed"}, "nothing was compiled"


# --- what the options do --------------------------------------------------------------------------


def test_examples_and_batch_are_counted_in_the_report(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", nonfinite=False)
        def test_agent(): return Agent()
        """
    )
    few = table(project.check("--compile-examples=0"))
    more = table(project.check("--compile-examples=9"))
    case = "test_policy.py::test_agent[forward-rollout]"
    assert int(more[case]["examples"]) - int(few[case]["examples"]) == 9


def test_every_option_is_in_the_help(project):
    # Older pytests break lines at dashes.
    text = " ".join(project.pytest("--help").stdout.str().split()).replace("- ", "-")
    assert "blob/main/docs/reference.md" in text
    for metric in ("verdict", *METRICS):
        assert metric in text.partition("--compile-fail-on")[2].partition("--compile-profile")[0]
    for name, field in OPTIONS.items():
        assert f"--compile-{name.replace('_', '-')}" in text
        assert f"compile_{name} (" in text
        assert field.metadata["expected"].replace("- ", "-") in text
