"""Parameters that a method writes to: found by their values, then restored and compared like buffers.

Most methods write to none, and remembering all parameters costs memory, so that each is looked for by
comparing the side that was called with the side that was not.
"""

from __future__ import annotations

from pytest_torchcompile.policies.calls import Outcome, Side
from pytest_torchcompile.policies.state import same

PREFIX = "parameter "
"""What the path of a written parameter begins with among the state of an `Outcome`."""


def notice(side: Side, other: Side, outcome: Outcome, *, shared: bool) -> None:
    """Add the parameters that the last call of `side` wrote to to its outcome, and watch them from now on.

    Args:
        side: the side that was called last.
        other: the other side, which has not been called since.
        outcome: what the call of `side` left.
        shared: whether both sides are one module; its parameters are then remembered.
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
        eager: eager's side and what its last call left.
        compiled: likewise of compiled.
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
                # So that this side, called again, reports it too.
                side.state.watched.add(name)


def protect(eager: Side, compiled: Side) -> None:
    """Remember the parameters that eager's first call wrote to by those of compiled, not yet called."""
    if eager.state is not None and compiled.state is not None and eager.state.written():
        names = set(eager.state.written()) - eager.state.remembered().keys()
        for state in (compiled.state, eager.state):
            state.protect(names, compiled.state.model)
