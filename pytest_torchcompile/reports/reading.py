"""Reads reports from files: those of this plugin, and files of pytest-benchmark with its entries.

A file may be cut off, from another tool, edited by hand or malicious. A file that is not a report raises one
`UsageError`. A document that is returned can be compared, merged and rendered without an exception.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.reports.document import FORMAT, VERSION, Plain, add_machine, empty
from pytest_torchcompile.reports.schema import fault_of
from pytest_torchcompile.texts import one_line

_ACCEPTED = (
    "accepted: a .json that --compile-report wrote, or a file of pytest-benchmark with entries of this plugin"
)


def read(path: str | os.PathLike[str]) -> Plain:
    """Return the document in a file. From a file of pytest-benchmark, return what its entries contain.

    Raises:
        UsageError: if the file can't be read, or is neither.
    """
    name = one_line(os.fspath(path))
    content = _json(path, name)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        if content.get("version") != VERSION:
            raise UsageError(
                f"{name} is a report of version {_number(content.get('version'))}, this plugin reads version "
                f"{VERSION}; write it again with this plugin"
            )
        document = {"unchecked": [], **content}
    elif isinstance(content, dict) and isinstance(content.get("benchmarks"), list):
        document = _from_benchmarks(content, name)
    else:
        raise UsageError(f"{name} is not a report; {_ACCEPTED}")
    fault = fault_of(document) or _unknown_machine(document)
    if fault:
        raise UsageError(f"{name} can't be read as a report: {one_line(fault)}; {_ACCEPTED}")
    return document


def _json(path: str | os.PathLike[str], name: str) -> Any:
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} can't be read as a report: {one_line(str(error))}; {_ACCEPTED}") from None
    except RecursionError:
        raise UsageError(
            f"{name} can't be read as a report: its data is nested too deeply; {_ACCEPTED}"
        ) from None


def _number(version: Any) -> str:
    return str(version) if isinstance(version, (int, float)) and abs(version) < 1e9 else "unknown"


def _unknown_machine(document: Plain) -> str:
    """Return the error of a case whose machine is not in the document; empty if there is none."""
    for index, case in enumerate(document["cases"]):
        if case["machine"] not in document["machines"]:
            return f"cases[{index}].machine is {case['machine']!r:.60}, which is not among its machines"
    return ""


# --- pytest-benchmark's ---------------------------------------------------------------------------

_COMPILED = "[compiled]"
_MOST_TEXTS = 100_000
"""The most breaks or recompiles of an entry. A list of that length is made, so the number is limited."""


def _from_benchmarks(content: Plain, file: str) -> Plain:
    """Return a document with the cases among pytest-benchmark's entries, as far as `extra_info` has the data.

    Raises:
        UsageError: if an entry of this plugin lacks a required field.
    """
    document = empty() | {"created": str(content.get("datetime", ""))}
    for entry in content["benchmarks"]:
        entry = _mapping(entry)
        extra, name = _mapping(entry.get("extra_info")), str(entry.get("fullname", ""))
        if not name.endswith(_COMPILED) or "verdict" not in extra:
            continue
        try:
            described = _machine_of(_mapping(content.get("machine_info")), extra)
            case = _case_of(_mapping(entry.get("params")), extra)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{file} can't be read as a report: its entry {one_line(name):.200} has no usable "
                f"{one_line(str(error)):.100}; {_ACCEPTED}"
            ) from None
        key = add_machine(document["machines"], described)
        document["cases"].append({"id": name.removesuffix(_COMPILED), "machine": key, **case})
    return document


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _machine_of(info: Mapping[str, Any], extra: Mapping[str, Any]) -> Plain:
    cpu = _mapping(info.get("cpu"))
    return {
        "host": str(info.get("node", "")),
        "system": f"{info.get('system', '')} {info.get('machine', '')}",
        "processor": str(cpu.get("brand_raw", "")),
        "cpus": cpu.get("count", 1),
        "accelerator": "",
        "threads": extra["threads"],
        "python": str(info.get("python_version", "")),
        "torch": extra["torch"],
        "control": None,
    }


def _case_of(params: Mapping[str, Any], extra: Mapping[str, Any]) -> Plain:
    # An entry has the number of breaks and recompiles. Only reports have their texts.
    capture = {name: extra[name] for name in ("graphs", "compile_s", "from_cache")}
    capture |= {name: [""] * _count(extra, name) for name in ("breaks", "recompiles")}
    return {
        "method": str(params.get("method", "")),
        "phase": str(params.get("phase", "")),
        "verdict": extra["verdict"],
        "backend": extra["backend"],
        "capture": capture,
        "speedup": extra,
    }


def _count(extra: Mapping[str, Any], name: str) -> int:
    number = extra[name]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _MOST_TEXTS:
        raise ValueError(name)
    return number
