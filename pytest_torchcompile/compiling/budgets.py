"""Compare a capture with the user's limits: graph breaks, recompiles, seconds."""

from __future__ import annotations

from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.results import Capture


def exceeded(capture: Capture, options: CheckOptions) -> tuple[str, ...]:
    """Return a sentence for each limit in `options` that `capture` exceeds."""
    spent: dict[str, float] = {
        "max_graph_breaks": len(capture.breaks),
        "max_recompiles": len(capture.recompiles),
        "max_compile_seconds": capture.compile_s,
    }
    units = {
        "max_graph_breaks": "graph breaks",
        "max_recompiles": "recompiles",
        "max_compile_seconds": "seconds spent compiling",
    }
    return tuple(
        f"{amount:.4g} {units[name]}, {name}={getattr(options, name):g} ({options.source(name)})"
        for name, amount in spent.items()
        if getattr(options, name) is not None and amount > getattr(options, name)
    )
