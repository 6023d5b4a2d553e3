"""Two outcomes held against each other: what differs, by how much, and whether rounding explains it.

Allowed is ``max(atol, rtol * |eager|)`` per element of outputs, state and inputs, and per tensor for
gradients, each by its own largest element. What exceeds it is asked of the rounding floor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from pytest_torchcompile.calls import Outcome
from pytest_torchcompile.results import Difference, first_line
from pytest_torchcompile.rounding import Floor

MULTIPLE = 4.0
"""Compiled may differ by this many times the rounding floor."""

ILL_CONDITIONED = 1e-3
"""A tensor is ill-conditioned on an example if its floor exceeds this share of its largest element."""

_MAX_ROWS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What comparing one example concluded.

    Args:
        differences: what differs beyond what rounding explains, worst first; empty if nothing does.
        worst: the measured difference that came closest to what is allowed.
        rounding: whether something exceeded the tolerance and rounding explains it.
        ill_conditioned: paths whose floor was so high that little could be concluded.
        finite: paths with a finite element compared.
        nonzero: gradients with an element that is not zero.
    """

    differences: tuple[Difference, ...] = ()
    worst: Difference | None = None
    rounding: bool = False
    ill_conditioned: tuple[str, ...] = ()
    finite: frozenset[str] = frozenset()
    nonzero: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How much may differ.

    Args:
        atol: absolute, where eager is small.
        rtol: relative to eager, where it is large.
    """

    atol: float = 1e-5
    rtol: float = 1e-5


def judge(
    eager: Outcome,
    compiled: Outcome,
    tolerance: Tolerance,
    floor: Callable[[], Floor] | None,
    *,
    finite_inputs: bool = True,
) -> Judgement:
    """Compare everything that two calls left behind.

    Args:
        eager: the reference.
        compiled: the candidate.
        tolerance: what is allowed.
        floor: computes the rounding floor of this example when it is needed; None to do without.
        finite_inputs: whether the inputs were finite; integers computed from a NaN mean nothing.
    """
    structural = _structural(eager, compiled)
    if structural:
        return Judgement(differences=tuple(structural), worst=structural[0])
    # Running statistics of an infinity are infinite or NaN, depending on the order of the sums.
    any_infinity = frozenset() if finite_inputs else frozenset(eager.state.tensors)
    mine, theirs = eager.elementwise(), compiled.elementwise()
    measured = [
        _Measured(path, mine[path], theirs[path], tolerance, any_infinity=path in any_infinity)
        for path in mine
    ]
    mine, theirs = eager.differentiated(), compiled.differentiated()
    measured += [
        _Measured(path, mine[path], theirs[path], tolerance, per_tensor=True)
        for path in mine
        if path in theirs
    ]
    if not finite_inputs:
        measured = [m for m in measured if m.floating]
    exceeding = [m for m in measured if m.exceeds]
    plain = _plain(eager, compiled) if finite_inputs else []
    generators = _generators(eager, compiled)
    differences: list[Difference] = list(generators)
    ill_conditioned: list[str] = []
    if exceeding or plain:
        known = floor() if floor else None
        ties = known is not None and _explained_by_ties(exceeding, plain, known)
        if not ties:
            differences += plain
            for m in exceeding:
                beyond = m.beyond(known)
                if beyond is not None:
                    differences.append(beyond)
                elif known is not None and m.ill_conditioned(known):
                    ill_conditioned.append(m.path)
    worst = max(measured, key=lambda m: m.ratio, default=None)
    differences.sort(key=lambda d: d.difference / max(d.allowed, 1e-30), reverse=True)
    return Judgement(
        differences=tuple(differences),
        worst=differences[0] if differences else (worst.difference() if worst else None),
        rounding=bool(exceeding or plain) and not differences,
        ill_conditioned=tuple(ill_conditioned),
        finite=frozenset(m.path for m in measured if m.finite),
        nonzero=frozenset(m.path for m in measured if m.per_tensor and m.scale > 0),
    )


# --- what is not numbers --------------------------------------------------------------------------


def _structural(eager: Outcome, compiled: Outcome) -> list[Difference]:
    """Exceptions, types, dtypes, shapes and ``requires_grad`` that are unequal."""
    if compiled.error is not None:
        raised = f"raises {first_line(compiled.error)}"
        return [Difference(path="output", problem="exception", eager="returns", compiled=raised)]
    found = []
    for path in _paths(eager.outputs.kinds, compiled.outputs.kinds):
        mine, theirs = eager.outputs.kinds.get(path), compiled.outputs.kinds.get(path)
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
    return [
        Difference(
            path=f"random state of {name}",
            problem="random state",
            eager="drew" if name in eager.drew else "did not draw",
            compiled="drew differently" if name in compiled.drew else "did not draw",
        )
        for name in eager.random.unequal(compiled.random)
    ]


# --- numbers --------------------------------------------------------------------------------------


class _Measured:
    """One tensor of eager's held against compiled's."""

    def __init__(
        self,
        path: str,
        eager: torch.Tensor,
        compiled: torch.Tensor,
        tolerance: Tolerance,
        *,
        per_tensor: bool = False,
        any_infinity: bool = False,
    ) -> None:
        self.path = path
        self.per_tensor = per_tensor
        self._any_infinity = any_infinity
        self.floating = eager.is_floating_point() or eager.is_complex()
        self._eager, self._compiled = _comparable(eager), _comparable(compiled)
        self.scale = 0.0
        self.finite = True
        self.ratio = 0.0
        self._unequal: torch.Tensor | None = None
        if self.floating:
            self._measure(tolerance)
        elif not torch.equal(self._eager, self._compiled):
            self._unequal = self._eager != self._compiled
            self._distance = self._unequal.to(torch.float32)
            self._allowed = torch.zeros(())
            self.ratio = float("inf")

    def _measure(self, tolerance: Tolerance) -> None:
        mine, theirs = self._eager, self._compiled
        magnitude = mine.abs()
        largest = float(magnitude.max()) if mine.numel() else 0.0
        same = torch.equal(mine, theirs)
        if largest == largest and largest != float("inf"):
            self.scale = largest
            self.finite = mine.numel() > 0
        else:
            within = torch.isfinite(mine)
            self.finite = bool(within.any())
            self.scale = float(magnitude[within].max()) if self.finite else 0.0
        if same:
            return
        both = torch.isfinite(mine) & torch.isfinite(theirs)
        distance = torch.where(both, (mine - theirs).abs(), 0.0)
        if self._any_infinity:
            pattern = torch.isfinite(mine) != torch.isfinite(theirs)
        else:
            pattern = ~both & ~((mine == theirs) | (mine.isnan() & theirs.isnan()))
        if self.per_tensor:
            allowed = torch.full_like(magnitude[:0].sum(), max(tolerance.atol, tolerance.rtol * self.scale))
        else:
            allowed = (tolerance.rtol * magnitude.nan_to_num(0.0, 0.0)).clamp_min(tolerance.atol)
        self._pattern = pattern
        self._distance, self._allowed = distance, allowed
        self._unequal = (distance > allowed) | pattern
        self.ratio = (
            float("inf") if bool(pattern.any()) else float((distance / allowed).nan_to_num(0.0).max())
        )

    @property
    def exceeds(self) -> bool:
        """Whether some element differs by more than the tolerance."""
        return self._unequal is not None and bool(self._unequal.any())

    def ill_conditioned(self, floor: Floor) -> bool:
        """Whether rounding alone moves this tensor so far that little can be concluded from it."""
        return floor.movement[self.path] > ILL_CONDITIONED * max(self.scale, 1e-30) and floor.runs > 0

    def beyond(self, floor: Floor | None) -> Difference | None:
        """The difference if rounding does not explain it."""
        if floor is None:
            return self.difference()
        unequal = self._unequal
        assert unequal is not None  # asked only of what exceeds
        flipped = floor.flipped.get(self.path)
        if not self.floating:
            explained = flipped is not None and bool((flipped | ~unequal).all())
            return None if explained else self.difference(unequal & ~flipped if flipped is not None else None)
        limit = MULTIPLE * floor.movement[self.path]
        remaining = unequal & ((self._distance > limit) | self._pattern)
        if flipped is not None:
            remaining &= ~(self._pattern & flipped.reshape(remaining.shape))
        if not bool(remaining.any()):
            return None
        return self.difference(remaining, floor=floor.movement[self.path], limit=limit)

    def difference(
        self, unequal: torch.Tensor | None = None, *, floor: float | None = None, limit: float = 0.0
    ) -> Difference:
        """The worst element with its figures."""
        if unequal is None:
            unequal = self._unequal
        if unequal is None:
            return Difference(path=self.path, elements=self._eager.numel())
        excess = self._distance / self._allowed.clamp_min(1e-30)
        if self.floating:
            excess = torch.where(self._pattern, float("inf"), excess)
        excess = torch.where(unequal, excess, -1.0) if bool(unequal.any()) else excess
        flat = int(excess.reshape(-1).argmax())
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), excess.shape))
        mine, theirs = self._eager[index], self._compiled[index]
        odd = self.floating and bool(self._pattern[index])
        allowed = float(self._allowed if self._allowed.dim() == 0 else self._allowed[index])
        return Difference(
            path=self.path,
            problem=("NaN or infinity" if odd else "values") if bool(unequal.any()) else "",
            eager=_number(mine),
            compiled=_number(theirs),
            index=index,
            difference=float(self._distance[index]),
            allowed=max(allowed, limit),
            ulps=_ulps(mine, theirs) if self.floating and not odd else None,
            floor=floor,
            unequal=int(unequal.sum()),
            elements=unequal.numel(),
            rows=_rows(unequal) if self.path.startswith(("output", "input")) else (),
        )


def _comparable(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in a dtype and layout in which differences can be taken."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point() and tensor.element_size() < 4:
        return tensor.float()
    return tensor


def _explained_by_ties(exceeding: list[_Measured], plain: list[Difference], floor: Floor) -> bool:
    """Whether integers differ, all where eager's own rounding flips them: an argmax between equals.

    What was computed from such a choice differs with it, so the example can't be judged further.
    """
    integers = [m for m in exceeding if not m.floating]
    if not integers and not plain:
        return False
    return all(m.beyond(floor) is None for m in integers) and all(d.path in floor.plain for d in plain)


def _number(value: torch.Tensor) -> str:
    return f"{float(value):.9g}" if value.is_floating_point() else str(value.item())


def _ulps(eager: torch.Tensor, compiled: torch.Tensor) -> float:
    """The distance in units of the last place of eager's value."""
    away = torch.full_like(eager, float("inf"))
    place = torch.nextafter(eager.abs(), away) - eager.abs()
    return float((eager - compiled).abs() / place) if float(place) > 0 else 0.0


def _rows(unequal: torch.Tensor) -> tuple[int, ...]:
    if unequal.dim() == 0:
        return ()
    per_row = unequal.reshape(unequal.shape[0], -1).any(dim=1)
    return tuple(torch.nonzero(per_row).reshape(-1)[:_MAX_ROWS].tolist())
