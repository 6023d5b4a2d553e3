"""Whether what eager raises comes of the inputs, or of what an earlier call of its own has left.

An exception that inputs bring about is a contract, which compiled has to keep. One that eager raises on its
second call, and not on its first, says nothing of compiled.
"""

from __future__ import annotations

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.policies.holders import policy_of
from pytest_torchcompile.texts import raised_text

_OF_GRAPHS = ("backward through the graph a second time", "modified by an inplace operation")
"""What torch says of a graph that was used up, or whose tensors were written to, since it was made."""


def own_trouble(pair: Pair, recipe: Recipe, error: BaseException) -> str:
    """Why an exception of eager's is eager's own trouble; empty if it comes of the inputs.

    Args:
        pair: the two sides, eager having returned once.
        recipe: the inputs on which it has raised.
        error: what it raised.
    """
    again = pair.run(pair.eager, recipe).error
    if again is None:
        found = f"eager raises {raised_text(error)} on one call, and returns on the next with the same inputs"
    elif pair.accepted is None or pair.run(pair.eager, pair.accepted).error is None:
        return ""
    else:
        found = f"eager raises {raised_text(error)} once it has been called before, on any inputs"
    return found + (graph_advice(error, pair) or _ADVICE)


_ADVICE = (
    "; it keeps state where the check can't put it back: give a function that does, "
    "reset=lambda policy: ..., which is called before each call"
)


def graph_advice(error: BaseException, pair: Pair) -> str:
    """What to do if eager raised because it keeps a graph from an earlier call; empty if that is not why."""
    if not any(sentence in str(error) for sentence in _OF_GRAPHS):
        return ""
    owner = policy_of(pair.twins.eager)
    remade = "policy.reset_noise()" if callable(getattr(type(owner), "reset_noise", None)) else "..."
    return (
        f"; it keeps a tensor with the graph of an earlier call: detach it, or have it made anew before each "
        f"call: reset=lambda policy: {remade}"
    )
