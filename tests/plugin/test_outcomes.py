"""Outcomes: what passes, fails and skips, and the messages."""

import re
import shlex

import pytest
import torch._dynamo

from .project import failure, failures, flat, table, verdicts

MARKED = '@pytest.mark.compiled_equivalence(observation=Box((2,)), methods="get_value"'
ITEM = "test_policy.py::test_agent[get_value-rollout]"


def agent(arguments="backend='eager'", body="return Agent()", phases="rollout"):
    """A marked test in which `get_value` is checked."""
    return f"{MARKED}, phases={phases!r}, {arguments})\ndef test_agent(): {body}"


def masked(text):
    """`text` without the figures that depend on the machine or on the search."""
    text = re.sub(r"\d+ compared(, and \d+ more)?", lambda found: re.sub(r"\d+", "<n>", found[0]), text)
    return re.sub(r"\d+\.\d s compiling", "<s> compiling", text)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_equal_passes(project, backend):
    project.write(agent(f"backend={backend!r}"))
    result = project.check()
    result.assert_outcomes(passed=1)
    assert verdicts(result) == {ITEM: "equal"}


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_inductor_passes(project, phase):
    project.write(agent("backend='inductor'", phases=phase))
    assert verdicts(project.check()) == {ITEM.replace("rollout", phase): "equal"}


# --- differs --------------------------------------------------------------------------------------


def test_a_difference_word_for_word(project):
    project.write(agent("backend=shifted, batch=1, examples=20, reference='eager'"))
    result = project.check()
    result.assert_outcomes(failed=1)
    text, _, rerun = masked(failure(result)).rpartition("\n")
    assert text == (
        "compiled differs from eager: get_value, rollout phase, backend shifted\n"
        "\n"
        "  output[0, 0]: values\n"
        "    eager       2\n"
        "    compiled    3\n"
        "    difference  1 (relative 0.5, 4.19e+06 ulps), allowed 2e-05\n"
        "    unequal     1 of 1 elements, in batch rows 0\n"
        "\n"
        "  example   batch 1; observation: zeros\n"
        "  examples  <n> compared, and <n> more to make it smaller\n"
        "  captured  1 graph, 3 of 3 parameters, 0 breaks (fullgraph), 0 recompiles, <s> compiling\n"
        "  meaning   https://github.com/pytest-torchcompile/pytest-torchcompile/blob/main/docs/verdicts.md#differs"
    )
    assert rerun.startswith("  rerun     pytest --compile-check ")
    assert rerun.endswith(" 'test_policy.py::test_agent[get_value-rollout]'")


def test_a_difference_shows_what_float64_and_rounding_say(project):
    project.write(agent("backend=shifted"))
    text = failure(project.check())
    assert "    float64     2  (eager is closer)\n" in text
    assert re.search(
        r"\n    difference  1 \(.* ulps\), allowed \S+\n    rounding    moves eager by \S+\n", text
    )


def test_a_difference_names_path_index_elements_and_rows(project):
    project.write(
        """
        def one_logit(gm, example_inputs):
            def run(*args):
                out, *rest = gm(*args)
                out = out.clone()
                out[2, 1] += 1.0
                return (out, *rest)
            return run

        @pytest.mark.compiled_equivalence(
            observation=Box((2,)), phases="rollout", backend=one_logit, examples=20
        )
        def test_agent(): return Agent()
        """
    )
    text = failure(project.check())
    assert "\n  output['logits'][2, 1]: values\n" in text
    assert "\n    unequal     1 of 12 elements, in batch rows 2\n" in text
    assert "\n  example   batch 4; observation: zeros\n" in text


def test_a_wrong_gradient_is_named_after_its_parameter(project):
    project.write(
        """
        def doubled(gm, example_inputs):
            class Double(torch.autograd.Function):
                @staticmethod
                def forward(ctx, x): return x.clone()
                @staticmethod
                def backward(ctx, g): return 2 * g

            def run(*args): return tuple(Double.apply(out) for out in gm(*args))
            return run

        @pytest.mark.compiled_equivalence(
            observation=Box((2,)), phases="update", methods="get_value", backend=doubled
        )
        def test_agent(): return Agent()
        """
    )
    result = project.check()
    text = failure(result)
    assert text.startswith("compiled differs from eager: get_value, update phase, backend doubled\n")
    assert "\n  gradient of critic.bias[0]: values\n" in text
    assert "actor" not in text


def test_a_difference_that_does_not_come_again(project):
    project.write(
        """
        calls = []

        def fifth(gm, example_inputs):
            def run(*args):
                calls.append(1)
                return tuple(out + (len(calls) == 5) for out in gm(*args))
            return run

        @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", backend=fifth)
        def test_agent(): return Agent()
        """
    )
    result = project.check()
    result.assert_outcomes(failed=1)
    assert "\n  depends on what ran before: differed on call 5, not when tried again\n" in failure(result)


def test_a_kernel_that_raises_is_a_difference(project):
    project.write(agent("backend=crashing"))
    result = project.check("-rs")
    result.assert_outcomes(failed=1)
    text = failure(result)
    assert text.startswith("compiled differs from eager: get_value, rollout phase, backend crashing\n")
    assert (
        "\n  output: exception\n    eager       returns\n    compiled    raises RuntimeError: kernel died\n"
        in text
    )
    assert "never finite" not in text, "it was not compared at all"


def test_the_rerun_command_reruns_it(project):
    """It names the item and has the flags of the command line; without them it would check something else."""
    project.write(agent("backend=shifted"))
    command = re.search(r"\n  rerun     pytest (.*)", failure(project.check("--compile-seed=3")))[1]
    assert "--compile-check" in command
    assert "'test_policy.py::test_agent[get_value-rollout]'" in command
    assert "--compile-seed=3" in command
    assert "--compile-backend=eager" in command


def test_the_rerun_command_works_where_pytest_was_called(project, monkeypatch):
    project.write(agent("backend=shifted"))
    project.pytester.makeini("[pytest]\npythonpath = .")
    monkeypatch.chdir(project.pytester.mkdir("below"))
    command = re.search(r"\n  rerun     (pytest .*)", failure(project.check("..")))[1]
    assert shlex.split(command)[-1] == "../test_policy.py::test_agent[get_value-rollout]"


# --- compile failures -----------------------------------------------------------------------------

# backend or further arguments: the reason
COMPILE_FAILURES = {
    "backend raises": (
        agent("backend=broken"),
        r"RuntimeError: no kernel for this \(at agents\.py:\d+\), on call 1 \(batch 4\)",
    ),
    "a later batch": (
        agent("backend=broken_later, batch=(4, 7)"),
        r"RuntimeError: no kernel for this batch \(at agents\.py:\d+\), on call 3 \(batch 7\)",
    ),
    "the backward": (
        agent("backend=broken_backward", phases="update"),
        r"RuntimeError: no backward kernel \(at agents\.py:\d+\), on call 1 \(batch 4\)",
    ),
    "a bare AssertionError": (
        agent("backend=assertive"),
        r"AssertionError \(at agents\.py:\d+\), on call 1 \(batch 4\)",
    ),
    "code that can't run": (
        agent("backend=invalid_code"),
        r"UnboundLocalError: .*'out'.* \(at \S+:\d+\), on call 1 \(batch 4\)",
    ),
    "a branch on data, fullgraph": (
        "class Branching(Agent):\n"
        "    def get_value(self, x): return self.critic(x) if x.sum() > 0 else self.critic(-x)\n\n"
        + agent("backend='eager', fullgraph=True", "return Branching()"),
        r"Unsupported: Data-dependent branching \(at test_policy\.py:3\), on call 1 \(batch 4\)",
    ),
}


@pytest.mark.parametrize("warnings", ["default", "error"])
@pytest.mark.parametrize("case", COMPILE_FAILURES)
def test_a_compile_failure_skips_with_the_reason(project, case, warnings):
    source, reason = COMPILE_FAILURES[case]
    project.write(source)
    result = project.check("-rs", "-W", warnings)
    result.assert_outcomes(skipped=1)
    line = next(i for i, text in enumerate(source.splitlines(), 2) if text.startswith("@pytest.mark"))
    phase = "update" if "['update']" in source or "'update'" in source else "rollout"
    (skipped,) = (text for text in result.outlines if text.startswith("SKIPPED"))
    assert re.fullmatch(
        rf"SKIPPED \[1\] test_policy\.py:{line}: compile failed: get_value-{phase}: {reason}", skipped
    )
    assert set(verdicts(result).values()) == {"compile failed"}


@pytest.mark.parametrize("case", COMPILE_FAILURES)
def test_strict_makes_it_a_failure(project, case):
    source, reason = COMPILE_FAILURES[case]
    project.write(source)
    result = project.check("--compile-strict")
    result.assert_outcomes(failed=1)
    phase = "update" if "['update']" in source or "'update'" in source else "rollout"
    text = failure(result)
    assert text.startswith(f"compile failed: get_value, {phase} phase, backend ")
    assert re.search(rf" {reason} examples ", flat(text))
    assert "Traceback" not in text


def test_an_error_of_dynamos_own_skips(project, monkeypatch):
    """Any exception during a compile, even if torch does not wrap it."""
    from torch._dynamo import symbolic_convert

    def unbound(*arguments):
        raise UnboundLocalError("local variable 'x' referenced before assignment")

    monkeypatch.setattr(symbolic_convert.InstructionTranslatorBase, "step", unbound)
    project.write(agent("backend='eager'"))
    result = project.check("-rs")
    result.assert_outcomes(skipped=1)
    assert verdicts(result) == {ITEM: "compile failed"}
    result.stdout.fnmatch_lines(
        ["SKIPPED*UnboundLocalError: local variable 'x' referenced before assignment*"]
    )


def test_an_lstm_that_dynamo_asserts_on_skips(project):
    """Dynamo raises a bare AssertionError (torch 2.13, allow_rnn)."""
    project.write(
        """
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm = nn.LSTM(2, 3, batch_first=True)

            def forward(self, x): return self.lstm(x)[0]

        @pytest.mark.compiled_equivalence(observation=Box(("T", 2)), phases="update", backend="aot_eager")
        def test_agent(): return Recurrent()
        """
    )
    with torch._dynamo.config.patch(allow_rnn=True):
        result = project.check("-rs")
    assert set(verdicts(result).values()) == {"compile failed"}
    result.stdout.fnmatch_lines(["SKIPPED*compile failed: forward-update: AssertionError*"])


def test_a_difference_found_before_the_compile_failure_is_not_lost(project):
    """The first graph is wrong; a batch that the search tries later can't be compiled."""
    project.write(agent("backend=shifted_then_broken, batch=(4, 7), examples=20, dynamic=False"))
    result = project.check()
    assert verdicts(result) == {ITEM: "differs"}
    result.assert_outcomes(failed=1)


def test_the_summary_counts_compile_failures_among_others(project):
    project.write(
        f"""
        {MARKED}, phases='rollout')
        def test_good(): return Agent()

        {MARKED}, phases='rollout', backend=broken)
        def test_broken(): return Agent()
        """
    )
    result = project.check()
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["2 cases: 1 equal, 1 compile failed"])
    result.stdout.no_fnmatch_line("*NOTHING WAS CHECKED*")


def test_a_summary_of_nothing_but_compile_failures_can_not_be_overlooked(project):
    project.write(agent("backend=broken", phases=["rollout", "update"]))
    result = project.check()
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["NOTHING WAS CHECKED: 2 compile failed of 2 cases"])


def test_compile_failures_of_ordinary_tests_can_not_be_overlooked_either(project):
    project.write(
        """
        def test_by_hand(compile_policy):
            compile_policy(Agent, observation=Box((2,)), backend=broken)
        """
    )
    result = project.pytest()
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["NOTHING WAS CHECKED: 1 compile failed of 1 case*"])


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "call"),
    [
        ("self.cache = {}", "self.cache['last'] = x.detach(); return self.critic(x)"),
        ("self.history = []", "self.history.append(x.detach()); return self.critic(x)"),
        (
            "self.hidden = None",
            "self.hidden = x.mean() + (self.hidden or 0); return self.critic(x) + self.hidden",
        ),
    ],
)
def test_what_a_call_leaves_in_plain_attributes_does_not_reach_the_next(project, attribute, call):
    project.write(
        f"""
        class Remembering(Agent):
            def __init__(self):
                super().__init__()
                {attribute}

            def get_value(self, x): {call}

        {agent(body="return Remembering()").replace(chr(10), chr(10) + " " * 8)}
        """
    )
    result = project.check()
    assert verdicts(result) == {ITEM: "equal"}
    result.stdout.no_fnmatch_line("*eager itself raised*")


def test_a_counter_is_no_difference(project):
    """Eager is called more often than compiled, and a module that counts its calls still passes."""
    project.write(
        f"""
        class Counting(Agent):
            def __init__(self):
                super().__init__()
                self.steps = 0
                self.hidden = torch.zeros(())

            def get_value(self, x):
                self.steps += 1
                self.hidden = self.hidden + 1
                return self.critic(x) + self.hidden + self.steps

        {agent(body="return Counting()").replace(chr(10), chr(10) + " " * 8)}
        """
    )
    (verdict,) = verdicts(project.check()).values()
    assert verdict in ("equal", "not compiled"), "torch may recompile for each value of the counter"


# --- everything else ------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("backend", ["recorded", "broken"])
def test_a_model_that_fails_in_eager_fails(project, backend, strict):
    project.write(
        f"""
        class Raising(Agent):
            def get_value(self, x): raise ZeroDivisionError("no value")

        {agent(f"backend={backend}", "return Raising()").replace(chr(10), chr(10) + " " * 8)}
        """
    )
    result = project.check("--compile-strict" if strict else "--no-compile-strict")
    result.assert_outcomes(failed=1)
    text = failure(result)
    assert text.startswith(f"eager failed: get_value, rollout phase, backend {backend}\n")
    assert (
        f"backend {backend} eager raises ZeroDivisionError: no value (at test_policy.py:3) on inputs with batch "
        "4 declared as observation=Box((2,)) examples "
    ) in flat(text)
    assert project.lines("compiled") == []


def test_a_model_whose_outputs_are_never_finite_fails(project):
    project.write(
        f"""
        class Infinite(Agent):
            def get_value(self, x): return self.critic(x) / 0

        {MARKED}, phases='rollout')
        def test_agent(): return Infinite()
        """
    )
    result = project.check()
    result.assert_outcomes(failed=1)
    assert "no output was ever finite, so that nothing was compared" in failure(result)


def test_dynamo_switched_off_is_not_compiled(project):
    project.write(agent())
    with torch._dynamo.config.patch(disable=True):
        result = project.check()
    result.assert_outcomes(failed=1)
    assert verdicts(result) == {ITEM: "not compiled"}
    assert failure(result).startswith(
        "not compiled: get_value, rollout phase, backend eager\n"
        "\n"
        "  no graph was captured: dynamo is disabled (TORCHDYNAMO_DISABLE, TORCH_COMPILE_DISABLE or its\n"
        "  config)\n"
    )


def test_warnings_as_errors_change_nothing(project):
    """Including dynamo's own warnings, which the compiler would raise as exceptions."""
    project.write(
        f"""
        import functools

        @functools.lru_cache
        def scale(): return 2.0

        class Caching(Agent):
            def get_value(self, x): return self.critic(x) * scale()

        class Branching(Agent):
            def get_value(self, x): return self.critic(x) if x.sum() > 0 else self.critic(-x)

        {MARKED}, phases='rollout')
        def test_cached(): return Caching()

        {MARKED}, phases='rollout')
        def test_graph_break(): return Branching()

        {MARKED}, phases='rollout', backend=shifted)
        def test_wrong(): return Agent()

        {MARKED}, phases='rollout', backend=crashing)
        def test_crashing(): return Agent()
        """
    )
    lenient, harsh = project.check(), project.check("-W", "error")
    assert verdicts(lenient) == verdicts(harsh)
    assert list(verdicts(harsh).values()) == ["equal", "differs", "equal", "differs"]
    assert lenient.parseoutcomes().keys() >= harsh.parseoutcomes().keys() == {"passed", "failed"}
    breaks = {case: row["breaks"] for case, row in table(harsh).items()}
    assert breaks["test_policy.py::test_graph_break[get_value-rollout]"] != "0"


WARNING = f"""
    import warnings

    class Warning(Agent):
        def get_value(self, x):
            warnings.warn("the user's own", UserWarning, stacklevel=1)
            return self.critic(x)

    {MARKED}, phases='rollout')
    def test_agent(): return Warning()
"""


def test_the_users_warnings_come_through(project):
    project.write(WARNING)
    result = project.check()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*test_policy.py:6: UserWarning: the user's own"])


def test_the_users_warning_as_an_error_fails_and_keeps_the_row(project):
    project.write(WARNING)
    result = project.check("-W", "error")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*UserWarning: the user's own"])
    assert verdicts(result) == {ITEM: "equal"}


@pytest.mark.parametrize(
    ("backend", "verdict", "outcome"),
    [("shifted", "differs", "failed"), ("broken", "compile failed", "skipped")],
)
def test_the_users_warning_as_an_error_hides_no_verdict(project, backend, verdict, outcome):
    project.write(WARNING.replace("phases='rollout'", f"phases='rollout', backend={backend}"))
    result = project.check("-W", "error")
    assert verdicts(result) == {ITEM: verdict}
    result.assert_outcomes(**{outcome: 1})


def test_several_failures_are_told_apart(project):
    project.write(
        """
        @pytest.mark.compiled_equivalence(
            observation=Box((2,)), methods=["get_value", "get_logits"], backend=shifted
        )
        def test_agent(): return Agent()
        """
    )
    result = project.check()
    assert {title: text.splitlines()[0] for title, text in failures(result).items()} == {
        f"test_agent[{method}-{phase}]": f"compiled differs from eager: {method}, {phase} phase, "
        f"backend shifted"
        for method in ("get_value", "get_logits")
        for phase in ("rollout", "update")
    }


def test_torchs_trace_log_stays_out_of_failures(project):
    project.write(agent("backend=shifted"))
    result = project.check()
    result.stdout.no_fnmatch_line("*Captured log*")
    assert len(failure(result).splitlines()) < 25
