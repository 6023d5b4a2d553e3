"""Runs one check on a small budget, and asserts on its result."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from faults.catalogue import Entry

from pytest_torchcompile import CheckResult, Verdict, check_equivalence
from pytest_torchcompile.reports.failure import failure_text

thorough = pytest.mark.thorough
PASSED = {Verdict.EQUAL, Verdict.WITHIN_ROUNDING}


def check(factory: Any, phase: str = "rollout", **arguments: Any) -> CheckResult:
    """The result of one case on fresh code; ``eager``, few drawn examples, no explanation unless told.

    With inductor one batch size unless told: for each it calls a C++ compiler.
    """
    torch.compiler.reset()
    options = {"backend": "eager", "examples": 8, "shrink_seconds": 0.3, "explain_seconds": 0}
    if arguments.get("backend") == "inductor":
        options["batch"] = 4
    (result,) = check_equivalence(factory, phases=phase, **options | arguments)
    return result


def assert_passes(result: CheckResult) -> None:
    assert result.verdict in PASSED, failure_text(result)
    assert result.examples >= 7
    assert result.capture.graphs > 0


def assert_differs(result: CheckResult, path: str, problem: str | None = None) -> None:
    assert result.verdict is Verdict.DIFFERS, f"missed: {failure_text(result)}"
    found = {difference.path: difference.problem for difference in result.differences}
    assert path in found, f"expected {path!r} among {found}"
    if problem is not None:
        assert found[path] == problem


def sampled(entries: Iterable[Entry], most: int) -> list[Any]:
    """All entries as parameters; of each kind those beyond `most`, evenly taken, are left to `thorough`."""
    kinds = collections.defaultdict(list)
    for entry in entries:
        kinds[entry.kind].append(entry)
    taken = {id(of[len(of) * i // most]) for of in kinds.values() for i in range(most)}
    return [
        pytest.param(entry, id=f"{entry.kind}: {entry.name}", marks=() if id(entry) in taken else thorough)
        for of in kinds.values()
        for entry in of
    ]
