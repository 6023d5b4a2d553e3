"""How much of a difference rounding explains.

The *rounding floor* is how far eager itself moves when it is rounded otherwise (see `monte_carlo`). A
fixed multiple of float64's distance does not work as a gate, because eager is sometimes exact.

A choice that rounding flips, an argmax between two equal scores, takes with it what is computed from
it. So that it excuses nothing else, its run counts apart: for the rows of the batch that it flips in.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Iterator

import torch

from pytest_torchcompile.comparing.monte_carlo import MonteCarlo
from pytest_torchcompile.policies.calls import Outcome, Rerun

RUNS = 8

KINK_RUNS = 8
KINK_FACTOR = 4.0
"""Further runs that move further, for gradients alone: one activation of many thousands that rounding
moves across the kink of a ReLU changes a gradient at once, and is seldom hit by a run. They move what
different operators compute apart: two equal numbers whose difference is at a kink lie there by chance."""

CHOICE_RUNS = 56
"""Further runs for choices alone, where both rounding and compiled flip some: among hundreds of rows with two
equal scores, eight runs leave one unflipped in each that compiled flips with a chance of 1 in 256."""

EQUAL_TERMS_PER_EPS = 64
LARGEST_SCALE = 32.0
"""Sums of n equal terms round the same way each time, so that their error grows with n and not with its
root (Higham 2002, "Accuracy and Stability of Numerical Algorithms", chapter 4). On such inputs
everything moves n / 64 times as far, at most 32 times: three times or more what inductor was seen to
need on BatchNorm networks, see ``benchmarks/rounding_floor.py``."""

_BLOCK = 2**17

FINITE, NAN, PLUS, MINUS = 1, 2, 4, 8
"""What an element was seen to be: a set of these."""


@dataclasses.dataclass(kw_only=True)
class Movement:
    """How far one tensor of eager's moved.

    Args:
        whole: the largest movement of an element, in runs without a flip or in rows without one.
        rows: of an output or input, the same for each row of the batch.
        calm: whether each row was seen without a flip.
        jumps: the largest movement of each element in the rows and runs with a flip.
        slope: the largest share by which the tensor as a whole grew or shrank.
        kinds: what each element was seen to be, where some run made a number of what was none or the
            other way round.
        runs: how many runs counted towards `whole`.
    """

    whole: float = 0.0
    rows: torch.Tensor | None = None
    calm: torch.Tensor | None = None
    jumps: torch.Tensor | None = None
    slope: float = 0.0
    kinds: torch.Tensor | None = None
    runs: int = 0


@dataclasses.dataclass(kw_only=True)
class Floor:
    """How far eager moved.

    Args:
        moved: by path, the floating-point tensors.
        flipped: by path, the elements of integer tensors that changed.
        plain: paths of plain values that changed.
        runs: how many runs came to their end.
        half: whether eager computes in floating-point numbers of 16 bits.
        choices: whether a choice that eager returned came out otherwise in some run.
    """

    moved: dict[str, Movement] = dataclasses.field(default_factory=lambda: collections.defaultdict(Movement))
    flipped: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    plain: set[str] = dataclasses.field(default_factory=set)
    runs: int = 0
    half: bool = False
    choices: bool = False


def scale_for(equal_terms: int) -> float:
    """How much further an example moves whose largest degenerate input has so many elements (0 for none)."""
    return min(max(1.0, equal_terms / EQUAL_TERMS_PER_EPS), LARGEST_SCALE)


def rounding_floors(
    eager: Outcome, rerun: Rerun, paths: Collection[str], scale: float = 1.0
) -> Iterator[Floor]:
    """How far `eager` moves when it is rounded otherwise: the same floor, higher after each run.

    Most differences of correct models are explained by the first, and then no other is computed.

    Args:
        eager: the outcome as it is.
        rerun: calls eager again on the same example.
        paths: the tensors that are asked for. Integers that eager returned are watched anyway.
        scale: multiplies every movement.
    """
    floor = Floor()
    for run in range(RUNS + KINK_RUNS):
        at_kinks = run >= RUNS
        if at_kinks and not any(path.startswith("gradient") for path in paths):
            return
        further = KINK_FACTOR * scale if at_kinks else scale
        arithmetic = MonteCarlo(run, further, apart=at_kinks)
        moved = rerun(lambda: arithmetic)  # noqa: B023  # called before the next is made
        floor.half |= arithmetic.half
        if moved.error is None:
            add_run(floor, eager, moved, paths, gradients_only=at_kinks)
        yield floor


def choice_floors(
    floor: Floor, eager: Outcome, rerun: Rerun, paths: Collection[str], scale: float = 1.0
) -> Iterator[Floor]:
    """Yield `floor` after each of further runs, to which only the rows add in which a choice flips.

    Args:
        floor: the floor of `rounding_floors` after its last run; it is changed.
        eager: see `rounding_floors`, as the others.
        rerun: likewise.
        paths: likewise.
        scale: likewise.
    """
    for run in range(CHOICE_RUNS):
        arithmetic = MonteCarlo(RUNS + KINK_RUNS + run, scale)
        moved = rerun(lambda: arithmetic)  # noqa: B023  # called before the next is made
        if moved.error is None:
            add_run(floor, eager, moved, paths, flips_only=True)
        yield floor


def add_run(
    floor: Floor,
    eager: Outcome,
    moved: Outcome,
    paths: Collection[str],
    *,
    gradients_only: bool = False,
    flips_only: bool = False,
) -> None:
    """Add what one run moved to the floor: everything, the gradients, or what flipped choices took along."""
    floor.runs += 1
    flips = _Flips(eager, moved)
    floor.choices |= flips.any()
    if flips_only and not flips.any():
        return
    base = eager.differentiated() if gradients_only else eager.elementwise() | eager.differentiated()
    others = moved.elementwise() | moved.differentiated()
    for path, mine in base.items():
        other = others.get(path)
        if path not in paths or other is None or other.shape != mine.shape or not mine.numel():
            continue
        mine, other = comparable(mine), comparable(other)
        if mine.is_floating_point():
            _add_movement(floor.moved[path], path, mine, other, flips, flips_only=flips_only)
        elif not gradients_only:
            odd = mine != other
            floor.flipped[path] = floor.flipped.get(path, torch.zeros_like(odd)) | odd
    if not gradients_only:
        floor.plain |= flips.plain


def comparable(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in a dtype and layout in which differences can be taken."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point() and tensor.element_size() < 4:
        return tensor.float()
    return tensor


def is_exact(tensor: torch.Tensor) -> bool:
    """Whether its elements are integers or booleans, which don't round."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def has_rows(path: str, tensor: torch.Tensor) -> bool:
    """Whether the first dimension of what has this path is the batch's."""
    return path.startswith(("output", "input")) and tensor.dim() > 0


class _Flips:
    """The choices that came out otherwise in a run.

    Only those that eager returned: of others it can't be told whether compiled made them.
    """

    def __init__(self, eager: Outcome, moved: Outcome) -> None:
        self.plain = {path for path, value in eager.plain().items() if moved.plain().get(path) != value}
        self._everywhere = bool(self.plain)
        self._rows: dict[int, torch.Tensor] = {}
        for path, mine in eager.outputs.tensors.items():
            other = moved.outputs.tensors.get(path)
            if not is_exact(mine) or other is None or other.shape != mine.shape or torch.equal(mine, other):
                continue
            if not mine.dim():
                self._everywhere = True
                continue
            rows = (mine != other).reshape(len(mine), -1).any(dim=1)
            self._rows[len(mine)] = self._rows.get(len(mine), torch.zeros_like(rows)) | rows

    def any(self) -> bool:
        """Whether there is one."""
        return self._everywhere or bool(self._rows)

    def rows(self, length: int) -> torch.Tensor:
        """Which of so many rows a flip is in; all, if it is in none of a tensor of that length."""
        if self.any() and (self._everywhere or length not in self._rows):
            return torch.ones(length, dtype=torch.bool)
        return self._rows.get(length, torch.zeros(length, dtype=torch.bool))


def flips_a_choice(eager: Outcome, compiled: Outcome) -> bool:
    """Whether compiled chose otherwise than eager anywhere."""
    return _Flips(eager, compiled).any()


def flipped_rows(eager: Outcome, compiled: Outcome, length: int) -> torch.Tensor:
    """Which of so many rows compiled chose otherwise in than eager."""
    return _Flips(eager, compiled).rows(length)


def _add_movement(
    found: Movement,
    path: str,
    base: torch.Tensor,
    other: torch.Tensor,
    flips: _Flips,
    *,
    flips_only: bool = False,
) -> None:
    """Add the movement of one tensor in one run."""
    largest = largest_distance(base, other)
    if not math.isfinite(largest):
        _add_kinds(found, base, other)
    if not has_rows(path, base):
        largest = largest if math.isfinite(largest) else float(_finite_distances(base, other).max())
        if flips.any():
            known = 0.0 if found.jumps is None else float(found.jumps)
            found.jumps = torch.tensor(max(known, largest))
            return
        found.runs += 1
        found.whole = max(found.whole, largest)
        found.slope = max(found.slope, abs(slope(base, other)))
        return
    distances = _finite_distances(base, other)
    flipped = flips.rows(len(base)).to(base.device)
    if not flips_only:
        _add_calm_rows(found, base, other, distances, flips)
    if flips.any():
        jumped = distances * flipped.reshape(-1, *(1,) * (distances.dim() - 1))
        found.jumps = jumped if found.jumps is None else torch.maximum(found.jumps, jumped)


def _add_calm_rows(
    found: Movement, base: torch.Tensor, other: torch.Tensor, distances: torch.Tensor, flips: _Flips
) -> None:
    """Add the movement of the rows without a flip."""
    flipped = flips.rows(len(base)).to(base.device)
    each = distances.reshape(len(base), -1).amax(dim=1).masked_fill(flipped, 0.0)
    found.rows = each if found.rows is None else torch.maximum(found.rows, each)
    found.calm = ~flipped if found.calm is None else found.calm | ~flipped
    found.whole = max(found.whole, float(each.max()))
    found.runs += not bool(flipped.all())
    if not flips.any():
        found.slope = max(found.slope, abs(slope(base, other)))


def _add_kinds(found: Movement, base: torch.Tensor, other: torch.Tensor) -> None:
    """Note what the elements were, from the first run on in which some is no number any more."""
    if found.kinds is None:
        seen = found.runs > 0 or found.jumps is not None
        found.kinds = kinds_of(base) if seen else torch.zeros_like(base, dtype=torch.uint8)
    found.kinds |= kinds_of(other)


def kinds_of(tensor: torch.Tensor) -> torch.Tensor:
    """What each element is: `FINITE`, `NAN`, `PLUS` or `MINUS` infinity."""
    kinds = torch.full_like(tensor, FINITE, dtype=torch.uint8).masked_fill_(tensor.isnan(), NAN)
    return kinds.masked_fill_(tensor == math.inf, PLUS).masked_fill_(tensor == -math.inf, MINUS)


def slope(base: torch.Tensor, other: torch.Tensor) -> float:
    """By which share `other` is larger than `base` as a whole: the projection of one on the other, less 1.

    0 where elements are not finite, or `base` is zero.
    """
    total = product = 0.0
    for mine, theirs in zip(*(torch.split(t.reshape(-1), _BLOCK) for t in (base, other)), strict=True):
        wide = mine.double()
        total += float(wide @ wide)
        product += float(wide @ (theirs.double() - wide))
    return product / total if total and math.isfinite(total) and math.isfinite(product) else 0.0


def largest_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest distance between elements of two tensors; NaN or infinite if one of them is.

    By blocks, because to allocate the distances of a large gradient takes longer than to compute them.
    """
    blocks = zip(*(torch.split(tensor.reshape(-1), _BLOCK) for tensor in (one, other)), strict=True)
    return float(torch.stack([(mine - theirs).abs().max() for mine, theirs in blocks]).max())


def _finite_distances(base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The distances between elements, 0 where one is not finite."""
    return (other - base).abs().nan_to_num_(0.0, 0.0, 0.0)
