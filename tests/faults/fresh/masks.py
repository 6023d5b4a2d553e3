"""Masks that are lost, leak, move, or turn into NaN."""

from __future__ import annotations

import functools

import torch
from torch import nn

from ..correct.attention import CausalBlock
from .record import UPDATE, fault, nan_in_last_row, of_output, of_value, scaled_gradient

SHARES, BEST = "shares of actions, some never legal", "the best of the legal actions"
SCORES, CAUSAL = "scores of actions, some never legal", "language model with a value head"
ACT, WORTH = "an action under a drawn mask", "the worth of actions under a drawn mask"
EMPTY, BARE = "entities, absent ones -inf, empty rows 0", "entities, empty rows NaN"
LARGE, HEADS = "entities, absent ones -1e9", "three masked heads"
INFINITY, NAN = float("inf"), float("nan")

_fixed = functools.partial(fault, "a mask that is fixed")
FIXED = (
    _fixed("-1e9 for -inf", SCORES, lambda self, right, x: x.masked_fill(self.closed, -1e9), method="masked"),
    _fixed(
        "lowest for -inf", SCORES, lambda self, right, x: x.masked_fill(self.closed, -1e38), method="masked"
    ),
    _fixed(
        "+inf for -inf", SCORES, lambda self, right, x: x.masked_fill(self.closed, INFINITY), method="masked"
    ),
    _fixed(
        "+inf for -inf", SHARES, lambda self, right, x: x.masked_fill(self.closed, INFINITY), method="masked"
    ),
    _fixed("NaN for -inf", SCORES, of_value(lambda y: torch.where(y.isinf(), NAN, y)), method="scores"),
    _fixed("NaN for -inf in one row", SCORES, of_value(nan_in_last_row), method="masked"),
    _fixed("lost", SHARES, lambda self, right, x: x, method="masked"),
    _fixed("leaks", SHARES, lambda self, right, x: x.masked_fill(self.closed, -7.0), method="masked"),
    _fixed(
        "moved", SHARES, lambda self, right, x: x.masked_fill(self.closed.roll(1), -INFINITY), method="masked"
    ),
    _fixed("an illegal action, always", BEST, of_value(torch.zeros_like), method="picked"),
    _fixed(
        "an illegal action for a legal one",
        BEST,
        of_value(lambda a: torch.where(a == 7, 6, a)),
        method="picked",
    ),
    _fixed("one row's log-probability NaN", BEST, of_output(1, nan_in_last_row), method="greedy"),
    _fixed("NaN shares of everything", SHARES, of_output(0, lambda y: y / 0.0 * 0.0)),
    _fixed("NaN shares where illegal", SHARES, of_output(0, lambda y: torch.where(y == 0, NAN, y))),
    _fixed("an entropy of NaN", SHARES, of_output(1, lambda y: y * NAN)),
    _fixed("one row's entropy NaN", SHARES, of_output(1, nan_in_last_row)),
    _fixed("the entropy by its formula", SHARES, lambda self, right, x: _naive(right(x))),
    _fixed(
        "no gradient of a temperature",
        SCORES,
        lambda self, right, x: _cold(self, x),
        method="scores",
        phase=UPDATE,
    ),
    _fixed(
        "twice the gradient of one", SCORES, of_value(scaled_gradient(2.0)), method="masked", phase=UPDATE
    ),
)


def _naive(outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    shares, _, value = outputs
    return shares, -(shares * shares.log()).sum(-1), value


def _cold(policy: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return policy.masked(policy.net(x)) / policy.log_temperature.detach().exp()


_drawn = functools.partial(fault, "a mask that is drawn")
DRAWN_MASKS = (
    _drawn("moved by one", WORTH, lambda self, right, x, mask: right(x, mask.roll(1, -1)), method="masked"),
    _drawn("lost", WORTH, lambda self, right, x, mask: x, method="masked"),
    _drawn("leaks", WORTH, lambda self, right, x, mask: x.masked_fill(~mask, -7.0), method="masked"),
    _drawn(
        "+inf for -inf", WORTH, lambda self, right, x, mask: x.masked_fill(~mask, INFINITY), method="masked"
    ),
    _drawn("one row's log-probability NaN", WORTH, of_output(0, nan_in_last_row), method="evaluate"),
    _drawn("one row's entropy NaN", WORTH, of_output(1, nan_in_last_row), method="evaluate"),
    _drawn(
        "the entropy by its formula",
        WORTH,
        lambda self, right, x, mask, action: _entropy_of_nan(self.choices(x, mask), right(x, mask, action)),
        method="evaluate",
    ),
    _drawn(
        "samples an illegal action where there is one",
        ACT,
        lambda self, right, choices: (choices.probs == 0).float().argmax(-1) + 0 * right(choices),
        method="drawn",
    ),
    _drawn("one row's log-probability NaN", ACT, of_output(1, nan_in_last_row), method="act"),
    _drawn("always the first", "pointer", of_output(0, lambda action: action * 0), method="act"),
    _drawn(
        "all is legal where one action is",
        HEADS,
        lambda self, right, x, mask, actions: right(
            x, (mask > 0.5) | (mask.sum(-1, keepdim=True) < 2), actions
        ),
    ),
    _drawn(
        "NaN in rows that are masked entirely",
        HEADS,
        lambda self, right, x, mask, actions: _nan_where(mask.sum(-1) == 0, *right(x, mask, actions)),
    ),
    _drawn(
        "a place too far", "a board within a mask", of_value(lambda y: torch.cat([y[:, 1:], y[:, :1]], 1))
    ),
)


def _nan_where(empty: torch.Tensor, *outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.where(empty, float("nan"), output) for output in outputs)


def _entropy_of_nan(
    choices: torch.distributions.Categorical, outputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    log_prob, _, value = outputs
    return log_prob, -(choices.probs * choices.probs.log()).sum(-1), value


_attention = functools.partial(fault, "a mask of attention")
ATTENTION_MASKS = (
    _attention(
        "causal: the future leaks", CAUSAL, lambda self, right, s: s, method="masked", part=CausalBlock
    ),
    _attention(
        "causal: one token ahead",
        CAUSAL,
        lambda self, right, s: s.masked_fill(~torch.ones_like(self.past).tril(1), float("-inf")),
        method="masked",
        part=CausalBlock,
    ),
    _attention(
        "causal: a first token that sees nothing",
        CAUSAL,
        lambda self, right, s: s.masked_fill(~self.past.tril(-1), float("-inf")),
        method="masked",
        part=CausalBlock,
    ),
    _attention("causal: NaN for everything", CAUSAL, of_output(0, lambda y: y * float("nan"))),
    _attention("causal: one row's value NaN", CAUSAL, of_output(1, nan_in_last_row)),
    _attention(
        "empty rows NaN",
        EMPTY,
        lambda self, right, s, p: s.masked_fill(~p[:, None], self.fill).softmax(-1),
        method="shares",
    ),
    _attention("NaN hidden", BARE, of_value(torch.nan_to_num), method="shares"),
    _attention("NaN hidden in outputs", BARE, of_output(0, torch.nan_to_num)),
    _attention(
        "-inf for -1e9",
        LARGE,
        lambda self, right, s, p: s.masked_fill(~p[:, None], float("-inf")).softmax(-1),
        method="shares",
    ),
    _attention(
        "empty rows 0 for a mean",
        LARGE,
        lambda self, right, s, p: right(s, p) * p.any(-1)[:, None, None],
        method="shares",
    ),
    _attention(
        "one absent entity is seen",
        LARGE,
        lambda self, right, s, p: right(s, torch.cat([p[:, :-1], p[:, -1:] | True], -1)),
        method="shares",
    ),
    _attention(
        "300 entities: 0 for a bias of the smallest number in full rows",
        "three hundred entities",
        lambda self, right, s, p: right(s, p) * p.any(-1)[:, None, None],
        method="shares",
    ),
    _attention(
        "a window that is one step longer",
        "rotary attention in a window",
        lambda self, right, s: torch.where(self.near | self.near.roll(1, 0).tril(), s, float("-inf")),
        method="masked",
    ),
    _attention(
        "a present entity left out",
        "a learnt query",
        lambda self, right, x, absent: right(
            x, torch.cat([absent[:, :-1], torch.ones_like(absent[:, -1:])], -1)
        ),
    ),
    _attention(
        "gradients of absent entities",
        LARGE,
        lambda self, right, s, p: right(s, p) + 0.01 * (s - s.detach()),
        method="shares",
        phase=UPDATE,
    ),
)

MASKS = (*FIXED, *DRAWN_MASKS, *ATTENTION_MASKS)
