"""Two outcomes held against each other: what differs, and whether rounding explains it."""

from __future__ import annotations

import dataclasses
import functools

import torch

from pytest_torchcompile.comparing.measure import Flipped, Measured, Pattern, Tolerance, same_pattern
from pytest_torchcompile.comparing.nonfinite import Reference, hidden
from pytest_torchcompile.comparing.references import References
from pytest_torchcompile.comparing.rounding import Floor, flipped_rows, flips_a_choice
from pytest_torchcompile.comparing.structure import generators, plain_values, structural
from pytest_torchcompile.policies.calls import Outcome
from pytest_torchcompile.results import Difference

CANCELS = 4 * torch.finfo(torch.float32).eps
"""What is small because larger numbers cancelled may differ by this share of the largest of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What comparing one example concluded.

    Args:
        differences: what differs beyond what rounding explains, worst first; empty if nothing does.
        worst: the worst of `differences`; else what came closest to its tolerance without exceeding it.
        largest: the largest difference in units of its tolerance, whether rounding explains it or not.
        rounding: whether something exceeded the tolerance and rounding explains it.
        ill_conditioned: paths whose floor was so high that little could be concluded.
        undecided: paths that exceed the tolerance and of which it can't be told whether rounding explains it.
        finite: paths with a finite element compared.
        nonzero: gradients with an element that is not zero.
    """

    differences: tuple[Difference, ...] = ()
    worst: Difference | None = None
    largest: Difference | None = None
    rounding: bool = False
    ill_conditioned: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    finite: frozenset[str] = frozenset()
    nonzero: frozenset[str] = frozenset()


def judge(
    eager: Outcome,
    compiled: Outcome,
    tolerance: Tolerance,
    references: References | None,
    *,
    finite_inputs: bool = True,
    small: bool = False,
) -> Judgement:
    """Compare everything that two calls left behind.

    Args:
        eager: the reference.
        compiled: the candidate.
        tolerance: what is allowed.
        references: what eager can be asked about a difference; None to ask nothing.
        finite_inputs: whether the inputs were finite; integers computed from a NaN mean nothing.
        small: whether tensors that are small throughout have to be right to a share of their own size.
    """
    unlike = structural(eager, compiled)
    if unlike:
        return Judgement(differences=tuple(unlike), worst=unlike[0], largest=unlike[0])
    measured = _measured(
        *(eager, compiled, tolerance),
        finite_inputs=finite_inputs,
        small=small,
        reference=(lambda: None) if references is None else references.reference,
    )
    exceeding = [m for m in measured if m.exceeds]
    plain = plain_values(eager, compiled) if finite_inputs else []
    explained = _Explained(differences=[*plain, *filter(None, (m.beyond(None) for m in exceeding))])
    if (exceeding or plain) and references is not None:
        explained = _explain(eager, compiled, exceeding, plain, references)
    differences = [*generators(eager, compiled), *explained.differences]
    # What rounding explains would be an alarming figure to show, and no measure of what was found.
    closest = max((m for m in measured if not m.exceeds), key=lambda m: m.ratio, default=None)
    worst = closest.difference() if closest else None
    differences.sort(key=_severity, reverse=True)
    return Judgement(
        differences=tuple(differences),
        worst=differences[0] if differences else worst,
        largest=_largest(exceeding, differences, explained.floor) or worst,
        rounding=bool(exceeding or plain) and not differences and not explained.undecided,
        ill_conditioned=tuple(
            m.path for m in exceeding if explained.floor is not None and m.ill_conditioned(explained.floor)
        ),
        undecided=explained.undecided,
        finite=frozenset(m.path for m in measured if m.finite),
        nonzero=frozenset(m.path for m in measured if m.per_tensor and m.scale > 0),
    )


# --- what rounding explains -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Explained:
    """What is left of the differences once rounding has been asked.

    Args:
        differences: what rounding does not explain.
        undecided: paths of which neither the floor nor float64 knows anything.
        floor: the rounding floor, if it was asked for.
    """

    differences: list[Difference]
    undecided: tuple[str, ...] = ()
    floor: Floor | None = None


def _explain(
    eager: Outcome,
    compiled: Outcome,
    exceeding: list[Measured],
    plain: list[Difference],
    references: References,
) -> _Explained:
    """Ask the rounding floor, and where it knows nothing float64."""
    paths = {m.path for m in exceeding}
    flipped = functools.partial(flipped_rows, eager, compiled)
    floor = Floor()
    differences: list[Difference] = []

    def unexplained(floor: Floor) -> list[Difference]:
        found = [d for d in plain if d.path not in floor.plain]
        return found + list(filter(None, (m.beyond(floor, flipped) for m in exceeding)))

    for floor in references.floors(paths):
        differences = unexplained(floor)
        if not differences:
            return _Explained(differences=[], floor=floor)
    if floor.choices and flips_a_choice(eager, compiled):
        for more in references.choices(floor, paths):
            differences = unexplained(more)
            if not differences:
                return _Explained(differences=[], floor=floor)
    return _without_floor(differences, exceeding, plain, floor, references, flipped)


def _without_floor(
    differences: list[Difference],
    exceeding: list[Measured],
    plain: list[Difference],
    floor: Floor,
    references: References,
    flipped: Flipped,
) -> _Explained:
    """Let float64 decide of what the floor knows nothing, and the size of its operands of what is small."""
    left = {d.path for d in differences}
    small = [m for m in exceeding if m.is_small and m.path in left]
    operands = references.operands([m.path for m in small]) if small else {}
    cancelled = {m.path for m in small if m.within(CANCELS * operands.get(m.path, 0.0))}
    differences = [d for d in differences if d.path not in cancelled]
    blind = {m.path: where for m in exceeding if (where := m.blind(floor)) is not None}
    blind = {path: where for path, where in blind.items() if path in left - cancelled}
    if not blind:
        return _Explained(differences=differences, floor=floor)
    reference = references.reference()
    values = {} if reference is None else reference.elementwise() | reference.differentiated()
    decided: list[Difference] = [d for d in differences if d.path not in blind]
    undecided: list[str] = []
    for m in exceeding:
        if m.path not in blind:
            continue
        seen = m.beyond(floor, flipped, where=~blind[m.path])
        if seen is not None:
            decided.append(seen)
        elif m.path not in values or values[m.path].dtype != torch.float64:
            undecided.append(m.path)
        else:
            decided += filter(None, [m.farther(values[m.path], blind[m.path])])
    return _Explained(differences=decided, undecided=tuple(undecided), floor=floor)


def _largest(
    exceeding: list[Measured], differences: list[Difference], floor: Floor | None
) -> Difference | None:
    """What exceeds its tolerance most, None if nothing does; what is no number is larger than any."""
    if differences and differences[0].problem != "values":
        return differences[0]
    largest = max(exceeding, key=lambda m: m.ratio, default=None)
    if largest is None:
        return None
    moved = floor.moved.get(largest.path) if floor is not None else None
    return dataclasses.replace(largest.difference(), floor=None if moved is None else moved.whole)


# --- what is not numbers --------------------------------------------------------------------------


# --- numbers --------------------------------------------------------------------------------------


def _measured(
    eager: Outcome,
    compiled: Outcome,
    tolerance: Tolerance,
    *,
    finite_inputs: bool,
    small: bool,
    reference: Reference,
) -> list[Measured]:
    """All tensors of the two outcomes measured.

    With a NaN or an infinity among the inputs, compiled must not hide what eager and float64 have.
    Gradients are then left out if the outputs aren't finite: which of several NaN max-pooling takes, or
    whether a backward passes one on, is nobody's business.
    """
    mine, theirs = eager.elementwise(), compiled.elementwise()

    def pattern(path: str) -> Pattern:
        if finite_inputs:
            return same_pattern
        exact = path in eager.outputs.tensors or path in eager.inputs.tensors
        return hidden(path, reference, loosely=not exact)

    measured = [
        Measured(path, mine[path], theirs[path], tolerance, small=small, pattern=pattern(path))
        for path in mine
    ]
    if finite_inputs or all(bool(torch.isfinite(t).all()) for t in eager.outputs.tensors.values()):
        mine, theirs = eager.differentiated(), compiled.differentiated()
        measured += [
            Measured(
                *(path, mine[path], theirs[path], tolerance),
                per_tensor=True,
                small=small,
                pattern=pattern(path),
            )
            for path in mine
            if path in theirs
        ]
    return measured if finite_inputs else [m for m in measured if m.floating]


def _severity(difference: Difference) -> float:
    if difference.problem != "values" or not difference.allowed:
        return float("inf")
    return difference.difference / difference.allowed
