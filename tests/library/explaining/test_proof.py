"""The proof folder: its script shows the difference without this package, and overwrites no other files."""

from __future__ import annotations

import functools
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checks import check, thorough
from torch import nn

from pytest_torchcompile import Box, CheckResult, Verdict
from pytest_torchcompile.explaining.policy_script import story_script
from pytest_torchcompile.explaining.proof import Proof, Script, write_proof
from pytest_torchcompile.lifecycle.sides import LifecycleSides
from pytest_torchcompile.lifecycle.stories import Change, Kind, Manner, Move
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.reports.failure import failure_text
from pytest_torchcompile.results import Difference

FAULT = "cpp.inject_relu_bug_TESTING_ONLY"
"""Inductor's own, for tests of its tools; as an option of torch.compile it is in the script as well."""

PROVING = {
    "observation": Box((8,)),
    "batch": 4,
    "examples": 0,
    "nonfinite": False,
    "explain_seconds": 600,
}


class Rectified(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return torch.relu(self.layer(x))


@pytest.fixture(autouse=True)
def nothing_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long and comes after the script is looked into in test_explanation.py."""
    monkeypatch.setattr("pytest_torchcompile.explaining.explanation.narrow", lambda *arguments: [])


def proven(folder: Path, phase: str = "rollout", **arguments: Any) -> CheckResult:
    options = {"backend": "inductor", "proof": str(folder), "options": {FAULT: "accuracy"}}
    result = check(Rectified, phase, **PROVING | options | arguments)
    assert result.verdict is Verdict.DIFFERS, failure_text(result)
    return result


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """The script, where nothing of ours and no pytest can be imported."""
    return subprocess.run(
        [sys.executable, "-I", "-c", _WITHOUT_US, str(folder / "repro.py")],
        capture_output=True,
        text=True,
        check=False,
    )


_WITHOUT_US = """
import runpy, sys
for name in ("pytest", "_pytest", "hypothesis", "pytest_torchcompile"):
    sys.modules[name] = None
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("phase", [pytest.param("rollout", marks=thorough), "update"])
def test_the_script_shows_the_difference_until_the_compiler_is_right(tmp_path: Path, phase: str) -> None:
    proofs = tmp_path / "proofs"
    found = proven(proofs, phase).explanation
    assert found is not None
    assert found.confirmed, found.remarks
    folder = Path(found.proof).resolve()
    assert folder.parent == proofs.resolve()
    assert sorted(path.name for path in folder.iterdir()) == [
        "case.txt",
        "environment.txt",
        "repro.py",
        "tensors.pt",
    ]
    assert torch.__version__ in (folder / "environment.txt").read_text()
    # A new folder is kept out of git.
    assert (proofs / ".gitignore").read_text() == "*\n"
    done = run(folder)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "compiled differs from eager"
    script = folder / "repro.py"
    script.write_text(re.sub(r"'accuracy'", "None", script.read_text()))
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "compiled agrees with eager"


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    """The script goes beside it, and replaces that of an earlier run."""
    theirs = tmp_path / "proofs" / "forward-rollout"
    theirs.mkdir(parents=True)
    (theirs / "thesis.txt").write_text("the only copy")
    for source in ("print('first')", "print('second')"):
        script = Script(source=source, tensors={})
        proof = write_proof(tmp_path / "proofs", "forward, rollout", script, limit_s=100)
        assert proof.folder.name == "forward-rollout-2"
        assert (proof.folder / "repro.py").read_text() == source
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "proofs" / ".gitignore").exists()


def test_another_process_makes_the_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under pytest-xdist, two cases whose folders would have the same name."""
    mkdir = Path.mkdir

    def later(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name == "forward-rollout":
            mkdir(self)
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", later)
    script = Script(source="print('mine')", tensors={})
    proof = write_proof(tmp_path / "proofs", "forward, rollout", script, limit_s=100)
    assert proof.folder.name == "forward-rollout-2"
    assert (proof.folder / "repro.py").read_text() == script.source
    assert list((tmp_path / "proofs" / "forward-rollout").iterdir()) == []


def test_a_backend_without_a_name(tmp_path: Path) -> None:
    def wrong(graph: Any, inputs: Any) -> Any:
        return lambda *args: tuple(out + 1 for out in graph(*args))

    found = proven(tmp_path, backend=wrong, options=None).explanation
    assert found is not None
    assert found.proof == ""
    assert (
        "a script could not be written: the backend wrong has no name by which a script can find it"
        in found.remarks
    )
    assert list(tmp_path.iterdir()) == []


def test_no_folder_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = proven(tmp_path, proof=None).explanation
    assert found is not None
    assert found.proof == ""
    assert list(tmp_path.iterdir()) == []


# --- what no single graph shows -------------------------------------------------------------------

AGENTS = '''
import torch
from torch import nn
from torch._dynamo import register_backend

sines, buffers = [], {}

@register_backend
def wrong_after_a_sine(graph, inputs):
    """Adds 1 to what is computed of the very tensors that the graph before has returned."""
    def run(*args):
        after = any(arg is sine for arg in args for sine in sines)
        outputs = graph(*args)
        sines[:] = outputs if "sin(" in graph.code else []
        return tuple(out + 1 for out in outputs) if after else outputs
    return run

@register_backend
def with_stale_weights(graph, inputs):
    """Acts with the parameters of its first call."""
    kept = {}
    def run(*args):
        for i, arg in enumerate(() if torch.is_grad_enabled() else args):
            if isinstance(arg, nn.Parameter):
                kept.setdefault(i, arg.detach().clone())
        return graph(*args) if torch.is_grad_enabled() else graph(*(kept.get(*one) for one in enumerate(args)))
    return run

@register_backend
def over_earlier_outputs(graph, inputs):
    """Writes each answer to the memory of the first one of its shape."""
    memory = {}
    def run(*args):
        outputs = graph(*args)
        return tuple(memory.setdefault(out.shape, out.clone()).copy_(out) for out in outputs)
    return run

@register_backend
def for_the_same_tensor(graph, inputs):
    """Answers as before where it is handed the observation of its last call."""
    last = []
    def run(*args):
        (asked,) = [arg for arg in args if type(arg) is torch.Tensor and arg.dim() == 2]
        if not last or last[0] is not asked or torch.is_grad_enabled():
            last[:] = asked, graph(*args)
        return last[1]
    return run

@register_backend
def with_first_buffers(graph, inputs):
    """Takes the buffers of the first call of all."""
    def first(arg):
        is_buffer = type(arg) is torch.Tensor and arg.dim() == 1
        return buffers.setdefault(arg.shape, arg.clone()) if is_buffer else arg
    return lambda *args: graph(*map(first, args))

@register_backend
def off_by_one(graph, inputs):
    return lambda *args: tuple(out + 1 for out in graph(*args))

@register_backend
def raising(graph, inputs):
    def run(*args):
        raise ValueError("no such kernel")
    return run

class Broken(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(8, width)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        hidden = torch.sin(self.layer(x))
        torch._dynamo.graph_break()
        return {"logits": torch.cos(hidden)}

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(x)

class Positive(Linear):
    def forward(self, x):
        return nn.functional.softplus(super().forward(x))

class Explorer(Linear):
    """Returns no tensor."""
    def forward(self, x):
        action = super().forward(x).detach().numpy()
        return {"array": action, "number": float(action.sum()), "count": 3}

class Used(nn.Module):
    """What each change of a lifecycle finds something in."""
    def __init__(self):
        super().__init__()
        self.layer, self.drop, self.head = nn.Linear(8, 6), nn.Dropout(0.0), nn.Linear(6, 4)
        self.register_buffer("mean", torch.zeros(8))
        self.temperature = 1.5

    def forward(self, x):
        return self.head(self.drop(self.layer(x - self.mean))) / self.temperature

def wide(width):
    return Broken(width)

def deployed():
    agent = Broken()
    agent.compile(backend="wrong_after_a_sine")
    return agent

def logits(agent, x):
    return agent(x)["logits"]

class TestAgents:
    def made(self):
        return Broken()
'''


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The user's own module, which the script imports; torch takes each of its backends once."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "agents_of_a_user.py").write_text(AGENTS)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("agents_of_a_user")
    sys.path.remove(str(folder))


def proof_of(factory: Any, folder: Path, **arguments: Any) -> Any:
    options = {"backend": "wrong_after_a_sine", "proof": str(folder / "proofs")}
    result = check(factory, **PROVING | options | arguments)
    assert result.verdict is Verdict.DIFFERS, failure_text(result)
    assert result.explanation is not None
    return result.explanation


def assert_shows(found: Any, backend: str) -> None:
    """The script shows the difference, and none once the compiler is a right one."""
    assert found.confirmed, found.remarks
    assert not [remark for remark in found.remarks if "script" in remark]
    script = Path(found.proof, "repro.py")
    done = run(script.parent)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "compiled differs from eager"
    text = script.read_text()
    assert f"'backend': '{backend}'" in text
    script.write_text(text.replace(f"'backend': '{backend}'", "'backend': 'aot_eager'"))
    done = run(script.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("phase", ["rollout", pytest.param("update", marks=thorough)])
def test_a_script_of_two_graphs(agents: Any, phase: str, tmp_path: Path) -> None:
    assert_shows(proof_of(agents.Broken, tmp_path, phase=phase), "wrong_after_a_sine")


def test_a_backend_that_only_the_users_module_knows(agents: Any, tmp_path: Path) -> None:
    """The name is unknown in the script of the graph, which raises; that is no difference."""
    found = proof_of(agents.Linear, tmp_path, backend="off_by_one")
    assert_shows(found, "off_by_one")
    assert "agents_of_a_user" in Path(found.proof, "repro.py").read_text()


def test_a_script_compares_numpy_arrays_and_numbers(agents: Any, tmp_path: Path) -> None:
    """A policy that acts in an environment often returns numpy's arrays."""
    assert_shows(proof_of(agents.Explorer, tmp_path, backend="off_by_one"), "off_by_one")


def test_scripts_that_do_not_show_it(
    agents: Any, wrong_decomposition: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this process has the fault: neither the script of the graph nor that of the policy shows it."""
    written = []

    def noted(folder: Path, case: str, script: Script, *, limit_s: float) -> Proof:
        written.append("PATH = [" in script.source)
        return write_proof(folder, case, script, limit_s=limit_s)

    monkeypatch.setattr("pytest_torchcompile.explaining.explanation.write_proof", noted)
    found = proof_of(agents.Positive, tmp_path, backend="aot_eager_decomp_partition")
    assert written == [False, True]
    assert not found.confirmed
    assert any(
        remark.endswith("does not reproduce the difference: compiled agrees with eager")
        for remark in found.remarks
    ), found.remarks


@thorough
def test_a_script_of_an_exception(agents: Any, tmp_path: Path) -> None:
    assert_shows(proof_of(agents.Broken, tmp_path, backend="raising"), "raising")


@thorough
def test_a_script_of_an_adapter(agents: Any, tmp_path: Path) -> None:
    found = proof_of(functools.partial(agents.wide, width=6), tmp_path, methods=agents.logits)
    assert_shows(found, "wrong_after_a_sine")


@thorough
def test_a_script_of_a_method_of_a_test_class(agents: Any, tmp_path: Path) -> None:
    assert_shows(proof_of(agents.TestAgents().made, tmp_path), "wrong_after_a_sine")


def test_a_script_of_a_lifecycle(agents: Any, tmp_path: Path) -> None:
    found = proof_of(agents.Linear, tmp_path, phase="lifecycle", backend="with_stale_weights")
    assert_shows(found, "with_stale_weights")


@thorough
def test_a_script_of_outputs_that_are_overwritten(agents: Any, tmp_path: Path) -> None:
    found = proof_of(agents.Linear, tmp_path, phase="lifecycle", backend="over_earlier_outputs")
    assert_shows(found, "over_earlier_outputs")


USED = (
    Move(Kind.ACT, "forward", 4),
    *(Move(Kind.CHANGE, change=change, seed=1) for change in Change if change and change.what != "layers"),
    Move(Kind.CHANGE, change=Change.FROZEN, name="layer"),
    Move(Kind.LEARN, "forward", 4, Manner.SETTLED),
    Move(Kind.CHANGE, change=Change.THAWED, name="layer"),
    Move(Kind.LEARN, "forward", 4),
    Move(Kind.ACT, "forward", 4),
    Move(Kind.ACT, "forward", 4, Manner.REFILLED, seed=1),
)


def test_a_script_of_a_policy_as_it_is_used(agents: Any, tmp_path: Path) -> None:
    """A correct compiler agrees; one that ignores buffers and one that ignores the input do not."""
    options = CheckOptions(backend="for_the_same_tensor", batch=4)
    sides = LifecycleSides(agents.Used, Declaration(observation=Box((8,))), options)
    differs = Difference(path="output", problem="values", eager="0", compiled="1", allowed=1e-5)
    script = story_script("used", sides, USED, (differs,), options)
    sides.end()
    for step in ("assignment", "load_state_dict", ".data =", ".data.copy_", "set", "train_layer"):
        assert repr(step) in script.source
    proof = write_proof(tmp_path, "used", script, limit_s=100)
    assert proof.confirmed, proof.said
    for backend, status in (("with_first_buffers", 1), ("aot_eager", 0)):
        Path(proof.folder, "repro.py").write_text(script.source.replace(options.backend_name, backend))
        done = run(Path(proof.folder))
        assert done.returncode == status, f"{backend}: {done.stdout}{done.stderr}"


@thorough
def test_a_script_of_what_comes_compiled(agents: Any, tmp_path: Path) -> None:
    found = proof_of(agents.deployed, tmp_path)
    assert found.confirmed, found.remarks
    assert run(Path(found.proof)).returncode == 1
    right = tmp_path / "right"
    right.mkdir()
    (right / "agents_of_a_user.py").write_text(AGENTS.replace("out + 1 for out", "out for out"))
    script = Path(found.proof, "repro.py")
    script.write_text(re.sub(r"^PATH = \[", f"PATH = [{str(right)!r}, ", script.read_text(), flags=re.M))
    done = run(script.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "factory, why",
    [
        (lambda agents: lambda: agents.Broken(), "is a lambda; a script can only import a function by"),
        (lambda agents: agents.Broken(), "the policy was given as a module; give a function that returns it"),
        (
            lambda agents: functools.partial(agents.wide, width=torch.tensor(4)),
            "wide is given width, a Tensor that can't be written in a script",
        ),
    ],
)
def test_a_factory_that_a_script_can_not_import(agents: Any, factory: Any, why: str, tmp_path: Path) -> None:
    found = proof_of(factory(agents), tmp_path)
    assert found.proof == ""
    assert any(why in remark for remark in found.remarks), found.remarks


def test_weights_that_are_too_large_for_a_folder(
    agents: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_torchcompile.explaining.policy_script.LARGEST", 100)
    found = proof_of(agents.Linear, tmp_path, phase="lifecycle", backend="with_stale_weights")
    assert found.proof == ""
    assert any("the weights of each move, 0 MiB, are too large for a folder" in r for r in found.remarks)
