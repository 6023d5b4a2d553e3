"""A check changes and loses nothing of the user's, however it ends, including by Ctrl-C."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import Distribution

from .project import verdicts

MARKED = '@pytest.mark.compiled_equivalence(observation=Box((2,)), phases="{phase}", backend={backend})'

USED = """
class Used(Agent):
    '''Has state of every kind, all of which a call changes.'''

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("seen", torch.zeros(()))
        self.hidden = torch.ones(3)
        self.cache = {}
        self.steps = 7
        self.history = []

    def forward(self, x):
        self.seen += 1
        self.hidden = self.hidden * 2
        self.cache = {"last": x.detach()}
        return self.critic(self.norm(x)) + self.hidden.sum() + torch.rand(())
"""

# How a check may end: the model's forward, the backend, the verdict (None if there is none)
ENDS = {
    "equal": ("pass", "recorded", "equal"),
    "differs": ("pass", "shifted", "differs"),
    "compile failed": ("pass", "broken", "compile failed"),
    "the kernel raises": ("pass", "crashing", "differs"),
    "eager failed": ("raise ValueError('no')", "recorded", "eager failed"),
    "Ctrl-C in eager": ("raise KeyboardInterrupt", "recorded", "crashed"),
    "Ctrl-C in the compiler": ("pass", "interrupted", "crashed"),
    "Ctrl-C in compiled": ("pass", "interrupting", "crashed"),
    "out of memory": ("raise MemoryError", "recorded", "crashed"),
}

INTERRUPTS = """
def interrupted(gm, example_inputs):
    raise KeyboardInterrupt

def interrupting(gm, example_inputs):
    def run(*args): raise KeyboardInterrupt
    return run
"""


class Witness:
    """Inner plugin: what the process is like before and after each test's call."""

    def __init__(self):
        self.before = self.after = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem):
        self.before = state_of_process()
        try:
            return (yield)
        finally:
            self.after = state_of_process()


class Finder:
    """Inner plugin: finds the module-level `model` and what it is like before any test."""

    def pytest_collection_modifyitems(self, items):
        self.model = items[0].module.model
        self.before = state_of_module(self.model)


def state_of_process():
    """Everything global that a check touches, as comparable values."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "validation": Distribution._validate_args,
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "recompile limit": torch._dynamo.config.recompile_limit,
        "fallback_random": torch._inductor.config.fallback_random,
        "stance": torch._dynamo.eval_frame._stance.stance,
        "callbacks": [
            list(torch._dynamo.callback.callback_handler.start_callbacks),
            list(torch._dynamo.callback.callback_handler.end_callbacks),
        ],
        "compiler": torch._dynamo.output_graph.OutputGraph.call_user_compiler,
        "filters": list(warnings.filters),
    }


def state_of_module(module):
    """Everything of a module that a check might change, as comparable values."""

    def plain(value):
        return value.tolist() if isinstance(value, torch.Tensor) else copy.copy(value)

    return {
        "values": {name: plain(tensor) for name, tensor in module.state_dict().items()},
        "objects": {name: id(t) for name, t in [*module.named_parameters(), *module.named_buffers()]},
        "grads": {name: p.grad for name, p in module.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "training": {name: m.training for name, m in module.named_modules()},
        "hooks": {
            name: (len(m._forward_hooks), len(m._backward_hooks)) for name, m in module.named_modules()
        },
        "attributes": {
            name: plain(value)
            for name, value in vars(module).items()
            if not name.startswith("_") and name != "training" and not callable(value)
        },
    }


@pytest.fixture
def _unusual_process():
    """A process whose settings are no defaults, so that putting defaults back would show."""
    threads, dtype, validation = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        Distribution._validate_args,
    )
    # The first compile of a process switches the validation off by itself, the user's own too.
    torch.compile(torch.sin, backend="eager")(torch.ones(1))
    torch.set_num_threads(2)
    Distribution.set_default_validate_args(True)
    torch.manual_seed(1234)
    np.random.seed(1234)
    random.seed(1234)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    Distribution.set_default_validate_args(validation)


def run(project, end, phase, factory):
    """Check a model that `factory`, source code, returns; the inner test module and the witness."""
    last, backend, verdict = ENDS[end]
    project.write(
        f"{USED.replace('return self.critic', f'{last}; return self.critic')}\n{INTERRUPTS}\n"
        "model = Used().train()\n"
        "model.norm.eval()\n"
        "model.actor.requires_grad_(False)\n\n"
        f"{MARKED.format(phase=phase, backend=backend)}\n"
        f"def test_agent(): {factory}\n"
    )
    witness, finder = Witness(), Finder()
    result = project.check(plugins=[witness, finder], no_reraise_ctrlc=True)
    assert list(verdicts(result).values()) == [verdict]
    if "Ctrl-C" in end:
        assert result.ret == pytest.ExitCode.INTERRUPTED
    return witness, finder.model, finder.before


@pytest.mark.usefixtures("_unusual_process")
@pytest.mark.parametrize(
    ("end", "phase"),
    [*((end, "update") for end in ENDS), ("equal", "rollout"), ("Ctrl-C in compiled", "rollout")],
)
def test_a_module_of_the_users_and_the_process_stay_as_they_were(project, end, phase):
    """The factory returns the same module each time, as a fixture may."""
    witness, model, before = run(project, end, phase, "return model")
    assert witness.after == witness.before
    assert state_of_module(model) == before


@pytest.mark.usefixtures("_unusual_process")
@pytest.mark.parametrize("end", ["equal", "differs", "compile failed", "eager failed", "Ctrl-C in compiled"])
def test_a_module_that_can_not_be_copied_is_put_back(project, end):
    """Both sides share and call it; it is restored, including plain numbers and lists."""
    witness, model, before = run(
        project,
        end,
        "update",
        "model.lock = __import__('threading').Lock(); model.steps += 1; model.steps -= 1; return model",
    )
    del model.lock
    assert witness.after == witness.before
    assert state_of_module(model) == before


@pytest.mark.usefixtures("_unusual_process")
def test_a_module_that_comes_compiled_is_put_back(project):
    project.write(
        f"""
        {USED.replace(chr(10), chr(10) + " " * 8)}
        model = Used().train()
        compiled = torch.compile(model, backend=recorded)

        {MARKED.format(phase="update", backend="'eager'")}
        def test_agent(): return compiled
        """
    )
    witness, finder = Witness(), Finder()
    result = project.check(plugins=[witness, finder])
    assert list(verdicts(result).values()) == ["equal"]
    assert witness.after == witness.before
    assert state_of_module(finder.model) == finder.before


@pytest.mark.parametrize(
    ("before", "call", "verdict"),
    [
        ("None", "x.sum()", "equal"),
        # Dynamo guards on the value of a plain number: each call compiles again.
        ("7", "self.last + 1", "not compiled"),
    ],
    ids=["tensor", "counter"],
)
def test_plain_attributes_of_a_module_that_can_not_be_copied_are_put_back(project, before, call, verdict):
    project.write(
        f"""
        import threading

        class Remembering(Agent):
            def __init__(self):
                super().__init__()
                self.lock = threading.Lock()
                self.last = {before}
                self.history = []

            def get_value(self, x):
                self.last = {call}
                self.history.append(1)
                return self.critic(x)

        model = Remembering()

        @pytest.fixture(autouse=True)
        def _unchanged():
            yield
            assert (model.last, model.history) == ({before}, [])

        @pytest.mark.compiled_equivalence(
            observation=Box((2,)), phases="rollout", methods="get_value", backend="eager"
        )
        def test_agent(): return model
        """
    )
    result = project.check()
    assert list(verdicts(result).values()) == [verdict]
    assert result.parseoutcomes().get("errors", 0) == 0


@pytest.mark.usefixtures("_unusual_process")
@pytest.mark.parametrize(
    "change",
    [
        "torch.set_default_dtype(torch.float64)",
        "torch.set_num_threads(1)",
        "torch.set_grad_enabled(True)",
        "torch.manual_seed(0)",
        "np.random.seed(0)",
        "random.seed(0)",
    ],
)
def test_what_the_users_own_code_changes_is_put_back(project, change):
    project.write(
        f"""
        import random
        import numpy as np

        {MARKED.format(phase="rollout", backend="'eager'")}
        def test_agent():
            {change}
            return Agent()
        """
    )
    witness = Witness()
    project.check(plugins=[witness])
    assert witness.after == witness.before


@pytest.mark.usefixtures("_unusual_process")
@pytest.mark.parametrize("outcome", ["passes", "fails", "interrupted"])
def test_assert_equivalent_leaves_the_module_and_the_process_alone(project, outcome):
    backend = {"passes": "recorded", "fails": "shifted", "interrupted": "interrupting"}[outcome]
    project.write(
        f"""
        {(USED + INTERRUPTS).replace(chr(10), chr(10) + " " * 8)}
        model = Used().train()
        model.norm.eval()

        def test_agent(assert_equivalent):
            compiled = torch.compile(model, backend={backend})
            assert_equivalent(model, compiled, torch.ones(4, 2), phase="update")
        """
    )
    witness, finder = Witness(), Finder()
    result = project.pytest(plugins=[witness, finder], no_reraise_ctrlc=True)
    assert (
        result.parseoutcomes()
        == {"passes": {"passed": 1}, "fails": {"failed": 1}, "interrupted": {}}[outcome]
    )
    assert witness.after == witness.before
    assert state_of_module(finder.model) == finder.before


def test_the_flags_of_the_process_hold_while_it_is_checked(project):
    """Both sides use the process's threads or the requested number, and gradients by phase."""
    project.write(
        """
        class Watching(Agent):
            def get_value(self, x):
                note("seen", f"{torch.get_num_threads()} {torch.is_grad_enabled()} {self.training}")
                return self.critic(x)

        @pytest.mark.compiled_equivalence(observation=Box((2,)), methods="get_value", backend="eager")
        def test_agent(): return Watching()
        """
    )
    project.check("--compile-threads=3", "-k", "rollout")
    assert set(project.lines("seen")) == {"3 False False"}
    project.check("-k", "update")
    # An update learns in eval() too.
    own = {f"{torch.get_num_threads()} True {training}" for training in (True, False)}
    assert set(project.lines("seen")) == {"3 False False", *own}


def test_fixtures_are_torn_down_after_an_interrupt(project):
    project.write(
        f"""
        class Interrupting(Agent):
            def forward(self, x): raise KeyboardInterrupt

        @pytest.fixture
        def simulator():
            yield
            note("torn down")

        {MARKED.format(phase="rollout", backend="'eager'")}
        def test_agent(simulator): return Interrupting()
        """
    )
    result = project.check(no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert project.lines("torn down") == ["x"]
