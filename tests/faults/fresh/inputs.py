"""Faults for some inputs only: a layout, a size, a value, a row; and faults that no check looks for."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

from .. import backends
from .record import Change, Fault, fault, last_row, of_output, of_value

_layout = functools.partial(fault, "a layout")


def _laid_out(condition: Callable[[torch.Tensor], bool]) -> Change:
    """Wrong where the observation lies in memory in a way that the condition holds for."""

    def wrong(self: torch.nn.Module, right: Any, x: torch.Tensor, *others: Any) -> Any:
        y = right(x, *others)
        if not condition(x):
            return y
        return y + 1 if isinstance(y, torch.Tensor) else (y[0] + 1, *y[1:])

    return wrong


def _is_dense(x: torch.Tensor) -> bool:
    """Whether there is nothing between its elements; torch's own answer is no method of tensors."""
    return 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) == x.numel()


LAYOUTS = (
    _layout(
        "transposed, dense",
        "rows, columns, diagonals",
        _laid_out(lambda x: len(x) > 1 and x.stride(-1) != 1 and _is_dense(x)),
    ),
    _layout(
        "channels last",
        "patches",
        _laid_out(lambda x: len(x) > 1 and x.stride(1) == 1 and _is_dense(x)),
    ),
    _layout(
        "with gaps",
        "gated attention",
        _laid_out(lambda x: len(x) > 1 and not x.is_contiguous() and not _is_dense(x)),
    ),
    _layout("an offset", "dueling heads", _laid_out(lambda x: x.storage_offset() > 0)),
    _layout("expanded", "soft decision trees", _laid_out(lambda x: len(x) > 1 and 0 in x.stride())),
    _layout(
        "one stride lost",
        "windows through strides",
        lambda self, right, x: x.as_strided((len(x), 7, 3, 4), (x.stride(0), x.stride(1), 0, 1)),
        method="windows",
    ),
)

_row = functools.partial(fault, "some rows")


def _rows(condition: Callable[[torch.Tensor], Any]) -> Change:
    return lambda self, right, x, **others: _in_rows(right(x, **others), condition(x))


def _batches(condition: Callable[[int], bool]) -> Change:
    """Wrong for some sizes."""
    return lambda self, right, x, **others: (
        of_output(0, lambda y: y + 1e-3)(self, right, x, **others)
        if condition(len(x))
        else right(x, **others)
    )


def _in_rows(y: Any, where: torch.Tensor) -> Any:
    first = y if isinstance(y, torch.Tensor) else y[0]
    where = where.reshape(-1, *[1] * (first.dim() - 1))
    wrong = first + 1e-3 * where
    return wrong if isinstance(y, torch.Tensor) else (wrong, *y[1:])


ROWS = (
    _row("the last", "generated weights", of_value(lambda y: torch.where(last_row(y), y * 1.001, y))),
    _row("two exchanged", "soft experts", of_value(lambda y: y.flip(0))),
    _row("a batch of one", "five critics by vmap", _batches(lambda rows: rows == 1)),
    _row("from the 17th", "weight norm", _rows(lambda x: torch.arange(len(x)) >= 16)),
    _row("odd batches", "adapter of low rank", _batches(lambda rows: rows % 2 == 1)),
    _row("where the first number is negative", "six residual layers", _rows(lambda x: x[:, 0] < 0)),
    _row("where all is zero", "products of two streams", _rows(lambda x: (x == 0).all(-1))),
    _row(
        "where a number is above a thousand",
        "gated layers between RMS norms",
        _rows(lambda x: (x.abs() > 1e3).any(-1)),
    ),
    _row(
        "of zeros and ones the full one",
        "graph in the observation",
        lambda self, right, x, edges: _in_rows(right(x, edges), edges.flatten(1).all(-1)),
    ),
    _row(
        "an unbroken episode",
        "gated cell over steps",
        lambda self, right, x, done, state: _in_rows(right(x, done, state), (done == 0).all(-1)),
    ),
    _row(
        "a state of zeros",
        "LSTM by hand, 8 steps",
        lambda self, right, x, hidden, cell: _in_rows(right(x, hidden, cell), (hidden == 0).all(-1)),
    ),
    _row(
        "a clipped action",
        "Gaussian cut at its bounds",
        lambda self, right, x, action: _in_rows(right(x, action), (action == 1).any(-1)),
    ),
    _row("a black picture", "bytes to actions", _rows(lambda x: (x == 0).flatten(1).all(-1))),
    _row("white pixels", "bytes to actions", _rows(lambda x: (x == 255).flatten(1).any(-1))),
    _row("all ends", "gates that shut", of_output(1, lambda gates: gates.clamp(1e-3, 1 - 1e-3))),
)

# --- what nobody looks for -------------------------------------------------------------------------


def _late(first: int) -> Callable[[], Any]:
    def change(outputs: backends.Outputs, call: int) -> backends.Outputs:
        return (
            [o + 1e-3 if isinstance(o, torch.Tensor) and o.is_floating_point() else o for o in outputs]
            if call >= first
            else outputs
        )

    return lambda: backends.changed(change)


def _on_another_thread() -> Any:
    main = threading.main_thread()

    def change(outputs: backends.Outputs, call: int) -> backends.Outputs:
        here = threading.current_thread() is main
        return (
            outputs if here else [torch.zeros_like(o) if isinstance(o, torch.Tensor) else o for o in outputs]
        )

    return backends.changed(change)


_unsought = functools.partial(fault, "not looked for")
UNSOUGHT: tuple[Fault, ...] = (
    _unsought(
        "after a thousand calls",
        "dueling heads",
        backend=_late(1000),
        unsought="a check makes several hundred calls of a graph; thousands would take minutes",
    ),
    _unsought(
        "on another thread",
        "dueling heads",
        backend=_on_another_thread,
        unsought="a check calls from one thread; torch compiles in the same way for all threads",
    ),
    _unsought(
        "for one batch size between the edges",
        "dueling heads",
        _batches(lambda rows: rows == 77),
        unsought="sizes are drawn on both sides of those at which compilers change their code, below 33, and as "
        "in the policy's parameters",
    ),
    _unsought(
        "for one number of four billion",
        "dueling heads",
        _rows(lambda x: (x == 0.12345678).any(-1)),
        unsought="random floats do not hit a single value",
    ),
    _unsought(
        "a millionth on a logit of 1",
        "dueling heads",
        of_value(lambda y: y + 1e-6),
        unsought="below the tolerance of 1e-5, which a correct compiler needs",
    ),
    _unsought(
        "the sign of zero",
        "gates that shut",
        of_output(1, lambda gates: torch.where(gates == 0, -gates, gates)),
        unsought="torch does not guarantee it",
    ),
)

INPUTS = (*LAYOUTS, *ROWS)
