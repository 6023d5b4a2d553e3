"""What a person types wrong: one error, at the start or at the user's line, without this package's frames."""

import pytest

from .project import failure, failures

MARK = "@pytest.mark.compiled_equivalence"
FINE = f"{MARK}(observation=Box((2,)), backend='eager', phases='rollout')\ndef test_fine(): return Agent()"


def lines_of(text):
    """The lines of a failure that are not empty."""
    return [line for line in text.splitlines() if line.strip()]


# The call, and the sentence below it.
CALLS = {
    "no observation": (
        "compile_check(Agent())",
        "UsageError: Agent has no observation spec; declare one without the batch dimension: "
        "observation=Box((2,))",
    ),
    "a method that is not there": (
        "compile_policy(Agent, 'get_valu', observation=Box((2,)))",
        "UsageError: Agent has no method 'get_valu'; it has: get_value, ",
    ),
    "no inputs": (
        "assert_equivalent(Agent(), Agent())",
        "UsageError: assert_equivalent(eager, compiled) got no inputs, but forward(x) can't be called with "
        "them: missing a required argument: 'x'; give the inputs of one call: "
        "assert_equivalent(eager, compiled, x)",
    ),
    "too many inputs": (
        "measure_speedup(Agent(), Agent(), torch.zeros(3, 2), 4)",
        "UsageError: measure_speedup(eager, compiled) got 2 inputs, but forward(x) can't be called with "
        "them: too many positional arguments",
    ),
    "a tolerance that is no number": (
        "assert_equivalent(Agent(), Agent(), torch.zeros(3, 2), atol='tiny')",
        "UsageError: assert_equivalent() got atol='tiny'; accepted: a number >= 0",
    ),
    "a mode that is not there": (
        "compile_policy(Agent, observation=Box((2,)), mode='max-autotun')",
        "UsageError: mode='max-autotun' is unknown to torch (did you mean 'max-autotune'?)",
    ),
    "bounds": (
        "Box((17,), low=1, high=0)",
        "UsageError: Box((17,), low=1, high=0): low exceeds high",
    ),
    "a bound that does not broadcast": (
        "Box((8,), low=[0, 0, 0])",
        "UsageError: Box((8,), low=[0, 0, 0]): low has the shape (3,), which does not broadcast to (8,)",
    ),
    "a bound that is no number": (
        "Box((8,), low='a')",
        "UsageError: Box((8,), low='a'): low must be a number or an array of numbers",
    ),
    "one number for several": (
        "MultiDiscrete(3)",
        "UsageError: MultiDiscrete(3): nvec must be a list of positive integers, such as [3, 2]",
    ),
    "an argument that no spec takes": (
        "Box((8,), between=0)",
        "TypeError: Box.__init__() got an unexpected keyword argument 'between'",
    ),
    "the name of a spec": (
        "observations('Box')",
        "UsageError: observation='Box' is a string; write observation=Box(...)",
    ),
    "a spec as a string": (
        "observations({'board': 'Box((3,))'})",
        "UsageError: observation.board='Box((3,))' is a string; write observation.board=Box((3,))",
    ),
    "no spec": (
        "observations(None)",
        "UsageError: observations(None) describes no tensor; accepted: a spec such as Box((8,)), ",
    ),
    "no forward": (
        "compile_policy(Mute, observation=Box((2,)))",
        "UsageError: Mute has no forward; name what to check: methods=['act']",
    ),
    "a shape that the policy rejects": (
        "compile_policy(Agent, observation=Box((5,)), backend='eager')",
        "UsageError: eager raises RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x5 and 2x3)",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_shows_the_users_line_and_the_sentence(project, case):
    call, sentence = CALLS[case]
    project.write(
        f"""
        class Mute(torch.nn.Module):
            def act(self, x): return x

        def test_agent(compile_check):
            {call}
        """
    )
    result = project.pytest()
    result.assert_outcomes(failed=1)
    text = failure(result)
    assert "pytest_torchcompile/" not in text
    assert "???" not in text
    told = [line for line in lines_of(text) if line.startswith("E ")]
    assert len(told) == 1
    # torch 2.15 begins its message with the operator.
    assert sentence in told[0].replace("pytest_torchcompile.errors.", "").replace("addmm: ", "")
    assert f">       {call}" in lines_of(text)
    assert len(lines_of(text)) <= 7


def test_full_trace_leaves_nothing_out(project):
    project.write("def test_agent(): compile_policy(Agent, 'get_valu', observation=Box((2,)))")
    assert "direct.py" in failure(project.pytest("--full-trace"))


def test_an_exception_of_the_policy_shows_the_policys_line(project):
    project.write("def test_agent(): assert_equivalent(Agent(), Agent(), torch.zeros(3, 7))")
    text = failure(project.pytest())
    assert "agents.py:" in text
    assert "RuntimeError: mat1 and mat2 shapes" in text.replace("addmm: ", "")
    assert "pytest_torchcompile/" not in text


def test_an_error_of_this_package_that_is_no_sentence_keeps_its_frames(project, monkeypatch):
    """Otherwise nobody could report it."""
    import pytest_torchcompile.direct

    monkeypatch.setattr(pytest_torchcompile.direct, "as_methods", {}.__getitem__)
    project.write("def test_agent(): compile_policy(Agent, observation=Box((2,)))")
    assert "direct.py" in failure(project.pytest())


def test_an_error_while_a_file_is_imported_shows_its_line(project):
    project.write("strategy = observations('Box')\n\ndef test_agent(): pass")
    result = project.pytest()
    result.assert_outcomes(errors=1)
    told = [line for line in result.outlines if line.startswith(("test_policy.py:", "E "))]
    assert told == [
        "test_policy.py:2: in <module>",
        "E   pytest_torchcompile.errors.UsageError: observation='Box' is a string; write observation=Box(...)",
    ]
    assert "pytest_torchcompile/" not in result.stdout.str()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("Box((17,), low=1, high=0)", "Box((17,), low=1, high=0): low exceeds high"),
        ("{'a': Flag(), 'b': (Box((2,), low=1, high=0),)}", "Box((2,), low=1, high=0): low exceeds high"),
        ("Wrapped(Discrete(0), dict)", "Discrete(0): n must be a positive integer"),
        ("Box((2,), between=0)", "TypeError: Box.__init__() got an unexpected keyword argument 'between'"),
    ],
)
def test_a_wrong_spec_is_the_error_of_its_test_alone(project, spec, sentence):
    project.write(f"{MARK}(observation={spec})\ndef test_wrong(): return note('ran')\n{FINE}")
    result = project.check()
    result.assert_outcomes(passed=1, errors=1)
    assert failures(result) == {
        "test_wrong[usage-error]": f"{MARK} on test_policy.py::test_wrong: {sentence} (at test_policy.py:2)"
    }
    assert project.lines("ran") == []


def test_a_wrong_spec_that_a_fixture_of_the_library_gets(project):
    project.write("WRONG = Discrete(0)\n\ndef test_agent(): observations(WRONG)\ndef test_other(): pass")
    result = project.pytest()
    result.assert_outcomes(passed=1, failed=1)
    assert "Discrete(0): n must be a positive integer (at test_policy.py:2)" in failure(result)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "--compile-mode=max-autotun",
            "mode='max-autotun' of --compile-mode is unknown to torch (did you mean",
        ),
        ("--compile-options=max_autotun=1", "options='max_autotun' of --compile-options is unknown to torch"),
        ("--compile-backend=inductr", "backend='inductr' of --compile-backend is unknown to torch (did you"),
    ],
)
def test_an_option_that_torch_does_not_know_is_one_error_at_the_start(project, option, sentence):
    project.write(f"{MARK}(observation=Box((2,)))\ndef test_agent(): return note('ran')")
    result = project.pytest("--compile-check", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = [line for line in result.errlines + result.outlines if sentence in line]
    assert len(told) == 1
    assert told[0].startswith("ERROR: ")
    assert project.lines("ran") == []
    assert "nothing was checked" not in result.stdout.str()
    project.pytest(option).assert_outcomes(skipped=2)


def test_an_earlier_report_survives_a_misspelt_backend(project):
    project.write(FINE)
    report = project.path / "report.json"
    project.check(f"--compile-report={report}")
    before = report.read_text()
    assert (
        project.pytest("--compile-check", "--compile-backend=inductr", f"--compile-report={report}").ret == 4
    )
    assert report.read_text() == before


@pytest.mark.parametrize(
    "argument", ["mode='max-autotun'", "options={'max_autotun': True}", "backend='inductr'"]
)
def test_an_argument_that_torch_does_not_know_is_one_error_of_its_test(project, argument):
    project.write(f"{MARK}(observation=Box((2,)), {argument})\ndef test_agent(): return note('ran')\n{FINE}")
    result = project.pytest("--compile-check", "--compile-examples=2", "--compile-batch=4")
    result.assert_outcomes(passed=1, errors=1)
    (title,) = failures(result)
    assert title == "test_agent[usage-error]"
    assert "is unknown to torch (did you mean" in failure(result)


def test_a_backend_that_the_test_file_registers_is_no_typing_error(project):
    project.write(
        f"""
        from torch._dynamo import register_backend

        @register_backend(name="inductors")
        def mine(graph, inputs): return graph

        {MARK}(observation=Box((2,)), phases="rollout")
        def test_agent(): return Agent()
        """
    )
    options = ("--compile-examples=2", "--compile-batch=4", "--compile-backend=inductors")
    project.pytest("--compile-check", *options).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("agentz:Agent", "there is no module 'agentz' (did you mean 'agents'?)"),
        ("package.agentz:Agent", "there is no module 'package.agentz' (did you mean 'agents'?)"),
        ("package.agents:Agnet", "package.agents has no 'Agnet' (did you mean 'Agent'?)"),
    ],
)
def test_a_model_that_is_not_there_is_one_error(project, model, sentence):
    project.pytester.mkpydir("package").joinpath("agents.py").write_text(
        "from agents import note\nnote('imported')\nclass Agent: pass\n"
    )
    result = project.check(f"--compile-model={model}", "--compile-observation=2")
    result.assert_outcomes(errors=1)
    assert failures(result) == {
        f"{model}[usage-error]": f"--compile-model {model}: factory={model!r}: {sentence}"
    }
    assert project.lines("imported") == [], "it is found without importing it"


def test_a_model_that_its_module_makes_later_is_no_typing_error(project):
    project.pytester.makepyfile(made="import agents\nglobals().update(vars(agents))\n")
    result = project.check(
        "--compile-model=made:Agent", "--compile-observation=2", "--compile-phases=rollout"
    )
    result.assert_outcomes(passed=1)
