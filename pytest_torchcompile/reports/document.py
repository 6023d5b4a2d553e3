"""The one document that every report is a view of: plain data with a version.

It is made of records, one for each case, which cross processes as they are; it is written as JSON, read
back, merged with those of other machines and compared with earlier ones. `report.schema.json`, beside this
module, describes it; a change that its readers would notice is a new `VERSION`.
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
    """A result with where it was obtained, as plain data.

    Args:
        result: the case.
        case: what tells it apart from others of its test, ``get_value-rollout``.
        control: eager timed against itself, in the process that timed the case.
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
    """This machine and what of it decides how code is compiled and how fast it is."""
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
    """The source lines of the places that are named, by ``file:line``; read here, where the files are."""
    places = {match[0]: (match["file"], int(match["line"])) for t in texts for match in _PLACE.finditer(t)}
    lines = {place: linecache.getline(*where).strip() for place, where in places.items()}
    return {place: line for place, line in lines.items() if line}


def _plain(value: Any) -> Any:
    """`value` as JSON has it: lists, no subclasses of strings and numbers, null for what is not finite."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, str) else value


# --- the document ---------------------------------------------------------------------------------


def document_of(items: Iterable[Plain], unchecked: Iterable[Plain] = ()) -> Plain:
    """The document of one session.

    Args:
        items: records, each with ``nodeid``, ``file``, ``line``, ``outcome`` and ``message`` of its test.
        unchecked: tests that came to no result, the same of each.
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
    """Those of `tests` that came to no result later, on another worker or in another run."""
    checked = {case["nodeid"] for case in cases}
    return [test for test in tests if test["nodeid"] not in checked]


def empty() -> Plain:
    """A document without cases."""
    from pytest_torchcompile import __version__

    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    head = {"format": FORMAT, "version": VERSION, "created": created, "plugin": __version__}
    return {**head, "machines": {}, "cases": [], "unchecked": []}


def case_id(nodeid: str, case: str) -> str:
    """The item, with the case where the item's id does not tell it."""
    return nodeid if nodeid.endswith(f"{case}]") else f"{nodeid} ({case})"


def add_machine(machines: dict[str, Plain], described: Plain) -> str:
    """The name of a machine among `machines`, where it is added if it isn't there.

    A control is timed once in a process, so that the records before it have none.
    """
    for number in range(1, len(machines) + 2):
        name = described["host"] if number == 1 else f"{described['host']}#{number}"
        known = machines.setdefault(name, described)
        if {**known, "control": None} == {**described, "control": None}:
            known["control"] = known["control"] or described["control"]
            return str(name)
    raise AssertionError("one more than there are is free")


def merge(documents: Iterable[Plain]) -> Plain:
    """One document of several; of a case that ran twice on one machine the later is kept."""
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


def written(document: Plain) -> str:
    """The document as JSON."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


# --- reading a document ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One case as the views read it.

    Args:
        id: the item, and the case where the item's id does not tell it.
        outcome: pytest's: ``passed``, ``failed``, ``skipped``, ``xfailed``, ``xpassed``, ``error``.
        machine: where it ran, see `machine`.
        result: what was found, without the single times.
        speedup: the figures of the timing, empty if there was none.
        sources: source lines by ``file:line``.
        file: the test's file, relative to pytest's root.
        line: where the test begins.
        message: what pytest says of a test that failed.
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
        """Whether the test failed, and was not expected to."""
        return self.outcome in ("failed", "error")

    @property
    def values(self) -> Plain:
        """The figures of the table's row."""
        return {**self.speedup, **self.result.row()}


def cases_of(document: Plain) -> list[Case]:
    """The cases of a document."""
    return [_case(case, document["machines"][case["machine"]]) for case in document["cases"]]


def remarks_of(cases: Iterable[Case]) -> int:
    """How many different remarks the cases have; what is torch's own is the same for each."""
    return len({remark for case in cases for remark in case.result.remarks})


def case_of_record(nodeid: str, record: Plain) -> Case:
    """A record as the one case of a document that is not finished."""
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
        if case.get(name):
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
    return Difference(**_sized(_known(Difference, data)) | {"grid": _grid(data.get("grid", ()))})


def _grid(rows: Sequence[Sequence[float | None]]) -> tuple[tuple[float, ...], ...]:
    """The picture of a difference, with the largest for what is infinite; empty if it is no rectangle."""
    largest = max((cell for row in rows for cell in row if cell is not None), default=0.0) or 1.0
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        return ()
    return tuple(tuple(largest if cell is None else cell for cell in row) for row in rows)


def _deviation(data: Plain) -> Deviation:
    return Deviation(**_sized(_known(Deviation, data)) | {"verdict": Verdict(data["verdict"])})


def _sized(data: Plain) -> Plain:
    """`data` with what JSON can't hold: a difference that was written as null is infinite."""
    return {n: math.inf if v is None and n in ("difference", "allowed") else v for n, v in data.items()}


def _known(kind: type[Any], data: Plain) -> Plain:
    """The fields of `kind` in `data`, with tuples for lists; a newer minor version may have written more."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {n: tuple(v) if isinstance(v, list) else v for n, v in data.items() if n in names}
