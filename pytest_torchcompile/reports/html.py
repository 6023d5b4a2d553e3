"""The document as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pytest_torchcompile.reports import case_plots, plots, table
from pytest_torchcompile.reports.document import Case, Plain, cases_of, remarks_of
from pytest_torchcompile.reports.failure import evidence_rows, explanation_rows, problem_text
from pytest_torchcompile.reports.markdown import machine_text
from pytest_torchcompile.results import Verdict
from pytest_torchcompile.texts import visible

KINDS = ("good", "warn", "bad")
"""The classes of verdicts in the page, by their severity."""
COLUMNS = (0, 1, 3, 9, 2, 4, 5, 6, 7, 8)
"""The columns of `table.HEADINGS` in the page's order: on a phone the first four are seen."""


def html(document: Plain) -> str:
    """The page: an overview of the verdicts, the plots over all cases, a part for each case."""
    cases = sorted(cases_of(document), key=lambda case: (not case.failed, -case.result.verdict.severity))
    timed = any(case.speedup for case in cases)
    verdicts = [case.result.verdict for case in cases]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pytest_torchcompile.reports", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
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
        count=table.count(verdicts, remarks_of(cases)),
        tiles=[(v.value, verdicts.count(v), KINDS[v.severity]) for v in Verdict if v in verdicts],
        headings=[table.HEADINGS[column] for column in _columns(timed)],
        cases=[_part(number, case, timed) for number, case in enumerate(cases, 1)],
        sentences=table.sentences((case.id, case.values) for case in cases),
        machines=[machine_text(name, machine) for name, machine in document["machines"].items()],
        speedups=plots.speedups(cases),
        compile_times=plots.compile_times(cases),
    )


def _source(environment: jinja2.Environment, name: str) -> Markup:
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _digest(source: str) -> str:
    """What a content security policy calls `source`, so that the page obeys it and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _shown(value: Any) -> Any:
    """What the page shows of a value; what is markup already was made by us."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def breakable(name: str) -> Markup:
    """The name of a case as markup that a narrow column breaks between its words."""
    return Markup(re.sub(r"(::|[/_\[-])", r"\1<wbr>", str(escape(visible(name)))))


def _columns(timed: bool) -> Sequence[int]:
    return [column for column in COLUMNS if column < len(table.headings(timed=timed))]


def _part(number: int, case: Case, timed: bool) -> dict[str, Any]:
    """What the page says of a case."""
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
        "verdict_text": result.verdict.value + _unexpected(case),
        "kind": KINDS[result.verdict.severity],
        "outcome": case.outcome,
        "place": f"{case.file}:{case.line}",
        "cells": [(cells[column], keys[column]) for column in _columns(timed)][2:],
        "severity": keys[1],
        "problem": problem_text(case, context=False) if case.failed or not result.verdict.passed else "",
        "result": result,
        "rows": rows,
        "speedup": case.speedup,
        "speedup_text": table.speedup_text(case.speedup),
        "breaks": [_with_sources(text, case) for text in result.capture.breaks],
        "recompiles": [_with_sources(text, case) for text in result.capture.recompiles],
        "picture": case_plots.picture(case),
        "deviations": case_plots.deviations(case),
    }


def _unexpected(case: Case) -> str:
    """What pytest made of a verdict, where that is not what the verdict says."""
    if case.outcome == "xfailed":
        return " (expected)"
    return " (test failed)" if case.failed and case.result.verdict.severity < 2 else ""


def _sort_keys(values: Mapping[str, Any]) -> tuple[float, ...]:
    """What the rows of the table are sorted by, for each of `table.HEADINGS`; the first sorts by its text."""
    verdict = Verdict(values["verdict"])
    worst = float(values["worst_difference"]) or (math.inf if values["worst_place"] else 0.0)
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
    """What a break or recompile says, and the source lines of the places that it names."""
    return text, [line for place, line in case.sources.items() if place in text]
