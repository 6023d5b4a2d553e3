"""Writes the message of a case that fails: which output, where, the figures, and what to do next."""

from __future__ import annotations

import math
import re
import statistics

from pytest_torchcompile.options import LIFECYCLE
from pytest_torchcompile.reports.document import Case
from pytest_torchcompile.reports.picture import picture_lines
from pytest_torchcompile.reports.table import speedup_text
from pytest_torchcompile.results import Capture, CheckResult, Difference, Explanation, Verdict
from pytest_torchcompile.texts import counted, meaning_of, one_line, share, some, wrapped

_MOST = 3
_WIDTH = 100
"""The most characters of a line of prose. Commands, addresses and places in code stay on one line."""
_WHOLE = ("code", "proof", "rerun", "meaning")
"""The labels of rows that stay on one line, so that they can be copied."""
_BEFORE_TEXT = re.compile(r"  (?P<label>\w+) +(?<=^.{12})|    \w+ +(?<=^.{16})|  ")
"""Matches what stands before the text of a line: the label of a row or of a figure, or the indent."""

_HEADLINES = {
    Verdict.DIFFERS: "compiled differs from eager",
    Verdict.NOT_COMPILED: "not compiled",
    Verdict.COMPILE_FAILED: "compile failed",
    Verdict.EAGER_FAILED: "eager failed",
    Verdict.CRASHED: "crashed",
}


def failure_text(result: CheckResult, rerun: str = "") -> str:
    """Return the message of a case that did not pass, one screen at most.

    Args:
        result: the result of the case.
        rerun: the command that runs this case again; no line for it if empty.
    """
    context = _context_lines(result, rerun, result.verdict)
    return _text([*_finding_lines(result, drawn=True), "", *context])


def finding_text(result: CheckResult) -> str:
    """Return the part of `failure_text` that says what is wrong, without picture and context, not wrapped."""
    return "\n".join(_finding_lines(result, drawn=False))


def _finding_lines(result: CheckResult, *, drawn: bool) -> list[str]:
    lines = [f"{_HEADLINES.get(result.verdict, result.verdict)}: {_case(result)}"]
    if result.reason:
        lines += ["", f"  {result.reason}"]
    for number, difference in enumerate(result.differences[:_MOST]):
        lines += ["", *difference_lines(difference)]
        picture = picture_lines(difference) if drawn and number == 0 else []
        if picture:
            lines += ["    where       . small to @ large difference, blank: equal"]
            lines += [f"    {line}" for line in picture]
    rest = result.differences[_MOST:]
    if rest:
        lines += ["", f"  also differ: {', '.join(d.path for d in rest[:6])}" + _and_more(len(rest) - 6)]
    return lines


def problem_text(case: Case, *, context: bool = True) -> str:
    """Return the message of a failed case of a document.

    Args:
        case: the case.
        context: whether to include the picture, the example, what was captured and why it differs.
    """
    values, texts = case.values, []
    if not case.result.verdict.passed:
        texts.append(failure_text(case.result) if context else finding_text(case.result))
        # The message is the text above, wrapped, unless something else ended the test.
        if (
            not case.result.examples
            and case.message
            and one_line(case.result.reason) not in one_line(case.message)
        ):
            texts.append(case.message)
    if values.get("min_speedup", 0) > values.get("speedup_high", math.inf):
        texts.append(f"too slow: {speedup_text(values)}, min_speedup={values['min_speedup']}")
    texts += case.result.regressions
    return "\n\n".join(texts) or case.message


def slow_text(result: CheckResult, rerun: str = "") -> str:
    """Return the message of a case that is slower than `min_speedup` allows."""
    speedup = result.speedup
    assert speedup is not None  # only timed cases are too slow
    low, high = speedup.interval
    eager, compiled = (statistics.median(side) for side in (speedup.eager_s, speedup.compiled_s))
    return _text(
        [
            f"too slow: {_case(result)}",
            "",
            f"  speedup   {speedup.ratio:.3g}, 95 % interval {low:.3g} to {high:.3g}, "
            f"all of it below min_speedup={speedup.least}",
            f"  medians   eager {eager:.3g} s, compiled {compiled:.3g} s; {len(speedup.eager_s)} calls each "
            f"with batch {speedup.batch} on {speedup.threads} threads",
            *_context_lines(result, rerun, "too slow"),
        ]
    )


def budget_text(result: CheckResult, rerun: str = "") -> str:
    """Return the message of a case that passed but exceeds a budget for compiling."""
    capture = result.capture
    headline = f"over budget: {_case(result)}"
    lines = [headline, "", *(f"  budget    {sentence}" for sentence in result.exceeded)]
    lines += _listed("recompile", capture.recompiles)
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in capture.stage_s.items())
    lines += [f"  compiling {spent}"] if spent else []
    graphs = "; ".join(
        f"{number}: {some(map(str, sizes))}" for number, sizes in enumerate(capture.batches, 1)
    )
    lines += [f"  batches   by graph: {graphs}"] if graphs else []
    return _text([*lines, *_context_lines(result, rerun, "over budget")])


def regression_text(result: CheckResult, rerun: str = "") -> str:
    """Return the message of a case that is worse than its baseline."""
    return _text(
        [
            f"worse than the baseline: {_case(result)}",
            "",
            *(f"  {sentence}" for sentence in result.regressions),
            *_context_lines(result, rerun, "worse than the baseline"),
        ]
    )


def difference_lines(difference: Difference) -> list[str]:
    """Return the lines for one difference: both values, the float64 reference and what was allowed."""
    lines = [
        f"  {difference.place}: {difference.problem}",
        f"    eager       {difference.eager}",
        f"    compiled    {difference.compiled}",
    ]
    if difference.float64 is not None:
        verdict = {"neither": "neither is closer"}.get(
            difference.closer or "", f"{difference.closer} is closer"
        )
        lines.append(f"    float64     {difference.float64}  ({verdict})")
    if difference.problem == "values":
        relative = "" if difference.relative is None else f"relative {difference.relative:.2g}, "
        ulps = f" ({relative}{difference.ulps:.3g} ulps)" if difference.ulps else ""
        lines.append(f"    difference  {difference.difference:.3g}{ulps}, allowed {difference.allowed:.3g}")
        if difference.floor is not None:
            lines.append(f"    rounding    moves eager by {difference.floor:.2g}")
    if difference.problem == "scale":
        lines.append(
            f"    scale       all values together differ by a factor of 1 +- {difference.difference:.3g}, "
            f"allowed {difference.allowed:.3g}; rounding scales eager by {difference.floor:.2g}"
        )
    if difference.chance is not None:
        lines.append(
            f"    chance      {difference.chance:.2g} if both draw from the same distribution; it differs if "
            f"this is below {difference.allowed:.2g}"
        )
    if difference.elements:
        rows = f", in batch rows {', '.join(map(str, difference.rows))}" if difference.rows else ""
        lines.append(f"    unequal     {difference.unequal} of {difference.elements} elements{rows}")
    return lines


def capture_line(capture: Capture) -> str:
    """Return text such as ``1 graph, 612 of 816 parameters, 1 break, 2 recompiles, 1.2 s compiling``."""
    used = capture.elements_used
    parts = [
        counted(capture.graphs, "graph"),
        f"{capture.elements_inside:,} of {used:,} parameters" if used else "no parameters used",
        *_work(capture),
        counted(len(capture.breaks), "break") + (" (fullgraph)" if capture.fullgraph else ""),
        counted(len(capture.recompiles), "recompile"),
        f"{capture.compile_s:.1f} s compiling",
    ]
    return ", ".join(parts)


def _work(capture: Capture) -> list[str]:
    """Return the share of the work, or nothing if it is 100 % or unknown."""
    inside = capture.coverage_work
    return [] if inside in (None, 1.0) else [f"{share(inside)} of the work"]


def _context_lines(result: CheckResult, rerun: str, meaning: str) -> list[str]:
    lines = _rows(evidence_rows(result))
    lines += _listed("break", result.capture.breaks)
    lines += [f"  remark    {remark}" for remark in result.remarks]
    lines += [f"  note      {note}" for note in result.notes]
    if result.explanation is not None:
        lines += _rows(explanation_rows(result.explanation))
    lines.append(f"  meaning   {meaning_of(meaning)}")
    if rerun:
        lines.append(f"  rerun     {rerun}")
    return lines


def _text(lines: list[str]) -> str:
    """Return the lines as one text, with prose wrapped. Its continuations stand below the first word."""
    texts = []
    for line in "\n".join(lines).splitlines():
        before = _BEFORE_TEXT.match(line)
        whole = before is not None and before["label"] in _WHOLE
        texts += [line] if whole else wrapped(line, _WIDTH, len(before[0]) if before else 0)
    return "\n".join(texts).rstrip()


def evidence_rows(result: CheckResult) -> list[tuple[str, str]]:
    """Return labels and texts: the failing example, the number of examples, what was captured."""
    example, examples = ("story", "moves") if result.phase == LIFECYCLE else ("example", "examples")
    rows = [(example, result.example)] if result.example else []
    attempts = f", and {result.attempts} more to make it smaller" if result.attempts else ""
    rows.append((examples, f"{result.examples} compared{attempts}"))
    ran = result.verdict is not Verdict.EAGER_FAILED or result.capture.graphs
    if result.capture != Capture() and ran:
        rows.append(("captured", capture_line(result.capture)))
    return rows


def _case(result: CheckResult) -> str:
    """Return method, phase and backend, which is not known of a process that died."""
    phase = result.phase if result.phase == LIFECYCLE else f"{result.phase} phase"
    return f"{result.method}, {phase}" + (f", backend {result.backend}" if result.backend else "")


def _listed(label: str, texts: tuple[str, ...]) -> list[str]:
    """Return a line for each of the first few texts, and one with the number of the others."""
    lines = _rows([(label, text) for text in texts[:_MOST]])
    return lines + ([f"  {label:<9} and {len(texts) - _MOST} more"] if len(texts) > _MOST else [])


def explanation_rows(explanation: Explanation) -> list[tuple[str, str]]:
    """Return labels and texts: stage, causes, place, code, remedy, proof, and what could not be found."""
    rows = []
    if explanation.stage:
        agree = "agrees" if len(explanation.agreed) == 1 else "agree"
        agreed = f"; {', '.join(explanation.agreed)} {agree} with eager" if explanation.agreed else ""
        rows.append(("stage", f"{explanation.stage}{agreed}"))
    rows += [("vanishes", f"without {cause}") for cause in explanation.causes]
    if explanation.place:
        rows.append(("place", explanation.place))
    elsewhere = [line for line in explanation.lines if line not in explanation.place]
    if elsewhere:
        rows.append(("code", some(elsewhere)))
    if explanation.remedy:
        rows.append(("remedy", f"options={explanation.remedy!r}, under which this example agrees"))
    if explanation.advice:
        rows.append(("remedy", explanation.advice))
    rows += [("unknown", remark) for remark in explanation.remarks]
    if explanation.confirmed:
        rows.append(("proof", f"python {explanation.proof}/repro.py, which reproduces the difference"))
    return rows


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    return [f"  {label:<9} {text}" for label, text in rows]


def _and_more(number: int) -> str:
    return f" and {number} more" if number > 0 else ""
