"""Compare a capture with the user's limits: graph breaks, recompiles, seconds."""

from __future__ import annotations

from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.results import Capture
from pytest_torchcompile.texts import counted


def exceeded(capture: Capture, options: CheckOptions) -> tuple[str, ...]:
    """Return a sentence for each limit in `options` that `capture` exceeds."""
    breaks, recompiles, seconds = len(capture.breaks), len(capture.recompiles), capture.compile_s
    spent: dict[str, tuple[float, str]] = {
        "max_graph_breaks": (breaks, counted(breaks, "graph break")),
        "max_recompiles": (recompiles, counted(recompiles, "recompile")),
        "max_compile_seconds": (seconds, f"{seconds:.4g} seconds spent compiling"),
    }
    return tuple(
        f"{text}, {name}={getattr(options, name):g} ({options.source(name)})"
        for name, (amount, text) in spent.items()
        if getattr(options, name) is not None and amount > getattr(options, name)
    )
