"""One story: told to both sides of a policy's life, and judged move by move.

What stories show is summed up on the way; what makes further stories pointless ends the check.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Iterator

import torch

from pytest_torchcompile import internals
from pytest_torchcompile.checking.evidence import Evidence
from pytest_torchcompile.checking.repeating import graph_advice
from pytest_torchcompile.checking.stops import Stop, compiles_again, require_repeated
from pytest_torchcompile.comparing.float64 import with_float64
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.references import References, references
from pytest_torchcompile.comparing.rounding import Floor
from pytest_torchcompile.comparing.tolerance import judge
from pytest_torchcompile.compiling.capture import failure_text
from pytest_torchcompile.compiling.recompiling import Recompiling
from pytest_torchcompile.lifecycle.side import LifecycleSide
from pytest_torchcompile.lifecycle.sides import LifecycleSides
from pytest_torchcompile.lifecycle.stories import MAY_COMPILE, Change, Kind, Manner, Move, Story, story_text
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Around, Outcome, Rerun
from pytest_torchcompile.policies.state import Counters
from pytest_torchcompile.results import Difference, Verdict
from pytest_torchcompile.texts import first_line

Tensors = dict[str, torch.Tensor]

RECOMPILES_IN_A_ROW = 6
"""Calls in a row that compile again for what was seen; state that lives on between calls settles before."""

NO_VALUES = (Change.NOTHING, Change.FROZEN, Change.THAWED)
"""Changes after which nothing is another number."""


@dataclasses.dataclass(kw_only=True)
class StoryFailure:
    """A story whose last move leaves different things behind.

    Args:
        story: the moves up to that one.
        differences: what differs, worst first.
        compiled: what compiled left behind.
        move: its number among all moves of the check.
        replayed: whether it differs again when the story is told again.
    """

    story: Story
    differences: tuple[Difference, ...]
    compiled: Outcome
    move: int
    replayed: bool = True


class StoryTrial:
    """Tells stories to both sides of a lifecycle, one after the other.

    Args:
        sides: the two.
        options: how to compare them.
    """

    def __init__(self, sides: LifecycleSides, options: CheckOptions) -> None:
        self.evidence = Evidence()
        self.rejected: dict[Move, str] = {}
        self.uncompiled: list[str] = []
        self.added = 0
        self._recompile_limit = internals.recompile_limit()
        self._recompiling = Recompiling(RECOMPILES_IN_A_ROW)
        self._sides = sides
        self._options = options
        self._tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
        self._moves = 0
        self._repeats = False
        self._disturbed = False

    def tell(self, story: Story) -> StoryFailure | None:
        """Tell a story to both sides, again without those moves that turn out to be none for this policy."""
        while True:
            known = len(self.rejected)
            failure = self(tuple(move for move in story if not self.is_rejected(move)))
            if failure is not None or len(self.rejected) == known:
                return failure

    def __call__(self, story: Story) -> StoryFailure | None:
        """Tell a story to both sides, up to the first move that leaves different things behind."""
        counters = self._counters()
        eager_moves = self._played(self._sides.eager, story, counters)
        compiled_moves = self._played(self._sides.compiled, story, counters)
        if self._sides.first.shared:
            # One module can't be in the middle of two stories, nor of one while its floors are asked for.
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
                # Floors were asked for in the middle of eager's story, which has to go on from here.
                self.rerun(story[:number])()
                self._disturbed = False
            differences += tuple(_overwritten(also_changed - changed, number))
            if differences:
                return StoryFailure(
                    story=story[:number], differences=differences, compiled=compiled, move=self._moves
                )
        return None

    def _played(
        self, side: LifecycleSide, story: Story, counters: Counters
    ) -> Iterator[tuple[Outcome, set[tuple[int, str]], Tensors]]:
        """What each move leaves behind, which earlier outputs have changed by then, and what was learnt."""
        side.begin(counters)
        name = "eager" if side is self._sides.eager else "compiled"
        for number, move in enumerate(story, start=1):
            self._sides.progress.step(f"move {number} of {len(story)}: {story_text([move])}, {name}")
            graphs = self._sides.capture.graphs
            outcome = side.play(move)
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
        """Add to what is compared the weights and optimizer states that are not surely equal, by value.

        All of them, on both sides, would be several times as large as the module.
        """
        if compiled.error is not None:
            return
        for path in learnt.keys() | also_learnt.keys():
            mine, theirs = learnt.get(path), also_learnt.get(path)
            shown = path in eager.state.tensors or path in compiled.state.tensors
            if not shown and mine is not None and theirs is not None and self._surely_equal(mine, theirs):
                continue
            for outcome, tensor in ((eager, mine), (compiled, theirs)):
                if tensor is not None:
                    outcome.state.tensors[path] = tensor.clone()

    def _surely_equal(self, mine: torch.Tensor, theirs: torch.Tensor) -> bool:
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return False
        if torch.equal(mine, theirs):
            return True
        return mine.is_floating_point() and float((mine - theirs).abs().max()) <= self._options.atol

    def _counters(self) -> Counters:
        state = self._sides.compiled.side.state
        return state.counters() if state is not None else {}

    def _watch_recompiles(self, story: Story) -> None:
        """Stop if call after call compiles again for what it was called on before, unchanged."""
        move = story[-1]
        if not move.method:
            return
        here = (move.sort, move.batch, _seen_by_guards(story))
        if self._recompiling.add(here, self._sides.by_name[move.method].recorder.compiled_in_last_call):
            raise compiles_again(
                self._recompiling.in_a_row, self._recompile_limit, self._sides.capture.recompiles
            )

    def _reject(self, story: Story, why: str) -> None:
        """Remember the move that can't be made; it ends a story, and is left out from then on.

        It is the last one, unless the phases do the like of it: then what was changed before it.
        """
        *before, last = story
        changes = [move for move in before if move.change] if last.plain else []
        self.rejected.setdefault((changes or [last])[-1].sort, why)

    def is_rejected(self, move: Move) -> bool:
        """Whether the move has turned out to be none for this policy."""
        return move.sort in self.rejected

    def _fails_to_compile(self, story: Story, error: BaseException | None) -> bool:
        """Whether the compiler fails on what the phases don't do, which is left out then.

        Raises:
            Stop: if it fails on what they do.
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
        judgement = judge(eager, compiled, self._tolerance, asked)
        state = self._sides.eager.side.state
        changed = not eager.outputs.tensors and state is not None and state.changed()
        self.evidence.add(eager, judgement, degenerate=False, changed=changed)
        return judgement.differences

    def rerun(self, story: Story, *, rewind_to: int | None = None, learnt: Collection[str] = ()) -> Rerun:
        """Tells eager a story again, from its beginning, so that what it rounds adds up as it did.

        With `rewind_to` the last move is made with what that move changed as it was before it. What is
        named in `learnt` is part of the outcome.
        """

        def rerun(under: Around = contextlib.nullcontext, wide: bool = False) -> Outcome:
            side = self._sides.eager
            side.begin(self._counters())
            outcome = Outcome()
            put_back = None
            with under():
                for place, move in enumerate(story):
                    if place == rewind_to:
                        put_back, what = side.changes.look(), move.change.what or "weights"
                    if place == len(story) - 1 and put_back is not None:
                        put_back(what)
                    outcome = side.play(move, wide=wide)
                    if outcome.error is not None:
                        return outcome
                tensors = side.learnt()
                outcome.state.tensors |= {path: tensors[path] for path in learnt if path in tensors}
            return outcome

        return rerun

    def _references(self, story: Story, eager: Outcome) -> References:
        """What eager can be asked about the last move of a story."""
        rerun = self.rerun(story, learnt=eager.state.tensors.keys())
        asked = references(eager, self._sides.eager.side, rerun)

        def floors(paths: Collection[str]) -> Iterator[Floor]:
            self._disturbed = True
            if not self._repeats:
                require_repeated(eager, rerun(), self._tolerance)
                self._repeats = True
            yield from asked.floors(paths)

        return dataclasses.replace(asked, floors=floors)

    # --- of a failure ---

    def differences(self, failure: StoryFailure) -> tuple[Difference, ...]:
        """What differs in a failure, with the float64 reference's values where there is one."""
        if self._options.reference == "eager":
            return failure.differences
        rerun = self.rerun(failure.story, learnt=[difference.path for difference in failure.differences])
        return with_float64(failure.differences, self._sides.eager.side, rerun)

    def likeness(self, failure: StoryFailure) -> Iterator[str]:
        """What the outputs of the failing move are instead, if it is something else that eager computes."""
        answered = [d for d in failure.differences if d.path.startswith("output") and d.problem == "values"]
        if not answered:
            return
        for sentence, outcome in self._alternatives(failure.story):
            if (
                outcome.error is None
                and not judge(
                    _only_outputs(outcome), _only_outputs(failure.compiled), self._tolerance, None
                ).differences
            ):
                yield sentence
                return

    def _alternatives(self, story: Story) -> Iterator[tuple[str, Outcome]]:
        """Other answers of eager's to the last move, and what it means if compiled gives one of them."""
        *before, last = story
        changes = [i for i, m in enumerate(before) if m.changes_weights or m.change not in NO_VALUES]
        for place in reversed(changes):
            move = story[place]
            what = "weights" if move.changes_weights else move.change.what
            what = what.removesuffix("s") if move.name else what
            sentence = f"the last move answers with the {what} from before"
            sentence += "" if move.change else f" {story_text([move])}"
            yield sentence, self.rerun(story, rewind_to=place)()
        others: list[tuple[str, Move]] = [
            ("what an earlier call was asked", dataclasses.replace(last, seed=seed))
            for seed in _other_seeds(story)
        ]
        if last.manner is Manner.SETTLED:
            others.insert(0, ("as in training mode", dataclasses.replace(last, manner=Manner.PLAIN)))
        elif last.manner is Manner.TRAINING:
            others.insert(0, ("as in evaluation mode", dataclasses.replace(last, manner=Manner.PLAIN)))
        elif last.kind is Kind.ACT and last.manner is Manner.PLAIN:
            others.insert(0, ("as in training mode", dataclasses.replace(last, manner=Manner.TRAINING)))
        for what, other in others:
            yield f"the last move answers {what}", self.rerun((*before, other))()


def _unchanged(story: Iterable[Move]) -> bool:
    """Whether nothing was changed in a story but by learning and loading."""
    return not any(move.change for move in story)


def _seen_by_guards(story: Iterable[Move]) -> frozenset[Change]:
    """What holds after a story for which each call may have been compiled once more."""
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
            eager="still what it was",
            compiled=f"changed by move {number}",
        )


def _other_seeds(story: Story) -> set[int]:
    """The seeds of earlier calls of the method that is called last."""
    *before, last = story
    return {move.seed for move in before if move.method == last.method} - {last.seed}


def _only_outputs(outcome: Outcome) -> Outcome:
    return Outcome(outputs=outcome.outputs, seed=outcome.seed)
