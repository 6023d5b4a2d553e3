"""Renders the page from the data file. It measures nothing, and needs no torch of the columns."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

from .data import Cell, Column
from .record import Report

WORDS = {
    "finds": "plain code shows the difference, and the check reports that compiled differs from eager",
    "differs": "the check reports a difference, and plain code shows none on the report's inputs",
    "not compiled": "the check fails, because torch compiles anew for each call or compiles nothing",
    "remarks": "the check does not fail, and names the fault in a remark",
    "misses": "plain code shows the difference on the report's inputs, and the check does not",
    "equal": "plain code and the check both say that compiled agrees with eager: this torch is not wrong "
    "(yet, or any more)",
    "compile failed": "torch.compile raises an exception, so nothing is silent",
    "eager failed": "the policy does not run without torch.compile",
    "not applicable": "this torch does not have what the policy needs",
    "crashed": "the process of the cell died",
    "timed out": "the process of the cell was ended after its time",
}

INTRODUCTION = """\
# Reported miscompiles, and what the check says

Each row is a report of results that `torch.compile` gets wrong, from PyTorch's issue tracker, that shows on
CPU with some torch since 2.9. None of them raises an exception or a warning. Each became a small policy of
our own, in [benchmarks/miscompiles](../benchmarks/miscompiles), that does what the report describes. Each
cell was measured by a command, none is written by hand:

```console
$ python -m benchmarks.miscompiles measure   # the column of the torch that is installed
$ python -m benchmarks.miscompiles table     # this page
```

*Plain code* calls the policy eager and compiled with the report's own inputs, or with inputs that have the
property it describes, acting and learning. It compares outputs, buffers and gradients by
`torch.testing.assert_close` with rtol 1e-3 and atol 1e-4, and ten times as much in half precision. Inductor
draws eager's random numbers.

*The check* is the one behind `@pytest.mark.compiled_equivalence`. It sees the specs of the policy and not the
report's inputs. Its options are the defaults, except for the time to shrink and to explain, which is shorter.
It runs phase by phase until one fails.
"""


def page(data: dict[str, Column], reports: Sequence[Report]) -> str:
    """Return the page as Markdown."""
    parts = [
        INTRODUCTION,
        "\n".join(words(data, reports)),
        "## The table",
        "\n".join(rows(data, reports)),
        "\n".join(columns(data)),
        "## What the check said",
        "The phase in which it failed, the worst difference, and the stage of the compiler that it names,\n"
        "on the newest torch on which it failed.",
        "\n".join(sayings(data, reports)),
        "## Where the check is blind",
        "\n".join(blind_spots(data, reports)),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def cell_of(column: Column, report: Report) -> Cell:
    """The cell of a report in a column, empty if it was not measured."""
    cell: Cell = column["cells"].get(str(report.number), {})
    return cell


def words(data: dict[str, Column], reports: Iterable[Report]) -> list[str]:
    """What the words mean, of those that occur."""
    seen = {cell_of(column, one).get("word", "") for column in data.values() for one in reports}
    lines = ["| cell | meaning |", "|---|---|"]
    return lines + [f"| {word} | {meaning} |" for word, meaning in WORDS.items() if word in seen]


def rows(data: dict[str, Column], reports: Sequence[Report]) -> list[str]:
    """The table, and in its last rows how often each column says each word."""
    lines = [
        f"| report | kind | what goes wrong | {' | '.join(data)} |",
        "|---" * (3 + len(data)) + "|",
    ]
    for one in reports:
        cells = " | ".join(shown(cell_of(column, one)) for column in data.values())
        lines.append(f"| {link(one)} | {one.kind} | {escaped(one.title)} | {cells} |")
    counts = [
        collections.Counter(cell_of(column, one).get("word", "not measured") for one in reports)
        for column in data.values()
    ]
    for word in (*WORDS, "not measured"):
        if any(word in count for count in counts):
            cells = " | ".join(str(count[word]) for count in counts)
            lines.append(f"| | | **{word}**, of {len(reports)} | {cells} |")
    return lines


def shown(cell: Cell) -> str:
    """A cell in the table."""
    word: str = cell.get("word", "")
    return f"**{word}**" if word in ("finds", "differs", "misses") else word


def link(report: Report) -> str:
    """The number of a report, which leads to it."""
    return f"[{report.number}]({report.link})"


def columns(data: dict[str, Column]) -> list[str]:
    """Where and when each column was measured."""
    return [
        f"* {column['torch']}: {column['date']}, Python {column['python']}, {column['platform']}."
        for column in data.values()
    ]


def sayings(data: dict[str, Column], reports: Iterable[Report]) -> list[str]:
    """What the check said of each report that it finds on some torch."""
    lines = ["| report | torch | phase | worst difference | stage |", "|---|---|---|---|---|"]
    for one in reports:
        finding = [
            (version, said)
            for version, column in data.items()
            for said in cell_of(column, one).get("check", [])
            if said["verdict"] in ("differs", "not compiled")
        ]
        if finding:
            version, said = finding[-1]
            worst = escaped(said.get("worst") or said["reason"])
            if said.get("worst"):
                worst += f", {said['eager']} became {said['compiled']}"
            stage = said.get("stage") or "not told"
            lines.append(f"| {link(one)} | {version} | {said['phase']} | {worst} | {stage} |")
    return lines


def escaped(text: str) -> str:
    """A text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("_", "\\_")[:120]


def blind_spots(data: dict[str, Column], reports: Iterable[Report]) -> list[str]:
    """The reports that the check misses on some torch, and why."""
    lines = []
    for one in reports:
        missing = [v for v, column in data.items() if cell_of(column, one).get("word") == "misses"]
        if missing:
            lines.append(f"* {link(one)}, {escaped(one.title)} (torch {', '.join(missing)}): {one.blind}")
    return lines or ["Nothing that plain code shows is missed."]
