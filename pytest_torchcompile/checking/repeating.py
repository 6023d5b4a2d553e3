"""Find out whether an exception of eager is caused by the inputs, by ``eval()``, or by an earlier call.

An exception that the inputs cause is a contract: compiled has to raise it too. An exception that eager raises
on its second call and not on its first says nothing about compiled.
"""

from __future__ import annotations

import dataclasses

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.generation.recipes import Fill, Recipe
from pytest_torchcompile.policies.holders import policy_of
from pytest_torchcompile.policies.methods import as_methods
from pytest_torchcompile.texts import raised_text

_OF_GRAPHS = ("backward through the graph a second time", "modified by an inplace operation")
"""Messages of torch about an autograd graph that was freed, or whose tensors were modified."""


def caused_by_earlier_call(pair: Pair, recipe: Recipe, error: BaseException) -> str:
    """Return why an earlier call of eager causes its exception; empty if the inputs cause it.

    Args:
        pair: the two sides; eager has returned once.
        recipe: the example on which eager raised.
        error: the exception.
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
    "; it keeps state that the check can't restore: pass a function that restores it, "
    "reset=lambda policy: ..., which is called before each call"
)


def graph_advice(error: BaseException, pair: Pair) -> str:
    """Return what to do if eager raised because it keeps an autograd graph of an earlier call; else empty."""
    if not any(sentence in str(error) for sentence in _OF_GRAPHS):
        return ""
    owner = policy_of(pair.twins.eager)
    remade = "policy.reset_noise()" if callable(getattr(type(owner), "reset_noise", None)) else "..."
    return (
        f"; it keeps a tensor with the graph of an earlier call: detach it, or create it again before each "
        f"call: reset=lambda policy: {remade}"
    )


def takes_one_row(pair: Pair, recipe: Recipe) -> str:
    """Return advice on a method that raises on a batch and returns on one row; empty for others.

    All rows are zeros, or the value of the declared range that is next to it, so that one row has whatever
    content the batch has.

    Args:
        pair: the two sides; eager has raised.
        recipe: the example.
    """
    zeros = tuple(Fill(start=0, stop=0) for _ in recipe.fills)
    batch = dataclasses.replace(recipe, fills=zeros)
    row = dataclasses.replace(batch, batch=1)
    if recipe.batch == 1 or pair.run(pair.eager, row).error is not None:
        return ""
    if pair.run(pair.eager, batch).error is None:
        return ""
    return "; it returns on one row: batch=1"


def only_trains(name: str, pair: Pair, recipe: Recipe) -> str:
    """Return advice on a method that raises in ``eval()`` and returns in ``train()``; empty for others.

    Args:
        name: the method's name.
        pair: the two sides; eager has raised in ``eval()``.
        recipe: the example.
    """
    if pair.first_eager(recipe, "update").error is not None:
        return ""
    called = "policy" if name == "forward" else f"policy.{name}"
    others = [m.name for m in as_methods(pair.declaration.checked) if m.name != name and m.adapter is None]
    acts = others[0] if others else "select_action"
    return (
        f"; it was called in eval(), as a policy acts, and returns in train(): {name} is for training only. "
        f"Leave out the phase rollout, name the method that acts, and give the loss to learn by: "
        f"phases=['update', 'lifecycle'], methods=[{name!r}, {acts!r}], act={acts!r}, "
        f"loss=lambda policy, batch: {called}(...)"
    )
