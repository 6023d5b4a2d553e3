"""The folder that is handed over: its script shows the difference without us, and hurts nobody's files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checking import check
from torch import nn

from pytest_torchcompile import Box, CheckResult, Verdict
from pytest_torchcompile.reports.failure import failure_text

FAULT = "cpp.inject_relu_bug_TESTING_ONLY"
"""Inductor's own, for tests of its tools; as an option of torch.compile it is in the script as well."""


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
    """What takes long and comes after the script is looked into in test_explain.py."""
    monkeypatch.setattr("pytest_torchcompile.explain.narrow", lambda *arguments: [])


def proven(folder: Path, phase: str = "rollout", **arguments: Any) -> CheckResult:
    options = {
        "observation": Box((8,)),
        "backend": "inductor",
        "batch": 4,
        "examples": 0,
        "nonfinite": False,
        "explain_seconds": 100,
        "proof": str(folder),
        "options": {FAULT: "accuracy"},
    }
    result = check(Rectified, phase, **options | arguments)
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


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_the_script_shows_the_difference(tmp_path: Path, phase: str) -> None:
    found = proven(tmp_path, phase).explanation
    assert found is not None
    assert found.confirmed, found.remarks
    folder = Path(found.proof)
    assert folder.parent == tmp_path
    assert sorted(path.name for path in folder.iterdir()) == [
        "case.txt",
        "environment.txt",
        "repro.py",
        "tensors.pt",
    ]
    assert torch.__version__ in (folder / "environment.txt").read_text()
    done = run(folder)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "compiled differs from eager"


def test_the_script_of_a_compiler_that_is_right(tmp_path: Path) -> None:
    found = proven(tmp_path, "update").explanation
    assert found is not None
    script = Path(found.proof, "repro.py")
    script.write_text(re.sub(r"'accuracy'", "None", script.read_text()))
    done = run(script.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "compiled agrees with eager"


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "proofs" / "forward-rollout"
    theirs.mkdir(parents=True)
    (theirs / "thesis.txt").write_text("the only copy")
    proofs = [Path(proven(tmp_path / "proofs").explanation.proof) for _ in range(2)]  # type: ignore[union-attr]
    assert [path.name for path in proofs] == ["forward-rollout-2"] * 2
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "proofs" / ".gitignore").exists()


def test_a_new_folder_is_kept_out_of_git(tmp_path: Path) -> None:
    proven(tmp_path / "proofs")
    assert (tmp_path / "proofs" / ".gitignore").read_text() == "*\n"


def test_a_script_that_does_not_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is in this process alone."""
    from torch._inductor import lowering

    aten = torch.ops.aten
    monkeypatch.setitem(lowering.lowerings, aten.relu.default, lowering.lowerings[aten.tanh.default])
    with torch._inductor.config.patch(force_disable_caches=True):
        result = proven(tmp_path, options=None)
    found = result.explanation
    assert found is not None
    assert not found.confirmed
    assert any(
        remark.endswith("does not show the difference: compiled agrees with eager")
        for remark in found.remarks
    )


def test_a_backend_without_a_name(tmp_path: Path) -> None:
    def wrong(graph: Any, inputs: Any) -> Any:
        return lambda *args: tuple(out + 1 for out in graph(*args))

    found = proven(tmp_path, backend=wrong, options=None).explanation
    assert found is not None
    assert found.proof == ""
    assert (
        "a script can't be had: the backend wrong has no name by which a script could find it"
        in found.remarks
    )
    assert list(tmp_path.iterdir()) == []


def test_no_folder_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = proven(tmp_path, proof=None).explanation
    assert found is not None
    assert found.proof == ""
    assert list(tmp_path.iterdir()) == []
