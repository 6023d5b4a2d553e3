"""Writes the line of the declaration with which an advice on the inputs ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.specs import trees


def with_line(
    what: str,
    tree: Mapping[str, Any],
    change: Callable[[Any], Any],
    among: Collection[tuple[Any, ...]] | None = None,
) -> str:
    """Return `what` and the declaration of the only input that `change` changes; empty if it is not one.

    Args:
        what: the first half of the sentence.
        tree: the declared inputs.
        change: takes a spec, and returns the right one, as a spec or as text; nothing if it is not at fault.
        among: the paths of the inputs that may be at fault; None means all.
    """
    leaves = [(path, spec) for path, spec in trees.leaves(tree) if among is None or path in among]
    found = [(path, changed) for path, spec in leaves if (changed := _changed(spec, change))]
    if len(found) != 1:
        return ""
    ((name, *keys), changed) = found[0]
    if isinstance(changed, str):
        return f"{what}: write {name}={changed}" if not keys else f"{what}: write {changed}"
    return f"{what}: write {trees.redeclared(tree, {(name, *keys): changed})}"


def _changed(spec: Any, change: Callable[[Any], Any]) -> Any:
    try:
        return change(spec)
    except UsageError:  # its bounds do not allow the change
        return None
