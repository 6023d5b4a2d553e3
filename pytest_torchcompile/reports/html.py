"""Renders the document as one self-contained HTML page."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from pytest_torchcompile.reports import plots, table
from pytest_torchcompile.reports.document import Case, Plain, cases_of, remarks_of
from pytest_torchcompile.reports.failure import capture_line, problem_text
from pytest_torchcompile.reports.markdown import machine_text
from pytest_torchcompile.results import Verdict
from pytest_torchcompile.texts import visible

_KINDS = {
    Verdict.EQUAL: "good",
    Verdict.WITHIN_ROUNDING: "good",
    Verdict.COMPILE_FAILED: "warn",
    Verdict.SKIPPED: "warn",
}


def html(document: Plain) -> str:
    """Return the page: the number of cases per verdict, plots of all cases, and a section for each case."""
    cases = cases_of(document)
    timed = any(case.speedup for case in cases)
    verdicts = [case.result.verdict for case in cases]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pytest_torchcompile.reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_escape_control_characters,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        document=document,
        count=table.count(verdicts, remarks_of(cases)),
        tiles=[(v.value, verdicts.count(v), kind_of(v)) for v in Verdict if v in verdicts],
        headings=table.headings(timed=timed),
        texts=table.TEXTS,
        cases=[_section(number, case, timed) for number, case in enumerate(cases, 1)],
        sentences=table.sentences((case.id, case.values) for case in cases),
        machines=[machine_text(name, machine) for name, machine in document["machines"].items()],
        speedups=Markup(plots.speedups(cases)),
        compile_times=Markup(plots.compile_times(cases)),
    )


def _escape_control_characters(value: Any) -> Any:
    """Escape the control characters of a string. Markup, which this package made, is returned as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def kind_of(verdict: Verdict) -> str:
    """Return the CSS class of a verdict: ``good``, ``warn`` or ``bad``."""
    return _KINDS.get(verdict, "bad")


def _section(number: int, case: Case, timed: bool) -> dict[str, Any]:
    result = case.result
    return {
        "anchor": f"case-{number}",
        "name": case.id,
        "kind": kind_of(result.verdict),
        "outcome": case.outcome,
        "place": f"{case.file}:{case.line}",
        "cells": table.cells(case.id, case.values, timed=timed),
        "problem": problem_text(case) if case.failed or not result.verdict.passed else "",
        "result": result,
        "captured": capture_line(result.capture),
        "speedup": case.speedup,
        "speedup_text": table.speedup_text(case.speedup),
        "breaks": [_with_sources(text, case) for text in result.capture.breaks],
        "recompiles": [_with_sources(text, case) for text in result.capture.recompiles],
        "picture": Markup(plots.picture(case)),
        "plot": Markup(plots.deviations(case)),
    }


def _with_sources(text: str, case: Case) -> tuple[str, list[str]]:
    """Return the text of a break or recompile, and the source lines of the places in it."""
    return text, [line for place, line in case.sources.items() if place in text]
