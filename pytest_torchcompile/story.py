"""Stories: what one compiled object goes through in its life, as plain data.

A story is a tuple of moves. Like a `Recipe` it is hashable, so that Hypothesis can draw it, make it
shorter and keep it, and can be played on either side, as often as it takes.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import strategies as st

from pytest_torchcompile import recipes
from pytest_torchcompile.recipes import TIMES, Fill, Recipe


class Kind(enum.StrEnum):
    """What happens in a move."""

    ACT = "act"
    LEARN = "learn"
    LOAD = "load_state_dict"
    CHECKPOINT = "checkpoint"


class Manner(enum.StrEnum):
    """How a policy acts; all but the first add graphs to those of the two phases."""

    PLAIN = ""
    TRAINING = "in training mode"
    LAYOUT = "another memory layout"
    AUTOCAST = "autocast to bfloat16"
    INFERENCE = "inference mode"


@dataclasses.dataclass(frozen=True)
class Move:
    """One move of a story.

    Args:
        kind: what happens.
        method: what is called to act or to learn.
        batch: the batch size of its inputs.
        manner: how it acts.
        seed: of the inputs and of all that is drawn; of the weights that are loaded.
    """

    kind: Kind
    method: str = ""
    batch: int = 0
    manner: Manner = Manner.PLAIN
    seed: int = 0

    @property
    def changes_weights(self) -> bool:
        """Whether the weights are others after it."""
        return self.kind in (Kind.LEARN, Kind.LOAD)

    def recipe(self, tree: Any) -> Recipe:
        """The inputs of the move, for a method with these specs."""
        layout = recipes.layouts(tree)[-1] if self.manner is Manner.LAYOUT else "contiguous"
        return recipes.random_recipe(tree, self.batch, self.seed, TIMES[0], Fill(layout=layout))


Story = tuple[Move, ...]

LONGEST = 8
"""Moves of a drawn story."""
SEEDS = 4
"""How many seeds they choose from: so few, that the same observation comes twice."""


def told(story: Iterable[Move]) -> str:
    """``act(batch 4), learn(batch 4), act(batch 4)``; methods are named where there are several."""
    story = tuple(story)
    several = {
        kind: len({move.method for move in story if move.kind is kind}) > 1 for kind in (Kind.ACT, Kind.LEARN)
    }
    return ", ".join(_told(move, named=several.get(move.kind, False)) for move in story)


def _told(move: Move, *, named: bool) -> str:
    if move.kind in (Kind.LOAD, Kind.CHECKPOINT):
        return move.kind
    parts = [move.method] if named else []
    parts += [f"batch {move.batch}", *filter(None, [str(move.manner)])]
    return f"{move.kind}({', '.join(parts)})"


def canonical(
    acting: Sequence[str], learning: Sequence[str], sizes: Sequence[int], manners: Sequence[Manner]
) -> Story:
    """The story that every lifecycle begins with: each move once, and each where it would show most.

    Args:
        acting: the methods by which the policy acts.
        learning: those by which it learns.
        sizes: batch sizes; the first two are used.
        manners: how it acts besides; the one that later moves could not follow comes last.
    """
    first, second = sizes[0], sizes[min(1, len(sizes) - 1)]
    act = [Move(Kind.ACT, method, first) for method in acting]
    act_again = [Move(Kind.ACT, method, second, seed=1) for method in acting]
    learn = [Move(Kind.LEARN, method, first, seed=1) for method in learning]
    learn_again = [Move(Kind.LEARN, method, second, seed=2) for method in learning]
    # The same observation twice, and weights that change between: what was kept of either must not show.
    story = [*act, *act_again, *learn, *act, *act_again]
    story += [Move(Kind.LOAD, seed=1), *act, *act, *learn_again, *act_again, Move(Kind.CHECKPOINT)]
    story += [Move(Kind.ACT, acting[0], second, manner, seed=2) for manner in manners if acting]
    return tuple(story)


def training(learning: Sequence[str], batch: int, steps: int) -> Story:
    """Optimizer steps in a row, the methods in turn."""
    turns = (learning[step % len(learning)] for step in range(steps if learning else 0))
    return tuple(Move(Kind.LEARN, method, batch, seed=10 + step) for step, method in enumerate(turns))


def stories(moves: Sequence[Move]) -> st.SearchStrategy[Story]:
    """A strategy of stories made of these moves, each with a seed of its own."""
    seeded = st.builds(
        lambda move, seed: dataclasses.replace(move, seed=seed),
        st.sampled_from(moves),
        st.integers(0, SEEDS - 1),
    )
    return st.lists(seeded, min_size=1, max_size=LONGEST).map(tuple)
