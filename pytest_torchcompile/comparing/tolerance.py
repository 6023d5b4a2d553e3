"""Judges two outcomes: finds what differs, and decides whether rounding explains it.

Differences are returned and never raised.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import torch

from pytest_torchcompile.comparing.measure import (
    Flipped,
    Measured,
    NonfiniteMask,
    Tolerance,
    nonfinite_mismatch,
)
from pytest_torchcompile.comparing.nonfinite import Reference, hidden_nonfinite
from pytest_torchcompile.comparing.references import References
from pytest_torchcompile.comparing.rounding import Floor, comparable, flipped_rows, flips_a_choice
from pytest_torchcompile.comparing.structure import generators, plain_values, settings, structural
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.results import Difference

CANCELS = 4 * torch.finfo(torch.float32).eps
"""A small sum of larger numbers that cancel may differ by this share of the largest of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """The result of comparing one example.

    Args:
        differences: the differences that rounding does not explain, the worst first.
        worst: the first of `differences`; if there is none, the difference closest to its tolerance among
            those within it.
        largest: the largest difference in units of its tolerance, whether rounding explains it or not.
        rounding: whether something exceeded the tolerance and rounding explains all of it.
        ill_conditioned: paths whose rounding floor is too high to conclude much.
        undecided: paths that exceed the tolerance and for which no reference could be computed.
        finite: paths of tensors with a finite element.
        nonzero: paths of gradients with an element that is not zero.
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
        eager: the outcome of the eager call.
        compiled: the outcome of the compiled call.
        tolerance: the allowed differences.
        references: computes the rounding floor and the float64 reference if something differs; None reports
            every difference above the tolerance.
        finite_inputs: whether the inputs were finite. If not, integers and plain values are not compared,
            because integers computed from a NaN are undefined.
        small: whether a tensor whose largest element is small is compared relative to that element.
    """
    structure = structural(eager, compiled)
    if structure:
        return Judgement(differences=tuple(structure), worst=structure[0], largest=structure[0])
    measured = _measured(
        *(eager, compiled, tolerance),
        finite_inputs=finite_inputs,
        small=small,
        reference=(lambda: None) if references is None else references.reference,
    )
    exceeding = [m for m in measured if m.exceeds]
    plain = plain_values(eager, compiled) if finite_inputs else []
    if (exceeding or plain) and references is not None:
        explained = _explain(eager, compiled, exceeding, plain, references)
    else:
        explained = _Explained(differences=[*plain, *(m.difference() for m in exceeding)])
    differences = [*generators(eager, compiled), *settings(eager, compiled), *explained.differences]
    # A difference that rounding explains is not shown as the worst one: it may be large, and it is correct.
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
    """The differences that remain after those that rounding explains are removed.

    Args:
        differences: the differences that rounding does not explain.
        undecided: paths that neither the rounding floor nor the float64 reference covers.
        floor: the rounding floor; None if it was not computed.
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
    """Remove the differences that the rounding floor explains; where it has no value, use float64."""
    paths = {m.path for m in exceeding}
    flipped = functools.partial(flipped_rows, eager, compiled)
    # What differs most is asked first: while that is not explained, the others need not be asked.
    largest_first = sorted(exceeding, key=lambda m: m.ratio, reverse=True)

    def unexplained(floor: Floor) -> Iterator[Difference]:
        yield from (d for d in plain if d.path not in floor.plain)
        yield from filter(None, (m.unexplained(floor, flipped) for m in largest_first))

    floor = Floor()
    for floor in references.floors(paths):
        if next(unexplained(floor), None) is None:
            return _Explained(differences=[], floor=floor)
    if floor.choices and flips_a_choice(eager, compiled):
        for _ in references.choices(floor, paths):  # each run raises `floor`
            if next(unexplained(floor), None) is None:
                return _Explained(differences=[], floor=floor)
    differences = list(unexplained(floor))
    return _without_floor(differences, exceeding, plain, floor, references, flipped)


def _without_floor(
    differences: list[Difference],
    exceeding: list[Measured],
    plain: list[Difference],
    floor: Floor,
    references: References,
    flipped: Flipped,
) -> _Explained:
    """Decide the differences that the floor leaves.

    The float64 reference decides the elements that the floor does not cover. The size of the operands decides
    small tensors.
    """
    left = {d.path for d in differences}
    small = [m for m in exceeding if m.is_small and m.path in left]
    operands = references.operands([m.path for m in small]) if small else {}
    cancelled = {m.path for m in small if m.within(CANCELS * operands.get(m.path, 0.0))}
    differences = [d for d in differences if d.path not in cancelled]
    not_covered = {m.path: where for m in exceeding if (where := m.not_covered(floor)) is not None}
    not_covered = {path: where for path, where in not_covered.items() if path in left - cancelled}
    if not not_covered:
        return _Explained(differences=differences, floor=floor)
    reference = references.reference()
    values = {} if reference is None else reference.elementwise() | reference.differentiated()
    decided: list[Difference] = [d for d in differences if d.path not in not_covered]
    undecided: list[str] = []
    for m in exceeding:
        if m.path not in not_covered:
            continue
        seen = m.unexplained(floor, flipped, where=~not_covered[m.path])
        if seen is not None:
            decided.append(seen)
        elif m.path not in values or values[m.path].dtype != torch.float64:
            undecided.append(m.path)
        else:
            decided += filter(None, [m.farther_from_float64(values[m.path], not_covered[m.path])])
    return _Explained(differences=decided, undecided=tuple(undecided), floor=floor)


def _largest(
    exceeding: list[Measured], differences: list[Difference], floor: Floor | None
) -> Difference | None:
    """Return the difference that exceeds its tolerance most; None if none does.

    Differences other than of values, such as a NaN or a shape, count as the largest.
    """
    if differences and differences[0].problem != "values":
        return differences[0]
    largest = max(exceeding, key=lambda m: m.ratio, default=None)
    if largest is None:
        return None
    moved = floor.moved.get(largest.path) if floor is not None else None
    return dataclasses.replace(largest.difference(), floor=None if moved is None else moved.whole)


# --- measuring ------------------------------------------------------------------------------------


def _measured(
    eager: Outcome,
    compiled: Outcome,
    tolerance: Tolerance,
    *,
    finite_inputs: bool,
    small: bool,
    reference: Reference,
) -> list[Measured]:
    """Return the measurement of each tensor of the two outcomes.

    If the inputs have a NaN or an infinity, only those NaN and infinities count that eager and float64 have
    and compiled lacks. Gradients are then compared only if the outputs are finite: which of several NaN
    max-pooling selects, or whether a backward propagates one, is not specified.
    """
    mine, theirs = eager.elementwise(), compiled.elementwise()

    def nonfinite_mask(path: str) -> NonfiniteMask:
        if finite_inputs:
            return nonfinite_mismatch
        exact = path in eager.outputs.tensors or path in eager.inputs.tensors
        return hidden_nonfinite(path, reference, loosely=not exact)

    measured = [
        Measured(path, mine[path], theirs[path], tolerance, small=small, nonfinite_mask=nonfinite_mask(path))
        for path in mine
    ]
    if finite_inputs or all(
        bool(torch.isfinite(comparable(t)).all()) for t in eager.outputs.tensors.values()
    ):
        mine, theirs = eager.differentiated(), compiled.differentiated()
        measured += [
            Measured(
                *(path, mine[path], theirs[path], tolerance),
                per_tensor=True,
                small=small,
                nonfinite_mask=nonfinite_mask(path),
            )
            for path in mine
            if path in theirs
        ]
    return measured if finite_inputs else [m for m in measured if m.floating]


def _severity(difference: Difference) -> float:
    if difference.problem != "values" or not difference.allowed:
        return float("inf")
    return difference.difference / difference.allowed
