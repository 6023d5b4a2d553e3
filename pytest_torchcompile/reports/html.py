"""Renders the document as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pytest_torchcompile.reports import case_plots, notes, plots, table
from pytest_torchcompile.reports.document import Case, Plain, cases_of, remarks_of
from pytest_torchcompile.reports.failure import evidence_rows, explanation_rows, problem_text
from pytest_torchcompile.reports.markdown import machine_text
from pytest_torchcompile.results import Verdict
from pytest_torchcompile.texts import meaning_of, visible

KINDS = ("good", "warn", "bad")
"""The CSS classes of verdicts, by `Verdict.severity`."""
COLUMNS = (0, 1, 3, 9, 2, 4, 5, 6, 7, 8)
"""The columns of `table.HEADINGS` in the page's order. A phone shows the first four without scrolling."""


def html(document: Plain) -> str:
    """Return the page: the number of cases per verdict, plots of all cases, and a section for each case."""
    cases = sorted(cases_of(document), key=lambda case: (not case.failed, -case.result.verdict.severity))
    timed = any(case.speedup for case in cases)
    verdicts = [case.result.verdict for case in cases]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pytest_torchcompile.reports", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_escape_control_characters,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    style, script = (_source(environment, name) for name in ("report.css", "report.js"))
    return environment.get_template("report.html.j2").render(
        document=document,
        style=style,
        script=script,
        allowed={"style": _digest(style), "script": _digest(script)},
        count=table.count(verdicts, remarks_of(cases), table.held_text(case.values for case in cases)),
        tiles=[(v.value, verdicts.count(v), KINDS[v.severity]) for v in Verdict if v in verdicts],
        headings=[table.HEADINGS[column] for column in _columns(timed)],
        cases=[_section(number, case, timed) for number, case in enumerate(cases, 1)],
        sentences=notes.sentences((case.id, case.values) for case in cases),
        addresses=notes.addresses(verdicts, remarks_of(cases)),
        machines=[machine_text(name, machine) for name, machine in document["machines"].items()],
        speedups=plots.speedups(cases),
        compile_times=plots.compile_times(cases),
    )


def _source(environment: jinja2.Environment, name: str) -> Markup:
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _digest(source: str) -> str:
    """Return the hash of `source` that the content security policy allows. No other script can run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _escape_control_characters(value: Any) -> Any:
    """Escape the control characters of a string. Markup, which this package made, is returned as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def breakable(name: str) -> Markup:
    """Return the name of a case as markup that can be broken between its words."""
    return Markup(re.sub(r"(::|[/_\[-])", r"\1<wbr>", str(escape(visible(name)))))


def _columns(timed: bool) -> Sequence[int]:
    return [column for column in COLUMNS if column < len(table.headings(timed=timed))]


def _section(number: int, case: Case, timed: bool) -> dict[str, Any]:
    """Return what the page shows of a case."""
    result = case.result
    cells = table.cells(case.id, case.values, timed=timed)
    keys = _sort_keys(case.values)
    rows = evidence_rows(result)
    if result.explanation is not None:
        rows += explanation_rows(result.explanation)
    return {
        "number": number,
        "name": case.id,
        "verdict": result.verdict.value,
        "meaning": meaning_of(result.verdict),
        "verdict_text": table.verdict_text(case.values) + _unexpected(case),
        "kind": KINDS[result.verdict.severity],
        "outcome": case.outcome,
        "place": f"{case.file}:{case.line}",
        "cells": [(cells[column], keys[column]) for column in _columns(timed)][2:],
        "severity": keys[1],
        "problem": problem_text(case, context=False) if case.failed or not result.verdict.passed else "",
        "result": result,
        "rows": rows,
        "timing": _timing(case.speedup) if case.speedup else "",
        "speedup_text": table.speedup_text(case.speedup),
        "breaks": [_with_sources(text, case) for text in result.capture.breaks],
        "recompiles": [_with_sources(text, case) for text in result.capture.recompiles],
        "picture": case_plots.picture(case),
        "deviations": case_plots.deviations(case),
    }


def _timing(figures: Plain) -> str:
    """Return the speedup and the figures behind it, as far as the document has them."""
    texts = {
        "timed_calls": "{:,} calls of each side",
        "threads": "{} threads",
        "eager_median_s": "median {:.3g} s eager",
        "compiled_median_s": "median {:.3g} s compiled",
        "break_even_calls": "the time saved exceeds the compile time after {:,} calls",
    }
    known = [text.format(figures[name]) for name, text in texts.items() if name in figures]
    return "; ".join([table.speedup_text(figures), *known])


def _unexpected(case: Case) -> str:
    """Return a remark where the outcome of the test is not what the verdict suggests."""
    if case.outcome == "xfailed":
        return " (expected)"
    return " (test failed)" if case.failed and case.result.verdict.severity < 2 else ""


def _sort_keys(values: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the sort key of each column of `table.HEADINGS`. The first column is sorted by its text."""
    verdict = Verdict(values["verdict"])
    worst = float(table.share_text(values) or (math.inf if values["worst_place"] else 0.0))
    share = values["coverage"]
    return (
        0,
        verdict.severity + list(Verdict).index(verdict) / len(Verdict),
        values["examples"],
        min(worst, 1e300),  # JavaScript reads no "inf"
        -1 if isinstance(share, str) else share,
        values["graphs"],
        values["breaks"],
        values["recompiles"],
        values["compile_s"],
        values.get("speedup", 0),
    )


def _with_sources(text: str, case: Case) -> tuple[str, list[str]]:
    """Return the text of a break or recompile, and the source lines of the places in it."""
    return text, [line for place, line in case.sources.items() if place in text]
