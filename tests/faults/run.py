"""Checks entries of the catalogue, and sums up what was found."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable, Iterator

import torch

from pytest_torchcompile import CheckResult, check_equivalence

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
    """

    entry: Entry
    seed: int
    found: CheckResult | None
    seconds: float


def check(
    entry: Entry, seed: int, phases: Iterable[str] = PHASES, examples: int | None = None
) -> Iterator[CheckResult]:
    """The results of one entry on fresh code, phase by phase, under default settings."""
    for phase in phases:
        torch.compiler.reset()
        yield from check_equivalence(
            entry.factory,
            **entry.declaration,
            backend=entry.backend(),
            phases=phase,
            seed=seed,
            examples=examples,
            **AFTER_IT_IS_FOUND,
        )


def run(entry: Entry, seed: int, *, control: bool = False) -> Run:
    """Check an entry until something shows it; of a control, until something is wrong."""
    begun = time.perf_counter()
    shows = fails if control else entry.caught
    found = next((result for result in check(entry, seed) if shows(result)), None)
    return Run(entry, seed, found, time.perf_counter() - begun)


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
