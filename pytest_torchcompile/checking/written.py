"""Finds the parameters that a method writes to, and has them restored and compared like buffers.

Most methods write to no parameter, and a copy of all parameters costs memory. They are therefore found by
comparing the side that was called with the side that was not.
"""

from __future__ import annotations

from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.state import same

PREFIX = "parameter "
"""The prefix of the paths of written parameters in the state of an `Outcome`."""


def notice(side: Side, other: Side, outcome: Outcome, *, shared: bool) -> None:
    """Add to `outcome` the parameters that the last call of `side` wrote to, and record them from now on.

    Args:
        side: the side that was called last.
        other: the other side, which has not been called since.
        outcome: the outcome of the call of `side`.
        shared: whether both sides are one module, whose parameters were copied before the call.
    """
    mine, theirs = side.state, other.state
    if mine is None or theirs is None or outcome.error is not None:
        return
    others = mine.remembered() if shared else theirs.parameters()
    known = {*mine.written(), *theirs.written()}
    names = [
        name
        for name, parameter in mine.parameters().items()
        if name not in known and name in others and not same(parameter, others[name])
    ]
    if not shared:
        for state in (mine, theirs):
            state.protect(names, theirs.model)
    for state in (mine, theirs):
        state.watched.update(names)
    outcome.state.tensors |= {f"{PREFIX}{name}": mine.parameters()[name].detach().clone() for name in names}


def complete(eager: tuple[Side, Outcome], compiled: tuple[Side, Outcome], *, shared: bool) -> None:
    """Add to each outcome the parameters that only the other side was seen to write to.

    Args:
        eager: the eager side and the outcome of its last call.
        compiled: the compiled side and the outcome of its last call.
        shared: whether both sides are one module.
    """
    for (side, outcome), (_, other) in ((eager, compiled), (compiled, eager)):
        if side.state is None or outcome.error is not None or other.error is not None:
            continue
        now = side.state.remembered() if shared else side.state.parameters()
        for path in other.state.tensors.keys() - outcome.state.tensors.keys():
            name = path.removeprefix(PREFIX)
            if name != path and name in now:
                outcome.state.tensors[path] = now[name].detach().clone()
                # Later calls of this side then report the parameter too.
                side.state.watched.add(name)


def protect(eager: Side, compiled: Side) -> None:
    """Copy the parameters that eager's first call wrote to from compiled, which has not been called yet."""
    if eager.state is not None and compiled.state is not None and eager.state.written():
        names = set(eager.state.written()) - eager.state.remembered().keys()
        for state in (compiled.state, eager.state):
            state.protect(names, compiled.state.model)
