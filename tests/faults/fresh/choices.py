"""Wrong choices, and wrong values that are computed from choices."""

from __future__ import annotations

import functools

import torch

from .record import fault, last_row, of_output, of_value

_choice = functools.partial(fault, "a choice")


def _second(logits: torch.Tensor) -> torch.Tensor:
    return logits.topk(2, -1).indices[..., 1]


CHOICES = (
    _choice("the second best", "autoregressive heads", lambda self, right, y: _second(y), method="picked"),
    _choice(
        "the second best in one row",
        "autoregressive heads",
        lambda self, right, y: torch.where(torch.arange(len(y)) == len(y) - 1, _second(y), right(y)),
        method="picked",
    ),
    _choice(
        "1 % on the last log-probability",
        "autoregressive heads",
        of_output(1, lambda y: torch.cat([y[:, :-1], y[:, -1:] * 1.01], -1)),
    ),
    _choice(
        "the second nearest code", "codebook", lambda self, right, x: (right(x) + 1) % 8, method="nearest"
    ),
    _choice(
        "codes without their own length",
        "codebook",
        lambda self, right, x: (-2 * x @ self.codes.weight.t()).argmin(-1),
        method="nearest",
    ),
    _choice(
        "weights that are not renormalised",
        "two of four experts",
        lambda self, right, x: tuple(self.gate(x).softmax(-1).topk(2, -1)),
        method="routed",
    ),
    _choice(
        "the order of the experts",
        "two of four experts",
        lambda self, right, x: (right(x)[0], right(x)[1].flip(-1)),
        method="routed",
    ),
    _choice("never turned", "canonical orientation", of_value(lambda t: t & False), method="turned"),
    _choice(
        "the worst candidates",
        "best five candidates",
        lambda self, right, s: s.topk(5, -1, largest=False),
        method="best",
    ),
    _choice(
        "two candidates exchanged",
        "best five candidates",
        lambda self, right, s: (right(s)[0], right(s)[1][:, [1, 0, 2, 3, 4]]),
        method="best",
    ),
    _choice("one option for all", "options", of_output(0, lambda o: o * 0)),
    _choice("a value doubled", "options", of_output(3, lambda v: v * 2)),
    _choice("a load that is not balanced", "one of four experts", of_output(1, lambda y: y * 1.01)),
    _choice("soft for hard", "relaxed categorical, hard", of_output(1, lambda y: y * 0.99 + 0.002)),
    _choice("switches at the wrong side", "switches", of_output(2, lambda on: ~on)),
    _choice(
        "a latent too few",
        "world model with discrete latents",
        of_output(4, lambda z: torch.cat([z[:, :-4], z[:, -4:] * 0], -1)),
    ),
    _choice("the tail is kept", "nucleus of the choices", of_value(lambda y: (y + 1e-3) / (1 + 9e-3))),
    _choice(
        "the first row of another",
        "options",
        of_output(1, lambda y: torch.where(last_row(y), y.roll(1, -1), y)),
    ),
)
