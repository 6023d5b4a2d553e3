"""A sample of the suite `faults.fresh`: faults of each kind are found, correct policies of each family pass.

``python -m tests.faults --fresh --seeds 10`` checks all of them, with default settings.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from faults import __main__ as command
from faults.catalogue import FAULTS, UPDATE, Entry
from faults.correct import CORRECT, FAMILIES
from faults.fresh import FRESH, Fault, tally
from faults.run import Run, check, excused_until_found
from small_checks import sampled

from pytest_torchcompile import CheckResult, Verdict
from pytest_torchcompile.reports.failure import failure_text

QUICKLY = {"examples": 10, "shrink_seconds": 0}

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "faults.md"

ONE_GRAPH = {"examples": 0, "batch": (4,), "dynamic": False}


@pytest.mark.parametrize("entry", sampled(tally.controls(), 2))
def test_correct_policies(entry: Entry) -> None:
    """Those that rounding moves far by autograd's own graphs; the others by dynamo's, in half the time."""
    backend = "aot_eager" if CORRECT[entry.name].sensitive else "eager"
    entry = dataclasses.replace(entry, backend=lambda: backend)
    for result in check(entry, 0, [UPDATE], **ONE_GRAPH):
        assert result.verdict.passed, failure_text(result)


@pytest.mark.parametrize("fault", sampled([one for one in FRESH if not one.unsought], 1))
def test_faults(fault: Fault) -> None:
    results = list(check(fault, 0, [fault.phase], **QUICKLY))
    assert any(map(fault.caught, results)), "\n".join(map(failure_text, results))
    assert not sum(map(excused_until_found, results)), (
        "an example that shows the fault was taken for rounding"
    )


@pytest.mark.parametrize("fault", sampled([one for one in FRESH if one.unsought], 1))
def test_faults_that_are_not_looked_for(fault: Fault) -> None:
    """A fault that is found after all has to be removed from the list."""
    for result in check(fault, 0, [fault.phase], **QUICKLY):
        assert result.verdict.passed, failure_text(result)


def test_the_documentation_names_every_kind_and_what_is_not_looked_for() -> None:
    text = DOCUMENTATION.read_text()
    kinds = {entry.kind for entry in (*FAULTS, *FRESH) if entry.kind != "not looked for"}
    assert [kind for kind in sorted(kinds) if f"| {kind} |" not in text] == []
    assert [one.name for one in FRESH if one.unsought and one.unsought not in text] == []


def test_there_are_enough_and_each_has_a_name() -> None:
    assert len(CORRECT) == sum(map(len, FAMILIES.values())) >= 60
    assert len({(fault.kind, fault.name) for fault in FRESH}) == len(FRESH) >= 60
    assert sum(one.sensitive for one in CORRECT.values()) >= 30
    assert sum(not fault.unsought for fault in FRESH) >= 60


def test_each_twin_is_built() -> None:
    for one in CORRECT.values():
        assert isinstance(one.model(), torch.nn.Module)


def _found() -> CheckResult:
    return CheckResult(method="forward", phase="update", verdict=Verdict.DIFFERS, reason="it does")


def test_the_tally() -> None:
    fault, unsought = FRESH[0], next(fault for fault in FRESH if fault.unsought)
    silent, alarmed = list(tally.controls())[:2]
    failed = CheckResult(method="forward", phase="update", verdict=Verdict.EAGER_FAILED, reason="raises")
    runs = [
        Run(fault, 0, _found(), 1.0, 2),
        Run(fault, 1, None, 1.0, 3),
        Run(unsought, 0, None, 1.0),
        Run(silent, 0, None, 1.0),
        Run(alarmed, 0, _found(), 1.0),
        Run(silent, 1, None, 1.0, 0, failed),
    ]
    assert tally.tally(runs)[-2:] == [
        "found 1, missed 1 of 2 faults (5 examples were taken for rounding before); "
        "silent 1, false alarms 1 of 3 correct policies",
        "median seconds: fault 1.0, correct policy 1.0",
    ]
    surprises = [tally.surprise(one).partition(" ")[0] for one in runs]
    assert surprises == ["", "MISSED", "", "", "FALSE", "NOT"]
    assert tally.surprise(Run(unsought, 0, _found(), 1.0)).startswith(
        "FOUND, though listed as not looked for"
    )


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["faults", "--fresh", "--only", "+inf for -inf (scores"])
    assert command.main() == 0
    assert "found 1, missed 0 of 1 faults" in capsys.readouterr().out
