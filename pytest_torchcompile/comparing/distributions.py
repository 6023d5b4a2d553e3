"""Whether two series of draws come from one distribution.

The tests of a series are exact: if the draws of both sides are independent and alike, which of them are
eager's is a coin toss, and the chances are computed from that and nothing else. A chi-squared test
would be approximate, and where chances of one in ten million count, nobody knows by how much.

Needs scipy, which is an extra, so that this module is imported only when it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import gammaln

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ALIKE = 1e-4
"""Values that repeat are one value if they lie closer than this, relative to 1 or their own size."""
FREQUENT = 16
"""A value met so often, on both sides together, is tested by itself; fewer could prove nothing."""
MOST_VALUES = 8
"""How many values of a series are tested so."""

NEXT_ROW = "difference to the next row"
NEXT_ELEMENT = "difference to the next element"
NEXT_CALL = "difference to the next call"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """Which elements of a tensor are watched; each is a column of the arrays of draws.

    Args:
        columns: the flat index of each column's element.
        elements: the columns to test; the others are there for their neighbours.
        below: pairs of columns, an element and the same one of the next row.
        beside: pairs of columns, an element and the next one of its row.
    """

    columns: Indices
    elements: Indices
    below: Indices
    beside: Indices

    @classmethod
    def of(cls, shape: tuple[int, ...], most: int) -> Watched:
        """At most `most` elements, evenly spaced, and their neighbours; the first dimension is rows."""
        size = int(np.prod(shape, dtype=np.int64))
        width = size // shape[0] if shape and size else 1
        elements = np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(np.int64))
        below = elements[elements + width < size]
        beside = elements[(elements + 1) % width != 0] if width > 1 else elements[:0]
        columns = np.unique(np.concatenate([elements, below + width, beside + 1]))

        def column(indices: Indices) -> Indices:
            return np.searchsorted(columns, indices)

        return cls(
            columns=columns,
            elements=column(elements),
            below=np.stack([column(below), column(below + width)], axis=1),
            beside=np.stack([column(beside), column(beside + 1)], axis=1),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One number for each draw (or each pair of draws), of both sides.

    Args:
        what: how it is computed from a draw; empty if it is an element itself.
        column: of the element; None for a number that sums up all of them.
        eager: eager's draws, one after the other.
        compiled: as many of compiled's.
    """

    what: str
    column: int | None
    eager: Array
    compiled: Array

    def chance(self) -> float:
        """Chance of a deviation as large as this one if both sides draw alike; never understated.

        The smaller of two: by the largest gap between the shares of draws below any value
        (Kolmogorov and Smirnov), which ties only make rarer; and by how often each frequent value
        comes (Fisher). It is multiplied by the number of tests.
        """
        values = merged(np.concatenate([self.eager, self.compiled]))
        half = len(self.eager)
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        times = np.bincount(places[:half], minlength=len(counts))
        smallest = _chance_of_gap(int(np.abs(np.cumsum(2 * times - counts)).max()), half)
        frequent = np.argsort(-counts, kind="stable")[:MOST_VALUES]
        frequent = frequent[counts[frequent] >= FREQUENT]
        if len(frequent):
            urn = (2 * half, counts[frequent], half)
            fewer = stats.hypergeom.cdf(times[frequent], *urn)
            more = stats.hypergeom.sf(times[frequent] - 1, *urn)
            smallest = min(smallest, 2 * float(np.minimum(fewer, more).min()))
        return min(1.0, (1 + len(frequent)) * smallest)

    def figures(self) -> tuple[str, str]:
        """Both sides in words: the share of the value that deviates most, or mean and deviation."""
        values = merged(np.concatenate([self.eager, self.compiled]))
        sides = np.split(values, 2)
        distinct = np.unique(values)
        what = f"{self.what}: " if self.what else ""
        count = f"{len(self.eager)} {'pairs of draws' if self.what == NEXT_CALL else 'draws'}"
        if len(distinct) <= MOST_VALUES:
            shares = [(side[:, None] == distinct).mean(axis=0) for side in sides]
            worst = int(np.argmax(np.abs(shares[0] - shares[1])))
            told = [f"{what}{distinct[worst]:.6g} in {share[worst]:.1%} of {count}" for share in shares]
        else:
            told = [
                f"{what}mean {_shown(np.mean(side))}, standard deviation {_shown(np.std(side))} in {count}"
                for side in (self.eager, self.compiled)
            ]
        return told[0], told[1]


def _chance_of_gap(gap: int, draws: int) -> float:
    """Chance that two series of `draws` values without ties ever get `gap` or more values apart, at most.

    Sorted together, they are a walk of as many steps up as down; by reflection, C(2n, n + gap) of the
    C(2n, n) walks come as high. scipy's `ks_2samp` computes the same where it is small, but gives up
    on an exact value where it is not.
    """
    logarithm = 2 * gammaln(draws + 1) - gammaln(draws + gap + 1) - gammaln(draws - gap + 1)
    return min(1.0, 2 * float(np.exp(logarithm)))


_Make = Callable[[str, Array, Array], Series]


def _shown(value: np.floating) -> str:
    return f"{value:.4g}"


def merged(values: Array) -> Array:
    """`values` with those that repeat and differ by rounding only made equal.

    A clamped action, a dropped unit, a log-probability of one of four actions: both sides draw the
    same few values, and compiled's may be off by rounding, which a comparison of ranks would take
    for another distribution. Numbers that don't repeat stay as they are.
    """
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max(initial=0.0))
    # Ranks are all that matters, so that anything beyond the largest stands for what is not finite.
    values = np.nan_to_num(values, nan=2 * largest + 2, posinf=largest + 1, neginf=-largest - 1)
    distinct, counts = np.unique(values, return_counts=True)
    repeated = distinct[counts > 2]
    if not len(repeated):
        return values
    spread = float(values.std())
    anchors = []
    position = 0
    while position < len(repeated):
        anchors.append(repeated[position])
        near = repeated[position] + _alike(repeated[position], spread)
        position = max(position + 1, int(np.searchsorted(repeated, near, side="right")))
    kept = np.asarray(anchors)
    after = np.searchsorted(kept, values, side="left").clip(max=len(kept) - 1)
    before = (np.searchsorted(kept, values, side="right") - 1).clip(min=0)
    for anchor in (kept[after], kept[before]):
        values = np.where(np.abs(values - anchor) <= _alike(anchor, spread), anchor, values)
    return values


def _alike(value: Array | float, spread: float) -> Array:
    # Never so wide that noise of a small scale would be taken for one value.
    return np.asarray(np.minimum(ALIKE * np.maximum(1.0, np.abs(value)), 0.01 * spread))


def still(draws: Array, atol: float, rtol: float) -> Bools:
    """Which columns move no more than the tolerance in all draws."""
    with np.errstate(invalid="ignore"):
        span = draws.max(axis=0) - draws.min(axis=0)
        within = np.isfinite(span) & (span <= atol + rtol * np.abs(draws).max(axis=0))
    return np.asarray(within | (draws == draws[0]).all(axis=0) | np.isnan(draws).all(axis=0))


def series_of(eager: Array, compiled: Array, watched: Watched, moving: Bools) -> Iterator[Series]:
    """What is tested of one tensor.

    Each element by itself; its difference to its neighbours, which one noise shared by rows or
    elements changes; its difference to the next call, which frozen or slowly moving noise changes;
    and numbers that sum up all elements, which show what is too small to be seen at any.

    Args:
        eager: ``(draws, columns)``.
        compiled: likewise.
        watched: the columns.
        moving: which columns are drawn, not constant, on some side.
    """
    finite: Bools = np.isfinite(np.concatenate([eager, compiled])).all(axis=0)
    elements = watched.elements[moving[watched.elements]]
    yield from (Series(what="", column=int(c), eager=eager[:, c], compiled=compiled[:, c]) for c in elements)
    drawn: Bools = np.asarray(moving & finite)
    elements = elements[finite[elements]]
    if not len(elements):
        return
    below = watched.below[drawn[watched.below].all(axis=1)]
    beside = watched.beside[drawn[watched.beside].all(axis=1)]
    for what, pairs in ((NEXT_ROW, below), (NEXT_ELEMENT, beside)):
        for c, d in pairs:
            yield Series(
                what=what,
                column=int(c),
                eager=eager[:, d] - eager[:, c],
                compiled=compiled[:, d] - compiled[:, c],
            )
    # Indices that don't overlap, so that they are independent.
    even = slice(0, len(eager) // 2 * 2, 2), slice(1, len(eager) // 2 * 2, 2)
    for c in elements:
        mine, theirs = (side[even[1], c] - side[even[0], c] for side in (eager, compiled))
        yield Series(what=NEXT_CALL, column=int(c), eager=mine, compiled=theirs)
    yield from _sums(eager, compiled, elements, below, beside)


def _sums(
    eager: Array, compiled: Array, elements: Indices, below: Indices, beside: Indices
) -> Iterator[Series]:
    """Numbers that sum up the elements, each shifted and scaled alike on both sides."""
    both = np.concatenate([eager, compiled])
    # Columns that are not finite are not among those summed up.
    with np.errstate(invalid="ignore"):
        mean, scale = both.mean(axis=0), both.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        sides = [(side - mean) / scale for side in (eager, compiled)]

    def series(what: str, mine: Array, theirs: Array) -> Series:
        return Series(what=f"{what} {len(elements)} elements", column=None, eager=mine, compiled=theirs)

    yield series("standardised mean of", *(z[:, elements].mean(axis=1) for z in sides))
    yield series("standardised mean square of", *((z[:, elements] ** 2).mean(axis=1) for z in sides))
    for where, pairs in (("row", below), ("element", beside)):
        if len(pairs):
            one, other = pairs.T
            yield series(
                f"product with the next {where}, standardised, mean of",
                *((z[:, one] * z[:, other]).mean(axis=1) for z in sides),
            )
    even = slice(0, len(eager) // 2 * 2, 2), slice(1, len(eager) // 2 * 2, 2)
    yield series(
        "product with the next call, standardised, mean of",
        *((z[even[0], elements] * z[even[1], elements]).mean(axis=1) for z in sides),
    )
    yield from _shares(both, elements, below, beside, series)


def _shares(
    both: Array, elements: Indices, below: Indices, beside: Indices, series: _Make
) -> Iterator[Series]:
    """How many elements have each frequent value, and how many that of their neighbour."""
    values = merged(both.ravel()).reshape(both.shape)
    distinct, counts = np.unique(values[:, elements], return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    frequent = frequent[counts[frequent] >= max(FREQUENT, 0.01 * len(elements) * len(both))]
    for value in distinct[frequent]:
        mine, theirs = np.split((values[:, elements] == value).mean(axis=1), 2)
        yield series(f"share of {value:.6g} among", mine, theirs)
    for where, pairs in (("row", below), ("element", beside)):
        if len(frequent) and len(pairs):
            one, other = pairs.T
            mine, theirs = np.split((values[:, one] == values[:, other]).mean(axis=1), 2)
            yield series(f"share equal to the next {where} among", mine, theirs)


def repeats(eager: Array, compiled: Array) -> tuple[int, int, float]:
    """How many draws came more than once on each side, and the chance of numbers so unequal.

    Random numbers that go round in a circle look right draw by draw. A draw that comes again does so
    on either side with the same chance if both draw alike. (Of outcomes that are not rare fewer come
    again than independent ones would, which makes the chance larger than it says, never smaller.)
    """
    with np.errstate(invalid="ignore"):
        scale = np.concatenate([eager, compiled]).std(axis=0)
    grain = 1e-5 * np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
    mine, theirs = (
        int(np.sum(np.unique(np.round(side / grain), axis=0, return_counts=True)[1] > 1))
        for side in (eager, compiled)
    )
    if mine + theirs == 0:
        return 0, 0, 1.0
    return mine, theirs, float(stats.binomtest(mine, mine + theirs).pvalue)
