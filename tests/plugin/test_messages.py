"""What is printed of many failing policies at once: prose fits, each thing is said once, and the docs show it."""

import itertools
import os
import pathlib
import re
import subprocess
import sys

import pytest

from pytest_torchcompile import Verdict
from pytest_torchcompile.texts import VERDICTS_PAGE, meaning_of

from .project import flat

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "verdicts.md").read_text()
POLICIES = '''
class Mlp(nn.Module):
    """A policy that works."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.body = nn.Linear(8, 16, dtype=dtype)
        self.head = nn.Linear(16, 1, dtype=dtype)

    def forward(self, x): return self.head(torch.tanh(self.body(x)))

class Branching(Mlp):
    def forward(self, x): return super().forward(x) if x.sum() > 0 else super().forward(-x)

class Doubled(Mlp):
    def forward(self, x): return super().forward(x) * (2 if torch.compiler.is_compiling() else 1)

class Off(Mlp):
    @torch.compiler.disable
    def forward(self, x): return super().forward(x)

class Counting(Mlp):
    calls = 0

    def forward(self, x):
        Counting.calls += 1
        return super().forward(x) * Counting.calls

class Cancelling(Mlp):
    def forward(self, x):
        large = super().forward(x) + 1e4
        return (large * 3) / 3 - 1e4 + (1e-3 if torch.compiler.is_compiling() else 0)

class Silent(Mlp):
    def forward(self, x): super().forward(x)

class NotANumber(Mlp):
    def forward(self, x): return super().forward(x) * float("nan")

class Killed(Mlp):
    def forward(self, x):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

marked = pytest.mark.compiled_equivalence

@marked(observation=Box((8,)))
def test_equal(): return Mlp()

@marked(observation=Box((8,)), phases="lifecycle")
def test_lifecycle(): return Mlp()

@marked(observation=Box((9,)))
def test_wrong_shape(): return Mlp()

@marked(observation=Box((8,)))
def test_wrong_dtype(): return Mlp(torch.float64)

@marked(observation=Box((8,)))
def test_doubled(): return Doubled()

@marked(observation=Box((8,)))
def test_off(): return Off()

@marked(observation=Box((8,)))
def test_counting(): return Counting()

@marked(observation=Box((8,)))
def test_cancelling(): return Cancelling()

@marked(observation=Box((8,)))
def test_silent(): return Silent()

@marked(observation=Box((8,)))
def test_not_a_number(): return NotANumber()

@marked(observation=Box((8,)), fullgraph=True)
def test_branching(): return Branching()

@marked(observation=Box((8,)), max_recompiles=0, batch=(4, 1, 7))
def test_over_budget(): return Mlp()

@marked(observation=Box((8,)))
def test_licence(): pytest.skip("needs a licence")

@marked(observation=Box((8,)), isolate=True)
def test_killed(): return Killed()
'''
HEADER = "import pytest, torch\nfrom torch import nn\nfrom pytest_torchcompile import *\n"
ARGUMENTS = (
    *("--compile-check", "--compile-backend=aot_eager", "--compile-phases=rollout,update"),
    *("--compile-batch=4,1", "--compile-examples=2", "--no-compile-layouts", "--compile-benchmark-seconds=0"),
)
KEPT = re.compile(r"  (code|proof|rerun|meaning)   |    File |_{3}|={3}|what |\s*\(at \S+\)$")
"""The lines that are no prose: places, commands, addresses, tracebacks, titles."""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What pytest prints of them in a process of its own, 80 columns wide as in a CI job."""
    folder = tmp_path_factory.mktemp("messages")
    (folder / "test_policy.py").write_text(HEADER + POLICIES)
    command = [sys.executable, "-m", "pytest", *ARGUMENTS, "-p", "no:randomly", "-p", "no:cacheprovider"]
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "FORCE_COLOR")
    }
    environment = kept | {"COLUMNS": "80"}
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == pytest.ExitCode.TESTS_FAILED, found.stdout + found.stderr
    return found.stdout


def report_of(printed):
    """The lines of the report."""
    after = printed.partition("compiled against eager")[2].splitlines()[1:]
    return list(itertools.takewhile(lambda line: not line.startswith("==="), after))


def test_no_line_of_prose_is_longer_than_100_columns(printed):
    failures = printed.partition("= FAILURES =")[2].partition("= compiled against eager =")[0]
    # What the process of a case printed is its own.
    failures = re.sub(r"output of the process:.*?(?=^_{3}|\Z)", "", failures, flags=re.DOTALL | re.MULTILINE)
    long = [line for line in failures.splitlines() if len(line) > 100 and not KEPT.match(line)]
    assert long == []
    assert failures.count("\n  meaning   https://") == 18


def test_the_report_fits_a_terminal_of_80_columns(printed):
    lines = report_of(printed)
    assert [line for line in lines if len(line) > 80 and not line.startswith("what ")] == []
    assert f"what the verdicts mean: {VERDICTS_PAGE}" in lines


def test_each_thing_is_said_once(printed):
    notes = flat(" ".join(report_of(printed)))
    assert notes.count("differ by more than the tolerance") == 1
    assert notes.count("Data-dependent branching") == 1
    assert notes.count("compiled again for batch") == 1
    assert "2 cases of test_policy.py::test_licence: skipped: needs a licence" in notes
    # A case that fails has said it in its message.
    assert "never finite" not in notes


def test_a_failure_leads_to_its_verdict(printed):
    texts = re.split(r"^_+ (test_\w+)\[", printed, flags=re.MULTILINE)
    found = {
        name: re.search(r"  meaning   (\S+)", text)[1]
        for name, text in zip(texts[1::2], texts[2::2], strict=True)
    }
    assert found == {
        **dict.fromkeys(
            ("test_wrong_shape", "test_wrong_dtype", "test_counting", "test_silent", "test_not_a_number"),
            meaning_of(Verdict.EAGER_FAILED),
        ),
        "test_doubled": meaning_of(Verdict.DIFFERS),
        "test_off": meaning_of(Verdict.NOT_COMPILED),
        "test_killed": meaning_of(Verdict.CRASHED),
        "test_over_budget": meaning_of("over budget"),
    }


@pytest.mark.parametrize("example", re.findall(r"^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
def test_the_page_of_verdicts_shows_what_is_printed(printed, example):
    assert without_figures(flat(example)) in without_figures(flat(printed))


def without_figures(text):
    """`text` without the figures that depend on the machine and on the rest of the file."""
    text = text.replace("RuntimeError: addmm: ", "RuntimeError: ")  # as torch 2.15 words it
    return re.sub(r"-?\d+(\.\d+)?(e[+-]\d+)?", "N", text).replace("N to N", "N")


@pytest.mark.parametrize("how", ["--color=no", "NO_COLOR"])
def test_without_colour_no_escape_code_is_printed(project, monkeypatch, how):
    monkeypatch.setenv("FORCE_COLOR", "1")
    if how == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    project.write(
        "@pytest.mark.compiled_equivalence(observation=Box((2,)), methods='get_value', backend=shifted)\n"
        "def test_agent(): return Agent()"
    )
    output = project.check(*([how] if how.startswith("--") else [])).stdout.str()
    assert "compiled against eager" in output
    assert "\x1b" not in output
    assert output.isascii()


def test_verdicts_have_the_colours_of_pytest(project):
    project.write(
        "@pytest.mark.compiled_equivalence(observation=Box((2,)), methods='get_value', phases='rollout')\n"
        "def test_agent(): return Agent()\n\n"
        "@pytest.mark.compiled_equivalence(observation=Box((2,)), methods='get_value', backend=shifted)\n"
        "def test_shifted(): return Agent()"
    )
    lines = project.check("--color=yes").outlines
    assert any(line.startswith("\x1b[32m") and " equal " in line for line in lines)
    assert any(line.startswith("\x1b[31m") and " differs " in line for line in lines)
