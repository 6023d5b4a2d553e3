"""``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``, which dynamo leaves eager by default: whether its setting helps.

On torch 2.13 it does for some and fails for others (an LSTM with gradients), so that it is tried: on a
module of the same class and sizes alone, with the backend of the case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.compiling.capture import Recorder, compile_function, failure_text
from pytest_torchcompile.options import CheckOptions

SETTING = "torch._dynamo.config.allow_rnn = True"
"""What lets dynamo capture them."""

_STEPS, _BATCH = 2, 3
"""Of the inputs that one is tried on: the least that recurs."""

_SIZES = (
    "input_size",
    "hidden_size",
    "num_layers",
    "bias",
    "batch_first",
    "bidirectional",
    "proj_size",
)

_tried: dict[tuple[object, ...], str] = {}
"""By class, sizes and compile options how it failed; empty if it worked."""


def remedies(model: nn.Module, left_eager: Collection[str], options: CheckOptions) -> Iterator[str]:
    """A sentence on each kind of recurrent module that ran eager: what was seen of the setting.

    Args:
        model: the policy.
        left_eager: names of its modules that ran eager.
        options: how to compile.
    """
    told = set()
    for name, module in internals.uncompiled(model).named_modules():
        kind = type(module)
        if not isinstance(module, nn.RNNBase) or kind not in (nn.RNN, nn.GRU, nn.LSTM) or kind in told:
            continue
        if name in left_eager:
            told.add(kind)
            failure = _try(module, options)
            seen = f"an nn.{kind.__name__} of its sizes alone, backend {options.backend_name}, with gradients"
            yield (
                f"{name}: dynamo leaves nn.{kind.__name__} eager by default; {SETTING} "
                + (f"does not help on torch {torch.__version__}: {seen}, raised {failure}" if failure else "")
                + (f"compiles it (tried on {seen})" if not failure else "")
            )


def _try(module: nn.RNNBase, options: CheckOptions) -> str:
    """How compiling one like it fails; empty if it compiles and agrees."""
    sizes = {size: getattr(module, size) for size in _SIZES}
    weight = next(module.parameters())
    how = (options.backend_name, options.mode, repr(options.options), options.dynamic)
    key = (
        type(module),
        *sizes.values(),
        getattr(module, "nonlinearity", ""),
        weight.dtype,
        weight.device,
        *how,
    )
    if key not in _tried:
        _tried[key] = _failure(_like(module, sizes), options)
    return _tried[key]


def _like(module: nn.RNNBase, sizes: dict[str, Any]) -> nn.RNNBase:
    if isinstance(module, nn.RNN):
        sizes = sizes | {"nonlinearity": module.nonlinearity}
    if not isinstance(module, nn.LSTM):
        sizes = {size: value for size, value in sizes.items() if size != "proj_size"}
    return type(module)(**sizes).to(next(module.parameters()))


def _failure(rnn: nn.RNNBase, options: CheckOptions) -> str:
    weight = next(rnn.parameters())
    x = torch.randn(_STEPS, _BATCH, rnn.input_size).to(weight)
    recorder = Recorder(rnn, limit_s=options.max_seconds)
    compiled = compile_function(rnn, dataclasses.replace(options, fullgraph=True))
    try:
        with internals.allowed_rnns(), recorder.watching():
            for grad in (False, True):
                with torch.set_grad_enabled(grad):
                    found, expected = compiled(x)[0], rnn(x)[0]
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
                if grad:
                    found.sum().backward()
    except Exception as error:
        return failure_text(error)
    return ""
