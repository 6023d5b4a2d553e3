"""What a user reads when a case fails: which output, where, the figures, and what to do next."""

from __future__ import annotations

import statistics

from pytest_torchcompile.results import Capture, CheckResult, Difference, Verdict

_MOST = 4

_HEADLINES = {
    Verdict.DIFFERS: "compiled differs from eager",
    Verdict.NOT_COMPILED: "not compiled",
    Verdict.COMPILE_FAILED: "compile failed",
    Verdict.EAGER_FAILED: "eager failed",
}


def failure_text(result: CheckResult, rerun: str = "") -> str:
    """The message of a case that did not pass, a screen at most.

    Args:
        result: the case.
        rerun: the command that runs this case again.
    """
    lines = [
        f"{_HEADLINES.get(result.verdict, result.verdict)}: {result.method}, {result.phase} phase, "
        f"backend {result.backend}"
    ]
    if result.reason:
        lines += ["", f"  {result.reason}"]
    for difference in result.differences[:_MOST]:
        lines += ["", *difference_lines(difference)]
    rest = result.differences[_MOST:]
    if rest:
        lines += ["", f"  also differ: {', '.join(d.path for d in rest[:6])}" + _and_more(len(rest) - 6)]
    lines += ["", *_context_lines(result, rerun)]
    return "\n".join(lines).rstrip()


def slow_text(result: CheckResult, rerun: str = "") -> str:
    """The message of a case that is equal and less fast than was asked for."""
    speedup = result.speedup
    assert speedup is not None  # asked only of what was timed
    low, high = speedup.interval
    eager, compiled = (statistics.median(side) for side in (speedup.eager_s, speedup.compiled_s))
    return "\n".join(
        [
            f"too slow: {result.method}, {result.phase} phase, backend {result.backend}",
            "",
            f"  speedup   {speedup.ratio:.3g}, 95 % interval {low:.3g} to {high:.3g}, "
            f"all of it below min_speedup={speedup.least}",
            f"  medians   eager {eager:.3g} s, compiled {compiled:.3g} s; {len(speedup.eager_s)} calls each "
            f"with batch {speedup.batch} on {speedup.threads} threads",
            *_context_lines(result, rerun),
        ]
    )


def difference_lines(difference: Difference) -> list[str]:
    """One difference with both values, the float64 reference and what was allowed."""
    lines = [
        f"  {difference.place}: {difference.problem}",
        f"    eager       {difference.eager}",
        f"    compiled    {difference.compiled}",
    ]
    if difference.float64 is not None:
        verdict = {"neither": "both are as far from it"}.get(
            difference.closer or "", f"{difference.closer} is closer"
        )
        lines.append(f"    float64     {difference.float64}  ({verdict})")
    if difference.problem == "values":
        ulps = f" ({difference.ulps:.3g} ulps)" if difference.ulps else ""
        floor = f"; rounding moves eager by {difference.floor:.2g}" if difference.floor is not None else ""
        lines.append(
            f"    difference  {difference.difference:.3g}{ulps}, allowed {difference.allowed:.3g}{floor}"
        )
    if difference.chance is not None:
        lines.append(
            f"    chance      {difference.chance:.2g} if both draw alike; a difference below "
            f"{difference.allowed:.2g}"
        )
    if difference.elements:
        rows = f", in batch rows {', '.join(map(str, difference.rows))}" if difference.rows else ""
        lines.append(f"    unequal     {difference.unequal} of {difference.elements} elements{rows}")
    return lines


def capture_line(capture: Capture) -> str:
    """``1 graph, 8 of 8 parameters, 0 breaks, 2 recompiles, 1.2 s compiling``."""
    used = len(capture.parameters) + len(capture.left_eager)
    parts = [
        _count(capture.graphs, "graph"),
        f"{len(capture.parameters)} of {used} parameters" if used else "no parameters used",
        _count(len(capture.breaks), "break"),
        _count(len(capture.recompiles), "recompile"),
        f"{capture.compile_s:.1f} s compiling",
    ]
    return ", ".join(parts)


def _context_lines(result: CheckResult, rerun: str) -> list[str]:
    lines = []
    if result.example:
        lines.append(f"  example   {result.example}")
    lines.append(f"  examples  {result.examples} compared")
    if result.capture != Capture():
        lines.append(f"  captured  {capture_line(result.capture)}")
    lines += [f"  break     {text}" for text in result.capture.breaks[:_MOST]]
    lines += [f"  note      {note}" for note in result.notes]
    if rerun:
        lines.append(f"  rerun     {rerun}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _and_more(number: int) -> str:
    return f" and {number} more" if number > 0 else ""
