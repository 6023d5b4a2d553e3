"""Intercept the steps of inductor and AOTAutograd, so that single steps can be skipped."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pytest_torchcompile.internals.graphs import user_line


class CompilerStep(NamedTuple):
    """A step of the compiler that can be skipped.

    Args:
        kind: ``decomposition``, ``pass`` or ``lowering``.
        name: the operator decomposed or lowered, or the name of the pass.
        line: ``file:line`` of the user's code for a lowering; None if it is unknown.
    """

    kind: str
    name: str
    line: str | None = None


_STEPS = {
    "decomposition": "decomposition",
    "pre_grad_passes": "pass",
    "joint_graph_passes": "pass",
    "post_grad_passes": "pass",
    "lowerings": "lowering",
}


@contextlib.contextmanager
def compiler_steps(leave_out: Callable[[CompilerStep], bool]) -> Iterator[None]:
    """Call `leave_out` before each step of a compile in the body; the step is skipped if it returns True.

    An operator that is not lowered runs eager's kernel. This replaces the hook of torch's compiler bisector.
    The bisector itself is not used, because it writes files, prints, and has no time limit.
    """
    import torch._functorch.config as autograd_config
    import torch._inductor.config as config
    from torch._inductor.compiler_bisector import CompilerBisector

    def disable_subsystem(backend: str, subsystem: str, debug_info: Callable[[], str] | None = None) -> bool:
        kind = _STEPS.get(subsystem)
        if kind is None or debug_info is None:
            return False
        if kind == "lowering":
            return leave_out(_current_lowering())
        return leave_out(CompilerStep(kind, _step_name(debug_info())))

    original = CompilerBisector.__dict__["disable_subsystem"]
    CompilerBisector.disable_subsystem = staticmethod(disable_subsystem)  # type: ignore[method-assign]
    try:
        # The caches must neither supply graphs compiled with all steps nor store graphs that lack some.
        with config.patch(fx_graph_cache=False), autograd_config.patch(enable_autograd_cache=False):
            yield
    finally:
        CompilerBisector.disable_subsystem = original  # type: ignore[method-assign]


def _step_name(text: str) -> str:
    """Return the name of a pass, or the name of an operator from its ``repr``."""
    operator = re.fullmatch(r"<OpOverload\(op='(.+)', overload='(.+)'\)>", text)
    return f"{operator[1]}.{operator[2]}" if operator else text


def _current_lowering() -> CompilerStep:
    """Return the step for the operator that inductor is about to lower."""
    from torch._inductor.virtualized import V

    node = V.get_current_node()
    return CompilerStep("lowering", str(node.target), user_line(node.meta.get("stack_trace")))
