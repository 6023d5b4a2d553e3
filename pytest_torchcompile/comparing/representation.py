"""Remarks on equal outcomes that differ in strides, shared memory, the order of dict keys, or zeros for None.

No number is wrong, so the check does not fail. Code that calls ``.view()`` on an output, writes to an output
that is a view, or zips two dicts depends on these properties, and some optimizers on what has a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.texts import some


def representation_remarks(eager: Outcome, compiled: Outcome) -> Iterator[tuple[str, str]]:
    """Yield the kind and the sentence of each remark; at most one of each kind.

    Args:
        eager: eager's outcome.
        compiled: compiled's outcome of the same call, with equal numbers.
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
            f"different strides of {some(moved)}: {eager.strides[path]} in eager, {compiled.strides[path]} "
            f"in compiled; use reshape() instead of view() on it",
        )
    mine, theirs = list(eager.outputs.kinds), list(compiled.outputs.kinds)
    if mine != theirs and sorted(mine) == sorted(theirs):
        one, other = next((a, b) for a, b in zip(mine, theirs, strict=True) if a != b)
        yield "keys", f"different order of keys: eager has {one} where compiled has {other}"


ZERO_GRADIENTS = (
    "where a loss leaves out outputs, eager leaves the gradients of their parameters None and compiled makes "
    "them zeros, which is torch's default for every policy: an optimizer with momentum or weight decay then "
    "moves these parameters; if you learn from some of the outputs, set gradients of zeros to None before "
    "its step"
)
"""The same text for all policies, so that a report shows it once."""


def zero_gradients(eager: Outcome, compiled: Outcome) -> str:
    """Return the remark on gradients that only compiled has, all zeros; empty if there are none."""
    only = (name for name, gradient in eager.gradients.items() if gradient is None)
    return ZERO_GRADIENTS if any(compiled.gradients.get(name) is not None for name in only) else ""
