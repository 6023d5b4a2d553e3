"""Counts the results of this suite: found, missed, silent, false alarms, and faults taken for rounding."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Iterator

from ..catalogue import Entry
from ..correct import FAMILIES
from ..run import Run, run
from . import FRESH
from .record import Fault


def controls(backend: str = "aot_eager", *, long: bool = False) -> Iterator[Entry]:
    """The correct policies as entries whose kind is their family."""
    for family, policies in FAMILIES.items():
        for one in policies:
            if (long or not one.long) and not (one.miscompiled and backend == "inductor"):
                yield Entry(
                    kind=family,
                    name=one.name,
                    factory=one.model,
                    declaration=one.declaration,
                    backend=lambda: backend,
                )


def surprise(one: Run) -> str:
    """What a run showed that it should not have, in one line; empty if it did what it should."""
    name = f"seed {one.seed}, {one.entry.kind}: {one.entry.name}"
    found = one.found and (one.found.reason or one.found.worst)
    if not isinstance(one.entry, Fault):
        alarm = f"FALSE ALARM {name}, {one.found.case}: {found}" if one.found else ""
        other = f"NOT JUDGED {name}, {one.unjudged.case}: {one.unjudged.reason}" if one.unjudged else ""
        return alarm or other
    if one.entry.unsought:
        return f"FOUND, though listed as not looked for: {name}: {found}" if one.found else ""
    if one.found:
        return ""
    reason = one.unjudged.reason if one.unjudged else f"{one.excused} examples were taken for rounding"
    return f"MISSED {name}, in {one.entry.phase}: {reason}"


def tally(runs: Iterable[Run]) -> list[str]:
    """A line for each kind of fault and each family of correct policies, then the sums."""
    runs = list(runs)
    faults = [one for one in runs if isinstance(one.entry, Fault)]
    correct = [one for one in runs if not isinstance(one.entry, Fault)]
    lines = [f"{'fault':42} {'found':>6} {'missed':>7} {'excused':>8}"] if faults else []
    for kind, mine in _by_kind(faults):
        lines.append(f"{kind:42} {_found(mine):6} {len(mine) - _found(mine):7} {_excused(mine):8}")
    lines += (
        [f"{'correct policy':42} {'silent':>6} {'alarms':>7} {'excused':>8} {'not judged':>11}"]
        if correct
        else []
    )
    for kind, mine in _by_kind(correct):
        silent, unjudged = _silent(mine), _unjudged(mine)
        lines.append(f"{kind:42} {silent:6} {_found(mine):7} {_excused(mine):8} {unjudged:11}")
    sought = [one for one in faults if not one.entry.unsought]
    seconds = [
        f"{kind} {statistics.median(one.seconds for one in mine):.1f}"
        for kind, mine in (("fault", faults), ("correct policy", correct))
        if mine
    ]
    lines.append(
        f"found {_found(sought)}, missed {len(sought) - _found(sought)} of {len(sought)} faults "
        f"({_excused(sought)} examples were taken for rounding before); "
        f"silent {_silent(correct)}, false alarms {_found(correct)} of {len(correct)} correct policies"
    )
    return [*lines, f"median seconds: {', '.join(seconds)}"]


def _by_kind(runs: list[Run]) -> Iterator[tuple[str, list[Run]]]:
    for kind in dict.fromkeys(one.entry.kind for one in runs):
        yield kind, [one for one in runs if one.entry.kind == kind]


def _found(runs: Iterable[Run]) -> int:
    return sum(one.found is not None for one in runs)


def _silent(runs: Iterable[Run]) -> int:
    return sum(one.found is None and one.unjudged is None for one in runs)


def _unjudged(runs: Iterable[Run]) -> int:
    return sum(one.found is None and one.unjudged is not None for one in runs)


def _excused(runs: Iterable[Run]) -> int:
    return sum(one.excused for one in runs)


def main(arguments: argparse.Namespace) -> int:
    """Check all of them under each seed and print the counts; 1 if one is a surprise."""
    entries = [*FRESH, *controls(arguments.backend, long=arguments.long)]
    runs, surprises = [], 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for number, entry in enumerate(entries):
            if arguments.only not in f"{entry.kind}: {entry.name}" or (number + seed) % arguments.each:
                continue
            fault = isinstance(entry, Fault)
            phases = {"phases": (entry.phase,)} if fault else {}
            runs.append(run(entry, seed, control=not fault, profile=arguments.profile, **phases))
            text = surprise(runs[-1])
            surprises += bool(text)
            if text:
                print(text, file=sys.stderr, flush=True)
    print("\n".join(tally(runs)))
    return 1 if surprises else 0
