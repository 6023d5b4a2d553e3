"""Test whether two series of draws come from one distribution.

The tests are exact permutation tests. If the draws of both sides are independent and have the same
distribution, every assignment of the draws to the sides is equally likely, and the p-values follow from that
alone. A chi-squared test is approximate, and the size of its error is unknown at p-values of one in ten
million.

This module needs scipy, which is an optional dependency, so it is imported only when samples are requested.
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
"""Repeated values closer than this count as one value; relative to the larger of 1 and their size."""
FREQUENT = 16
"""A value that occurs at least this often on both sides together is tested by itself.

Fewer occurrences cannot prove a difference.
"""
MOST_VALUES = 8
"""The number of values of a series that are tested by themselves, at most."""

NEXT_ROW = "difference to the next row"
NEXT_ELEMENT = "difference to the next element"
NEXT_CALL = "difference to the next call"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """The elements of a tensor that are tested; each is a column of the arrays of draws.

    Args:
        columns: the flat index of each column's element.
        elements: the columns to test; the other columns are neighbours of these.
        below: pairs of columns: an element and the element at the same position of the next row.
        beside: pairs of columns: an element and the next element of its row.
    """

    columns: Indices
    elements: Indices
    below: Indices
    beside: Indices

    @classmethod
    def of(cls, shape: tuple[int, ...], most: int) -> Watched:
        """Select at most `most` evenly spaced elements and their neighbours; the first dimension is rows."""
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
    """A statistic of each draw, or of each pair of draws, on both sides.

    Args:
        what: the name of the statistic; empty if it is an element itself.
        column: the column of the element; None for a statistic of all elements.
        eager: eager's values in the order of the draws.
        compiled: the same number of compiled's values.
    """

    what: str
    column: int | None
    eager: Array
    compiled: Array

    def chance(self) -> float:
        """Return the p-value of the hypothesis that both sides have one distribution; never too small.

        It is the smallest p-value of a Kolmogorov-Smirnov test (the largest gap between the shares of draws
        below any value; ties only make a gap less likely) and of Fisher's exact test for each frequent
        value, multiplied by the number of tests.
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
        """Describe both sides: the share of the value that deviates most, or mean and standard deviation."""
        values = merged(np.concatenate([self.eager, self.compiled]))
        sides = np.split(values, 2)
        distinct = np.unique(values)
        what = f"{self.what}: " if self.what else ""
        count = f"{len(self.eager)} {'pairs of draws' if self.what == NEXT_CALL else 'draws'}"
        if len(distinct) <= MOST_VALUES:
            shares = [(side[:, None] == distinct).mean(axis=0) for side in sides]
            worst = int(np.argmax(np.abs(shares[0] - shares[1])))
            texts = [f"{what}{distinct[worst]:.6g} in {share[worst]:.1%} of {count}" for share in shares]
        else:
            texts = [
                f"{what}mean {_shown(np.mean(side))}, standard deviation {_shown(np.std(side))} in {count}"
                for side in (self.eager, self.compiled)
            ]
        return texts[0], texts[1]


def _chance_of_gap(gap: int, draws: int) -> float:
    """Return an upper bound of the p-value of a Kolmogorov-Smirnov gap of `gap` values.

    Sorted together, two series of n = `draws` values without ties are a walk of n steps up and n steps down.
    By the reflection principle, C(2n, n + gap) of the C(2n, n) walks reach the height `gap`. scipy's
    `ks_2samp` returns the same for small p-values, but falls back to an approximation for large ones.
    """
    logarithm = 2 * gammaln(draws + 1) - gammaln(draws + gap + 1) - gammaln(draws - gap + 1)
    return min(1.0, 2 * float(np.exp(logarithm)))


_Make = Callable[[str, Array, Array], Series]


def _shown(value: np.floating) -> str:
    return f"{value:.4g}"


def merged(values: Array) -> Array:
    """Return the values with repeated values that differ only by rounding made equal.

    A clamped action, a dropped unit and the log-probability of one of four actions have few distinct values.
    Rounding shifts compiled's, and a test of ranks would report another distribution. Values that do not
    repeat are unchanged.
    """
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max(initial=0.0))
    # Only ranks matter, so numbers beyond the largest can stand for NaN and the infinities.
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
        near = repeated[position] + _merge_distance(repeated[position], spread)
        position = max(position + 1, int(np.searchsorted(repeated, near, side="right")))
    kept = np.asarray(anchors)
    after = np.searchsorted(kept, values, side="left").clip(max=len(kept) - 1)
    before = (np.searchsorted(kept, values, side="right") - 1).clip(min=0)
    for anchor in (kept[after], kept[before]):
        values = np.where(np.abs(values - anchor) <= _merge_distance(anchor, spread), anchor, values)
    return values


def _merge_distance(value: Array | float, spread: float) -> Array:
    # Bounded by the spread, so that noise of a small scale is not merged into one value.
    return np.asarray(np.minimum(ALIKE * np.maximum(1.0, np.abs(value)), 0.01 * spread))


def still(draws: Array, atol: float, rtol: float) -> Bools:
    """Return a mask of the columns that are constant in all draws, within the tolerance."""
    with np.errstate(invalid="ignore"):
        span = draws.max(axis=0) - draws.min(axis=0)
        within = np.isfinite(span) & (span <= atol + rtol * np.abs(draws).max(axis=0))
    return np.asarray(within | (draws == draws[0]).all(axis=0) | np.isnan(draws).all(axis=0))


def series_of(eager: Array, compiled: Array, watched: Watched, moving: Bools) -> Iterator[Series]:
    """Yield the series to test for one tensor.

    These are each element; its difference to its neighbours, which shows noise that rows or elements share;
    its difference to the next call, which shows frozen or slowly changing noise; and statistics of all
    elements, which show deviations that are too small to be seen in a single element.

    Args:
        eager: eager's draws, ``(draws, columns)``.
        compiled: compiled's draws, ``(draws, columns)``.
        watched: the elements that the columns hold.
        moving: mask of the columns that are not constant on at least one side.
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
    # Pairs of draws that do not overlap, so that the differences are independent.
    even = slice(0, len(eager) // 2 * 2, 2), slice(1, len(eager) // 2 * 2, 2)
    for c in elements:
        mine, theirs = (side[even[1], c] - side[even[0], c] for side in (eager, compiled))
        yield Series(what=NEXT_CALL, column=int(c), eager=mine, compiled=theirs)
    yield from _sums(eager, compiled, elements, below, beside)


def _sums(
    eager: Array, compiled: Array, elements: Indices, below: Indices, beside: Indices
) -> Iterator[Series]:
    """Yield statistics of all elements, standardised with the same mean and scale on both sides."""
    both = np.concatenate([eager, compiled])
    # Columns with NaN or infinities are not in `elements`, so their warnings do not matter.
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
    """Yield the share of elements that have each frequent value, and that equal their neighbour."""
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
    """Return how many draws occur more than once, on eager and on compiled, and the p-value of that.

    This finds random numbers that repeat in a cycle, which the other tests do not. If both sides have one
    distribution, a repeated draw is on either side with equal probability. The p-value is conservative:
    common outcomes repeat less often than independent events would.
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
