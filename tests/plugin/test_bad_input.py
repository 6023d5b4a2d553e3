"""Invalid input: one message with the test, the value, what is accepted and the fix; nothing is compiled."""

import pytest

from .project import failure, failures, verdicts

MARK = "@pytest.mark.compiled_equivalence"
MARKED = f'{MARK}(observation=Box((2,)), phases="rollout", backend=recorded)'


def declared(arguments, phases="rollout"):
    """The marker with these arguments."""
    return f'{MARK}({arguments}, phases="{phases}", backend=recorded)'


def agent(arguments):
    """A marked test with these arguments, whose factory is fine."""
    return f"{declared(arguments)}\ndef test_agent(): return Agent()"


# name: (source, the sentence after "... on test_policy.py::test_agent: ")
ONE_SENTENCE = {
    "returns None": (
        f"{MARKED}\ndef test_agent(): Agent()",
        "the factory returned None (is a `return` missing?); it must return a torch.nn.Module, or an object "
        "that holds some",
    ),
    "returns a class": (
        f"{MARKED}\ndef test_agent(): return Agent",
        "the factory returned the class Agent; return an instance: Agent(...)",
    ),
    "returns a number": (
        f"{MARKED}\ndef test_agent(): return 2.5",
        "the factory returned a float: 2.5; it must return a torch.nn.Module, or an object that holds some",
    ),
    "returns a coroutine": (
        f"async def make(): return Agent()\n{MARKED}\ndef test_agent(): return make()",
        "the factory is async; it must be a plain function that returns the module",
    ),
    "a method that isn't there": (
        agent('observation=Box((2,)), methods="get_valeu"'),
        "Agent has no method 'get_valeu'; it has: get_value, get_masked, get_log_prob, get_logits, forward",
    ),
    "nothing declared": (
        agent("observation=None"),
        "Agent has no observation spec; declare one without the batch dimension: observation=Box((2,))",
    ),
    "a parameter without a spec": (
        agent('observation=Box((2,)), methods="get_log_prob"'),
        "get_log_prob(x, action) needs 'action', which has no spec; add one: inputs={'action': Discrete(3)}",
    ),
    "inputs that are no dict": (
        agent("observation=Box((2,)), inputs=[Discrete(3)]"),
        "inputs=[Discrete(3)]; accepted: a dict from parameter names to specs",
    ),
    "a spec class": (
        agent("observation=Box"),
        "observation=Box is a class; write Box(...)",
    ),
    "a spec function that raises": (
        agent("observation=lambda model: Box((model.width,))"),
        "observation is a function that raised AttributeError when given the built Agent: "
        "'Agent' object has no attribute 'width'",
    ),
    "a spec function that makes a mask without an action": (
        agent("observation=lambda model: LegalMask(0)"),
        "observation is a function that raised UsageError when given the built Agent: "
        "LegalMask(0): n must be a positive integer: a mask without a legal action leaves "
        "nothing to choose",
    ),
    "a dtype that isn't there": (
        agent('observation=Box((2,), dtype="float33")'),
        "'float33' is no torch dtype; accepted: 'float32', torch.float32 ...",
    ),
    "an action for a mask that isn't there": (
        agent('observation=Box((2,)), inputs={"action": LegalAction("mask")}, methods="get_log_prob"'),
        "LegalAction('mask') names no input; the inputs are: observation",
    ),
    "a constant mask without a legal action": (
        agent(
            "observation=Box((2,)), methods='get_masked', batch=4, "
            "inputs={'legal': torch.zeros(4, 3, dtype=torch.bool), 'action': LegalAction('legal')}"
        ),
        "LegalAction('legal'): the mask, shaped (4, 3), needs two dimensions (batch, actions) and a "
        "legal action in each row",
    ),
    "an output nobody knows": (
        "class Move:\n    pass\n\n"
        "class Mover(Agent):\n    def forward(self, x): return Move()\n\n"
        f"{MARKED}\ndef test_agent(): return Mover()",
        "output is a test_policy.Move, which the comparison can't unpack; register it: "
        "pytest_torchcompile.register_output(Move, lambda value: {'name': value.tensor, ...})",
    ),
}

# The same for what is wrong with the test or the marker itself, where the whole sentence differs.
MISUSE = {
    "positional junk": (
        f"{MARK}(Box((2,)), 4)\ndef test_agent(): return note('ran')",
        "test_agent[usage-error]",
        f"{MARK} on test_policy.py::test_agent got positional arguments "
        "(Box((2,)), 4); accepted: keyword arguments, such as observation=Box((8,))",
    ),
    "methods that are none": (
        f"{MARK}(observation=Box((2,)), methods=[])\ndef test_agent(): return note('ran')",
        "test_agent[usage-error]",
        f"{MARK} on test_policy.py::test_agent got methods=[]; accepted: method names and functions "
        "f(model, **inputs)",
    ),
    "a method of no use": (
        f"{MARK}(observation=Box((2,)), methods=['get_value', 3])\ndef test_agent(): return note('ran')",
        "test_agent[usage-error]",
        f"{MARK} on test_policy.py::test_agent got 3 among methods; accepted: method names and functions "
        "f(model, **inputs)",
    ),
    "an object that is called": (
        f"{MARK}(observation=Box((2,)), methods='__call__')\ndef test_agent(): return note('ran')",
        "test_agent[usage-error]",
        f"{MARK} on test_policy.py::test_agent got '__call__' among methods; accepted: method names and "
        "functions f(model, **inputs); instead write methods=lambda policy, observation: policy(observation)",
    ),
    "a module for a method": (
        f"{MARK}(observation=Box((2,)), methods=nn.ReLU())\ndef test_agent(): return note('ran')",
        "test_agent[usage-error]",
        f"{MARK} on test_policy.py::test_agent got ReLU() among methods; accepted: method names and "
        "functions f(model, **inputs)",
    ),
    "pytest.param": (
        f"@pytest.mark.parametrize('size', [pytest.param(2, marks={MARK[1:]}(observation=Box((2,))))])\n"
        "def test_agent(size): return note('ran')",
        "test_agent[2]",
        f"{MARK} on test_policy.py::test_agent[2]: the marker came through pytest.param(marks=...); "
        "put it on the function itself",
    ),
    "unittest": (
        "import unittest\n\n"
        "class TestAgent(unittest.TestCase):\n"
        f"    {MARKED}\n"
        "    def test_agent(self): return note('ran')",
        "TestAgent.test_agent",
        f"{MARK} on test_policy.py::TestAgent::test_agent: a method of unittest.TestCase can't return the "
        "module; move it to a plain class or a function",
    ),
    "async": (
        f"{MARKED}\nasync def test_agent(): return note('ran')",
        "test_agent[forward-rollout]",
        f"{MARK} on test_policy.py::test_agent[forward-rollout]: the test is async; make it a plain function "
        "that returns the module",
    ),
    "async generator": (
        f"{MARKED}\nasync def test_agent(): yield note('ran')",
        "test_agent[forward-rollout]",
        f"{MARK} on test_policy.py::test_agent[forward-rollout]: the test is async; make it a plain function "
        "that returns the module",
    ),
    "given": (
        "from hypothesis import given\n"
        f"{MARKED}\n@given(observations(Box((2,))))\ndef test_agent(x): return note('ran')",
        "test_agent[forward-rollout]",
        f"{MARK} on test_policy.py::test_agent[forward-rollout]: drop @given; the check draws its own "
        "examples from the declared specs",
    ),
    "given above the marker": (
        "from hypothesis import given\n"
        f"@given(observations(Box((2,))))\n{MARKED}\ndef test_agent(x): return note('ran')",
        "test_agent[forward-rollout]",
        f"{MARK} on test_policy.py::test_agent[forward-rollout]: drop @given; the check draws its own "
        "examples from the declared specs",
    ),
}


def assert_nothing_was_checked(project, result):
    """One red item, no traceback, no compile."""
    counts = result.parseoutcomes()
    assert counts.get("failed", 0) + counts.get("errors", 0) == sum(counts.values()) == 1
    assert "Traceback" not in result.stdout.str()
    assert project.lines("compiled") == []
    assert project.lines("ran") == []


@pytest.mark.parametrize("case", ONE_SENTENCE)
def test_what_is_wrong_with_the_declaration_or_the_factory(project, case):
    source, sentence = ONE_SENTENCE[case]
    project.write(source)
    result = project.check()
    assert_nothing_was_checked(project, result)
    assert failure(result) == f"{MARK} on test_policy.py::test_agent: {sentence}"
    assert list(verdicts(result).values()) == ["eager failed"]


@pytest.mark.parametrize("case", MISUSE)
def test_what_is_wrong_with_the_test_or_the_marker(project, case):
    source, title, sentence = MISUSE[case]
    project.write(source)
    result = project.check("-p", "no:randomly")
    assert_nothing_was_checked(project, result)
    assert failures(result) == {title: sentence}
    assert verdicts(result) == {}


@pytest.mark.parametrize("name", ["compile_equivalence", "compiled_equivalance"])
@pytest.mark.parametrize(
    "tests", ["{}\ndef test_it(): note('ran')", "{}\nclass TestIt:\n    def test_it(self): note('ran')"]
)
def test_a_misspelt_marker_is_an_error(project, name, tests):
    """The test would pass, and other tests that are checked would hide it."""
    project.write(
        tests.format(f"@pytest.mark.{name}(observation=Box((2,)))")
        + f"\n{MARKED}\ndef test_agent(): return Agent()"
    )
    result = project.check()
    result.assert_outcomes(errors=1, passed=1)
    assert project.lines("ran") == []
    (sentence,) = failures(result).values()
    where = "test_policy.py::TestIt::test_it" if "class" in tests else "test_policy.py::test_it"
    assert sentence == (
        f"@pytest.mark.{name} on {where}: pytest knows no such marker, so nothing is checked; write "
        f"{MARK}, or register {name!r} under markers in the ini file if it is another marker"
    )
    project.pytest().assert_outcomes(passed=1, skipped=1)


@pytest.mark.parametrize("name", ["equivalence", "compile", "torch_compiled", "compile_equivalence", "slow"])
def test_other_markers_are_the_projects_own(project, name):
    """Names that are not close, and one that is but is registered."""
    project.pytester.makeini("[pytest]\nmarkers =\n    compile_equivalence(backend): another one")
    project.write(f"@pytest.mark.{name}\ndef test_other(): pass")
    project.check().assert_outcomes(passed=1)


@pytest.mark.parametrize("case", [case for case in MISUSE if case != "pytest.param"])
def test_misuse_is_only_told_when_the_check_is_asked_for(project, case):
    project.write(MISUSE[case][0])
    result = project.pytest("-rs")
    counts = result.parseoutcomes()
    assert counts["skipped"] == sum(counts.values())
    result.stdout.fnmatch_lines(["SKIPPED*: compiled against eager: run with --compile-check"])
    assert project.lines("ran") == []


def test_a_factory_that_raises_is_told_with_the_place(project):
    project.write(
        f"""
        {MARKED}
        def test_agent():
            agent = Agent()
            raise FileNotFoundError("no checkpoint 'best.pt'")
        """
    )
    result = project.check()
    assert_nothing_was_checked(project, result)
    text = failure(result)
    sentence = (
        f"{MARK} on test_policy.py::test_agent: the factory raised FileNotFoundError: no checkpoint 'best.pt'"
    )
    assert text.startswith(sentence)
    assert "test_policy.py:5" in text
    assert "\n" not in text


@pytest.mark.parametrize("call", ["pytest.skip('no weights here')", "pytest.importorskip('no_such_module')"])
def test_a_factory_may_skip(project, call):
    project.write(f"{MARKED}\ndef test_agent():\n    {call}\n")
    result = project.check("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED [[]1[]] test_policy.py:4: *no*"])


def test_a_factory_that_needs_an_argument_nobody_has(project):
    project.write(f"{MARKED}\ndef test_agent(width): return note('ran')")
    result = project.check()
    assert_nothing_was_checked(project, result)
    result.stdout.fnmatch_lines(["E       fixture 'width' not found"])


def test_a_callable_factory_that_needs_arguments(project):
    project.write(
        """
        class Sized(Agent):
            def __init__(self, observations, *, actions, gain=1.0): super().__init__(observations, actions)

        def test_agent(compile_check):
            compile_check(Sized, observation=Box((2,)), backend=recorded)
        """
    )
    result = project.pytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*the factory needs arguments (observations, actions); give one that needs none, "
            "such as lambda: Sized(...)"
        ]
    )
    assert project.lines("compiled") == []


def test_a_shape_that_the_model_rejects(project):
    project.write(agent("observation=Box((5,))"))
    result = project.check()
    result.assert_outcomes(failed=1)
    text = failure(result)
    assert text.startswith("eager failed: forward, rollout phase, backend recorded\n")
    words = "RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x5 and 2x3)"
    assert words in text.replace("addmm: ", ""), "torch 2.15 begins its message with the operator"
    assert "observation=Box((5,))" in text, "the value that is wrong is the spec"
    assert "test_policy.py::test_agent[forward-rollout]" in text
    assert "Traceback" not in text
    assert project.lines("compiled") == []
    assert verdicts(result) == {"test_policy.py::test_agent[forward-rollout]": "eager failed"}


@pytest.mark.parametrize(
    ("inputs", "given"),
    [
        ("{'actoin': Discrete(3), 'action': Discrete(3)}", "actoin"),
        ("{'action': Discrete(3), 'mask': (3,)}", "mask"),
    ],
)
def test_an_input_that_no_method_takes(project, inputs, given):
    project.write(agent(f"observation=Box((2,)), methods='get_log_prob', inputs={inputs}"))
    result = project.check()
    assert_nothing_was_checked(project, result)
    text = failure(result)
    assert text.startswith(f"{MARK} on test_policy.py::test_agent: no method takes the input {given!r}")
    assert "get_log_prob(x, action)" in text, "what is accepted"
    assert "\n" not in text


def test_a_method_that_takes_no_observation(project):
    project.write(
        f"""
        class Mute(Agent):
            def report(self): return self.actor.weight.sum()

        {declared("observation=Box((2,)), methods='report'")}
        def test_agent(): return Mute()
        """
    )
    result = project.check()
    assert_nothing_was_checked(project, result)
    assert failure(result) == (
        f"{MARK} on test_policy.py::test_agent: report() takes no observation; use an adapter f(model, x)"
    )


def test_a_mask_that_may_have_no_legal_action(project):
    """It is found before anything is compiled, not on the first example without one."""
    project.write(
        agent(
            "observation=Box((2,)), methods='get_masked', "
            "inputs={'legal': MultiBinary((3,), 'bool'), 'action': LegalAction('legal')}"
        )
    )
    result = project.check()
    assert_nothing_was_checked(project, result)
    text = failure(result)
    assert text.startswith(f"{MARK} on test_policy.py::test_agent: ")
    assert "LegalAction('legal')" in text
    assert "MultiBinary((3,)" in text
    assert "LegalMask(3)" in text, "the fix"
    assert "\n" not in text


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "LegalMask(0)",
            "LegalMask(0): n must be a positive integer: a mask without a legal action leaves nothing to choose",
        ),
        (
            "Box((3, -1))",
            "Box((3, -1)): the shape must be a tuple of positive integers, or 'T' for a sequence, without the "
            "batch",
        ),
        ("Discrete(2.5)", "Discrete(2.5): n must be a positive integer"),
    ],
)
def test_a_spec_that_can_not_be_is_told_at_its_line(project, spec, sentence):
    """It is that test's error; the file's other tests run."""
    project.write(
        f"{agent(f'observation={spec}')}\n{agent('observation=Box((2,))').replace('_agent', '_fine')}"
    )
    result = project.check()
    result.assert_outcomes(errors=1, passed=1)
    assert failures(result) == {
        "test_agent[usage-error]": f"{MARK} on test_policy.py::test_agent: {sentence} (at test_policy.py:2)"
    }


def test_a_marker_from_pytest_param_on_top_of_the_functions_own(project):
    project.write(
        f"""
        @pytest.mark.parametrize("size", [2, pytest.param(3, marks={MARK[1:]}(atol=1.0))])
        {declared("observation=lambda m: Box((m.observations,))")}
        def test_agent(size): return Agent(size)
        """
    )
    result = project.check()
    counts = result.parseoutcomes()
    assert counts.pop("passed") == 1
    assert sum(counts.values()) == 1, "what it says would be ignored"
    text = failure(result)
    assert text == (
        f"{MARK} on test_policy.py::test_agent[3-forward-rollout]: the marker came through "
        f"pytest.param(marks=...); put it on the function itself"
    )


def test_a_marker_added_after_collection(project):
    """It comes too late to be expanded, and must not be treated as something else."""
    project.pytester.makeconftest(
        """
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.compiled_equivalence(observation=(2,)))
        """
    )
    project.write("def test_agent(): return note('ran')")
    result = project.check()
    assert_nothing_was_checked(project, result)
    text = failure(result)
    assert text.startswith(f"{MARK} on test_policy.py::test_agent: ")
    assert "unittest" not in text
    assert "pytest.param" not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("methods", "name"),
    [
        ("['get_value', 'get_value']", "get_value"),
        ("[lambda m, x: m(x), lambda m, x: m.get_value(x)]", "adapter"),
    ],
)
def test_a_method_named_twice(project, methods, name):
    project.write(agent(f"observation=Box((2,)), methods={methods}"))
    result = project.check()
    assert "passed" not in result.parseoutcomes()
    assert failures(result) == {
        "test_agent[usage-error]": f"{MARK} on test_policy.py::test_agent got {name!r} twice among methods; "
        f"give each adapter a name of its own (def)"
    }
    assert project.lines("compiled") == []


def test_an_object_is_a_method_for_the_marker_as_for_the_functions(project):
    project.write(
        """
        import functools

        class Object:
            def __call__(self, model, x): return model.get_value(x)

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", methods=Object())
        def test_object(): return Agent()

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", methods=[functools.partial(Object())])
        def test_partial(): return Agent()

        @pytest.mark.compiled_equivalence(observation=Box((2,)), methods="__call__")
        def test_name(): return Agent()
        """
    )
    result = project.check()
    result.assert_outcomes(passed=2, errors=1)
    assert set(verdicts(result).values()) == {"equal"}
    assert failures(result)["test_name[usage-error]"].startswith(
        f"{MARK} on test_policy.py::test_name got '__call__' among methods; accepted: "
    )


def test_a_bare_marker(project):
    project.write(f"{MARK}\ndef test_agent(): return Agent()")
    assert set(failures(project.check()).values()) == {
        f"{MARK} on test_policy.py::test_agent: Agent has no observation spec; declare one without "
        f"the batch dimension: observation=Box((2,))"
    }


def test_a_submodules_method_that_is_not_there(project):
    project.write(agent('observation=Box((2,)), methods="actor.act"'))
    result = project.check()
    assert_nothing_was_checked(project, result)
    text = failure(result)
    assert text.startswith(f"{MARK} on test_policy.py::test_agent: Agent has no method 'actor.act'; it has: ")
    accepted = text.partition("; it has: ")[2].split(", ")
    assert "weight" not in accepted, "a tensor is no method"
    assert "\n" not in text


def test_an_attribute_that_can_not_be_called(project):
    project.write(agent('observation=Box((2,)), methods="observations"'))
    result = project.check()
    assert_nothing_was_checked(project, result)
    text = failure(result)
    assert text.startswith(f"{MARK} on test_policy.py::test_agent: 'observations' of Agent is")
    assert "get_value" in text, "what is accepted"
    assert "\n" not in text
