"""Whole numbers that are off by one, by operators that must be exact on them."""

from __future__ import annotations

import functools

import torch

from .record import fault, last_row, of_output, of_value

IDS, DIGITS, CELLS = "ids in floats", "digits of a counter", "cells of a grid"

_off = functools.partial(fault, "whole numbers in floats")
WHOLE_NUMBERS = (
    _off("an id more", IDS, of_value(lambda ids: (ids + 1).clamp(max=29)), method="ids"),
    _off(
        "an id more in the last row",
        IDS,
        of_value(lambda ids: torch.where(last_row(ids), (ids + 1) % 30, ids)),
        method="ids",
    ),
    _off("the largest id is lost", IDS, of_value(lambda ids: ids.clamp(max=28)), method="ids"),
    _off(
        "one less at exact multiples",
        DIGITS,
        lambda self, right, x, by: ((x - 0.5) / by).floor().clamp(min=0),
        method="divided",
    ),
    _off("divided, not floored", DIGITS, lambda self, right, x, by: x / by, method="divided"),
    _off("rounded, not floored", DIGITS, lambda self, right, x, by: (x / by).round(), method="divided"),
    _off(
        "the divisor for no remainder", DIGITS, of_value(lambda y: torch.where(y == 0, 7.0, y)), method="left"
    ),
    _off(
        "a remainder that is one less", DIGITS, of_value(lambda y: torch.where(y == 6, 5.0, y)), method="left"
    ),
    _off("a count that misses its own step", CELLS, lambda self, right, x: right(x) - x, method="counted"),
    _off(
        "a count of one more at its end",
        CELLS,
        lambda self, right, x: right(x) + (torch.arange(x.shape[1]) == x.shape[1] - 1).float(),
        method="counted",
    ),
    _off(
        "the neighbouring plane",
        "piece numbers to planes",
        lambda self, right, board: right((board + 1).clamp(max=6)),
        method="planes",
    ),
    _off(
        "a lost plane of the rarest piece",
        "piece numbers to planes",
        of_value(lambda y: torch.cat([y[:, :-1], y[:, -1:] * 0], 1)),
        method="planes",
    ),
    _off("a token more", "tokens by the mu-law", of_value(lambda t: (t + 1).clamp(max=63)), method="tokens"),
    _off("floored tokens", "tokens by the mu-law", of_output(1, lambda t: t - t % 2)),
    _off("tiles of a neighbour", "tile coding", of_value(lambda t: (t + 1) % 25), method="tiles"),
    _off(
        "a hash that is not cut to 32 bits",
        "hashed ids",
        lambda self, right, ids: (ids * 2654435761) % 17,
        method="place",
    ),
    _off(
        "mass lost between atoms",
        "categorical critic with its target",
        lambda self, right, v, w: right(v, w) * (v.floor() != v),
        method="shared_out",
    ),
    _off(
        "a bin too high", "two-hot value in symlog space", of_value(lambda y: y.roll(1, -1)), method="target"
    ),
    _off(
        "comparison with equality",
        "canonical orientation",
        lambda self, right, x: x[..., :2].mean((1, 2)) <= x[..., 2:].mean((1, 2)),
        method="turned",
    ),
    _off("halves rounded up", CELLS, lambda self, right, x: (x + 0.5).floor(), method="cell"),
    _off("truncated, not rounded", CELLS, lambda self, right, x: x.trunc(), method="cell"),
)
