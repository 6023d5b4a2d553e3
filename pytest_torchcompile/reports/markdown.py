"""Renders the document as Markdown, for a job's summary or a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pytest_torchcompile.reports import notes, table
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
    """Return the document as GitHub's Markdown: count, failures, table and the sentences below it.

    Args:
        document: see `document_of`.
        most_bytes: the limit in UTF-8; a longer text is cut off after a line.
    """
    return fitted(_lines(document), most_bytes)


def fitted(lines: Iterable[str], most_bytes: int | None) -> str:
    """Join the lines that fit into `most_bytes`. If some do not, end with a sentence that says so."""
    taken: list[str] = []
    left = float("inf") if most_bytes is None else most_bytes - len(_CUT.encode())
    for line in lines:
        left -= len(line.encode()) + 1
        if left < 0:
            return "\n".join(_with_closed_fence(taken)) + _CUT
        taken.append(line)
    return "\n".join(taken).rstrip() + "\n"


def _with_closed_fence(lines: list[str]) -> list[str]:
    """Return `lines`, and the fence that closes the last code block if it is open."""
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
        f"**{escaped(table.count(verdicts, remarks_of(cases), table.held_text(c.values for c in cases)))}**",
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
    for sentence in notes.sentences((case.id, case.values) for case in cases):
        yield f"* {escaped(sentence)}"
    for finding, address in notes.addresses(verdicts, remarks_of(cases)):
        yield f"* {finding}: see {address}"
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
        fails = case.result.verdict.passed and not table.is_passing(case.values)
        sign = SIGNS[Verdict.DIFFERS if fails else case.result.verdict]
        verdict = f"{sign} {verdict}{expected}"
        yield row((code(name), escaped(verdict), *map(escaped, others)))


def machine_text(name: str, machine: Plain) -> str:
    """Return one line for a machine, with the timing of eager against itself."""
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
    """Return a row of a table. The cells are Markdown."""
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Return `text` on one line, with the characters that are special in Markdown or HTML escaped."""
    special = r"[!\"#$&'*<>?@\[\\\]^_`{|}~]"
    return re.sub(special, lambda match: f"&#{ord(match[0])};", one_line(text))


def code(text: str) -> str:
    """Return `text` as inline code."""
    return f"<code>{escaped(text)}</code>"


def fenced(text: str) -> Sequence[str]:
    """Return the lines of a code block. Its fence is longer than any in `text`."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return (f"{fence}text", *visible(text).splitlines(), fence)
