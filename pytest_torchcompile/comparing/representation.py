"""Remarks on outputs that are equal but for their strides, shared memory or the order of keys.

No number is wrong, so none of it fails. Code that calls ``.view()`` on an output, writes to an output that
is a view, or zips two dicts depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_torchcompile.policies.calls import Outcome
from pytest_torchcompile.texts import some


def unlike(eager: Outcome, compiled: Outcome) -> Iterator[tuple[str, str]]:
    """The kind of each remark, and its sentence; at most one of a kind.

    Args:
        eager: what a call of eager left behind.
        compiled: what the same call of compiled left behind; it is equal.
    """
    lost = sorted(eager.aliases - compiled.aliases)
    if lost:
        path, other = lost[0]
        yield (
            "aliases",
            f"{path} shares the memory of {other} in eager and not in compiled: a write to one of them "
            f"changes the other in eager alone",
        )
    moved = sorted(p for p in eager.strides if compiled.strides.get(p) not in (None, eager.strides[p]))
    if moved:
        path = moved[0]
        yield (
            "strides",
            f"other strides of {some(moved)}: {eager.strides[path]} in eager, {compiled.strides[path]} in "
            f"compiled; call reshape() where view() needs eager's",
        )
    mine, theirs = list(eager.outputs.kinds), list(compiled.outputs.kinds)
    if mine != theirs and sorted(mine) == sorted(theirs):
        one, other = next((a, b) for a, b in zip(mine, theirs, strict=True) if a != b)
        yield "keys", f"another order of keys: eager has {one} where compiled has {other}"
