"""Checks plain data against `report.schema.json`, so that later code can rely on its form.

This implements only the parts of JSON Schema that the schema uses. The schema's ``required`` lists the fields
that this version writes. An older report may lack fields that have a default, so reading requires `NEEDED`
instead.
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
"""The required fields, by the name of the definition in the schema; "" is the document itself."""

DEEPEST = 50
"""The most levels of nested data. No report has as many."""

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
    """Return the first fault of `document`, ``cases[3].line is 'x', not of type integer``; "" if none."""
    if _depth_exceeds(document, DEEPEST):
        return f"its data is nested more than {DEEPEST} deep"
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return next(_Faults(schema["$defs"]).of(document, schema, NEEDED[""], ""), "")


def _depth_exceeds(value: Any, most: int) -> bool:
    """Return whether lists and dicts are nested more than `most` deep.

    It does not recurse: it protects the functions that do.
    """
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
    """Finds the faults of plain data.

    Args:
        definitions: the schema's definitions, by name.
    """

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions

    def of(self, value: Any, schema: Mapping[str, Any], needed: tuple[str, ...], path: str) -> Iterator[str]:
        """Yield the faults of `value`, one sentence each.

        Args:
            value: the data.
            schema: the schema of the value.
            needed: the fields that it must have.
            path: the place of the value in the document.
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
        """Yield the faults by the first schema, which is the usual one; none if any of the schemas fits."""
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
        # Python's integers have no limit, but very large ones can't be converted to float.
        if abs(value) > 2**63 if isinstance(value, int) else not math.isfinite(value):
            yield f"{path} is {_shortly(value)}, which is too large"
        elif value < schema.get("minimum", value) or value > schema.get("maximum", value):
            low, high = schema.get("minimum", "any"), schema.get("maximum", "any")
            yield f"{path} is {_shortly(value)}, not between {low} and {high}"


def _shortly(value: Any) -> str:
    """Return the start of the value's text, or the kind of a list, an object or a very large integer."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**63:
        return "an integer beyond 2**63"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
