"""Plain data of others held against `report.schema.json`, so that what reads a report later can trust it.

Only what the schema uses of JSON Schema is known here. Its ``required`` names what this version writes; an
older report may lack fields that have a default, so that reading asks for `NEEDED` instead.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

SCHEMA = pathlib.Path(__file__).with_name("report.schema.json")

NEEDED: Mapping[str, tuple[str, ...]] = {
    "": ("format", "version", "created", "machines", "cases"),
    "machine": (
        "host",
        "system",
        "processor",
        "cpus",
        "accelerator",
        "threads",
        "python",
        "torch",
        "control",
    ),
    "speedup": ("speedup", "speedup_low", "speedup_high", "speedup_quiet", "conclusion", "threads"),
    "unchecked": ("nodeid", "file", "line", "message"),
    "difference": ("path",),
    "deviation": ("example", "batch", "verdict"),
    "case": ("id", "machine", "method", "phase", "verdict"),
}
"""What no report can do without, by the name of its definition in the schema; the document's own by ""."""

DEEPEST = 50
"""No report nests its data as deep as this."""

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def fault_of(document: Any) -> str:
    """The first thing wrong with `document`, as ``cases[3].line is 'x', not of type integer``; or ""."""
    if _depth_exceeds(document, DEEPEST):
        return f"its data is nested more than {DEEPEST} deep"
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return next(_Faults(schema["$defs"]).of(document, schema, NEEDED[""], ""), "")


def _depth_exceeds(value: Any, most: int) -> bool:
    """Whether lists and dicts lie deeper in each other; without recursion, which is what it protects."""
    level = [value]
    for _ in range(most):
        level = [
            item
            for holder in level
            if isinstance(holder, (dict, list))
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]
        if not level:
            return False
    return True


class _Faults:
    """The faults of plain data.

    Args:
        definitions: the schema's, by name.
    """

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions

    def of(self, value: Any, schema: Mapping[str, Any], needed: tuple[str, ...], path: str) -> Iterator[str]:
        """The faults of `value`, a sentence each.

        Args:
            value: what was read.
            schema: of this value.
            needed: the fields that it has to have.
            path: of this value in the document.
        """
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            yield from self.of(value, self._definitions[name], NEEDED.get(name, ()), path)
        elif "anyOf" in schema:
            yield from self._of_any(value, schema["anyOf"], path)
        elif _is_of_type(value, schema.get("type")):
            yield from _faults_of_value(value, schema, path)
            if isinstance(value, dict):
                yield from self._of_object(value, schema, needed, path)
            if isinstance(value, list):
                for index, item in enumerate(value):
                    yield from self.of(item, schema.get("items", {}), (), f"{path}[{index}]")
        else:
            yield f"{path} is {_shortly(value)}, not of type {schema['type']}"

    def _of_any(self, value: Any, schemas: list[Mapping[str, Any]], path: str) -> Iterator[str]:
        """The faults by the first schema, which the others are exceptions from; none if one of them fits."""
        faults = [list(self.of(value, schema, (), path)) for schema in schemas]
        if all(faults):
            yield from faults[0]

    def _of_object(
        self, value: dict[str, Any], schema: Mapping[str, Any], needed: tuple[str, ...], path: str
    ) -> Iterator[str]:
        for name in needed:
            if name not in value:
                yield f"{path or 'it'} has no {name!r}"
        patterns = schema.get("patternProperties", {})
        for name, item in value.items():
            matching = (found for pattern, found in patterns.items() if re.search(pattern, name))
            other = next(matching, schema.get("additionalProperties", {}))
            of_item = schema.get("properties", {}).get(name, other)
            yield from self.of(item, of_item, (), f"{path}.{name}" if path else name)


def _is_of_type(value: Any, name: str | None) -> bool:
    if name is None:
        return True
    return isinstance(value, _TYPES[name]) and isinstance(value, bool) is (name == "boolean")


def _faults_of_value(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if "const" in schema and value != schema["const"]:
        yield f"{path} is {_shortly(value)}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path} is {_shortly(value)}, none of {', '.join(schema['enum'])}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # Python's integers have no end, and beyond some can't be divided.
        if abs(value) > 2**63 if isinstance(value, int) else not math.isfinite(value):
            yield f"{path} is {_shortly(value)}, which is no number of this size that a report holds"
        elif value < schema.get("minimum", value) or value > schema.get("maximum", value):
            low, high = schema.get("minimum", "any"), schema.get("maximum", "any")
            yield f"{path} is {_shortly(value)}, not between {low} and {high}"


def _shortly(value: Any) -> str:
    """The beginning of its text; of a nest or a huge integer only the kind."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**63:
        return "an integer beyond 2**63"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
