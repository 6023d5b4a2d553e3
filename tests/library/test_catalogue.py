"""The mutation suite, once: each fault is found in the phases that show it, and no control is reported.

``python -m tests.faults --seeds 20`` runs the whole suite.
"""

from __future__ import annotations

import collections
import sys

import pytest
from faults import __main__ as command
from faults import policies
from faults.catalogue import CONTROLS, CORRECT, FAULTS, HARD, LIFECYCLE, Entry
from faults.run import PHASES, Run, check, summary
from small_checks import sampled, thorough

from pytest_torchcompile.reports.failure import failure_text

KINDS = {
    "a wrong output element",
    "a wrong batch regime",
    "a wrong input region",
    "a wrong dtype or shape",
    "a wrong gradient",
    "a dropped buffer update",
    "stale weights",
    "static output memory",
    "frozen random numbers",
    "a wrong dropout rate",
    "a train/eval or grad-mode mix-up",
    "a swallowed exception",
    "a lost or added in-place mutation",
    "only on the nth call",
    "only with autocast",
    "only in a non-forward method",
    "nothing compiled",
    "recompilation per call",
    "silent graph breaks",
}

FAST = {"examples": 4}


@pytest.mark.parametrize("entry", sampled(FAULTS, 2))
def test_faults(entry: Entry) -> None:
    results = list(check(entry, 0, [entry.phase]))
    caught = [result for result in results if entry.caught(result)]
    assert caught, "\n".join(map(failure_text, results))
    if entry.path:
        assert entry.path in {difference.path for difference in caught[0].differences}


@pytest.mark.parametrize(
    ("entry", "phase"),
    [
        pytest.param(
            entry,
            phase,
            id=f"{entry.name}-{phase}",
            marks=() if number % len(PHASES) == turn else thorough,
        )
        for number, entry in enumerate(CORRECT)
        for turn, phase in enumerate(PHASES)
    ],
)
def test_controls(entry: Entry, phase: str) -> None:
    """Each in each phase; all phases but one, which varies, are left to `thorough`."""
    for result in check(entry, 0, [phase], **FAST):
        assert result.verdict.passed, failure_text(result)


@pytest.mark.parametrize("entry", HARD, ids=[entry.name for entry in HARD])
def test_the_life_of_controls(entry: Entry) -> None:
    """Their phases are checked in test_controls.py."""
    (result,) = check(entry, 0, [LIFECYCLE], **FAST)
    assert result.verdict.passed, failure_text(result)


def test_each_class_has_several_faults_on_several_policies() -> None:
    names = collections.Counter(entry.kind for entry in FAULTS)
    assert names.keys() == KINDS
    assert min(names.values()) >= 3
    assert len({(entry.kind, entry.name) for entry in (*FAULTS, *CONTROLS)}) == len(FAULTS) + len(CONTROLS)
    assert {id(policy.declaration) for policy in policies.POLICIES.values()} <= {
        id(entry.declaration) for entry in FAULTS
    }, "each policy is made wrong somewhere"


def test_the_summary() -> None:
    fault, other = FAULTS[0], FAULTS[1]
    (found,) = check(fault, 0, [fault.phase])
    runs = [Run(fault, 0, found, 2.0), Run(fault, 1, found, 4.0), Run(other, 0, None, 9.0)]
    assert summary(runs) == ["a wrong output element                  2 of    3   66.7%  median   3.0 s"]


@pytest.mark.parametrize("only", ["int32 actions", "control: greedy actions, a"])
def test_the_command(only: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["faults", "--only", only])
    assert command.main() == 0
    printed = capsys.readouterr()
    assert "1 of    1  100.0%" in printed.out if "int32" in only else "0 of    1    0.0%" in printed.out
    assert not printed.err


def test_the_command_names_what_was_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    control = next(entry for entry in CONTROLS if entry.name.startswith("greedy actions, a"))
    monkeypatch.setattr(command, "FAULTS", (control,))
    monkeypatch.setattr(command, "CONTROLS", ())
    monkeypatch.setattr(sys, "argv", ["faults"])
    assert command.main() == 1
    assert "greedy actions, a backend that is right: nothing reported" in capsys.readouterr().err
