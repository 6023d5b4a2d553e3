"""Defines the document: the results of a session as plain data. Every report is a view of it.

A document consists of records, one per case. They are plain data, so they can be sent between processes. A
document is written as JSON, read back, merged with those of other machines and compared with earlier ones.
`report.schema.json`, in this folder, describes it. A change that breaks readers needs a new `VERSION`.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import linecache
import math
import os
import pathlib
import platform
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pytest_torchcompile.results import (
    Capture,
    CheckResult,
    Deviation,
    Difference,
    Explanation,
    Sensitivity,
    Speedup,
    Verdict,
)

FORMAT = "pytest-torchcompile report"
VERSION = 1

_PLACE = re.compile(r"(?P<file>[^\s()\"']+\.py):(?P<line>\d+)")

Plain = dict[str, Any]
"""What ``json.dumps`` accepts."""


# --- records: made where a case runs --------------------------------------------------------------


def record_of(result: CheckResult, case: str, control: Speedup | None = None) -> Plain:
    """Return a result and a description of this machine as plain data.

    Args:
        result: the result of the case.
        case: its name, which is unique in its test, such as ``get_value-rollout``.
        control: the timing of eager against itself, in the process that timed the case.
    """
    capture = result.capture
    record = {
        "case": case,
        **result.as_dict(),
        "coverage": capture.coverage,
        "coverage_work": capture.coverage_work,
        "sources": _sources((*capture.breaks, *capture.recompiles)),
        "machine": machine() | {"control": None if control is None else control.figures()},
    }
    return {name: _plain(value) for name, value in record.items()}


def machine() -> Plain:
    """Describe this machine: what determines how code is compiled and how fast it runs."""
    import torch

    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count() or 1,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


@functools.cache
def _processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def _sources(texts: Iterable[str]) -> dict[str, str]:
    """Return the source lines of the places in the texts, by ``file:line``.

    They are read where the case runs, because a report may be rendered on another machine.
    """
    places = {match[0]: (match["file"], int(match["line"])) for t in texts for match in _PLACE.finditer(t)}
    lines = {place: linecache.getline(*where).strip() for place, where in places.items()}
    return {place: line for place, line in lines.items() if line}


def _plain(value: Any) -> Any:
    """Return `value` as JSON data: tuples as lists, None for NaN and infinity, no subclasses of str."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, str) else value


# --- the document ---------------------------------------------------------------------------------


def document_of(items: Iterable[Plain], unchecked: Iterable[Plain] = ()) -> Plain:
    """Return the document of one session.

    Args:
        items: records, each with ``nodeid``, ``file``, ``line``, ``outcome`` and ``message`` of its test.
        unchecked: tests without a result, each with the same fields.
    """
    document = empty()
    for item in items:
        item = dict(item)
        key = add_machine(document["machines"], item.pop("machine"))
        identity = case_id(item["nodeid"], item["case"])
        document["cases"].append({"id": identity, "machine": key, **item})
    document["cases"].sort(key=lambda case: (case["id"], case["machine"]))
    document["unchecked"] = _without_result(unchecked, document["cases"])
    return document


def _without_result(tests: Iterable[Plain], cases: Iterable[Plain]) -> list[Plain]:
    """Return the `tests` without a case. A test may have got one on another worker or in a later run."""
    checked = {case.get("nodeid") for case in cases}  # a file may lack it
    return [test for test in tests if test["nodeid"] not in checked]


def empty() -> Plain:
    """Return a document without cases."""
    from pytest_torchcompile import __version__

    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    head = {"format": FORMAT, "version": VERSION, "created": created, "plugin": __version__}
    return {**head, "machines": {}, "cases": [], "unchecked": []}


def case_id(nodeid: str, case: str) -> str:
    """Return the id of the item, with the case appended if the id does not contain it."""
    return nodeid if nodeid.endswith(f"{case}]") else f"{nodeid} ({case})"


def add_machine(machines: dict[str, Plain], described: Plain) -> str:
    """Return the name of a machine in `machines`. Add it if it is not there.

    The control is timed once per process. Earlier records of the process have none, so it is not compared.
    """
    for number in range(1, len(machines) + 2):
        name = described["host"] if number == 1 else f"{described['host']}#{number}"
        known = machines.setdefault(name, described)
        if {**known, "control": None} == {**described, "control": None}:
            known["control"] = known["control"] or described["control"]
            return str(name)
    raise AssertionError("one of the names is not taken")


def merge(documents: Iterable[Plain]) -> Plain:
    """Merge several documents. If a case ran twice on one machine, keep the later result."""
    merged = empty()
    cases: dict[tuple[str, str], Plain] = {}
    unchecked: dict[str, Plain] = {}
    for document in sorted(documents, key=lambda document: str(document["created"])):
        names = {
            name: add_machine(merged["machines"], described)
            for name, described in document["machines"].items()
        }
        for case in document["cases"]:
            moved = {**case, "machine": names[case["machine"]]}
            cases[case["id"], moved["machine"]] = moved
        unchecked |= {test["nodeid"]: test for test in document["unchecked"]}
        merged["created"] = document["created"]
    merged["cases"] = [cases[key] for key in sorted(cases)]
    merged["unchecked"] = _without_result(unchecked.values(), merged["cases"])
    return merged


def to_json(document: Plain) -> str:
    """Return the document as JSON."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


# --- reading a document ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One case as the views read it.

    Args:
        id: see `case_id`.
        outcome: pytest's: ``passed``, ``failed``, ``skipped``, ``xfailed``, ``xpassed``, ``error``.
        machine: the machine it ran on, see `machine`.
        result: the result, without the single times.
        speedup: the figures of the timing, empty if there was none.
        sources: source lines by ``file:line``.
        file: the test's file, relative to pytest's root.
        line: the first line of the test.
        message: pytest's message if the test failed.
    """

    id: str
    outcome: str
    machine: Plain
    result: CheckResult
    speedup: Plain
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    file: str = ""
    line: int = 1
    message: str = ""

    @property
    def failed(self) -> bool:
        """Whether the test failed and was not expected to fail."""
        return self.outcome in ("failed", "error")

    @property
    def values(self) -> Plain:
        """The figures of the table's row."""
        return {**self.speedup, **self.result.row()}


def cases_of(document: Plain) -> list[Case]:
    """Return the cases of a document."""
    return [_case(case, document["machines"][case["machine"]]) for case in document["cases"]]


def remarks_of(cases: Iterable[Case]) -> int:
    """Return the number of different remarks. A remark on torch itself is the same for every case."""
    return len({remark for case in cases for remark in case.result.remarks})


def case_of_record(nodeid: str, record: Plain) -> Case:
    """Return the case of a record, during the session, before there is a document."""
    return _case({"id": case_id(nodeid, record["case"]), **record}, record["machine"])


def _case(case: Plain, described: Plain) -> Case:
    result = _known(CheckResult, case) | {
        "verdict": Verdict(case["verdict"]),
        "worst": _difference(case["worst"]) if case.get("worst") else None,
        "differences": tuple(map(_difference, case.get("differences", ()))),
        "capture": Capture(**_known(Capture, case.get("capture", {}))),
        "deviations": tuple(map(_deviation, case.get("deviations", ()))),
        "speedup": None,
    }
    for name, kind in (("explanation", Explanation), ("sensitivity", Sensitivity)):
        if case.get(name) is not None:
            result[name] = kind(**_known(kind, case[name]))
    return Case(
        id=case["id"],
        outcome=case.get("outcome", ""),
        machine=described,
        result=CheckResult(**result),
        speedup=case.get("speedup") or {},
        sources=case.get("sources", {}),
        file=case.get("file", ""),
        line=case.get("line", 1),
        message=case.get("message", ""),
    )


def _difference(data: Plain) -> Difference:
    return Difference(**_null_to_inf(_known(Difference, data)) | {"grid": _grid(data.get("grid", ()))})


def _grid(rows: Sequence[Sequence[float | None]]) -> tuple[tuple[float, ...], ...]:
    """Return the grid of a difference, with its largest value for null; empty if it is not rectangular."""
    largest = max((cell for row in rows for cell in row if cell is not None), default=0.0) or 1.0
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        return ()
    return tuple(tuple(largest if cell is None else cell for cell in row) for row in rows)


def _deviation(data: Plain) -> Deviation:
    return Deviation(**_null_to_inf(_known(Deviation, data)) | {"verdict": Verdict(data["verdict"])})


def _null_to_inf(data: Plain) -> Plain:
    """Return `data` with infinity for a difference of null: JSON has no infinity."""
    return {n: math.inf if v is None and n in ("difference", "allowed") else v for n, v in data.items()}


def _known(kind: type[Any], data: Plain) -> Plain:
    """Return the fields of `kind` in `data`, lists as tuples. A newer plugin may have written more fields."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {n: tuple(v) if isinstance(v, list) else v for n, v in data.items() if n in names}
