"""The steps of inductor and AOTAutograd, one of which can be left out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pytest_torchcompile.internals.graphs import user_line


class CompilerStep(NamedTuple):
    """Something that the compiler does and can do without.

    Args:
        kind: ``decomposition``, ``pass`` or ``lowering``.
        name: the operator decomposed or lowered, or the name of the pass.
        line: ``file:line`` of the user's code that a lowering comes from, if it is known.
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
    """Ask `leave_out`, before each step of a compile in the body, whether to do without it.

    An operator that is not lowered runs eager's kernel. This is where torch's compiler bisector is
    asked; it does its own counting, writes files and prints, and can't be given a time limit.
    """
    import torch._functorch.config as autograd_config
    import torch._inductor.config as config
    from torch._inductor.compiler_bisector import CompilerBisector

    def disable_subsystem(backend: str, subsystem: str, debug_info: Callable[[], str] | None = None) -> bool:
        kind = _STEPS.get(subsystem)
        if kind is None or debug_info is None:
            return False
        return leave_out(_lowered() if kind == "lowering" else CompilerStep(kind, _named(debug_info())))

    original = CompilerBisector.__dict__["disable_subsystem"]
    CompilerBisector.disable_subsystem = staticmethod(disable_subsystem)  # type: ignore[method-assign]
    try:
        # What was compiled with all its steps must not be taken from a cache, nor put there without some.
        with config.patch(fx_graph_cache=False), autograd_config.patch(enable_autograd_cache=False):
            yield
    finally:
        CompilerBisector.disable_subsystem = original  # type: ignore[method-assign]


def _named(text: str) -> str:
    """The name of a pass, or of an operator out of its ``repr``."""
    operator = re.fullmatch(r"<OpOverload\(op='(.+)', overload='(.+)'\)>", text)
    return f"{operator[1]}.{operator[2]}" if operator else text


def _lowered() -> CompilerStep:
    """The operator that inductor is about to lower."""
    from torch._inductor.virtualized import V

    node = V.get_current_node()
    return CompilerStep("lowering", str(node.target), user_line(node.meta.get("stack_trace")))
