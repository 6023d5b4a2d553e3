"""Checks a lifecycle beyond what was declared: undeclared autocast, and hooks that are added late.

The checks run after the stories have passed, on the objects of the lifecycle, which are not needed any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.stops import Stop
from pytest_torchcompile.generation import recipes
from pytest_torchcompile.lifecycle.sides import LifecycleSides
from pytest_torchcompile.lifecycle.stories import Kind, Manner, Move
from pytest_torchcompile.lifecycle.trial import StoryTrial
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.runtime.isolation import quietly

SEED = 2
"""The seed of the inputs, which differ from those of the first calls."""

IGNORED_HOOK = (
    "compiled code ignores a hook that is added to a submodule after the first call, which is torch's "
    "default for every policy: if you add hooks later, set "
    "torch._dynamo.config.skip_nnmodule_hook_guards = False before compiling"
)
"""The same text for all policies, so that a report shows it once."""


def undeclared_autocast(sides: LifecycleSides, options: CheckOptions) -> Iterator[str]:
    """Yield a remark if compiled differs under an autocast that was not declared. It adds one graph."""
    if options.autocast is not None or not sides.acting:
        return
    batch = options.batch[min(1, len(options.batch) - 1)]
    move = Move(Kind.ACT, sides.acting[0], batch, Manner.AUTOCAST, seed=SEED)
    trial = StoryTrial(sides, options)
    try:
        failure = trial((move,))
    except Stop:
        # Eager does not repeat its own results under autocast, so there is nothing to compare with.
        return
    where = f"under {move.manner}, which was not declared,"
    if failure is not None:
        worst = failure.differences[0]
        yield (
            f"{where} {worst.place} of {move.method} differs ({worst.problem}): eager {worst.eager}, "
            f'compiled {worst.compiled}; autocast="bfloat16" declares it'
        )
    elif trial.uncompiled:
        yield f"{where} {trial.uncompiled[0]} on {move.method}, which eager runs"


def late_hook(sides: LifecycleSides, options: CheckOptions) -> Iterator[str]:
    """Yield a remark if compiled ignores a hook that is added to a submodule now. It adds no graphs."""
    if not sides.acting or not internals.ignores_late_hooks():
        return
    pair, batch = sides.by_name[sides.acting[0]], options.batch[0]
    recipe = recipes.random_recipe(pair.tree, batch, SEED)
    called = _called_hooks(pair, "eager", dict(_submodules(pair.twins.eager)), recipe)
    same = {name: module for name, module in _submodules(pair.twins.compiled) if name in called}
    if called and not _called_hooks(pair, "compiled", same, recipe):
        yield IGNORED_HOOK


def _submodules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    named = internals.uncompiled(model).named_modules()
    return ((name, module) for name, module in named if name)


def _called_hooks(pair: Pair, side: str, modules: dict[str, nn.Module], recipe: recipes.Recipe) -> set[str]:
    """Add a hook to each module and call a side once. Return the names of the modules whose hooks ran."""
    called: set[str] = set()

    def hook_of(name: str) -> Any:
        return lambda *_: called.add(name)

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        pair.begin(recipe)
        pair.run(getattr(pair, side), recipe, under=quietly, phase="rollout")
    finally:
        for handle in handles:
            handle.remove()
    return called
