"""Says what compiled computes instead: the result of older weights, of another mode, of an earlier call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.tolerance import judge
from pytest_torchcompile.lifecycle.stories import Kind, Manner, Move, Story, story_text
from pytest_torchcompile.lifecycle.trial import NO_VALUES, StoryFailure
from pytest_torchcompile.policies.calls import Rerun
from pytest_torchcompile.policies.outcome import Outcome


def likeness(failure: StoryFailure, rerun: Callable[..., Rerun], tolerance: Tolerance) -> Iterator[str]:
    """Yield what compiled computes instead in the failing move, if eager can compute the same outputs.

    Args:
        failure: the failing story.
        rerun: makes a function that runs a story again in eager; see `StoryTrial.rerun`.
        tolerance: how close compiled's outputs must be to those of eager.
    """
    answered = [d for d in failure.differences if d.path.startswith("output") and d.problem == "values"]
    if not answered:
        return
    for sentence, outcome in _alternatives(failure.story, rerun):
        if (
            outcome.error is None
            and not judge(
                _only_outputs(outcome), _only_outputs(failure.compiled), tolerance, None
            ).differences
        ):
            yield sentence
            return


def _alternatives(story: Story, rerun: Callable[..., Rerun]) -> Iterator[tuple[str, Outcome]]:
    """Yield other outcomes of eager's last move, each with what it means if compiled has the same."""
    *before, last = story
    changes = [i for i, m in enumerate(before) if m.changes_weights or m.change not in NO_VALUES]
    for place in reversed(changes):
        move = story[place]
        what = "weights" if move.changes_weights else move.change.what
        what = what.removesuffix("s") if move.name else what
        before_what = "the change" if move.change else story_text([move])
        sentence = f"the last move uses the {what} from before {before_what}"
        yield sentence, rerun(story, rewind_to=place)()
    others: list[tuple[str, Move]] = [
        ("returns the result for the inputs of an earlier call", dataclasses.replace(last, seed=seed))
        for seed in _other_seeds(story)
    ]
    plain = dataclasses.replace(last, manner=Manner.PLAIN)
    if last.manner is Manner.SETTLED:
        others.insert(0, ("computes as in training mode", plain))
    elif last.manner is Manner.TRAINING:
        others.insert(0, ("computes as in evaluation mode", plain))
    elif last.kind is Kind.ACT and last.manner is Manner.PLAIN:
        trains = dataclasses.replace(last, manner=Manner.TRAINING)
        others.insert(0, ("computes as in training mode", trains))
    for what, other in others:
        yield f"the last move {what}", rerun((*before, other))()


def _other_seeds(story: Story) -> set[int]:
    """Return the seeds of earlier calls of the method that the last move calls."""
    *before, last = story
    return {move.seed for move in before if move.method == last.method} - {last.seed}


def _only_outputs(outcome: Outcome) -> Outcome:
    return Outcome(outputs=outcome.outputs, seed=outcome.seed)
