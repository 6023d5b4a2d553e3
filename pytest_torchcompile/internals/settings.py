"""Read settings of torch, dynamo and inductor, and change them for the body of a ``with`` statement."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from pytest_torchcompile.options import GUARD_FILTER

RAISED_LIMIT = 1024


def fresh_compile_cache() -> contextlib.AbstractContextManager[None]:
    """Use empty inductor caches in the body; the old caches are back after it."""
    from torch._inductor.utils import fresh_cache

    return fresh_cache()


def recompile_limit() -> int:
    """Return the number of recompiles of a function after which dynamo runs it eager."""
    import torch._dynamo.config as config

    return int(config.recompile_limit)


def raised_recompile_limit() -> contextlib.AbstractContextManager[Any]:
    """Raise the recompile limit to `RAISED_LIMIT` in the body."""
    import torch._dynamo.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch(
        recompile_limit=RAISED_LIMIT, accumulated_recompile_limit=RAISED_LIMIT
    )
    return patch


def inductor_settings(settings: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Set inductor's options for compiles in the body."""
    import torch._inductor.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch(dict(settings))
    return patch


def kernels_for_one_thread() -> contextlib.AbstractContextManager[Any]:
    """Make inductor generate single-threaded CPU kernels, for compiles and calls in the body.

    Only such a kernel can raise an exception. In a kernel with threads an index out of range ends the
    process, because a C++ exception must not leave an OpenMP region.
    """
    import torch._inductor.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch({"cpp.threads": 1})
    return patch


def allowed_rnns() -> contextlib.AbstractContextManager[Any]:
    """Make dynamo capture ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``, for compiles in the body."""
    import torch._dynamo.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch(allow_rnn=True)
    return patch


def argument_validation() -> bool:
    """Whether ``torch.distributions`` validates arguments; importing dynamo turns it off."""
    return bool(torch.distributions.Distribution._validate_args)


def set_argument_validation(value: bool) -> None:
    """Switch the validation of distribution arguments on or off for the process."""
    torch.distributions.Distribution.set_default_validate_args(value)


def ignores_late_hooks() -> bool:
    """Whether compiled code ignores a hook that is added to a submodule later, which is torch's default."""
    from torch._dynamo import config

    return bool(config.skip_nnmodule_hook_guards)


def why_disabled() -> str:
    """Return which setting of the process prevents torch.compile from compiling; empty if none does."""
    import torch._dynamo.config as config
    from torch._dynamo.eval_frame import _stance

    if config.disable or os.environ.get("TORCHDYNAMO_DISABLE", "0") == "1":
        return "dynamo is disabled (TORCHDYNAMO_DISABLE, TORCH_COMPILE_DISABLE or its config)"
    if _stance.stance == "force_eager":
        return "torch.compiler.set_stance('force_eager') is in force"
    if config.suppress_errors:
        return "torch._dynamo.config.suppress_errors turns compile errors into eager runs"
    return ""


def known_modes() -> list[str]:
    """Return the modes that torch.compile accepts with inductor."""
    from torch._inductor import list_mode_options

    return sorted(list_mode_options())


_OWN_OPTIONS = (GUARD_FILTER, "use_aoti")
"""Options that torch.compile takes out of `options` before inductor sees them."""


def known_inductor_options() -> list[str]:
    """Return the options that torch.compile accepts with inductor, with underscores and with dashes."""
    from torch._inductor import list_options

    spelled = [spelled for name in list_options() for spelled in (name, name.replace("_", "-"))]
    return [*spelled, *_OWN_OPTIONS]


@contextlib.contextmanager
def quiet_trace_log() -> Iterator[None]:
    """Keep torch's structured trace out of pytest's captured log.

    pytest >= 9.2 also attaches its handlers to loggers that do not propagate. That switches the trace on,
    which costs time, and prints about 170 lines of it below a failure.
    """
    trace = logging.getLogger("torch.__trace")
    listening = [handler for handler in trace.handlers if type(handler).__module__.startswith("_pytest")]
    for handler in listening:
        trace.removeHandler(handler)
    try:
        yield
    finally:
        for handler in listening:
            trace.addHandler(handler)


def backend_function(name: str) -> Callable[..., Any]:
    """Return the function of a registered backend: it takes a graph and its example inputs."""
    from torch._dynamo.backends.registry import lookup_backend

    return lookup_backend(name)
