"""Writes the output for GitHub Actions: annotations, and the summary of a step."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.reports.document import Case, Plain, cases_of
from pytest_torchcompile.reports.failure import problem_text
from pytest_torchcompile.reports.markdown import markdown
from pytest_torchcompile.results import Verdict
from pytest_torchcompile.texts import visible

MOST_ANNOTATIONS = 10
"""GitHub shows this many errors per step, and drops the others without notice."""
MOST_SUMMARY_BYTES = 1024 * 1024
"""GitHub does not show a step's summary that is larger."""
_MOST_LINES = 12
_FIRST = (
    Verdict.DIFFERS,
    Verdict.CRASHED,
    Verdict.NOT_COMPILED,
    Verdict.EAGER_FAILED,
    Verdict.COMPILE_FAILED,
    Verdict.SKIPPED,
)


def is_running(environment: Mapping[str, str]) -> bool:
    """Return whether this is a job of GitHub Actions."""
    return environment.get("GITHUB_ACTIONS") == "true"


def error_commands(document: Plain, root: pathlib.Path, environment: Mapping[str, str]) -> list[str]:
    """Return workflow commands that show the first failures as errors at the lines of their tests.

    Args:
        document: see `document_of`.
        root: the folder to which the files of the tests are relative.
        environment: the process's. GitHub's paths are relative to its ``GITHUB_WORKSPACE``.
    """
    workspace = pathlib.Path(environment.get("GITHUB_WORKSPACE", root))
    failed = sorted((case for case in cases_of(document) if case.failed), key=_importance)
    found = [(case.file, case.line, case.id, problem_text(case)) for case in failed]
    found += [(t["file"], t["line"], t["nodeid"], t["message"]) for t in document["unchecked"]]
    lines = []
    for file, line, name, text in found[:MOST_ANNOTATIONS]:
        place = os.path.relpath(root / file, workspace)
        message = "\n".join(text.splitlines()[:_MOST_LINES])
        properties = f"file={_property(place)},line={line},title={_property(name)}"
        lines.append(f"::error {properties}::{_data(message)}")
    rest = len(found) - MOST_ANNOTATIONS
    if rest > 0:
        lines[-1] += _data(f"\n\n{rest} more failed: see the job's summary")
    return lines


def _importance(case: Case) -> int:
    verdict = case.result.verdict
    return _FIRST.index(verdict) if verdict in _FIRST else len(_FIRST)


def _data(text: str) -> str:
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def add_to_summary(document: Plain, environment: Mapping[str, str]) -> None:
    """Append the document as Markdown to the step's summary, within its limit. Do nothing if it is empty.

    Raises:
        UsageError: if the file can't be written. In a custom container its folder may not exist.
    """
    path = environment.get("GITHUB_STEP_SUMMARY")
    if not path or not (document["cases"] or document["unchecked"]):
        return
    file = pathlib.Path(path)
    taken = file.stat().st_size if file.exists() else 0
    text = markdown(document, most_bytes=max(MOST_SUMMARY_BYTES - taken, 0))
    try:
        with file.open("a", encoding="utf-8") as summary:
            summary.write(text)
    except OSError as error:
        raise UsageError(f"GITHUB_STEP_SUMMARY can't be written: {error}") from None
