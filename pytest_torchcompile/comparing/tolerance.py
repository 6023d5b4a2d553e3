"""Two outcomes held against each other: what differs, and whether rounding explains it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from pytest_torchcompile.comparing.measure import Flipped, Measured, Pattern, Tolerance, same_pattern
from pytest_torchcompile.comparing.nonfinite import Reference, hidden
from pytest_torchcompile.comparing.references import References
from pytest_torchcompile.comparing.rounding import Floor, flipped_rows
from pytest_torchcompile.policies.calls import Outcome
from pytest_torchcompile.results import Difference
from pytest_torchcompile.texts import first_line

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
    structural = _structural(eager, compiled)
    if structural:
        return Judgement(differences=tuple(structural), worst=structural[0], largest=structural[0])
    measured = _measured(
        *(eager, compiled, tolerance),
        finite_inputs=finite_inputs,
        small=small,
        reference=(lambda: None) if references is None else references.reference,
    )
    exceeding = [m for m in measured if m.exceeds]
    plain = _plain(eager, compiled) if finite_inputs else []
    explained = _Explained(differences=[*plain, *filter(None, (m.beyond(None) for m in exceeding))])
    if (exceeding or plain) and references is not None:
        explained = _explain(eager, compiled, exceeding, plain, references)
    differences = [*_generators(eager, compiled), *explained.differences]
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
    for floor in references.floors(paths):
        differences = [d for d in plain if d.path not in floor.plain]
        differences += filter(None, (m.beyond(floor, flipped) for m in exceeding))
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
    unlike = (eager.requires_grad ^ compiled.requires_grad) - eager.unfollowed - compiled.unfollowed
    for path in sorted(unlike):
        follows = path in eager.requires_grad
        found.append(
            Difference(path=path, problem="requires_grad", eager=str(follows), compiled=str(not follows))
        )
    found += [
        Difference(path=path, problem="memory", eager="memory of its own", compiled=f"shares that of {other}")
        for path, other in sorted(compiled.aliases - eager.aliases)
    ]
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
    one, other = eager.differentiated(), compiled.differentiated()
    for path in _paths(one, other):
        mine, theirs = one.get(path), other.get(path)
        if mine is None or theirs is None:
            only = mine if theirs is None else theirs
            if only is not None and bool((only != 0).any()):
                found.append(_presence(path, mine, theirs))
    return found


def _plain(eager: Outcome, compiled: Outcome) -> list[Difference]:
    one, other = eager.plain(), compiled.plain()
    return [
        Difference(path=path, problem="value", eager=_told(path, one), compiled=_told(path, other))
        for path in _paths(one, other)
        if path not in one or path not in other or _unequal(one[path], other[path])
    ]


def _told(path: str, values: dict[str, Any]) -> str:
    return repr(values[path]) if path in values else "absent"


def _unequal(mine: Any, theirs: Any) -> bool:
    """Whether two plain values differ; what can't tell, such as a list with arrays of objects, does not."""
    try:
        return bool(mine != theirs)
    except (TypeError, ValueError, RuntimeError):
        return False


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
