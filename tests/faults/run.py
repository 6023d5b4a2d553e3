"""Checks entries of the catalogue, and summarises the results."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from pytest_torchcompile import CheckResult, Verdict, check_equivalence

from .catalogue import LIFECYCLE, ROLLOUT, UPDATE, Entry, fails

PHASES = (ROLLOUT, UPDATE, LIFECYCLE)

AFTER_IT_IS_FOUND = {"shrink_seconds": 0.1, "explain_seconds": 0}
"""What is found counts, not how small it gets nor why: the options beside the backend that are no defaults."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One entry under one seed.

    Args:
        entry: what was checked.
        seed: of weights, examples and draws.
        found: the result that shows the fault; None if none does.
        seconds: until then, from the first compile on.
        excused: how many examples were taken for rounding until then.
        unjudged: the first result that says neither that the entry is right nor that it is wrong.
    """

    entry: Entry
    seed: int
    found: CheckResult | None
    seconds: float
    excused: int = 0
    unjudged: CheckResult | None = None


def check(entry: Entry, seed: int, phases: Iterable[str] = PHASES, **options: Any) -> Iterator[CheckResult]:
    """The results of one entry on fresh code, phase by phase, under default settings but for `options`."""
    for phase in phases:
        torch.compiler.reset()
        yield from check_equivalence(
            entry.factory,
            **entry.declaration,
            backend=entry.backend(),
            phases=phase,
            seed=seed,
            **(AFTER_IT_IS_FOUND | options),
        )


def run(
    entry: Entry,
    seed: int,
    *,
    control: bool = False,
    phases: Iterable[str] = PHASES,
    **options: Any,
) -> Run:
    """Check an entry until something shows it; of a control, until something is wrong."""
    begun = time.perf_counter()
    shows = fails if control else entry.caught
    found, unjudged, excused = None, None, 0
    for result in check(entry, seed, phases, **options):
        excused += excused_until_found(result)
        if shows(result):
            found = result
            break
        if not result.verdict.passed and unjudged is None:
            unjudged = result
    return Run(entry, seed, found, time.perf_counter() - begun, excused, unjudged)


def excused_until_found(result: CheckResult) -> int:
    """How many examples of a case were within rounding before the first that differs."""
    before = itertools.takewhile(lambda one: one.verdict is not Verdict.DIFFERS, result.deviations)
    return sum(one.verdict is Verdict.WITHIN_ROUNDING for one in before)


def summary(runs: Iterable[Run]) -> list[str]:
    """A line for each class: how many runs showed something, and the median time until then."""
    lines = []
    runs = list(runs)
    for kind in dict.fromkeys(one.entry.kind for one in runs):
        mine = [one for one in runs if one.entry.kind == kind]
        found = [one for one in mine if one.found is not None]
        after = f"median {statistics.median(one.seconds for one in found):5.1f} s" if found else ""
        lines.append(
            f"{kind:36} {len(found):4} of {len(mine):4}  {len(found) / len(mine):6.1%}  {after}".rstrip()
        )
    return lines
