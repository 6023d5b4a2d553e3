"""The row of a case, the sentences below the rows and their count, in the words of every view."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_torchcompile.results import MARGIN, NOTE_SEPARATOR, Verdict

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

_NOTHING_COMPILED = (Verdict.NOT_COMPILED, Verdict.COMPILE_FAILED, Verdict.EAGER_FAILED, Verdict.CRASHED)
"""Of these it is no news that something ran eager."""


def headings(*, timed: bool) -> tuple[str, ...]:
    """The headings; the last one only if something was timed."""
    return HEADINGS if timed else HEADINGS[:-1]


def cells(name: str, values: Mapping[str, Any], *, timed: bool) -> tuple[str, ...]:
    """The texts of a row, one for each of `headings`.

    Args:
        name: the case.
        values: its `CheckResult.row`.
        timed: whether something was.
    """
    share = values["coverage"]
    found = (
        name,
        str(values["verdict"]),
        str(values["examples"]),
        _worst(values),
        share if isinstance(share, str) else f"{share:.0%}",
        _graphs(values),
        str(values["breaks"]),
        str(values["recompiles"]),
        f"{float(values['compile_s']):.1f}",
    )
    return (*found, speedup_text(values)) if timed else found


def _worst(values: Mapping[str, Any]) -> str:
    """The worst difference as a share of what is allowed, and where; the place alone of what has no size."""
    return " ".join(filter(None, (share_text(values), values["worst_place"]))) or "0"


def share_text(values: Mapping[str, Any]) -> str:
    """``0.31``: the worst difference over what is allowed there; empty where nothing numeric differs."""
    allowed = float(values["worst_allowed"])
    return f"{float(values['worst_difference']) / allowed:.2g}" if allowed and values["worst_place"] else ""


def _graphs(values: Mapping[str, Any]) -> str:
    """How many there are; those that only a lifecycle needs after a plus."""
    added = int(values["added_graphs"])
    return f"{int(values['graphs']) - added}+{added}" if added else str(values["graphs"])


def speedup_text(values: Mapping[str, Any]) -> str:
    """Ratio, interval and conclusion; ``-`` if the case was not timed."""
    if not is_timed(values):
        return "-"
    low, high = (float(values[f"speedup{end}"]) for end in ("_low", "_high"))
    return f"{float(values['speedup']):.2f} [{low:.2f}, {high:.2f}] {values['conclusion']}"


def short_speedup_text(values: Mapping[str, Any]) -> str:
    """Ratio and conclusion; ``-`` if the case was not timed."""
    return f"{float(values['speedup']):.2f} {values['conclusion']}" if is_timed(values) else "-"


def is_timed(values: Mapping[str, Any]) -> bool:
    """Whether a row has the figures of a timing."""
    return "speedup" in values


def sentences(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Why cases were excused or skipped, remarks, and what was noticed; failures are told elsewhere.

    Args:
        rows: the name and the values of each.
    """
    found: dict[str, list[str]] = collections.defaultdict(list)
    for name, values in rows:
        if values["verdict"] in (
            Verdict.WITHIN_ROUNDING,
            Verdict.COMPILE_FAILED,
            Verdict.SKIPPED,
            Verdict.CRASHED,
        ):
            found[f"{values['verdict']}: {values['reason']}"].append(name)
        if values.get("left_eager") and Verdict(values["verdict"]) not in _NOTHING_COMPILED:
            found[values["left_eager"]].append(name)
        if values.get("untimed"):
            found[f"not timed: {values['untimed']}"].append(name)
        if values.get("sensitivity"):
            found[values["sensitivity"]].append(name)
        for remark in filter(None, values["remarks"].split(NOTE_SEPARATOR)):
            found[f"remark: {remark}"].append(name)
        for note in filter(None, values["notes"].split(NOTE_SEPARATOR)):
            found[note].append(name)
    return [
        f"{names[0] if len(names) == 1 else f'{len(names)} cases'}: {sentence}"
        for sentence, names in found.items()
    ]


def nothing_was_checked(verdicts: Iterable[str]) -> bool:
    """Whether there is no case but such that were skipped or failed to compile."""
    return set(verdicts) <= {Verdict.COMPILE_FAILED, Verdict.SKIPPED}


def count(verdicts: Iterable[str], remarks: int = 0) -> str:
    """``3 cases: 2 equal, 1 differs; 1 remark``, or the line that can't be overlooked if nothing was checked.

    Args:
        verdicts: of all cases.
        remarks: how many different remarks the cases have.
    """
    counts = collections.Counter(verdicts)
    total = counts.total()
    cases = f"{total} case{'' if total == 1 else 's'}"
    text = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
    if not counts:
        return "0 cases: nothing was checked"
    if nothing_was_checked(counts):
        return f"NOTHING WAS CHECKED: {text} of {cases}{_remarks(remarks)}"
    return f"{cases}: {text}{_remarks(remarks)}"


def _remarks(number: int) -> str:
    return f"; {number} remark{'' if number == 1 else 's'}" if number else ""


def control_text(control: Mapping[str, Any]) -> str:
    """What eager timed against itself came out at, and what of it follows."""
    ratio, low, high = (control[f"speedup{end}"] for end in ("", "_low", "_high"))
    noisy = "; this machine is too noisy for the speedups above" if is_noisy(control) else ""
    return f"eager timed against itself: {ratio:.2f} [{low:.2f}, {high:.2f}]{noisy}"


def is_noisy(control: Mapping[str, Any]) -> bool:
    """Whether two equal things could not be shown to be equally fast."""
    return not 1 / MARGIN <= control["speedup_low"] <= control["speedup_high"] <= MARGIN
