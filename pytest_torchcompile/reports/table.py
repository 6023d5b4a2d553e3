"""Writes the row of a case and the count of cases, for all views."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_torchcompile.results import MARGIN, Verdict
from pytest_torchcompile.texts import share

HEADINGS = (
    "case",
    "verdict",
    "examples",
    "worst / allowed",
    "compiled",
    "graphs",
    "breaks",
    "recompiles",
    "seconds",
    "speedup",
)
TEXTS = (0, 1, 3, 9)
"""The columns that hold text; the others hold numbers."""
_ENDED_EARLY = (Verdict.EAGER_FAILED, Verdict.SKIPPED, Verdict.CRASHED)
"""The verdicts of cases that may end before torch compiles anything."""


def headings(*, timed: bool) -> tuple[str, ...]:
    """Return the headings; the last one only if something was timed."""
    return HEADINGS if timed else HEADINGS[:-1]


def cells(name: str, values: Mapping[str, Any], *, timed: bool) -> tuple[str, ...]:
    """Return the texts of a row, one for each of `headings`.

    Args:
        name: the id of the case.
        values: its `CheckResult.row`.
        timed: whether any case of the table was timed.
    """
    found = (
        name,
        verdict_text(values),
        str(values["examples"]),
        _worst(values),
        _coverage(values),
        _graphs(values),
        str(values["breaks"]),
        str(values["recompiles"]),
        f"{float(values['compile_s']):.1f}",
    )
    return (*found, speedup_text(values)) if timed else found


def _coverage(values: Mapping[str, Any]) -> str:
    """Return the share of the parameters in graphs; ``-`` if the case ended before anything was compiled.

    It is ``each call`` if all are in graphs, which each call compiled again.
    """
    inside = values["coverage"]
    if values["verdict"] in _ENDED_EARLY and not values["graphs"]:
        return "-"
    if inside == 1 and values["verdict"] == Verdict.NOT_COMPILED and values["recompiles"]:
        return "each call"
    return inside if isinstance(inside, str) else share(inside).replace(" ", "")


def verdict_text(values: Mapping[str, Any]) -> str:
    """Return the verdict; if the case passed but its test fails for another reason, say that too."""
    verdict = str(values["verdict"])
    if not Verdict(verdict).passed:
        return verdict
    too_slow = "min_speedup" in values and float(values["speedup_high"]) < float(values["min_speedup"])
    failings = {
        "worse": values.get("regressions"),
        "too slow": too_slow,
        "over budget": values.get("exceeded"),
    }
    return ", ".join([verdict, *(what for what, fails in failings.items() if fails)])


def is_passing(values: Mapping[str, Any]) -> bool:
    """Return whether the case passed and nothing else fails its test."""
    return verdict_text(values) in (Verdict.EQUAL, Verdict.WITHIN_ROUNDING)


def held_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return ``held against main.json: 3 kept, 1 undecided, 0 worse``; empty without a gate."""
    held = [(values["baseline"], values["held"]) for values in rows if values.get("held")]
    if not held:
        return ""
    counts = collections.Counter(state for _, state in held)
    new = f", {counts['new']} not in it" if counts["new"] else ""
    states = ", ".join(f"{counts[state]} {state}" for state in ("kept", "undecided", "worse"))
    return f"held against {held[0][0]}: {states}{new}"


def _worst(values: Mapping[str, Any]) -> str:
    """Return the worst difference over what is allowed, with its place; only the place if it has no size."""
    whole = " ".join(filter(None, (share_text(values), values["worst_place"])))
    return whole or short_worst_text(values)


def short_worst_text(values: Mapping[str, Any]) -> str:
    """Return the worst difference over what is allowed; ``-`` if it has no size or nothing was compared."""
    unsized = values["worst_place"] or not values["examples"]
    return share_text(values) or ("-" if unsized else "0")


def share_text(values: Mapping[str, Any]) -> str:
    """Return the worst difference over what is allowed there, ``0.31``; empty if nothing numeric differs."""
    size, allowed = float(values["worst_difference"]), float(values["worst_allowed"])
    return f"{size / allowed:.2g}" if size and allowed else ""


def _graphs(values: Mapping[str, Any]) -> str:
    """Return the number of graphs. Those that only a lifecycle needs come after a plus sign."""
    added = int(values["added_graphs"])
    return f"{int(values['graphs']) - added}+{added}" if added else str(values["graphs"])


def speedup_text(values: Mapping[str, Any]) -> str:
    """Return ratio, interval and conclusion; ``-`` if the case was not timed."""
    if not is_timed(values):
        return "-"
    low, high = (float(values[f"speedup{end}"]) for end in ("_low", "_high"))
    return f"{float(values['speedup']):.2f} [{low:.2f}, {high:.2f}] {values['conclusion']}"


def short_speedup_text(values: Mapping[str, Any]) -> str:
    """Return ratio and conclusion; ``-`` if the case was not timed."""
    return f"{float(values['speedup']):.2f} {values['conclusion']}" if is_timed(values) else "-"


def is_timed(values: Mapping[str, Any]) -> bool:
    """Return whether a row has the figures of a timing."""
    return "speedup" in values


def nothing_was_checked(verdicts: Iterable[str]) -> bool:
    """Return whether all cases were skipped or failed to compile."""
    return set(verdicts) <= {Verdict.COMPILE_FAILED, Verdict.SKIPPED}


def count(verdicts: Iterable[str], remarks: int = 0, held: str = "") -> str:
    """Return, for example, ``3 cases: 2 equal, 1 differs; 1 remark``, or a warning if nothing was checked.

    Args:
        verdicts: the verdicts of all cases.
        remarks: the number of different remarks of the cases.
        held: what the gate found, see `held_text`.
    """
    counts = collections.Counter(verdicts)
    total = counts.total()
    cases = f"{total} case{'' if total == 1 else 's'}"
    text = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
    if not counts:
        return "0 cases: nothing was checked"
    if nothing_was_checked(counts):
        return f"NOTHING WAS CHECKED: {text} of {cases}{_remarks(remarks)}"
    return f"{cases}: {text}{_remarks(remarks)}{'; ' if held else ''}{held}"


def _remarks(number: int) -> str:
    return f"; {number} remark{'' if number == 1 else 's'}" if number else ""


def control_text(control: Mapping[str, Any]) -> str:
    """Return the speedup of eager timed against itself, and a warning if the machine is too noisy."""
    ratio, low, high = (control[f"speedup{end}"] for end in ("", "_low", "_high"))
    noisy = "; this machine is too noisy for the speedups above" if is_noisy(control) else ""
    return f"eager timed against itself: {ratio:.2f} [{low:.2f}, {high:.2f}]{noisy}"


def is_noisy(control: Mapping[str, Any]) -> bool:
    """Return whether the timing failed to show that eager is as fast as itself."""
    return not 1 / MARGIN <= control["speedup_low"] <= control["speedup_high"] <= MARGIN
