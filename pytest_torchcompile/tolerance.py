"""Two outcomes held against each other: what differs, and whether rounding explains it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pytest_torchcompile.calls import Outcome
from pytest_torchcompile.measure import Measured, Tolerance, same_finiteness, same_pattern
from pytest_torchcompile.results import Difference
from pytest_torchcompile.rounding import Floor
from pytest_torchcompile.texts import first_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What comparing one example concluded.

    Args:
        differences: what differs beyond what rounding explains, worst first; empty if nothing does.
        worst: the worst of `differences`; else what came closest to its tolerance without exceeding it.
        largest: the largest difference in units of its tolerance, whether rounding explains it or not.
        rounding: whether something exceeded the tolerance and rounding explains it.
        ill_conditioned: paths whose floor was so high that little could be concluded.
        finite: paths with a finite element compared.
        nonzero: gradients with an element that is not zero.
    """

    differences: tuple[Difference, ...] = ()
    worst: Difference | None = None
    largest: Difference | None = None
    rounding: bool = False
    ill_conditioned: tuple[str, ...] = ()
    finite: frozenset[str] = frozenset()
    nonzero: frozenset[str] = frozenset()


def judge(
    eager: Outcome,
    compiled: Outcome,
    tolerance: Tolerance,
    floors: Callable[[], Iterator[Floor]] | None,
    *,
    finite_inputs: bool = True,
) -> Judgement:
    """Compare everything that two calls left behind.

    Args:
        eager: the reference.
        compiled: the candidate.
        tolerance: what is allowed.
        floors: makes the rounding floors of this example, each higher than the last; None to do without.
        finite_inputs: whether the inputs were finite; integers computed from a NaN mean nothing.
    """
    structural = _structural(eager, compiled)
    if structural:
        return Judgement(differences=tuple(structural), worst=structural[0], largest=structural[0])
    measured = _measured(eager, compiled, tolerance, finite_inputs)
    exceeding = [m for m in measured if m.exceeds]
    floor: Floor | None = None
    plain = _plain(eager, compiled) if finite_inputs else []
    generators = _generators(eager, compiled)
    differences: list[Difference] = [*generators, *plain]
    ill_conditioned: list[str] = []
    if exceeding or plain:
        floor = _high_enough(floors() if floors else iter(()), exceeding, plain)
        if floor is not None and _explained_by_ties(exceeding, plain, floor):
            differences = generators
        else:
            differences += filter(None, (m.beyond(floor) for m in exceeding))
            ill_conditioned = [m.path for m in exceeding if floor is not None and m.ill_conditioned(floor)]
    # What rounding explains would be an alarming figure to show, and no measure of what was found.
    closest = max((m for m in measured if not m.exceeds), key=lambda m: m.ratio, default=None)
    worst = closest.difference() if closest else None
    differences.sort(key=_severity, reverse=True)
    return Judgement(
        differences=tuple(differences),
        worst=differences[0] if differences else worst,
        largest=_largest(exceeding, differences, floor) or worst,
        rounding=bool(exceeding or plain) and not differences,
        ill_conditioned=tuple(ill_conditioned),
        finite=frozenset(m.path for m in measured if m.finite),
        nonzero=frozenset(m.path for m in measured if m.per_tensor and m.scale > 0),
    )


def _largest(
    exceeding: list[Measured], differences: list[Difference], floor: Floor | None
) -> Difference | None:
    """What exceeds its tolerance most, None if nothing does; what is no number is larger than any."""
    if differences and differences[0].problem != "values":
        return differences[0]
    largest = max(exceeding, key=lambda m: m.ratio, default=None)
    if largest is None:
        return None
    movement = floor.movement.get(largest.path) if floor is not None else None
    return dataclasses.replace(largest.difference(), floor=movement)


# --- what is not numbers --------------------------------------------------------------------------


def _structural(eager: Outcome, compiled: Outcome) -> list[Difference]:
    """Exceptions, types, dtypes, shapes and ``requires_grad`` that are unequal."""
    if compiled.error is not None:
        raised = f"raises {first_line(compiled.error)}"
        return [Difference(path="output", problem="exception", eager="returns", compiled=raised)]
    found = []
    one, other = _kinds(eager), _kinds(compiled)
    for path in _paths(one, other):
        mine, theirs = one.get(path), other.get(path)
        if mine != theirs:
            found.append(
                Difference(
                    path=path, problem="structure", eager=mine or "absent", compiled=theirs or "absent"
                )
            )
    if found:
        return found
    for path in _paths(eager.elementwise(), compiled.elementwise()):
        found += _tensor_facts(path, eager.elementwise().get(path), compiled.elementwise().get(path))
    for path in eager.requires_grad ^ compiled.requires_grad:
        follows = path in eager.requires_grad
        found.append(
            Difference(path=path, problem="requires_grad", eager=str(follows), compiled=str(not follows))
        )
    return found + _missing_gradients(eager, compiled)


def _kinds(outcome: Outcome) -> dict[str, str]:
    """The types of what was returned, and of what the user observes."""
    observed = {path: kind for path, kind in outcome.state.kinds.items() if path.startswith("observed")}
    return outcome.outputs.kinds | observed


def _paths(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys([*mine, *theirs]))


def _tensor_facts(path: str, mine: torch.Tensor | None, theirs: torch.Tensor | None) -> list[Difference]:
    if mine is None or theirs is None:
        return [_presence(path, mine, theirs)]
    facts: dict[str, tuple[Any, Any]] = {
        "dtype": (mine.dtype, theirs.dtype),
        "shape": (tuple(mine.shape), tuple(theirs.shape)),
        "device": (mine.device, theirs.device),
    }
    return [
        Difference(path=path, problem=problem, eager=str(one), compiled=str(two))
        for problem, (one, two) in facts.items()
        if one != two
    ]


def _presence(path: str, mine: torch.Tensor | None, theirs: torch.Tensor | None) -> Difference:
    texts = ["absent" if t is None else f"{t.dtype} {tuple(t.shape)}" for t in (mine, theirs)]
    return Difference(path=path, problem="presence", eager=texts[0], compiled=texts[1])


def _missing_gradients(eager: Outcome, compiled: Outcome) -> list[Difference]:
    """Gradients that one side lacks; AOTAutograd may give zeros where eager gives None."""
    found = []
    for name in eager.gradients.keys() | compiled.gradients.keys():
        mine, theirs = eager.gradients.get(name), compiled.gradients.get(name)
        if (mine is None) != (theirs is None):
            only = mine if theirs is None else theirs
            if only is not None and bool((only != 0).any()):
                found.append(_presence(f"gradient of {name}", mine, theirs))
    return found


def _plain(eager: Outcome, compiled: Outcome) -> list[Difference]:
    return [
        Difference(path=path, problem="value", eager=repr(mine), compiled=repr(compiled.plain()[path]))
        for path, mine in eager.plain().items()
        if compiled.plain()[path] != mine
    ]


def _generators(eager: Outcome, compiled: Outcome) -> list[Difference]:
    """Random generators that the two calls left in different states."""
    if eager.random is None or compiled.random is None:
        return []
    unequal = eager.random.unequal(compiled.random)
    if not unequal:
        return []
    mine, theirs = eager.drew(), compiled.drew()
    return [
        Difference(
            path=f"random state of {name}",
            problem="random state",
            eager="drew" if name in mine else "did not draw",
            compiled=("drew differently" if name in mine else "drew") if name in theirs else "did not draw",
        )
        for name in unequal
    ]


# --- numbers --------------------------------------------------------------------------------------


def _measured(eager: Outcome, compiled: Outcome, tolerance: Tolerance, finite_inputs: bool) -> list[Measured]:
    """All tensors of the two outcomes measured.

    With a NaN or an infinity among the inputs, outputs and inputs must show the same pattern, and
    state must be finite where eager's is. Gradients are then left out if the outputs aren't finite:
    which of several NaN max-pooling takes, or whether a backward passes one on, is nobody's business.
    """
    mine, theirs = eager.elementwise(), compiled.elementwise()
    loosely = {} if finite_inputs else dict.fromkeys(eager.state.tensors, same_finiteness)
    measured = [
        Measured(path, mine[path], theirs[path], tolerance, pattern=loosely.get(path, same_pattern))
        for path in mine
    ]
    if finite_inputs or all(bool(torch.isfinite(t).all()) for t in eager.outputs.tensors.values()):
        mine, theirs = eager.differentiated(), compiled.differentiated()
        measured += [
            Measured(path, mine[path], theirs[path], tolerance, per_tensor=True)
            for path in mine
            if path in theirs
        ]
    return measured if finite_inputs else [m for m in measured if m.floating]


def _high_enough(floors: Iterator[Floor], exceeding: list[Measured], plain: list[Difference]) -> Floor | None:
    """The first floor that explains everything, else the highest; None if there is none."""
    floor = None
    for floor in floors:
        if _explained_by_ties(exceeding, plain, floor):
            break
        if not plain and all(m.beyond(floor) is None for m in exceeding):
            break
    return floor


def _severity(difference: Difference) -> float:
    if difference.problem != "values" or not difference.allowed:
        return float("inf")
    return difference.difference / difference.allowed


def _explained_by_ties(exceeding: list[Measured], plain: list[Difference], floor: Floor) -> bool:
    """Whether integers differ, all where eager's own rounding flips them: an argmax between equals.

    What was computed from such a choice differs with it, so the example can't be judged further.
    """
    integers = [m for m in exceeding if not m.floating]
    if not integers and not plain:
        return False
    return all(m.beyond(floor) is None for m in integers) and all(d.path in floor.plain for d in plain)
