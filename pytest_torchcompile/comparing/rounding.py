"""Compute the rounding floor: how far eager itself moves when its operators round differently.

See `monte_carlo`. A fixed multiple of eager's distance from float64 does not work as a limit, because eager
is sometimes exact.

Rounding can flip a choice, such as an argmax between two equal scores, and with it everything computed from
that choice. A large movement that follows a flip must not pass other differences as rounding. It therefore
counts only for the rows of the batch that have a flip, and only in runs with one.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Iterator

import torch

from pytest_torchcompile.comparing.monte_carlo import MonteCarlo
from pytest_torchcompile.policies.calls import Rerun
from pytest_torchcompile.policies.outcome import Outcome

RUNS = 8

KINK_RUNS = 8
KINK_FACTOR = 4.0
"""Additional runs with a larger perturbation, for gradients and what was computed from them only.

A gradient jumps when rounding moves one activation across the kink of a ReLU, and few runs do that to the
same one of many thousands of activations. These runs perturb equal results of different operators
differently: if the difference of two equal numbers lies at a kink, it does so by coincidence.
"""

CHOICE_RUNS = 56
"""Additional runs for choices only, made if both rounding and compiled flip some.

For one row with two equal scores, all of 8 runs choose as eager does with a probability of 1/256. In a batch
of hundreds of rows that happens to some row.
"""

EQUAL_TERMS_PER_EPS = 64
LARGEST_SCALE = 32.0
"""If an input has n equal terms, perturbations grow by n / EQUAL_TERMS_PER_EPS, at most by LARGEST_SCALE.

A sum of n equal terms rounds the same way each time, so its error grows with n and not with sqrt(n) (Higham
2002, "Accuracy and Stability of Numerical Algorithms", chapter 4). The factor is at least three times what
inductor needed on BatchNorm networks; see ``benchmarks/rounding_floor.py``.
"""

_BLOCK = 2**17

FINITE, NAN, PLUS, MINUS = 1, 2, 4, 8
"""Kinds of an element, as bits: finite, NaN, plus infinity, minus infinity."""


@dataclasses.dataclass(kw_only=True)
class Movement:
    """How far one tensor of eager moved.

    Args:
        whole: the largest movement of an element, in runs without a flip or in rows without one.
        rows: for an output or input, the largest movement in each row of the batch.
        seen_without_flip: for each row, whether some run had no flip in it.
        largest_with_flip: the largest movement of each element in the rows and runs with a flip.
        slope: the largest share by which the tensor as a whole grew or shrank.
        kinds: the kinds of each element in all runs; None while no run turned a finite element into NaN or
            infinity, or the reverse.
        runs: number of runs that counted towards `whole`.
    """

    whole: float = 0.0
    rows: torch.Tensor | None = None
    seen_without_flip: torch.Tensor | None = None
    largest_with_flip: torch.Tensor | None = None
    slope: float = 0.0
    kinds: torch.Tensor | None = None
    runs: int = 0


@dataclasses.dataclass(kw_only=True)
class Floor:
    """How far eager moved in all runs.

    Args:
        moved: the movement of each floating-point tensor, by path.
        flipped: masks of the elements of integer tensors that changed, by path.
        plain: paths of plain values that changed.
        runs: number of runs that raised no exception.
        half: whether eager computes with 16-bit floating-point numbers.
        choices: whether some run flipped a choice that eager returned.
    """

    moved: dict[str, Movement] = dataclasses.field(default_factory=lambda: collections.defaultdict(Movement))
    flipped: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    plain: set[str] = dataclasses.field(default_factory=set)
    runs: int = 0
    half: bool = False
    choices: bool = False


def scale_for(equal_terms: int) -> float:
    """Return the factor on the perturbation of an example.

    Args:
        equal_terms: number of elements of the largest degenerate input; 0 if no input is degenerate.
    """
    return min(max(1.0, equal_terms / EQUAL_TERMS_PER_EPS), LARGEST_SCALE)


def rounding_floors(
    eager: Outcome, rerun: Rerun, paths: Collection[str], scale: float = 1.0, *, learnt: bool = False
) -> Iterator[Floor]:
    """Yield the rounding floor of `eager` after each run: always the same object, which never decreases.

    The first run explains most differences of correct models, so the caller can stop early.

    Args:
        eager: the outcome without perturbation.
        rerun: calls eager again on the same example.
        paths: the tensors to measure. Integer outputs are watched for flips in any case.
        scale: factor on every perturbation.
        learnt: whether the outcome follows from gradients of earlier calls, as after an optimizer step. The
            runs at kinks then count for all tensors.
    """
    floor = Floor()
    for run in range(RUNS + KINK_RUNS):
        at_kinks = run >= RUNS
        if at_kinks and not learnt and not any(path.startswith("gradient") for path in paths):
            return
        further = KINK_FACTOR * scale if at_kinks else scale
        arithmetic = MonteCarlo(run, further, seed_per_operator=at_kinks)
        _run(floor, eager, rerun, paths, arithmetic, gradients_only=at_kinks and not learnt)
        floor.half |= arithmetic.half
        yield floor


def choice_floors(
    floor: Floor, eager: Outcome, rerun: Rerun, paths: Collection[str], scale: float = 1.0
) -> Iterator[Floor]:
    """Yield `floor` after each of `CHOICE_RUNS` more runs, which add only the rows in which a choice flips.

    Args:
        floor: the floor of `rounding_floors` after its last run; it is changed.
        eager: see `rounding_floors`.
        rerun: see `rounding_floors`.
        paths: see `rounding_floors`.
        scale: see `rounding_floors`.
    """
    for run in range(CHOICE_RUNS):
        arithmetic = MonteCarlo(RUNS + KINK_RUNS + run, scale)
        _run(floor, eager, rerun, paths, arithmetic, flips_only=True)
        yield floor


def _run(
    floor: Floor,
    eager: Outcome,
    rerun: Rerun,
    paths: Collection[str],
    arithmetic: MonteCarlo,
    **which: bool,
) -> None:
    """Call eager again under `arithmetic`, and add the movements; see `add_run`.

    A function of its own, so that the gradients of a run are freed before the next.
    """
    moved = rerun(lambda: arithmetic)
    if moved.error is None:
        add_run(floor, eager, moved, paths, **which)


def add_run(
    floor: Floor,
    eager: Outcome,
    moved: Outcome,
    paths: Collection[str],
    *,
    gradients_only: bool = False,
    flips_only: bool = False,
) -> None:
    """Add the movements of one run to the floor: all, those of gradients, or those of rows with a flip."""
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
    """Return the tensor in a form that can be subtracted: dense, real, of at least 32 bits if floating."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point() and tensor.element_size() < 4:
        return tensor.float()
    return tensor


def is_exact(tensor: torch.Tensor) -> bool:
    """Whether the elements are integers or booleans, which do not round."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def has_rows(path: str, tensor: torch.Tensor) -> bool:
    """Whether the first dimension of the tensor with this path is the batch."""
    return path.startswith(("output", "input")) and tensor.dim() > 0


class _Flips:
    """The integer outputs and plain values that changed in a run.

    Only returned choices count: whether compiled made the same inner choices is unknown.
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
        """Whether something flipped."""
        return self._everywhere or bool(self._rows)

    def rows(self, length: int) -> torch.Tensor:
        """Return a mask of the rows, of `length` rows, that have a flip.

        All rows are True if the flips are not in a tensor of that length.
        """
        if self.any() and (self._everywhere or length not in self._rows):
            return torch.ones(length, dtype=torch.bool)
        return self._rows.get(length, torch.zeros(length, dtype=torch.bool))


def flips_a_choice(eager: Outcome, compiled: Outcome) -> bool:
    """Return whether a choice of compiled differs from eager's."""
    return _Flips(eager, compiled).any()


def flipped_rows(eager: Outcome, compiled: Outcome, length: int) -> torch.Tensor:
    """Return a mask of the rows, of `length` rows, in which compiled's choices differ from eager's."""
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
    """Add the movement of one tensor in one run to `found`."""
    largest = largest_distance(base, other)
    if not math.isfinite(largest):
        _add_kinds(found, base, other)
    if not has_rows(path, base):
        largest = largest if math.isfinite(largest) else float(_finite_distances(base, other).max())
        if flips.any():
            known = 0.0 if found.largest_with_flip is None else float(found.largest_with_flip)
            found.largest_with_flip = torch.tensor(max(known, largest))
            return
        found.runs += 1
        found.whole = max(found.whole, largest)
        found.slope = max(found.slope, abs(slope(base, other)))
        return
    distances = _finite_distances(base, other)
    flipped = flips.rows(len(base)).to(base.device)
    if not flips_only:
        _add_rows_without_flip(found, base, other, distances, flips)
    if flips.any():
        jumped = distances * flipped.reshape(-1, *(1,) * (distances.dim() - 1))
        found.largest_with_flip = (
            jumped if found.largest_with_flip is None else torch.maximum(found.largest_with_flip, jumped)
        )


def _add_rows_without_flip(
    found: Movement, base: torch.Tensor, other: torch.Tensor, distances: torch.Tensor, flips: _Flips
) -> None:
    """Add the movement of the rows in which no choice flips to `found`."""
    flipped = flips.rows(len(base)).to(base.device)
    each = distances.reshape(len(base), -1).amax(dim=1).masked_fill(flipped, 0.0)
    found.rows = each if found.rows is None else torch.maximum(found.rows, each)
    found.seen_without_flip = (
        ~flipped if found.seen_without_flip is None else found.seen_without_flip | ~flipped
    )
    found.whole = max(found.whole, float(each.max()))
    found.runs += not bool(flipped.all())
    if not flips.any():
        found.slope = max(found.slope, abs(slope(base, other)))


def _add_kinds(found: Movement, base: torch.Tensor, other: torch.Tensor) -> None:
    """Record the kinds of the elements, from the first run on in which one is NaN or infinite."""
    if found.kinds is None:
        seen = found.runs > 0 or found.largest_with_flip is not None
        found.kinds = kinds_of(base) if seen else torch.zeros_like(base, dtype=torch.uint8)
    found.kinds |= kinds_of(other)


def kinds_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the kind of each element as uint8: `FINITE`, `NAN`, `PLUS` or `MINUS`."""
    kinds = torch.full_like(tensor, FINITE, dtype=torch.uint8).masked_fill_(tensor.isnan(), NAN)
    return kinds.masked_fill_(tensor == math.inf, PLUS).masked_fill_(tensor == -math.inf, MINUS)


def slope(base: torch.Tensor, other: torch.Tensor) -> float:
    """Return the share by which `other` is larger than `base` as a whole: its projection on `base`, minus 1.

    Return 0 if an element is not finite or `base` is zero.
    """
    total = product = 0.0
    for mine, theirs in zip(*(torch.split(t.reshape(-1), _BLOCK) for t in (base, other)), strict=True):
        wide = mine.double()
        total += float(wide @ wide)
        product += float(wide @ (theirs.double() - wide))
    return product / total if total and math.isfinite(total) and math.isfinite(product) else 0.0


def largest_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest distance between elements of two tensors; NaN or infinite if a distance is.

    Works in blocks, because allocating the distances of a large gradient takes longer than computing them.
    """
    blocks = zip(*(torch.split(tensor.reshape(-1), _BLOCK) for tensor in (one, other)), strict=True)
    return float(torch.stack([(mine - theirs).abs().max() for mine, theirs in blocks]).max())


def _finite_distances(base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the distances between elements, 0 where a distance is not finite."""
    return (other - base).abs().nan_to_num_(0.0, 0.0, 0.0)
