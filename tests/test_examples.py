"""The examples pass with a correct compiler, and each has a broken twin that is found.

They run as a user runs them, with the project's configuration, in a separate process. Except for the
real miscompiles, the backends run eager code, and their faults are injected.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Sequence

import pytest
import torch

ROOT = pathlib.Path(__file__).parent.parent
# Of the zoo, those that need no library but torch; ``tox -e zoo`` runs them all.
FILES = [*sorted(path.name for path in (ROOT / "examples").glob("test_*.py")), "zoo/test_cleanrl_memory.py"]
FAITHFUL = [name for name in FILES if name != "test_miscompiled.py"]
# Each takes half a minute: what is caught in a PPO agent of CleanRL's is caught in the others.
FAULTY = [
    pytest.param(name, marks=() if name == "test_cleanrl.py" else pytest.mark.thorough) for name in FAITHFUL
]

BROKEN = '''
import torch
from torch._dynamo import register_backend


def breaking(graph, fault):
    def run(*args):
        return [
            fault(out) if isinstance(out, torch.Tensor) and out.is_floating_point() else out
            for out in graph(*args)
        ]

    return run


@register_backend
def wrong_outputs(graph, inputs):
    return breaking(graph, lambda out: out * 1.001)


@register_backend
def wrong_gradients(graph, inputs):
    """Values are kept to the last bit."""
    return breaking(graph, lambda out: out.detach() + (out - out.detach()) * 1.05)
'''


needs_avx = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
    reason="one of the miscompiles is in code vectorised for AVX",
)

QUICK = ("--compile-profile=quick", "--compile-examples=3", "--compile-batch=4")
ONE_EXAMPLE = (
    "--compile-examples=0",
    "--compile-batch=4",
    "--compile-shrink-seconds=0",
    "--compile-phases=rollout,update",
)


class Run:
    """One pytest run of the examples: its output, and what it says about each case."""

    def __init__(self, directory: pathlib.Path, *options: str, files: Sequence[str]) -> None:
        (directory / "broken.py").write_text(BROKEN)
        report = directory / "report.xml"
        plugins = ("-p", "broken", "-p", "no:randomly", "-p", "no:cacheprovider")
        checked = ("--compile-check", "--compile-benchmark-seconds=0", "--compile-explain-seconds=0")
        command = [sys.executable, "-m", "pytest", *plugins, f"--junitxml={report}", *checked]
        self.output = subprocess.run(
            [*command, *options, *(f"examples/{file}" for file in files)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(directory)},
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        self._cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))

    def _of(self, file: str) -> list[xml.etree.ElementTree.Element]:
        module = f"examples/{file.removesuffix('.py')}".replace("/", ".")
        return [case for case in self._cases if case.get("classname") == module]

    def verdicts(self, file: str, phase: str) -> set[str]:
        """The verdicts of a file's cases in a phase."""
        properties = (found for case in self._of(file) for found in case.iter("property"))
        return {p.get("value") for p in properties if p.get("name").endswith(f"-{phase}.verdict")}

    def report(self, test: str) -> str:
        """What stands below the headline of a test."""
        below = re.search(
            rf"^_+ {test}\b[^\n]* _+$(.*?)^(?:_+ test_|=+ )", self.output, re.MULTILINE | re.DOTALL
        )
        return below[1]

    def not_passed(self, file: str) -> dict[str, str]:
        """The message with which a file's tests failed or were skipped, by the name of the function."""
        return {
            case.get("name").partition("[")[0]: found.get("message")
            for case in self._of(file)
            for found in (*case.iter("failure"), *case.iter("skipped"))
        }


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, marks=pytest.mark.thorough if f.startswith("zoo") else ()) for f in FAITHFUL],
)
def test_example_passes(tmp_path, file):
    run = Run(tmp_path, "--compile-backend=eager", *QUICK, files=[file])
    assert run.verdicts(file, "rollout") == {"equal"}, run.output
    assert run.verdicts(file, "update") == {"equal"}, run.output
    assert run.not_passed(file) == {}, run.output


@pytest.mark.parametrize("file", [*FAULTY, "test_miscompiled.py"])
def test_wrong_outputs_are_caught(tmp_path, file):
    run = Run(tmp_path, "--compile-backend=wrong_outputs", *ONE_EXAMPLE, files=[file])
    assert run.verdicts(file, "rollout") == {"differs"}, run.output
    assert run.verdicts(file, "update") == {"differs"}, run.output


@pytest.mark.parametrize("file", FAULTY)
def test_wrong_gradients_are_caught(tmp_path, file):
    """Values are right to the last bit."""
    run = Run(tmp_path, "--compile-backend=wrong_gradients", *ONE_EXAMPLE, files=[file])
    assert run.verdicts(file, "rollout") == {"equal"}, run.output
    assert run.verdicts(file, "update") == {"differs"}, run.output


MISCOMPILED = {
    *(
        "test_annealed_learning",
        "test_inhibited_learning",
        "test_masked_learning",
        "test_darkest_pixel",
        "test_darkness",
    ),
    *("test_remembering", "test_mirrored_memory", "test_traces", "test_actions_in_half_precision"),
}


@needs_avx
def test_miscompiled_examples_fail_once_torch_has_mended_them(tmp_path):
    run = Run(tmp_path, "--compile-backend=eager", *QUICK, files=["test_miscompiled.py"])
    messages = run.not_passed("test_miscompiled.py")
    assert messages.keys() == MISCOMPILED, run.output
    assert all("XPASS(strict)" in message for message in messages.values()), run.output


@needs_avx
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="torch 2.13 miscompiles them")
def test_miscompiled_examples_differ(tmp_path):
    run = Run(
        tmp_path, "--xfail-tb", "--compile-examples=0", "--compile-batch=4,1", files=["test_miscompiled.py"]
    )
    assert f"1 passed, {len(MISCOMPILED)} xfailed" in run.output, run.output
    for test, parameter in {
        "test_annealed_learning": "actor.bias",
        "test_inhibited_learning": "conv.bias",
        "test_masked_learning": "actor.bias",
    }.items():
        report = run.report(test)
        assert f"gradient of {parameter}" in report
        assert not re.search(r"^  output", report, re.MULTILINE), (
            "values are right, gradients alone are wrong"
        )
