"""Defines stories: sequences of moves that one compiled object makes, as plain data.

A story is a tuple of moves. Like a `Recipe` it is hashable, so Hypothesis can draw, shorten and store it. It
can be run on either side any number of times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from pytest_torchcompile.backports import StrEnum
from pytest_torchcompile.generation import recipes
from pytest_torchcompile.generation.recipes import TIMES, Fill, Recipe


class Kind(StrEnum):
    """The kind of a move."""

    ACT = "act"
    LEARN = "learn"
    LOAD = "load_state_dict"
    CHECKPOINT = "checkpoint"
    CHANGE = "change"


class Manner(StrEnum):
    """How a policy acts or learns. Most of these, but not the first, add graphs to those of the phases."""

    PLAIN = ""
    TRAINING = "in training mode"
    LAYOUT = "another memory layout"
    AUTOCAST = "autocast to bfloat16"
    INFERENCE = "inference mode"
    REFILLED = "the same tensors refilled"
    SETTLED = "layers in eval()"


ACTING = (Manner.TRAINING, Manner.LAYOUT, Manner.INFERENCE)
"""How a policy acts at the end of a story. Inference mode is last because no other manner can follow it."""


class Change(StrEnum):
    """What is changed between two calls, and how."""

    NOTHING = ""
    BUFFERS_COPIED = "buffers changed by copy_"
    BUFFERS_LOADED = "buffers changed by load_state_dict"
    BUFFERS_ASSIGNED = "buffers changed by assignment"
    INTEGERS_COPIED = "integers changed by copy_"
    WEIGHTS_COPIED = "weights changed by copy_"
    WEIGHTS_DATA = "weights changed by .data.copy_"
    WEIGHTS_REPLACED = "weights changed by .data ="
    ANNEALED = "attributes annealed"
    FROZEN = "layers frozen"
    THAWED = "layers thawed"

    @property
    def what(self) -> str:
        """``weights``, ``buffers``, ``integers``, ``attributes`` or ``layers``."""
        return self.partition(" ")[0]

    @property
    def how(self) -> str:
        """The rest of the text, such as ``changed by copy_``."""
        return self.partition(" ")[2]


MAY_COMPILE = (Change.BUFFERS_ASSIGNED, Change.WEIGHTS_REPLACED, Change.ANNEALED, Change.FROZEN)
"""Changes that guards may notice. After each of them, every method may compile once more."""


@dataclasses.dataclass(frozen=True)
class Move:
    """One move of a story.

    Args:
        kind: the kind of the move.
        method: the method that acts or learns.
        batch: the batch size of its inputs.
        manner: how it acts or learns.
        seed: the seed of the inputs and of all random numbers, or of the new weights.
        change: what is changed.
        name: the one buffer, attribute or layer that is changed; empty for all.
    """

    kind: Kind
    method: str = ""
    batch: int = 0
    manner: Manner = Manner.PLAIN
    seed: int = 0
    change: Change = Change.NOTHING
    name: str = ""

    @property
    def changes_weights(self) -> bool:
        """Whether the move changes the weights."""
        return self.kind in (Kind.LEARN, Kind.LOAD) or self.change.what == "weights"

    @property
    def plain(self) -> bool:
        """Whether a phase does the same: acting in ``eval()`` or learning in ``train()``."""
        return self.kind in (Kind.ACT, Kind.LEARN) and not self.manner

    @property
    def template(self) -> Move:
        """The move without batch size and seed."""
        return dataclasses.replace(self, batch=0, seed=0)

    def __str__(self) -> str:
        """Text such as ``act(forward, inference mode)`` or ``buffers changed by copy_``."""
        if self.change:
            return _change_text(self)
        parts = ", ".join(filter(None, [self.method, self.manner]))
        return f"{self.kind}({parts})"

    def recipe(self, tree: Any) -> Recipe:
        """Return the inputs of the move for a method with these specs."""
        layout = recipes.layouts(tree)[-1] if self.manner is Manner.LAYOUT else "contiguous"
        return recipes.random_recipe(tree, self.batch, self.seed, TIMES[0], Fill(layout=layout))


Story = tuple[Move, ...]

LONGEST = 8
"""The most moves of a drawn story."""
SEEDS = 4
"""The number of seeds to draw from: few, so that the same observation occurs twice."""


def story_text(story: Iterable[Move]) -> str:
    """Return text such as ``act(batch 4), learn(batch 4)``. It names methods if there are several."""
    story = tuple(story)
    several = {
        kind: len({move.method for move in story if move.kind is kind}) > 1 for kind in (Kind.ACT, Kind.LEARN)
    }
    return ", ".join(_move_text(move, named=several.get(move.kind, False)) for move in story)


def _move_text(move: Move, *, named: bool) -> str:
    if move.kind in (Kind.LOAD, Kind.CHECKPOINT):
        return move.kind
    if move.change:
        return _change_text(move)
    parts = [move.method] if named else []
    parts += [f"batch {move.batch}", *filter(None, [move.manner])]
    return f"{move.kind}({', '.join(parts)})"


def _change_text(move: Move) -> str:
    """Return text such as ``buffers changed by copy_`` or ``buffer norm.mean changed by copy_``."""
    if not move.name:
        return str(move.change)
    return f"{move.change.what.removesuffix('s')} {move.name} {move.change.how}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Possible:
    """What a policy allows besides acting and learning as in the phases.

    Args:
        manners: other ways to act.
        settled: whether it has layers to put into ``eval()`` while it learns.
        changes: the possible changes between calls, except freezing.
        layer: the layer to freeze and thaw; empty if no other layer could learn meanwhile.
    """

    manners: Sequence[Manner] = ()
    settled: bool = False
    changes: Sequence[Change] = ()
    layer: str = ""


def canonical(
    acting: Sequence[str], learning: Sequence[str], sizes: Sequence[int], possible: Possible
) -> Story:
    """Return the first story of every lifecycle: it has each move, where a fault is most likely to show.

    For one method that acts and learns it has 15 calls, and those of `_between_calls`: 6 more for a
    multilayer perceptron, 9 with buffers, one more with integers, and two more with attributes.

    Args:
        acting: the methods by which the policy acts.
        learning: the methods by which it learns.
        sizes: batch sizes; the first two are used.
        possible: what else the policy allows.
    """
    first, second = sizes[0], sizes[min(1, len(sizes) - 1)]
    act = [Move(Kind.ACT, method, first) for method in acting]
    act_again = [Move(Kind.ACT, method, second, seed=1) for method in acting]
    learn = [Move(Kind.LEARN, method, first, seed=1) for method in learning]
    learn_again = [Move(Kind.LEARN, method, second, seed=2) for method in learning]
    # The same observations before and after the weights change, so that a result that was kept differs.
    story = [*act, *act_again, *learn, *act, *act_again]
    story += [Move(Kind.LOAD, seed=1), *act, *act, *learn_again, *act_again]
    story += [*_between_calls(act, act_again, learn, possible), Move(Kind.CHECKPOINT)]
    # Seeds that no other change has: weights of the same seed are the same ones.
    for seed, manner in enumerate(possible.manners if acting else (), start=20):
        story += _acting_twice(Move(Kind.ACT, acting[0], second, manner, seed=2), possible, seed)
    return tuple(story)


def _acting_twice(act: Move, possible: Possible, seed: int) -> Iterator[Move]:
    """Yield moves that act in a manner of its own before and after the weights change.

    Each manner has code of its own, which may keep outputs or weights of its first call.

    Args:
        act: the first of them.
        possible: what the policy allows.
        seed: seed of the new weights.
    """
    yield act
    if Change.WEIGHTS_COPIED in possible.changes:
        yield Move(Kind.CHANGE, change=Change.WEIGHTS_COPIED, seed=seed)
    yield dataclasses.replace(act, seed=act.seed + 1)


def _between_calls(
    act: Sequence[Move], acted: Sequence[Move], learn: Sequence[Move], possible: Possible
) -> Iterator[Move]:
    """Yield moves that refill inputs in place and change the policy between calls.

    A result from before a change is never right, so one call after each change is enough.

    Args:
        act: the moves that act.
        acted: the calls before, whose inputs are refilled.
        learn: the moves that learn.
        possible: what the policy allows.
    """
    yield from (dataclasses.replace(move, manner=Manner.REFILLED, seed=3) for move in acted)
    freezes = bool(possible.layer and learn)
    for number, change in enumerate(possible.changes):
        if freezes and change is Change.WEIGHTS_COPIED:
            continue
        # Dynamo takes a number's first value for a constant and compiles for any at the second, so code that
        # keeps the second differs at the third.
        for _ in range(2 if change is Change.ANNEALED else 1):
            yield Move(Kind.CHANGE, change=change, seed=2 + number)
            yield from act
    settled = [dataclasses.replace(move, manner=Manner.SETTLED) for move in learn if possible.settled]
    if freezes:
        # Users put frozen pretrained layers into eval() too. Doing both at once saves a compile. The weights
        # change meanwhile, so that code with the weights as constants differs.
        yield Move(Kind.CHANGE, change=Change.FROZEN, name=possible.layer)
        yield from settled or learn
        yield Move(Kind.CHANGE, change=Change.WEIGHTS_COPIED, seed=1)
        yield from settled or learn
        yield Move(Kind.CHANGE, change=Change.THAWED, name=possible.layer)
        yield from learn
    else:
        yield from settled


def training(learning: Sequence[str], batch: int, steps: int) -> Story:
    """Return a story of optimizer steps in a row, by the methods in turn."""
    turns = (learning[step % len(learning)] for step in range(steps if learning else 0))
    return tuple(Move(Kind.LEARN, method, batch, seed=10 + step) for step, method in enumerate(turns))


def stories(moves: Sequence[Move]) -> st.SearchStrategy[Story]:
    """Return a strategy for stories of these moves, each with a seed of its own."""
    seeded = st.builds(
        lambda move, seed: dataclasses.replace(move, seed=seed),
        st.sampled_from(moves),
        st.integers(0, SEEDS - 1),
    )
    return st.lists(seeded, min_size=1, max_size=LONGEST).map(tuple)
