"""One story: told to both sides of a policy's life, and judged move by move.

What stories show is summed up on the way; what makes further stories pointless ends the check.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator

import torch

from pytest_torchcompile.calls import Around, Outcome
from pytest_torchcompile.capture import failure_text
from pytest_torchcompile.evidence import Evidence
from pytest_torchcompile.life import Life
from pytest_torchcompile.lives import Lives
from pytest_torchcompile.measure import Tolerance
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.results import Difference, Verdict
from pytest_torchcompile.rounding import Floor, Rerun, distance_to_float64, rounding_floors
from pytest_torchcompile.state import Counters
from pytest_torchcompile.story import Kind, Manner, Move, Story, told
from pytest_torchcompile.texts import first_line
from pytest_torchcompile.tolerance import judge
from pytest_torchcompile.trial import Stop, referred, require_repeated

Tensors = dict[str, torch.Tensor]

AUTOCAST_SHIFT = 0.5
"""Under autocast eager rounds to bfloat16 after each operator where compiled may not: by half an eps."""


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


class Telling:
    """Tells stories to the two lives of a policy, one after the other.

    Args:
        lives: the two.
        options: how to compare them.
    """

    def __init__(self, lives: Lives, options: CheckOptions) -> None:
        self.evidence = Evidence()
        self.rejected: dict[tuple[Kind, str, Manner], str] = {}
        self.added = 0
        self._lives = lives
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
        eager_moves = self._played(self._lives.eager, story, counters)
        compiled_moves = self._played(self._lives.compiled, story, counters)
        if self._lives.first.shared:
            # One module can't be in the middle of two stories, nor of one while its floors are asked for.
            eager_moves, compiled_moves = iter(list(eager_moves)), iter(list(compiled_moves))
        for number, move in enumerate(story, start=1):
            eager, changed, learnt = next(eager_moves)
            if eager.error is not None:
                self._reject(move, f"eager raises {first_line(eager.error)}")
                return None
            compiled, also_changed, also_learnt = next(compiled_moves)
            if self._fails_to_compile(move, compiled.error):
                return None
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
        self, life: Life, story: Story, counters: Counters
    ) -> Iterator[tuple[Outcome, set[tuple[int, str]], Tensors]]:
        """What each move leaves behind, which earlier outputs have changed by then, and what was learnt."""
        life.begin(counters)
        for move in story:
            graphs = self._lives.capture.graphs
            outcome = life.play(move)
            self.added += self._lives.capture.graphs - graphs if move.manner else 0
            learnt = life.learnt() if move.changes_weights else {}
            if self._lives.first.shared:
                learnt = {path: tensor.clone() for path, tensor in learnt.items()}
            yield outcome, life.overwritten(), learnt
            if outcome.error is not None:
                return

    def _add_unequal(self, eager: Outcome, learnt: Tensors, compiled: Outcome, also_learnt: Tensors) -> None:
        """Add to what is compared the weights and optimizer states that are not surely equal.

        All of them, on both sides, would be several times as large as the module.
        """
        if compiled.error is not None:
            return
        for path in learnt.keys() | also_learnt.keys():
            mine, theirs = learnt.get(path), also_learnt.get(path)
            if mine is not None and theirs is not None and self._surely_equal(mine, theirs):
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
        state = self._lives.compiled.side.state
        return state.counters() if state is not None else {}

    def _reject(self, move: Move, why: str) -> None:
        """Remember a move that can't be made; it ends a story, and is left out from then on."""
        self.rejected.setdefault((move.kind, move.method, move.manner), why)

    def is_rejected(self, move: Move) -> bool:
        """Whether the move has turned out to be none for this policy."""
        return (move.kind, move.method, move.manner) in self.rejected

    def _fails_to_compile(self, move: Move, error: Exception | None) -> bool:
        """Whether the compiler fails on a manner of acting, which is left out then.

        Raises:
            Stop: if it fails on what the phases do.
        """
        recorder = self._lives.by_name.get(move.method, self._lives.first).recorder
        if error is None or not recorder.is_compile_failure(error):
            return False
        if not move.manner:
            raise Stop(Verdict.COMPILE_FAILED, f"{failure_text(error)}, in {told([move])}")
        self._reject(move, f"the compiler raises {failure_text(error)}")
        return True

    def _compare(self, story: Story, eager: Outcome, compiled: Outcome) -> tuple[Difference, ...]:
        has_floor = self._options.reference != "eager"
        judgement = judge(
            eager, compiled, self._tolerance, (lambda: self._floors(story, eager)) if has_floor else None
        )
        self.evidence.add(eager, judgement, degenerate=False)
        return judgement.differences

    def rerun(self, story: Story, *, rewind_to: int | None = None, learnt: Collection[str] = ()) -> Rerun:
        """Tells eager a story again, from its beginning, so that what it rounds adds up as it did.

        With `rewind_to` the last move is made with the weights from before that move. What is named in
        `learnt` is part of the outcome.
        """

        def rerun(under: Around = contextlib.nullcontext, wide: bool = False) -> Outcome:
            life = self._lives.eager
            life.begin(self._counters())
            outcome = Outcome()
            weights: dict[str, torch.Tensor] = {}
            with under():
                for place, move in enumerate(story):
                    if place == rewind_to:
                        weights = life.weights()
                    if place == len(story) - 1:
                        life.set_weights(weights)
                    outcome = life.play(move, wide=wide)
                    if outcome.error is not None:
                        return outcome
                tensors = life.learnt()
                outcome.state.tensors |= {path: tensors[path] for path in learnt if path in tensors}
            return outcome

        return rerun

    def _floors(self, story: Story, eager: Outcome) -> Iterator[Floor]:
        rerun = self.rerun(story, learnt=eager.state.tensors.keys())
        self._disturbed = True
        if not self._repeats:
            require_repeated(eager, rerun(), self._tolerance)
            self._repeats = True
        if story[-1].manner is not Manner.AUTOCAST:
            yield from rounding_floors(eager, rerun)
            return
        distance = distance_to_float64(eager, self._lives.eager.side, rerun)
        if distance is not None:
            yield distance
        floor = Floor()
        for floor in rounding_floors(eager, rerun, AUTOCAST_SHIFT):
            # So small a shift leaves many a row where it was, on bfloat16's coarse grid.
            floor = dataclasses.replace(floor, rows={})
            yield floor
        # A choice between what bfloat16 makes equal falls either way, and takes everything with it.
        for wide in rounding_floors(eager, rerun):
            yield dataclasses.replace(floor, flipped=wide.flipped, plain=wide.plain)

    # --- of a failure ---

    def differences(self, failure: StoryFailure) -> tuple[Difference, ...]:
        """What differs in a failure, with the float64 reference's values where there is one."""
        if self._options.reference == "eager":
            return failure.differences
        rerun = self.rerun(failure.story, learnt=[difference.path for difference in failure.differences])
        return referred(failure.differences, self._lives.eager.side, rerun)

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
        for place in reversed([i for i, move in enumerate(before) if move.changes_weights]):
            changed = told([story[place]])
            sentence = f"the last move answers with the weights from before {changed}"
            yield sentence, self.rerun(story, rewind_to=place)()
        others: list[tuple[str, Move]] = [
            ("what an earlier call was asked", dataclasses.replace(last, seed=seed))
            for seed in _other_seeds(story)
        ]
        if last.manner is Manner.TRAINING:
            others.insert(0, ("as in evaluation mode", dataclasses.replace(last, manner=Manner.PLAIN)))
        elif last.kind is Kind.ACT and last.manner is Manner.PLAIN:
            others.insert(0, ("as in training mode", dataclasses.replace(last, manner=Manner.TRAINING)))
        for what, other in others:
            yield f"the last move answers {what}", self.rerun((*before, other))()


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
