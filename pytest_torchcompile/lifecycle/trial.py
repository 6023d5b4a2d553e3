"""Runs stories on both sides of a lifecycle, and compares them move by move.

Accumulates evidence per move. Raises `Stop` when no further story can change the verdict.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Iterator

import torch

from pytest_torchcompile import internals
from pytest_torchcompile.checking.evidence import Evidence
from pytest_torchcompile.checking.repeating import graph_advice
from pytest_torchcompile.checking.stops import Stop, compiles_again, require_repeatable
from pytest_torchcompile.comparing.float64 import with_float64
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.references import References, references
from pytest_torchcompile.comparing.rounding import Floor
from pytest_torchcompile.comparing.tolerance import judge
from pytest_torchcompile.compiling.failures import failure_text
from pytest_torchcompile.compiling.recompiling import Recompiling
from pytest_torchcompile.lifecycle.side import LifecycleSide
from pytest_torchcompile.lifecycle.sides import LifecycleSides
from pytest_torchcompile.lifecycle.stories import MAY_COMPILE, Change, Kind, Move, Story, story_text
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Around, Rerun
from pytest_torchcompile.policies.counters import CounterValues
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.results import Difference, Verdict
from pytest_torchcompile.texts import first_line

Tensors = dict[str, torch.Tensor]

RECOMPILES_IN_A_ROW = 6
"""Calls in a row that compile again for known inputs, after which the check stops.

State that calls leave behind causes fewer recompiles before it settles.
"""

NO_VALUES = (Change.NOTHING, Change.FROZEN, Change.THAWED)
"""Changes that change no numbers."""


@dataclasses.dataclass(kw_only=True)
class StoryFailure:
    """A story whose last move differs.

    Args:
        story: the moves up to that one.
        differences: the differences, worst first.
        compiled: the outcome of the compiled side.
        move: the number of the move among all moves of the check.
        replayed: whether it differs again when the story is run again.
    """

    story: Story
    differences: tuple[Difference, ...]
    compiled: Outcome
    move: int
    replayed: bool = True


class StoryTrial:
    """Runs stories on both sides of a lifecycle, one after the other.

    Args:
        sides: the two sides.
        options: how to compare them.
    """

    def __init__(self, sides: LifecycleSides, options: CheckOptions) -> None:
        self.evidence = Evidence()
        self.rejected: dict[Move, str] = {}
        self.uncompiled: list[str] = []
        self.added = 0
        self._recompile_limit = internals.recompile_limit()
        # One for each method: the calls of another method in between must not end the row.
        self._recompiling = {name: Recompiling(RECOMPILES_IN_A_ROW) for name in sides.by_name}
        self._sides = sides
        self._options = options
        self.tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
        self._moves = 0
        self._repeats = False
        self._disturbed = False

    def run_possible(self, story: Story) -> StoryFailure | None:
        """Run a story. If a move turns out to be impossible for this policy, run the story without it."""
        while True:
            known = len(self.rejected)
            failure = self(tuple(move for move in story if not self.is_rejected(move)))
            if failure is not None or len(self.rejected) == known:
                return failure

    def __call__(self, story: Story) -> StoryFailure | None:
        """Run a story on both sides, up to the first move that differs. Return None if none does."""
        counters = self._counters()
        learnt_from: dict[int, tuple[str, ...]] = {}
        eager_moves = self._play(self._sides.eager, story, counters, learnt_from)
        compiled_moves = self._play(self._sides.compiled, story, counters, learnt_from)
        if self._sides.first.shared:
            # Both sides have one module. It can run one story at a time, and rounding floors run another one.
            eager_moves, compiled_moves = iter(list(eager_moves)), iter(list(compiled_moves))
        for number in range(1, len(story) + 1):
            eager, changed, learnt = next(eager_moves)
            if eager.error is not None:
                advice = graph_advice(eager.error, self._sides.first)
                self._reject(story[:number], f"eager raises {first_line(eager.error)}{advice}")
                return None
            compiled, also_changed, also_learnt = next(compiled_moves)
            if self._fails_to_compile(story[:number], compiled.error):
                return None
            self._sides.progress.step(
                f"move {number} of {len(story)}: {story_text([story[number - 1]])}, comparison"
            )
            self._add_unequal(eager, learnt, compiled, also_learnt)
            self._moves += 1
            differences = self._compare(story[:number], eager, compiled)
            if self._disturbed:
                # Computing rounding floors has run other stories on the eager side. Bring it back to here.
                self.rerun(story[:number])()
                self._disturbed = False
            differences += tuple(_overwritten(also_changed - changed, number))
            if differences:
                return StoryFailure(
                    story=story[:number], differences=differences, compiled=compiled, move=self._moves
                )
        return None

    def _play(
        self,
        side: LifecycleSide,
        story: Story,
        counters: CounterValues,
        learnt_from: dict[int, tuple[str, ...]],
    ) -> Iterator[tuple[Outcome, set[tuple[int, str]], Tensors]]:
        """Yield the outcome of each move, the earlier outputs that have changed, and what was learnt.

        `learnt_from` has, by move, what the loss of the eager side is computed from, which plays first.
        """
        side.begin(counters)
        name = "eager" if side is self._sides.eager else "compiled"
        for number, move in enumerate(story, start=1):
            self._sides.progress.step(f"move {number} of {len(story)}: {story_text([move])}, {name}")
            graphs = self._sides.capture.graphs
            outcome = side.play(move, among=learnt_from.get(number))
            learnt_from.setdefault(number, outcome.learnt_from)
            if graphs != self._sides.capture.graphs and not (move.plain and _unchanged(story[: number - 1])):
                self.added += self._sides.capture.graphs - graphs
            if side is self._sides.compiled:
                self._watch_recompiles(story[:number])
            learnt = side.learnt()
            if self._sides.first.shared:
                learnt = {path: tensor.clone() for path, tensor in learnt.items()}
            yield outcome, side.overwritten(), learnt
            if outcome.error is not None:
                return

    def _add_unequal(self, eager: Outcome, learnt: Tensors, compiled: Outcome, also_learnt: Tensors) -> None:
        """Add copies of the weights and optimizer states that may differ to the outcomes.

        Copies of all of them, on both sides, would be several times as large as the module.
        """
        if compiled.error is not None:
            return
        for path in learnt.keys() | also_learnt.keys():
            mine, theirs = learnt.get(path), also_learnt.get(path)
            shown = path in eager.state.tensors or path in compiled.state.tensors
            if not shown and mine is not None and theirs is not None and self._clearly_equal(mine, theirs):
                continue
            for outcome, tensor in ((eager, mine), (compiled, theirs)):
                if tensor is not None:
                    outcome.state.tensors[path] = tensor.clone()

    def _clearly_equal(self, mine: torch.Tensor, theirs: torch.Tensor) -> bool:
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return False
        if torch.equal(mine, theirs):
            return True
        return mine.is_floating_point() and float((mine - theirs).abs().max()) <= self._options.atol

    def _counters(self) -> CounterValues:
        state = self._sides.compiled.side.state
        return state.counters.now() if state is not None else {}

    def _watch_recompiles(self, story: Story) -> None:
        """Raise `Stop` if too many calls in a row compile again for inputs that were compiled before."""
        move = story[-1]
        if not move.method:
            return
        here = (move.template, move.batch, _seen_by_guards(story))
        recompiling = self._recompiling[move.method]
        if recompiling.add(here, self._sides.by_name[move.method].recorder.compiled_in_last_call):
            raise compiles_again(recompiling.in_a_row, self._recompile_limit, self._sides.capture.recompiles)

    def _reject(self, story: Story, why: str) -> None:
        """Store a move as impossible. Later stories are run without it.

        It is the last move. If a phase does the same as the last move, it is the last change before it.
        """
        *before, last = story
        changes = [move for move in before if move.change] if last.plain else []
        self.rejected.setdefault((changes or [last])[-1].template, why)

    def is_rejected(self, move: Move) -> bool:
        """Return whether the move has turned out to be impossible for this policy."""
        return move.template in self.rejected

    def _fails_to_compile(self, story: Story, error: BaseException | None) -> bool:
        """Return whether the compiler fails on the last move. If so, store the move as impossible.

        Raises:
            Stop: if a phase does the same as the move.
        """
        move = story[-1]
        recorder = self._sides.by_name.get(move.method, self._sides.first).recorder
        if error is None or not recorder.is_compile_failure(error):
            return False
        if move.plain and _unchanged(story[:-1]):
            raise Stop(Verdict.COMPILE_FAILED, f"{failure_text(error)}, in {story_text([move])}")
        text = f"the compiler raises {failure_text(error)}"
        self.uncompiled.append(text)
        self._reject(story, text)
        return True

    def _compare(self, story: Story, eager: Outcome, compiled: Outcome) -> tuple[Difference, ...]:
        asked = None if self._options.reference == "eager" else self._references(story, eager)
        judgement = judge(eager, compiled, self.tolerance, asked)
        state = self._sides.eager.side.state
        changed = not eager.outputs.tensors and state is not None and state.changed()
        self.evidence.add(eager, judgement, degenerate=False, changed=changed)
        return judgement.differences

    def rerun(self, story: Story, *, rewind_to: int | None = None, learnt: Collection[str] = ()) -> Rerun:
        """Return a function that runs a story again in eager and returns the outcome of the last move.

        It runs the story from the beginning, so that rounding errors add up as they did.

        Args:
            story: the story.
            rewind_to: the index of a move. What that move changed is restored before the last move.
            learnt: the names of weights and optimizer states to add to the outcome.
        """

        def rerun(under: Around = contextlib.nullcontext, wide: bool = False) -> Outcome:
            side = self._sides.eager
            side.begin(self._counters())
            outcome = Outcome()
            restore = None
            with under():
                for place, move in enumerate(story):
                    if place == rewind_to:
                        restore, what = side.changes.snapshot(), move.change.what or "weights"
                    if place == len(story) - 1 and restore is not None:
                        restore(what)
                    outcome = side.play(move, wide=wide)
                    if outcome.error is not None:
                        return outcome
                tensors = side.learnt()
                outcome.state.tensors |= {path: tensors[path] for path in learnt if path in tensors}
            return outcome

        return rerun

    def _references(self, story: Story, eager: Outcome) -> References:
        """Return the references for the last move of a story."""
        rerun = self.rerun(story, learnt=eager.state.tensors.keys())
        learnt = any(move.kind is Kind.LEARN for move in story)
        asked = references(eager, self._sides.eager.side, rerun, learnt=learnt)

        def floors(paths: Collection[str]) -> Iterator[Floor]:
            self._disturbed = True
            if not self._repeats:
                require_repeatable(eager, self.tolerance, rerun)
                self._repeats = True
            yield from asked.floors(paths)

        return dataclasses.replace(asked, floors=floors)

    # --- of a failure ---

    def differences(self, failure: StoryFailure) -> tuple[Difference, ...]:
        """Return the differences of a failure, with the values of the float64 reference if there is one."""
        if self._options.reference == "eager":
            return failure.differences
        rerun = self.rerun(failure.story, learnt=[difference.path for difference in failure.differences])
        return with_float64(failure.differences, self._sides.eager.side, rerun, learns=True)


def _unchanged(story: Iterable[Move]) -> bool:
    """Return whether a story changes nothing other than by learning and loading."""
    return not any(move.change for move in story)


def _seen_by_guards(story: Iterable[Move]) -> frozenset[Change]:
    """Return the changes in effect after a story that guards may notice."""
    seen: set[Change] = set()
    for move in story:
        if move.change is Change.THAWED:
            seen.discard(Change.FROZEN)
        elif move.change in MAY_COMPILE:
            seen.add(move.change)
    return frozenset(seen)


def _overwritten(changed: set[tuple[int, str]], number: int) -> Iterator[Difference]:
    for earlier, path in sorted(changed):
        yield Difference(
            path=f"{path} of move {earlier}",
            problem="overwritten",
            eager="unchanged",
            compiled=f"changed by move {number}",
        )
