"""Compile a method with the user's options. Options that torch does not know are refused before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.methods import Method
from pytest_torchcompile.texts import first_line, suggestion


def require_known(options: CheckOptions) -> None:
    """Return if torch knows the backend, the mode and inductor's options.

    Raises:
        UsageError: otherwise; it lists the known values.
    """
    require_known_backend(options)
    require_known_settings(options)


def require_known_backend(options: CheckOptions) -> None:
    """Return if torch knows the backend; see `require_known`."""
    if isinstance(options.backend, str):
        known = torch.compiler.list_backends(exclude_tags=())
        # The others are for debugging torch itself.
        shown = sorted(
            {*torch.compiler.list_backends(), "aot_eager", "aot_eager_decomp_partition", "eager"} & {*known}
        )
        _require(options, "backend", options.backend, known, ", ".join(shown))


def is_misspelt_backend(backend: str) -> bool:
    """Whether torch has no such backend but a similar one. Any other name may be registered later."""
    known = torch.compiler.list_backends(exclude_tags=())
    return backend not in known and bool(suggestion(backend, known))


def require_known_settings(options: CheckOptions) -> None:
    """Return if torch knows the mode and inductor's options; see `require_known`."""
    if options.mode is not None:
        known = internals.known_modes()
        _require(options, "mode", options.mode, known, ", ".join(known))
    for name in options.options or ():
        known = internals.known_inductor_options()
        _require(options, "options", name, known, "what torch._inductor.list_options() lists")


def _require(options: CheckOptions, option: str, value: str, known: list[str], accepted: str) -> None:
    if value in known:
        return
    hint = suggestion(value, known)
    source = options.source(option)
    flags = {"the command line": f" of --compile-{option}"}
    is_file = source.endswith((".toml", ".ini", ".cfg"))
    origin = f" of compile_{option} in {source}" if is_file else flags.get(source, "")
    raise UsageError(f"{option}={value!r}{origin} is unknown to torch{hint}; accepted: {accepted}")


def compile_method(method: Method, model: nn.Module, options: CheckOptions) -> Callable[..., Any]:
    """Return the method under torch.compile; it is compiled on its first call.

    Raises:
        UsageError: if torch.compile rejects the options.
    """
    return compile_function(method.of(model), options)


def compile_function(function: Callable[..., Any], options: CheckOptions) -> Callable[..., Any]:
    """Return a function or module under torch.compile; see `compile_method`."""
    try:
        return internals.isolated_compile(
            function,
            backend=options.backend,
            mode=options.mode,
            dynamic=options.dynamic,
            fullgraph=options.fullgraph,
            # A copy, because torch.compile takes some options out of it.
            options=None if options.options is None else dict(options.options),
        )
    except Exception as error:
        raise UsageError(f"torch.compile rejects the module or the options: {first_line(error)}") from error
