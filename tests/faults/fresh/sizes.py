"""Faults at sizes that people train with: minibatches of hundreds, the rest of a batch, long sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .. import backends
from .record import UPDATE, Change, Fault, fault, of_value, same_value

_size = functools.partial(fault, "a size that people train with")

Rows = Callable[[torch.Tensor, int], Any]
"""``rows(numbers, batch)``: which of the rows, counted from 0, are wrong."""


def _rows(rows: Rows, output: int = 0) -> Change:
    """Add a thousandth to some rows of one output, in the graph that serves every size."""

    def wrong(self: nn.Module, right: Any, *args: Any, **inputs: Any) -> Any:
        outputs = right(*args, **inputs)
        if isinstance(outputs, torch.Tensor):
            return _in_rows(outputs, rows)
        return tuple(_in_rows(y, rows) if i == output else y for i, y in enumerate(outputs))

    return wrong


def _in_rows(y: torch.Tensor, rows: Rows) -> torch.Tensor:
    return y + 1e-3 * _where(y, rows)


def _where(y: torch.Tensor, rows: Rows) -> torch.Tensor:
    return rows(torch.arange(len(y)), len(y)).reshape(-1, *[1] * (y.dim() - 1))


def _gradient(rows: Rows, factor: float) -> Change:
    """The right value; the gradient of some rows times `factor`."""
    return of_value(lambda y: torch.where(_where(y, rows), same_value(y, factor), y))


def _batches(condition: Callable[[int], bool], backward: bool = False) -> Callable[[], Any]:
    """A backend whose kernels are wrong at some batch sizes; `backward`: only their gradients are."""

    def change(outputs: backends.Outputs, call: int) -> backends.Outputs:
        return [_at_sizes(output, condition, backward) for output in outputs]

    return lambda: backends.changed(change)


def _at_sizes(output: Any, condition: Callable[[int], bool], backward: bool) -> Any:
    if not isinstance(output, torch.Tensor) or not output.is_floating_point() or not output.dim():
        return output
    if not condition(len(output)):
        return output
    return same_value(output, 0.9) if backward else output + 1e-3


def _rest(width: int) -> Rows:
    """The last row of a batch larger than `width` that is no multiple of it."""
    return lambda row, batch: (row == batch - 1) & (batch > width and batch % width > 0)


def _upto(batch: Sequence[int]) -> dict[str, Any]:
    return {"declared": {"batch": tuple(batch)}}


LATE = (
    _size("rows from 34 on", "dueling heads", _rows(lambda row, batch: row >= 33)),
    _size("rows from 34 on", "language model with a value head", _rows(lambda row, batch: row >= 33, 1)),
    _size("rows from 66 on", "squeeze and excite, GroupNorm", _rows(lambda row, batch: row >= 65)),
    _size("rows from 101 on", "gated cell over steps", _rows(lambda row, batch: row >= 100)),
    _size(
        "rows from 257 on", "quantile critic with its loss", _rows(lambda row, batch: row >= 256, output=1)
    ),
    _size("rows past 1,000", "noise that depends on the state", _rows(lambda row, batch: row > 1000)),
)

RESTS = (
    _size("the rest of a batch by 16", "six residual layers", _rows(_rest(16))),
    _size("the rest of a batch by 64", "graph in the observation", _rows(_rest(64))),
    _size("the rest of a batch by 128", "angles", _rows(_rest(128))),
    _size(
        "rows behind the last full vector of 32",
        "bytes to actions",
        _rows(lambda row, batch: (row >= batch // 32 * 32) & (batch > 32)),
    ),
)

EXACT = (
    _size("exactly 33", "adapter of low rank", backend=_batches(lambda batch: batch == 33)),
    _size("exactly 64", "five critics by vmap", backend=_batches(lambda batch: batch == 64)),
    _size("exactly 128", "normalising flow", backend=_batches(lambda batch: batch == 128)),
    _size("exactly 257", "soft experts", backend=_batches(lambda batch: batch == 257)),
    _size("exactly 1,024", "weight norm", backend=_batches(lambda batch: batch == 1024)),
    _size(
        "exactly 64, its own graph",
        "sorted features and their median",
        lambda self, right, x: right(x) * (1.001 if len(x) == 64 else 1),
    ),
    _size("multiples of 64", "keypoints", backend=_batches(lambda batch: batch % 64 == 0)),
    _size("multiples of 32", "soft decision trees", backend=_batches(lambda batch: batch % 32 == 0)),
)

TOPS = (
    _size(
        "the top of 1 to 512",
        "products of two streams",
        backend=_batches(lambda batch: batch == 512),
        **_upto((1, 512)),
    ),
    _size(
        "the top of 1 to 256",
        "successor features",
        backend=_batches(lambda batch: batch == 256),
        **_upto((1, 256)),
    ),
    _size(
        "the top of 32 to 2,048",
        "generated weights",
        backend=_batches(lambda batch: batch == 2048),
        **_upto((32, 2048)),
    ),
    _size(
        "rows from 1,501 on of up to 2,048",
        "gated layers between RMS norms",
        _rows(lambda row, batch: row >= 1500),
        **_upto((64, 2048)),
    ),
    _size(
        "the only size",
        "value from a support",
        backend=_batches(lambda batch: batch == 256),
        **_upto((256,)),
    ),
)

_learnt = functools.partial(_size, phase=UPDATE)
GRADIENTS = (
    _learnt("the gradient of rows past 64", "dueling heads", _gradient(lambda row, batch: row >= 64, 2.0)),
    _learnt(
        "the gradient of rows past 128", "soft decision trees", _gradient(lambda row, batch: row >= 128, 0.0)
    ),
    _learnt("the gradient of the rest by 16", "adapter of low rank", _gradient(_rest(16), 0.0)),
    _learnt(
        "all gradients at 1,024",
        "spectral norm",
        backend=_batches(lambda batch: batch == 1024, backward=True),
    ),
    _learnt(
        "all gradients at multiples of 64",
        "residual blocks behind pooling",
        backend=_batches(lambda batch: batch % 64 == 0, backward=True),
    ),
)

SUMS = (
    _learnt(
        "statistics of the first 128 rows",
        "running normaliser",
        lambda self, right, x: right(x[:128]),
        method="track",
    ),
    _learnt("a mean of the first 64 rows", "curiosity", lambda self, right, e: right(e[:64]), method="track"),
    _learnt("a loss of the first 128 rows", "PopArt", lambda self, right, r: right(r[:128]), method="track"),
)

# --- lengths of sequences ---------------------------------------------------------------------------

Steps = Callable[[torch.Tensor, int], Any]


def _steps(steps: Steps) -> Change:
    """Add a thousandth at some steps, which are counted from 0: ``steps(numbers, length)``."""

    def change(y: torch.Tensor) -> torch.Tensor:
        return y + 1e-3 * steps(torch.arange(y.shape[1]), y.shape[1])[:, None]

    return of_value(change)


def _late_steps_cut(y: torch.Tensor) -> torch.Tensor:
    return torch.cat([y[:, :32], y[:, 32:].detach()], 1)


STEPS = (
    _size("steps from 34 on", "causal convolutions over any length", _steps(lambda step, length: step >= 33)),
    _size(
        "the last of 33 steps",
        "running sums over any length",
        _steps(lambda step, length: (step == 32) & (length == 33)),
    ),
    _size(
        "exactly 64 steps",
        "weighed mean over any length",
        lambda self, right, x: right(x) * (1.001 if x.shape[1] == 64 else 1),
    ),
    _size(
        "multiples of 8 steps",
        "causal convolutions over any length",
        _steps(lambda step, length: (step >= 0) & (length % 8 == 0)),
    ),
    _size(
        "two steps",
        "weighed mean over any length",
        lambda self, right, x: right(x) + (1e-3 if x.shape[1] == 2 else 0),
    ),
    _learnt("the gradient of steps past 32", "running sums over any length", of_value(_late_steps_cut)),
)

SIZES: tuple[Fault, ...] = (*LATE, *RESTS, *EXACT, *TOPS, *GRADIENTS, *SUMS, *STEPS)
