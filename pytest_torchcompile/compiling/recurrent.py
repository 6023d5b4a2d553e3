"""Try whether ``torch._dynamo.config.allow_rnn`` compiles the recurrent modules of a policy.

By default dynamo leaves ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM`` eager. On torch 2.13 the setting works for
some of them and fails for others (an LSTM with gradients). So it is tried on a separate module of the same
class and sizes, with the backend of the case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.compiling.capture import Recorder
from pytest_torchcompile.compiling.compilation import compile_function
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.texts import clipped, first_line

SETTING = "torch._dynamo.config.allow_rnn = True"
"""The setting that lets dynamo capture recurrent modules."""

_STEPS, _BATCH = 2, 3
"""The shape of the input to try; two steps are the fewest that recur."""

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
"""The failure by class, sizes and compile options; empty if it worked."""


def remedies(model: nn.Module, left_eager: Collection[str], options: CheckOptions) -> Iterator[str]:
    """Yield a sentence on each class of recurrent module that ran eager: whether the setting helps.

    Args:
        model: the policy.
        left_eager: names of its modules that ran eager.
        options: how to compile.
    """
    seen = set()
    for name, module in internals.uncompiled(model).named_modules():
        kind = type(module)
        if not isinstance(module, nn.RNNBase) or kind not in (nn.RNN, nn.GRU, nn.LSTM) or kind in seen:
            continue
        if name in left_eager:
            seen.add(kind)
            failure = _failure_of_like(module, options)
            like = f"an nn.{kind.__name__} of its sizes alone, backend {options.backend_name}, with gradients"
            if failure:
                effect = f"does not help on torch {torch.__version__}: {like}, raised {failure}"
            else:
                effect = f"compiles it (tried on {like})"
            yield f"{name}: dynamo leaves nn.{kind.__name__} eager by default; {SETTING} {effect}"


def _failure_of_like(module: nn.RNNBase, options: CheckOptions) -> str:
    """Return how compiling a module like this one fails; empty if it compiles and agrees with eager."""
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
        _tried[key] = _failure(_module_like(module, sizes), options)
    return _tried[key]


def _module_like(module: nn.RNNBase, sizes: dict[str, Any]) -> nn.RNNBase:
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
        # Whether it works matters here, and only little how it fails.
        return clipped(first_line(internals.inner_error(error)), 120)
    return ""
