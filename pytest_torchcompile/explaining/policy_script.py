"""Writes a script that imports the user's factory and makes the calls after which the sides differ.

It reproduces differences that no single graph has: in the code around graphs, between several graphs, in a
lifecycle, and in a policy that its factory compiles. It needs only what the user's own file imports.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import torch

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.explaining.importable import import_spec, user_paths
from pytest_torchcompile.explaining.proof import COMMON, CantWrite, Script, compile_arguments
from pytest_torchcompile.explaining.templates import BODY, HEAD
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.lifecycle.side import layers_with_modes
from pytest_torchcompile.lifecycle.sides import LifecycleSides
from pytest_torchcompile.lifecycle.stories import Change, Kind, Manner, Move, Story, story_text
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.binding import Arguments
from pytest_torchcompile.policies.holders import Holder
from pytest_torchcompile.results import Difference
from pytest_torchcompile.texts import some

LARGEST = 2**30
"""The most bytes of weights in a folder."""

Step = dict[str, Any]
"""One step of the script, as a literal; see `BODY`."""


def case_script(
    case: str,
    pair: Pair,
    recipe: Recipe,
    differences: tuple[Difference, ...],
    options: CheckOptions,
    tree: Any = None,
) -> Script:
    """Return the script of a case: one call of its method.

    Args:
        case: the name of the case.
        pair: its two sides.
        recipe: the inputs.
        differences: the differences of the call.
        options: how the case was compiled.
        tree: the specs of the inputs; None for those declared.

    Raises:
        CantWrite: if a script can't import the factory or make the same call.
    """
    update = pair.phase == "update"
    bound = pair.arguments(recipe, wide=False, tree=tree)
    steps = _Steps(pairs=[pair], what="one call")
    train = update and pair.learning.training
    steps.call(pair, bound, train=train, grad=update, seed=recipe.seed, compare=True)
    return _script(case, steps, differences, options)


def story_script(
    case: str, sides: LifecycleSides, story: Story, differences: tuple[Difference, ...], options: CheckOptions
) -> Script:
    """Return the script of a lifecycle: the last move of a story, then the whole story.

    The last move comes first because wrong code may keep values, such as weights, from its first call. Where
    eager learns or loads, the script writes eager's new weights into both sides.

    Args:
        case: the name of the lifecycle.
        sides: its two sides.
        story: the story that differs.
        differences: the differences after its last move.
        options: how the lifecycle was compiled.

    Raises:
        CantWrite: if a script can't import the factory or make the same moves.
    """
    methods = dict.fromkeys(move.method for move in story if move.method)
    steps = _Steps(
        pairs=[sides.by_name[method] for method in methods] or [sides.first], what=story_text(story)
    )
    for moves in (story[-1:], story):
        sides.eager.begin({})
        if steps.all:
            steps.write(sides.eager.weights())
        for number, move in enumerate(moves, start=1):
            _add_move(steps, sides, move, compare=number == len(moves))
    return _script(case, steps, differences, options)


@dataclasses.dataclass(kw_only=True)
class _Steps:
    """Collects the steps of a script.

    Args:
        pairs: the methods that it calls.
        what: the steps in words.
        all: the steps, see `BODY`.
        inputs: the inputs of the calls.
        weights: the weights that steps write.
    """

    pairs: list[Pair]
    what: str
    all: list[Step] = dataclasses.field(default_factory=list)
    inputs: list[Any] = dataclasses.field(default_factory=list)
    weights: list[dict[str, torch.Tensor]] = dataclasses.field(default_factory=list)

    def call(
        self,
        pair: Pair,
        bound: Arguments,
        *,
        train: bool,
        grad: bool,
        seed: int,
        compare: bool,
        inference: bool = False,
        refill: bool = False,
        settled: Sequence[str] = (),
    ) -> None:
        learnt = pair.learning.outputs
        if learnt is not None and not all(path.startswith("output") for path in learnt):
            raise CantWrite(f"a script learns from outputs, not from {some(sorted(learnt))}")
        if pair.learning.interrupted:
            raise CantWrite("a script makes no other call between forward and backward")
        if pair.learning.accumulated:
            raise CantWrite("a script adds no gradients to those of another call")
        how: Step = {"train": train, "grad": grad, "seed": seed, "inference": inference}
        how["learn_from"] = None if learnt is None else sorted(learnt)
        how |= {"not_from": sorted(pair.learning.without), "summed": pair.learning.summed}
        how |= {"refill": refill, "settled": list(settled)}
        step = {"do": "call", "compare": compare, "method": pair.method.name, "inputs": len(self.inputs)}
        self.all.append(step | how)
        self.inputs.append((bound.args, bound.kwargs))

    def write(self, weights: dict[str, torch.Tensor], how: str = "copy_", *, compare: bool = False) -> None:
        """Add a step that writes weights or buffers in the way `how`.

        Raises:
            CantWrite: if the weights of all steps are too large.
        """
        size = sum(tensor.nbytes for tensor in weights.values())
        if size * (len(self.weights) + 1) > LARGEST:
            raise CantWrite(f"the weights of each move, {size / 2**20:.0f} MiB, are too large for a folder")
        self.all.append({"do": "write", "compare": compare, "weights": len(self.weights), "how": how})
        self.weights.append(weights)


def _add_move(steps: _Steps, sides: LifecycleSides, move: Move, *, compare: bool) -> None:
    """Make a move on the eager side, and add it to the script."""
    if move.method:
        pair = sides.by_name[move.method]
        learns = move.kind is Kind.LEARN
        steps.call(
            pair,
            pair.arguments(move.recipe(pair.tree), wide=False),
            train=learns or move.manner is Manner.TRAINING,
            grad=learns,
            seed=move.seed,
            compare=compare,
            inference=move.manner is Manner.INFERENCE,
            refill=move.manner is Manner.REFILLED,
            settled=layers_with_modes(pair.twins.eager) if move.manner is Manner.SETTLED else (),
        )
    elif move.kind is Kind.CHECKPOINT:
        steps.all.append({"do": "checkpoint", "compare": compare})
    sides.eager.play(move)
    if move.change:
        _add_change(steps, sides, move, compare=compare)
    elif move.changes_weights:
        steps.write(sides.eager.weights())


def _add_change(steps: _Steps, sides: LifecycleSides, move: Move, *, compare: bool) -> None:
    """Add the change that the eager side has just made to the script."""
    changes, how = sides.eager.changes, move.change.how.removeprefix("changed by ")
    match move.change.what:
        case "layers":
            trained = move.change is Change.THAWED
            steps.all.append({"do": "train_layer", "compare": False, "name": move.name, "on": trained})
        case "attributes":
            steps.all.append({"do": "set", "compare": False, "values": changes.attributes()})
        case "buffers" | "integers":
            steps.write(changes.tensors(), how, compare=compare)
        case _:
            steps.write(sides.eager.weights(), how, compare=compare)


def _script(case: str, steps: _Steps, differences: tuple[Difference, ...], options: CheckOptions) -> Script:
    first = steps.pairs[0]
    deployed = first.twins.deployed
    draws = any(pair.draws for pair in steps.pairs)
    if isinstance(first.twins.eager, Holder):
        raise CantWrite("the policy itself is not a torch.nn.Module")
    if deployed and draws:
        raise CantWrite(
            "the factory compiles the policy, and its compiled code draws other random numbers than eager"
        )
    _require_loadable(steps.inputs)
    own = {"observe": first.declaration.observe, "reset": first.declaration.reset}
    adapters = {pair.method.name: pair.method.adapter for pair in steps.pairs if pair.method.adapter}
    make = import_spec(first.factory)
    head = HEAD.format(
        case=case,
        what=steps.what,
        module=make[0],
        path=[*user_paths()],
        own={"make": make} | {name: import_spec(f) for name, f in own.items() if f is not None},
        adapters={name: import_spec(function) for name, function in adapters.items()},
        names={pair.method.name: pair.binding.positional for pair in steps.pairs},
        compile=None if deployed else compile_arguments(options, draws=draws),
        steps="\n".join(f"    {step!r}," for step in steps.all),
        allowed={d.path: d.allowed for d in differences},
        overwritten=any(d.problem == "overwritten" for d in differences),
        raises=any(d.problem == "exception" for d in differences),
        factory_seed=options.seed,
        autocast=options.autocast,
        threads=torch.get_num_threads(),
    )
    return Script(
        source=head + BODY.replace("COMMON", COMMON.strip()),
        tensors={"inputs": steps.inputs, "weights": steps.weights},
    )


def _require_loadable(inputs: list[Any]) -> None:
    """Raise `CantWrite` if a script can't load the inputs. torch loads plain containers of tensors only."""
    file = io.BytesIO()
    try:
        torch.save(inputs, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        raise CantWrite(f"the inputs can't be saved for a script: {type(error).__name__}") from None
