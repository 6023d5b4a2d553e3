"""The fixtures, in tests that the user writes: the project's options applied, skips instead of errors."""

import re

import pytest

from .project import failure, table, verdicts

# --- compile_policy -------------------------------------------------------------------------------


def test_compile_policy_and_assert_equivalent_in_an_ordinary_test(project):
    project.write(
        """
        def test_good(compile_policy, assert_equivalent):
            policy = compile_policy(Agent, "get_value", observation=Box((2,)), backend="eager")
            x = torch.ones(3, 2)
            assert policy(x).tolist() == policy.eager(x).tolist() == [[3.0]] * 3
            assert policy.capture.coverage == 1.0
            assert_equivalent(policy.eager, policy, x)

        def test_wrong(compile_policy, assert_equivalent):
            policy = compile_policy(Agent, "get_value", observation=Box((2,)), backend=shifted)
            assert_equivalent(policy.eager, policy, torch.ones(3, 2))
        """
    )
    result = project.pytest()
    result.assert_outcomes(passed=1, failed=1)
    text = failure(result)
    assert "compiled differs from eager: get_value, rollout phase" in text
    assert "captured  0 graphs" not in text, "it was compiled earlier"
    assert "output[0, 0]: values" in text
    assert re.search(r"eager +3\n", text)
    assert re.search(r"compiled +4\n", text)
    assert "def assert_equivalent" not in text, "the traceback ends in the user's test"


def test_one_compiled_policy_for_all_examples_of_given(project):
    project.write(
        """
        from hypothesis import Phase, given, settings, strategies as st

        @pytest.fixture(scope="module")
        def good(compile_policy):
            note("compiled for the module")
            return compile_policy(Agent, "get_value", observation=Box((2,)), backend="eager")

        @settings(max_examples=5, deadline=None)
        @given(x=observations(Box((2,)), batch=(1, 4)))
        def test_good(good, assert_equivalent, x):
            assert_equivalent(good.eager, good, x)

        @settings(max_examples=5, deadline=None)
        @given(data=st.data())
        def test_fixture(good, assert_equivalent, observations, data):
            x = data.draw(observations(Box((2,)), batch=4))
            assert x.shape == (4, 2)
            assert_equivalent(good.eager, good, x)

        def below(gm, example_inputs):
            def run(*args): return tuple(torch.where(out < 0, out + 1, out) for out in gm(*args))
            return run

        @pytest.fixture(scope="module")
        def wrong(compile_policy):
            return compile_policy(Agent, "get_value", observation=Box((2,)), backend=below)

        @settings(max_examples=50, deadline=None, phases=[Phase.generate, Phase.shrink])
        @given(x=observations(Box((2,)), batch=(1, 4)))
        def test_wrong(wrong, assert_equivalent, x):
            assert_equivalent(wrong.eager, wrong, x)
        """
    )
    result = project.pytest()
    result.assert_outcomes(passed=2, failed=1)
    assert project.lines("compiled for the module") == ["x"]
    text = failure(result)
    assert "compiled differs from eager: get_value, rollout phase" in text
    # Older Hypotheses show how the tensor was built.
    one_row = r"test_wrong\(\n(.*\n)*E +(x=tensor\(\[\[[^]]*\]\]\)|Recipe\(batch=1),\n"
    assert re.search(one_row, text), "shrunk to one row"


@pytest.mark.parametrize("strict", [False, True])
def test_a_compile_failure_in_a_test_or_a_fixture(project, strict):
    project.write(
        """
        @pytest.fixture
        def policy(compile_policy): return compile_policy(Agent, observation=Box((2,)), backend=broken)

        def test_in_the_fixture(policy): note("ran")

        def test_in_the_body(compile_policy):
            compile_policy(Agent, observation=Box((2,)), backend=broken)

        def test_on_the_library_function():
            import pytest_torchcompile
            pytest_torchcompile.compile_policy(Agent, observation=Box((2,)), backend=broken)

        def test_on_a_later_call(compile_policy):
            options = dict(batch=4, dynamic=False, backend=broken_later)
            policy = compile_policy(Agent, observation=Box((2,)), **options)
            policy(torch.ones(7, 2))
        """
    )
    result = project.pytest("-rs", *(["--compile-strict"] if strict else []))
    counts = result.parseoutcomes()
    if strict:
        assert counts.get("failed", 0) + counts.get("errors", 0) == 4 == sum(counts.values())
        result.stdout.fnmatch_lines(["*compile failed: forward-rollout: RuntimeError: no kernel for this*"])
    else:
        result.assert_outcomes(skipped=4)
        skips = sorted(line for line in result.outlines if line.startswith("SKIPPED"))
        reason = r"forward-rollout: RuntimeError: no kernel for this( batch)? \(at agents\.py:\d+\)"
        assert all(
            re.fullmatch(rf"SKIPPED \[\d\] test_policy\.py:\d+: compile failed: {reason}.*", line)
            for line in skips
        )
        lines = {int(re.search(r"policy\.py:(\d+)", line)[1]) for line in skips}
        assert lines == {5, 7, 10, 14}, "each is reported at its test"
    assert project.lines("ran") == []


def test_strict_in_the_call_makes_it_a_failure(project):
    project.write(
        """
        def test_in_the_body(compile_policy):
            compile_policy(Agent, observation=Box((2,)), backend=broken, strict=True)
        """
    )
    project.pytest().assert_outcomes(failed=1)


def test_a_compile_failure_under_given_skips(project):
    project.write(
        """
        from hypothesis import Phase, given, settings

        @settings(max_examples=2, phases=[Phase.generate])
        @given(observations(Box((2,)), batch=4))
        def test_agent(x):
            torch.compiler.reset()
            compiled = torch.compile(Agent(), backend=broken)
            import pytest_torchcompile
            pytest_torchcompile.assert_equivalent(Agent(), compiled, x)
        """
    )
    result = project.pytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*compile failed: *RuntimeError: no kernel for this*"])


def test_a_compile_failure_in_a_unittest_method_skips(project):
    project.write(
        """
        import unittest
        import pytest_torchcompile

        class TestAgent(unittest.TestCase):
            def test_agent(self):
                pytest_torchcompile.compile_policy(Agent, observation=Box((2,)), backend=broken)
        """
    )
    result = project.pytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*: compile failed: forward-rollout: RuntimeError: no kernel for this*"]
    )


def test_a_policy_stays_compiled_for_however_many_shapes(project):
    """Torch gives up after 8 recompiles and silently runs eager, so the comparison would prove nothing."""
    project.write(
        """
        def test_agent(compile_policy):
            policy = compile_policy(
                Agent, "get_value", observation=Box((2,)), backend=shifted, dynamic=False
            )
            for batch in range(1, 15):
                x = torch.zeros(batch, 2)
                assert policy(x).tolist() == [[3.0]] * batch
                assert policy.eager(x).tolist() == [[2.0]] * batch
        """
    )
    project.pytest().assert_outcomes(passed=1)


def test_warnings_as_errors_do_not_reach_into_a_policys_compiler(project):
    project.write(
        """
        import functools, warnings

        @functools.lru_cache
        def scale(): return 2.0

        def warns(graph, inputs):
            warnings.warn_explicit("slow", RuntimeWarning, torch.__file__, 1)
            return graph

        class Caching(Agent):
            def get_value(self, x): return self.critic(x) * scale()

        def test_agent(compile_policy, assert_equivalent):
            policy = compile_policy(Caching, "get_value", observation=Box((2,)), batch=4, backend=warns)
            assert policy(torch.zeros(9, 2)).tolist() == [[4.0]] * 9
            assert_equivalent(policy.eager, policy, torch.zeros(1, 2))
        """
    )
    project.pytest("-W", "error").assert_outcomes(passed=1)


def test_nothing_compiled_fails(project):
    project.write(
        """
        class Eager(Agent):
            @torch.compiler.disable
            def forward(self, x): return self.critic(x)

        def test_agent(compile_policy): compile_policy(Eager, observation=Box((2,)), backend="eager")
        """
    )
    result = project.pytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*no graph was captured*"])


def test_the_update_phase_has_gradients(project):
    project.write(
        """
        def test_agent(compile_policy, assert_equivalent):
            where = dict(observation=Box((2,)), phase="update", backend="eager")
            policy = compile_policy(Agent, "get_value", **where)
            assert policy(torch.ones(3, 2)).requires_grad
            assert_equivalent(policy.eager, policy, torch.ones(3, 2), phase="update")
        """
    )
    project.pytest().assert_outcomes(passed=1)


# --- options of the project -----------------------------------------------------------------------


def test_the_fixtures_apply_the_projects_options(project, monkeypatch):
    monkeypatch.delenv("PYTEST_ADDOPTS")
    (project.path / "pytest.ini").write_text(
        "[pytest]\ncompile_backend = eager\ncompile_atol = 1.5\ncompile_reference = eager\n"
        "compile_batch = 4\ncompile_phases = update\ncompile_examples = 1\n"
    )
    project.write(
        """
        def test_compile_policy(compile_policy, assert_equivalent):
            policy = compile_policy(Agent, "get_value", observation=Box((2,)))
            x = torch.ones(3, 2)
            assert_equivalent(policy.eager, lambda x: policy(x) + 1, x)
            with pytest.raises(NotEquivalent, match="allowed 0.5"):
                assert_equivalent(policy.eager, lambda x: policy(x) + 1, x, atol=0.5)

        def test_compile_check(compile_check):
            (result,) = compile_check(Agent, observation=Box((2,)))
            assert (result.phase, result.backend) == ("update", "eager")
            (result,) = compile_check(Agent, observation=Box((2,)), phases="rollout", backend=recorded)
            assert (result.phase, result.backend) == ("rollout", "recorded")

        def test_command_line(compile_check):
            (result,) = compile_check(Agent, observation=Box((2,)))
            assert result.backend == "aot_eager"
        """
    )
    project.pytest("-k", "not command_line").assert_outcomes(passed=2, deselected=1)
    project.pytest("-k", "command_line", "--compile-backend=aot_eager").assert_outcomes(
        passed=1, deselected=2
    )


def test_a_wrong_option_in_the_call_names_the_call(project):
    project.write(
        """
        def test_policy(compile_policy):
            compile_policy(Agent, observation=Box((2,)), backend=recorded, atoll=1)

        def test_check(compile_check):
            compile_check(Agent, observation=Box((2,)), backend=recorded, examples=-1)
        """
    )
    result = project.pytest()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "E*compile_policy() got unknown option 'atoll' (did you mean 'atol'?); accepted: *",
            "E*compile_check() got examples=-1; accepted: an integer >= 0",
        ]
    )
    assert project.lines("compiled") == []


def test_a_contradiction_names_where_each_half_comes_from(project):
    (project.path / "pytest.ini").write_text("[pytest]\ncompile_mode = max-autotune\n")
    project.write(
        """
        def test_check(compile_check):
            compile_check(Agent, observation=Box((2,)), backend=recorded)
        """
    )
    result = project.pytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*mode='max-autotune' (pytest.ini) is for the inductor backend, but backend=* (*); "
            "drop one of them"
        ]
    )


# --- compile_check --------------------------------------------------------------------------------

CHECKS = """
    cheap = dict(observation=Box((2,)), methods="get_value", batch=4, examples=1)

    def test_good(compile_check):
        results = compile_check(Agent, backend="eager", **cheap)
        assert [str(result.verdict) for result in results] == ["equal", "equal"]
        note("went on")

    def test_wrong(compile_check):
        compile_check(Agent, backend=shifted, **cheap)
        note("went on")

    def test_broken(compile_check):
        compile_check(Agent, backend=broken, **cheap)
        note("went on")
"""


def test_compile_check_returns_fails_or_skips_and_has_rows(project):
    project.write(CHECKS)
    result = project.pytest("-rs")
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    assert project.lines("went on") == ["x"]
    assert verdicts(result) == {
        f"test_policy.py::test_{name} (get_value-{phase})": verdict
        for name, verdict in (("good", "equal"), ("wrong", "differs"), ("broken", "compile failed"))
        for phase in ("rollout", "update")
    }
    result.stdout.fnmatch_lines(
        [
            "SKIPPED [[]1[]] test_policy.py:*: compile failed: get_value-rollout: RuntimeError: no kernel "
            "for this*"
        ]
    )
    text = failure(result)
    assert text.startswith("compiled differs from eager: get_value, rollout phase, backend shifted\n")
    assert "\ncompiled differs from eager: get_value, update phase, backend shifted\n" in text
    assert text.endswith("  rerun     pytest --compile-check test_policy.py::test_wrong")
    assert "Traceback" not in text


def test_compile_check_needs_no_flag_and_heeds_strict(project):
    project.write(CHECKS)
    project.pytest("--compile-strict").assert_outcomes(passed=1, failed=2)
    project.write(
        """
        def test_broken(compile_check):
            compile_check(Agent, observation=Box((2,)), backend=broken, strict=True)
        """
    )
    project.pytest().assert_outcomes(failed=1)


def test_a_difference_outweighs_a_compile_failure(project):
    project.write(
        """
        def broken_in_rollout(gm, example_inputs):
            return (shifted if torch.is_grad_enabled() else broken)(gm, example_inputs)

        def test_agent(compile_check):
            compile_check(Agent, observation=Box((2,)), batch=4, examples=1, backend=broken_in_rollout)
        """
    )
    result = project.pytest()
    result.assert_outcomes(failed=1)
    assert sorted(verdicts(result).values()) == ["compile failed", "differs"]


def test_two_checks_in_one_test_have_two_sets_of_rows(project):
    project.write(
        """
        def test_agent(compile_check):
            for size in (2, 3):
                compile_check(
                    lambda: Agent(size), observation=Box((size,)), phases="rollout", backend="eager",
                    batch=4, examples=size,
                )
        """
    )
    result = project.pytest()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["2 cases: 2 equal"])
    assert len([line for line in result.outlines if line.startswith("test_policy.py::test_agent (")]) == 2


def test_compile_check_in_a_fixture_belongs_to_its_test(project):
    project.write(
        """
        @pytest.fixture
        def checked(compile_check):
            return compile_check(Agent, observation=Box((2,)), phases="rollout", backend="eager", batch=4)

        @pytest.fixture
        def checked_wrong(compile_check):
            return compile_check(Agent, observation=Box((2,)), phases="rollout", backend=shifted, batch=4)

        def test_before(): pass

        def test_good(checked): pass

        def test_wrong(checked_wrong): pass
        """
    )
    result = project.pytest()
    result.assert_outcomes(passed=2, errors=1)
    assert verdicts(result) == {
        "test_policy.py::test_good (forward-rollout)": "equal",
        "test_policy.py::test_wrong (forward-rollout)": "differs",
    }


def test_a_wrong_declaration_in_compile_check_is_told_in_the_test(project):
    project.write(
        """
        def test_agent(compile_check): compile_check(Agent, observation=Box((2,)), methods="get_valeu")
        """
    )
    result = project.pytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E*UsageError: Agent has no method 'get_valeu'; it has: get_value, get_masked, get_log_prob, *"]
    )
    assert table(result) == {}


def test_the_fixtures_are_listed(project):
    result = project.pytest("--fixtures")
    for name in ("observations", "compile_policy", "assert_equivalent", "compile_check"):
        result.stdout.fnmatch_lines([f"{name} [[]session scope[]] -- *"])
