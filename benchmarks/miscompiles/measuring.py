"""Measures one cell of the table: what plain code and the check say of one report under this torch."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

import torch

from pytest_torchcompile import CheckResult, Verdict, check_equivalence

from .plain import reproduce
from .record import Report

LIMITS: dict[str, Any] = {"shrink_seconds": 2, "explain_seconds": 25}
"""How long to look for a smaller example and for the stage: they do not decide whether something is found."""

FAILED = (Verdict.DIFFERS, Verdict.NOT_COMPILED, Verdict.CRASHED)
"""After one of these no further phase is checked."""

MISSING = ("has no attribute", "is not a registered", "unexpected keyword argument")
"""What an exception says if this torch does not have an operator yet, or not with these arguments."""


def measure(report: Report, to: pathlib.Path) -> None:
    """Write the cell of one report to a file as JSON, anew after each step, so that a crash loses no step."""
    begun = time.perf_counter()
    cell: dict[str, Any] = {"word": "crashed", "plain": "", "check": []}

    def keep() -> None:
        cell["seconds"] = round(time.perf_counter() - begun)
        to.write_text(json.dumps(cell))

    keep()
    plain = reproduce(report)
    cell |= {"plain": plain["outcome"], "plain_detail": plain["detail"]}
    keep()
    if plain["outcome"] == "eager failed":
        absent = any(text in plain["detail"] for text in MISSING)
        cell["word"] = "not applicable" if absent else "eager failed"
        keep()
        return
    for phase in order(report, plain["detail"]):
        torch.compiler.reset()
        results = check_equivalence(
            report.policy,
            observation=report.observation,
            inputs=report.inputs,
            observe=report.observe,
            reset=report.reset,
            phases=phase,
            **LIMITS,
        )
        cell["check"] += [summary(result) for result in results]
        keep()
        if any(result.verdict in FAILED for result in results):
            break
    cell["word"] = word(report, cell)
    keep()


def order(report: Report, detail: str) -> list[str]:
    """The phases; if plain code differs only where it learns, that comes first, as one finding is enough."""
    return sorted(report.phases, key=lambda phase: phase != "update" if detail.startswith("learning") else 0)


def word(report: Report, cell: dict[str, Any]) -> str:
    """Return the word of a cell from what plain code and the check said."""
    verdicts = [Verdict(said["verdict"]) for said in cell["check"]]
    if Verdict.DIFFERS in verdicts:
        return "finds" if cell["plain"] == "differs" else "differs"
    if Verdict.NOT_COMPILED in verdicts:
        return "not compiled"
    if cell["plain"] == "differs":
        remarks = [remark for said in cell["check"] for remark in said.get("remarks", ())]
        named = report.remark and any(report.remark in remark for remark in remarks)
        return "remarks" if named else "misses"
    if cell["plain"] == "compile failed" or Verdict.COMPILE_FAILED in verdicts:
        return "compile failed"
    return "eager failed" if Verdict.EAGER_FAILED in verdicts else "equal"


def summary(result: CheckResult) -> dict[str, Any]:
    """Return what the table needs of a result, as plain data."""
    why, worst = result.explanation, result.differences[0] if result.differences else None
    said: dict[str, Any] = {"phase": result.phase, "verdict": result.verdict.value, "reason": result.reason}
    if worst is not None:
        said |= {"worst": f"{worst.path}: {worst.problem}", "eager": worst.eager, "compiled": worst.compiled}
    if why is not None:
        said |= {"stage": why.stage, "causes": list(why.causes), "advice": why.advice}
    if result.remarks:
        said["remarks"] = list(result.remarks)
    return said
