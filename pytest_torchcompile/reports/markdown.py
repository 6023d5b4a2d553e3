"""The document as Markdown, for a job's summary or a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pytest_torchcompile.reports import table
from pytest_torchcompile.reports.document import Case, Plain, cases_of, remarks_of
from pytest_torchcompile.reports.failure import problem_text
from pytest_torchcompile.results import Verdict
from pytest_torchcompile.texts import one_line, visible

SIGNS = {
    Verdict.EQUAL: "✅",
    Verdict.WITHIN_ROUNDING: "✅",
    Verdict.COMPILE_FAILED: "⚠️",
    Verdict.DIFFERS: "❌",
    Verdict.NOT_COMPILED: "❌",
    Verdict.EAGER_FAILED: "❌",
    Verdict.SKIPPED: "⚠️",
    Verdict.CRASHED: "❌",
}
_CUT = "\n\n*Cut here to fit: the rest is in the files of `--compile-report`.*\n"


def markdown(document: Plain, *, most_bytes: int | None = None) -> str:
    """The document as GitHub's Markdown: the count, what failed, the table, the sentences below it.

    Args:
        document: see `document_of`.
        most_bytes: cut at the end of a line so that no more are needed, in UTF-8.
    """
    return fitted(_lines(document), most_bytes)


def fitted(lines: Iterable[str], most_bytes: int | None) -> str:
    """`lines` joined, as many of them as fit into so many bytes with a sentence that says so."""
    taken: list[str] = []
    left = float("inf") if most_bytes is None else most_bytes - len(_CUT.encode())
    for line in lines:
        left -= len(line.encode()) + 1
        if left < 0:
            return "\n".join(_closed(taken)) + _CUT
        taken.append(line)
    return "\n".join(taken).rstrip() + "\n"


def _closed(lines: list[str]) -> list[str]:
    """`lines` with the last code block, if it is open, brought to an end."""
    fence = ""
    for line in lines:
        match = re.match(r"`{3,}", line)
        if match:
            fence = "" if fence else match[0]
    return [*lines, fence] if fence else lines


def _lines(document: Plain) -> Iterator[str]:
    cases = cases_of(document)
    verdicts = [case.result.verdict for case in cases]
    yield from (
        "## Compiled against eager",
        "",
        f"**{escaped(table.count(verdicts, remarks_of(cases)))}**",
        "",
    )
    failed = [case for case in cases if case.failed]
    for case in failed:
        yield from (
            f"### {SIGNS[case.result.verdict] if not case.result.verdict.passed else '❌'} {code(case.id)}",
            "",
            *fenced(problem_text(case)),
            "",
        )
    for test in document["unchecked"]:
        yield from (f"### ❌ {code(test['nodeid'])}", "", "No result:", "", *fenced(test["message"]), "")
    if cases:
        yield from _table(cases)
        yield ""
    for sentence in table.sentences((case.id, case.values) for case in cases):
        yield f"* {escaped(sentence)}"
    yield ""
    for name, machine in document["machines"].items():
        yield f"* {escaped(machine_text(name, machine))}"


def _table(cases: list[Case]) -> Iterator[str]:
    timed = any(case.speedup for case in cases)
    headings = table.headings(timed=timed)
    yield row(headings)
    yield row("---" if i in table.TEXTS else "--:" for i, _ in enumerate(headings))
    for case in cases:
        name, verdict, *others = table.cells(case.id, case.values, timed=timed)
        expected = " (expected)" if case.outcome == "xfailed" else ""
        verdict = f"{SIGNS[case.result.verdict]} {verdict}{expected}"
        yield row((code(name), escaped(verdict), *map(escaped, others)))


def machine_text(name: str, machine: Plain) -> str:
    """One machine in one line, with what eager timed against itself came out at."""
    parts = [
        f"{machine['cpus']} x {machine['processor'] or 'unknown processor'}",
        machine["accelerator"],
        machine["system"],
        f"torch {machine['torch']}",
        f"Python {machine['python']}",
        f"{machine['threads']} torch threads",
    ]
    if machine["control"]:
        parts.append(table.control_text(machine["control"]))
    return f"{name}: {', '.join(filter(None, parts))}"


# --- Markdown itself ------------------------------------------------------------------------------


def row(cells: Iterable[str]) -> str:
    """A table's row of cells that are Markdown already."""
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """`text` on one line as it stands, whatever Markdown or HTML would make of it."""
    special = r"[!\"#$&'*<>?@\[\\\]^_`{|}~]"
    return re.sub(special, lambda match: f"&#{ord(match[0])};", one_line(text))


def code(text: str) -> str:
    """`text` in a typewriter's letters."""
    return f"<code>{escaped(text)}</code>"


def fenced(text: str) -> Sequence[str]:
    """The lines of a code block that `text` can't end."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return (f"{fence}text", *visible(text).splitlines(), fence)
