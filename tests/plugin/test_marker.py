"""The marker: the items of a marked test, how they are selected, and how markers merge."""

import re

import pytest

from .project import HEADER, failure, flat, since_pytest_9, verdicts


def ids(result):
    return [line for line in result.outlines if "::" in line]


def test_a_test_becomes_an_item_for_each_method_and_phase(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), methods=["get_value", "get_logits"])
        def test_agent(): return Agent()
        """
    )
    result = project.pytest("--collect-only", "-q")
    assert ids(result) == [
        "test_policy.py::test_agent[get_value-rollout]",
        "test_policy.py::test_agent[get_value-update]",
        "test_policy.py::test_agent[get_logits-rollout]",
        "test_policy.py::test_agent[get_logits-update]",
    ]


def test_the_lifecycle_is_an_item_of_its_own(project, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--compile-benchmark-seconds=0")
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), methods=["get_value", "get_logits"])
        def test_agent(): return Agent()

        @pytest.mark.compiled_equivalence(
            observation=Box((2,)), methods=["get_value", "get_logits"], act="get_logits", learn=["get_value"]
        )
        def test_in_turn(): return Agent()

        @pytest.mark.compiled_equivalence(
            observation=Box((2,)), methods=["get_value"], loss=lambda agent, batch: agent.critic.weight.sum()
        )
        def test_loss(): return Agent()
        """
    )
    assert [line for line in ids(project.pytest("--collect-only", "-q")) if "lifecycle" in line] == [
        "test_policy.py::test_agent[get_value+get_logits-lifecycle]",
        "test_policy.py::test_in_turn[get_logits+get_value-lifecycle]",
        "test_policy.py::test_loss[get_value+loss-lifecycle]",
    ]
    assert verdicts(project.check("-k", "test_in_turn and lifecycle")) == {
        "test_policy.py::test_in_turn[get_logits+get_value-lifecycle]": "equal"
    }


def test_a_stale_policy_in_one_screen(project, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--compile-benchmark-seconds=0 --compile-phases=lifecycle")
    project.write(
        """
        def stale(graph, inputs):
            first = {}
            def keep(v): return first.setdefault(id(v), v.detach().clone()) if v.requires_grad else v
            return lambda *args: graph(*args) if torch.is_grad_enabled() else graph(*map(keep, args))

        @pytest.mark.compiled_equivalence(observation=Box((2,)), methods="get_value", backend=stale)
        def test_agent(): return Agent()
        """
    )
    result = project.check()
    text = failure(result)
    assert text.startswith("compiled differs from eager: get_value, lifecycle, backend stale\n")
    assert "the last move uses the weights from before" in flat(text)
    assert re.search(
        r"^  story +(act.batch 4., )?(load_state_dict|learn.batch 4.), act.batch 4.$", text, re.M
    )
    assert "'test_policy.py::test_agent[get_value-lifecycle]'" in text
    assert "  stage     the backend itself; dynamo agrees with eager\n" in text
    assert len(text.splitlines()) < 22


def test_without_methods_it_is_forward(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        def test_agent(): return Agent()
        """
    )
    assert ids(project.pytest("--collect-only", "-q")) == ["test_policy.py::test_agent[forward-rollout]"]


def test_adapters_are_named_after_the_function(project):
    project.write(
        """
        def sum_of_logits(model, x): return model.actor(x).sum(-1)

        @pytest.mark.compiled_equivalence(
            observation=Box((2,)), phases="rollout",
            methods=[sum_of_logits, lambda model, x: model.critic(x) * 2, "get_value"],
        )
        def test_agent(): return Agent()
        """
    )
    result = project.check()
    assert verdicts(result) == {
        "test_policy.py::test_agent[sum_of_logits-rollout]": "equal",
        "test_policy.py::test_agent[adapter-rollout]": "equal",
        "test_policy.py::test_agent[get_value-rollout]": "equal",
    }


@pytest.mark.parametrize("adapter", ["functools.partial(scaled, by=2)", "Scaled()"])
def test_whatever_the_library_calls_is_an_adapter_of_a_marker_too(project, adapter):
    project.write(
        f"""
        import functools

        def scaled(model, x, by=1): return model.critic(x) * by

        class Scaled:
            def __call__(self, model, x): return scaled(model, x)

        ADAPTER = {adapter}

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", methods=ADAPTER)
        def test_agent(): return Agent()

        def test_by_hand(compile_check):
            compile_check(Agent, observation=Box((2,)), phases="rollout", methods=ADAPTER)
        """
    )
    assert verdicts(project.check()) == {
        "test_policy.py::test_agent[adapter-rollout]": "equal",
        "test_policy.py::test_by_hand (adapter-rollout)": "equal",
    }


SELECTABLE = """
    @pytest.mark.compiled_equivalence(observation=Box((2,)), methods=["get_value", "get_logits"])
    def test_agent(): return Agent()

    def test_ordinary(): pass
"""


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [
        (("-k", "get_value and update"), ["test_agent[get_value-update]"]),
        (("-k", "rollout"), ["test_agent[get_logits-rollout]", "test_agent[get_value-rollout]"]),
        (("-m", "not compiled_equivalence"), ["test_ordinary"]),
        (("test_policy.py::test_agent[get_logits-update]",), ["test_agent[get_logits-update]"]),
    ],
)
def test_items_are_chosen_as_any_others(project, arguments, ran):
    project.write(SELECTABLE)
    result = project.check("-v", *arguments)
    passed = sorted(line.split()[0] for line in ids(result) if "PASSED" in line)
    assert passed == [f"test_policy.py::{name}" for name in ran]


def test_m_chooses_all_marked_tests(project):
    project.write(SELECTABLE)
    result = project.check("-m", "compiled_equivalence")
    result.assert_outcomes(passed=4, deselected=1)
    assert len(verdicts(result)) == 4


def test_methods_of_classes(project):
    project.write(
        """
        class TestAgent:
            observations = 5

            @pytest.mark.compiled_equivalence(observation=Box((5,)), phases="rollout")
            def test_agent(self): return Agent(self.observations)
        """
    )
    assert verdicts(project.check()) == {"test_policy.py::TestAgent::test_agent[forward-rollout]": "equal"}


def test_parametrize_and_specs_that_ask_the_module(project):
    project.write(
        """
        @pytest.mark.parametrize("size", [3, 5])
        @pytest.mark.compiled_equivalence(
            observation=lambda model: Box((model.observations,)), methods=["get_value"]
        )
        def test_agent(size): return Agent(size)
        """
    )
    result = project.check()
    result.assert_outcomes(passed=4)
    assert verdicts(result) == {
        "test_policy.py::test_agent[3-get_value-rollout]": "equal",
        "test_policy.py::test_agent[3-get_value-update]": "equal",
        "test_policy.py::test_agent[5-get_value-rollout]": "equal",
        "test_policy.py::test_agent[5-get_value-update]": "equal",
    }


def test_fixtures_as_arguments_are_set_up_once_for_each_item(project):
    project.write(
        """
        @pytest.fixture
        def sizes():
            note("set up")
            yield {"observations": 4, "actions": 2}
            note("torn down")

        @pytest.fixture(params=[1.0, 3.0])
        def gain(request): return request.param

        @pytest.mark.compiled_equivalence(observation=Box((4,)), phases="rollout")
        def test_agent(sizes, gain):
            agent = Agent(**sizes)
            torch.nn.init.constant_(agent.actor.weight, gain)
            return agent
        """
    )
    result = project.check()
    assert verdicts(result) == {
        "test_policy.py::test_agent[1.0-forward-rollout]": "equal",
        "test_policy.py::test_agent[3.0-forward-rollout]": "equal",
    }
    assert project.lines("set up") == project.lines("torn down") == ["x", "x"]


def test_markers_of_module_class_and_function_merge(project):
    project.write(
        """
        pytestmark = pytest.mark.compiled_equivalence(
            observation=Box((2,)), phases="rollout", methods=["get_value"], backend=broken
        )

        @pytest.mark.compiled_equivalence(methods=["get_value", "get_logits"])
        class TestAgent:
            @pytest.mark.compiled_equivalence(backend="eager")
            def test_function_wins(self): return Agent()

            @pytest.mark.compiled_equivalence(phases="update")
            def test_the_rest_is_kept(self): return Agent()

        def test_module(): return Agent()
        """
    )
    assert verdicts(project.check()) == {
        "test_policy.py::TestAgent::test_function_wins[get_value-rollout]": "equal",
        "test_policy.py::TestAgent::test_function_wins[get_logits-rollout]": "equal",
        "test_policy.py::TestAgent::test_the_rest_is_kept[get_value-update]": "compile failed",
        "test_policy.py::TestAgent::test_the_rest_is_kept[get_logits-update]": "compile failed",
        "test_policy.py::test_module[get_value-rollout]": "compile failed",
    }


def test_two_markers_on_one_function_merge_the_one_next_to_it_winning(project):
    project.write(
        """
        usual = pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", methods="get_value")

        @usual
        @pytest.mark.compiled_equivalence(methods="get_logits")
        def test_agent(): return Agent()
        """
    )
    assert verdicts(project.check()) == {"test_policy.py::test_agent[get_logits-rollout]": "equal"}


UNASKED = """
    @pytest.fixture
    def expensive():
        note("fixture ran")

    @pytest.mark.compiled_equivalence(observation=Box((2,)))
    def test_agent(expensive):
        note("factory ran")
        return Agent()
"""


def test_without_the_flag_items_skip_and_say_how_to_run_them(project):
    project.write(UNASKED)
    result = project.pytest("-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(
        ["SKIPPED [[]2[]] test_policy.py:6: compiled against eager: run with --compile-check"]
    )
    result.stdout.no_fnmatch_line("*compiled against eager ==*")
    assert result.outlines.count("2 compiled-equivalence tests skipped: run with --compile-check") == 1
    assert project.lines("fixture ran") == project.lines("factory ran") == []


def test_with_the_flag_the_same_items_run_their_fixtures(project):
    project.write(UNASKED)
    project.check().assert_outcomes(passed=2)
    assert project.lines("fixture ran") == ["x"] * 2
    assert project.lines("factory ran") == ["x"] * 4, "the factory runs once for each side"


@pytest.mark.parametrize("autouse", [True, False])
def test_skipping_runs_no_fixture_of_a_class_or_module_either(project, autouse):
    project.write(
        f"""
        @pytest.fixture(scope="module", autouse={autouse})
        def machine():
            note("fixture ran")

        @pytest.fixture(autouse={autouse})
        def device(machine):
            note("fixture ran")

        @pytest.mark.compiled_equivalence(observation=Box((2,)))
        def test_agent(device): return Agent()
        """
    )
    project.pytest().assert_outcomes(skipped=2)
    assert project.lines("fixture ran") == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        pytest.param("pyproject.toml", "[tool.pytest]\ncompile_check = true\n", marks=since_pytest_9),
        ("pyproject.toml", "[tool.pytest.ini_options]\ncompile_check = true\n"),
        pytest.param("pytest.toml", "[pytest]\ncompile_check = true\n", marks=since_pytest_9),
        ("pytest.ini", "[pytest]\ncompile_check = true\n"),
        ("tox.ini", "[pytest]\ncompile_check = yes\n"),
        ("setup.cfg", "[tool:pytest]\ncompile_check = 1\n"),
    ],
)
def test_the_projects_configuration_can_ask(project, file, text):
    (project.path / file).write_text(text)
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", examples=1, batch=4)
        def test_agent(): return Agent()
        """
    )
    result = project.pytest("--compile-backend=eager")
    assert verdicts(result) == {"test_policy.py::test_agent[forward-rollout]": "equal"}


def test_skipif_and_xfail_work_on_marked_tests(project):
    project.write(
        """
        marked = pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", backend=shifted)

        @marked
        @pytest.mark.skipif(True, reason="not here")
        def test_skipped(): return Agent()

        @marked
        @pytest.mark.xfail(reason="miscompiled", strict=True)
        def test_known_fault(): return Agent()
        """
    )
    result = project.check("-rsx")
    result.assert_outcomes(skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(["SKIPPED [[]1[]] test_policy.py:4: not here"])
    assert verdicts(result) == {
        "test_policy.py::test_skipped[forward-rollout]": "skipped",
        "test_policy.py::test_known_fault[forward-rollout]": "differs",
    }


def test_a_mended_xfail_tells(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        @pytest.mark.xfail(reason="miscompiled", strict=True)
        def test_known_fault(): return Agent()
        """
    )
    result = project.check()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*XPASS(strict)*miscompiled*"])
    assert verdicts(result) == {"test_policy.py::test_known_fault[forward-rollout]": "equal"}


def test_returning_a_module_is_no_warning(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)))
        def test_agent(): return Agent()
        """
    )
    project.check().assert_outcomes(passed=2, warnings=0)


def test_what_comes_compiled_is_checked_as_deployed(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
        def test_whole(): return torch.compile(Agent(), backend=shifted)

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", methods="get_value")
        def test_method():
            agent = Agent()
            agent.get_value = torch.compile(agent.get_value, backend=recorded)
            return agent

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", methods="get_value")
        def test_bypassed(): return torch.compile(Agent(), backend=recorded)
        """
    )
    result = project.check()
    assert verdicts(result) == {
        "test_policy.py::test_whole[forward-rollout]": "differs",
        "test_policy.py::test_method[get_value-rollout]": "equal",
        "test_policy.py::test_bypassed[get_value-rollout]": "not compiled",
    }
    result.stdout.fnmatch_lines(["*`model.get_value = torch.compile(model.get_value)`*"])


def test_an_ordinary_test_with_a_parameter_of_that_name_is_left_alone(project):
    project.write(
        """
        @pytest.mark.parametrize("compiled_case", [1])
        def test_ordinary(compiled_case): assert compiled_case == 1
        """
    )
    project.check().assert_outcomes(passed=1)


def test_the_marker_is_registered_and_documented(project):
    (project.path / "test_empty.py").write_text(f"{HEADER}\n")
    result = project.pytest("--markers")
    result.stdout.fnmatch_lines(
        [
            "@pytest.mark.compiled_equivalence([*], observation, inputs, methods, observe, reset, act, learn, loss, profile, backend, mode, *): the "
            "function returns a policy; check that it computes the same once compiled. "
            "Runs with --compile-check. https://*/docs/reference.md"
        ]
    )
