"""Settings of torch, dynamo and inductor, for the length of a block."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

RAISED_LIMIT = 1024


def fresh_compile_cache() -> contextlib.AbstractContextManager[None]:
    """Compile without what is in inductor's caches in the body; they are as before after it."""
    from torch._inductor.utils import fresh_cache

    return fresh_cache()


def recompile_limit() -> int:
    """After how many recompiles of a function dynamo runs it eager, in silence."""
    import torch._dynamo.config as config

    return int(config.recompile_limit)


def raised_recompile_limit() -> contextlib.AbstractContextManager[Any]:
    """Lift that limit in the body."""
    import torch._dynamo.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch(
        recompile_limit=RAISED_LIMIT, accumulated_recompile_limit=RAISED_LIMIT
    )
    return patch


def eager_random_numbers() -> contextlib.AbstractContextManager[Any]:
    """Make inductor draw what eager draws for the same seed, for compiles and calls in the body."""
    import torch._inductor.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch(fallback_random=True)
    return patch


def inductor_settings(settings: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Set inductor's options for what is compiled in the body."""
    import torch._inductor.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch(dict(settings))
    return patch


def kernels_for_one_thread() -> contextlib.AbstractContextManager[Any]:
    """Have inductor write CPU kernels without threads, for compiles and calls in the body.

    Only such a kernel can raise: where it has threads, an index out of range ends the process, because
    no C++ exception may leave an OpenMP region.
    """
    import torch._inductor.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch({"cpp.threads": 1})
    return patch


def allowed_rnns() -> contextlib.AbstractContextManager[Any]:
    """Let dynamo capture ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``, for compiles in the body."""
    import torch._dynamo.config as config

    patch: contextlib.AbstractContextManager[Any] = config.patch(allow_rnn=True)
    return patch


def argument_validation() -> bool:
    """Whether ``torch.distributions`` validates arguments; importing dynamo turns it off."""
    return bool(torch.distributions.Distribution._validate_args)


def set_argument_validation(value: bool) -> None:
    """Switch the validation of distribution arguments for the process."""
    torch.distributions.Distribution.set_default_validate_args(value)


def ignores_late_hooks() -> bool:
    """Whether compiled code goes on as it was when a hook is added to a submodule, as is torch's default."""
    from torch._dynamo import config

    return bool(config.skip_nnmodule_hook_guards)


def why_disabled() -> str:
    """Which setting of the process keeps torch.compile from compiling; empty if none does."""
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
    """The modes that torch.compile accepts with inductor."""
    from torch._inductor import list_mode_options

    return sorted(list_mode_options())


def known_inductor_options() -> list[str]:
    """The options that torch.compile accepts with inductor; dashes may stand for underscores."""
    from torch._inductor import list_options

    return [spelled for name in list_options() for spelled in (name, name.replace("_", "-"))]


@contextlib.contextmanager
def quiet_trace_log() -> Iterator[None]:
    """Keep torch's structured trace out of pytest's captured log.

    pytest >= 9.2 also listens to loggers that don't propagate. That would switch the trace on, which
    costs time, and print some 170 lines of it below a failure.
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
