"""Checks the lifecycle of a policy: runs the same stories on one compiled object and on its eager twin.

A single call can't show weights that are stale after an optimizer step, an output that the next call
overwrites, or code of one mode that runs in the other. The first story has each move. Then come optimizer
steps in a row, then stories that Hypothesis draws from the same moves. Using the same moves keeps the number
of graphs beyond those of the two phases small.
"""

from __future__ import annotations

import dataclasses

from pytest_torchcompile import internals
from pytest_torchcompile.checking.freshness import Unlike, unlike_as_deployed
from pytest_torchcompile.checking.known_causes import rounding_causes
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.repeating import only_trains
from pytest_torchcompile.checking.stops import (
    Stop,
    does_not_repeat,
    require_compiled,
    suppress_stop_if_found,
)
from pytest_torchcompile.errors import CompileFailed, UsageError
from pytest_torchcompile.generation import recipes
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.generation.search import examples_of_profile, search
from pytest_torchcompile.lifecycle.likeness import likeness
from pytest_torchcompile.lifecycle.side import WRAPPER, layers_with_modes
from pytest_torchcompile.lifecycle.sides import LifecycleSides
from pytest_torchcompile.lifecycle.stories import (
    ACTING,
    MAY_COMPILE,
    Change,
    Manner,
    Possible,
    Story,
    canonical,
    stories,
    story_text,
    training,
)
from pytest_torchcompile.lifecycle.trial import StoryFailure, StoryTrial
from pytest_torchcompile.options import LIFECYCLE, CheckOptions
from pytest_torchcompile.policies.input_advice import eager_raises
from pytest_torchcompile.results import Capture, CheckResult, Verdict

EXAMPLES_PER_STORY = 5
"""Examples of a phase per drawn story, so that a lifecycle takes no longer than a phase."""

MOST_NAMED = 8
"""The most buffers or attributes that are changed one by one, to name the one that causes a failure."""

LEAST_TO_SHRINK = 50
"""The fewest stories that are drawn to find a failure of the first stories again and to shorten it."""


class LifecycleProtocol:
    """Checks the lifecycle of one policy.

    Args:
        sides: its two sides.
        options: how to check it.
    """

    def __init__(self, sides: LifecycleSides, options: CheckOptions) -> None:
        self._sides = sides
        self._options = options
        self._trial = StoryTrial(sides, options)
        self._notes = list(sides.first.twins.notes)
        self._learning: dict[str, list[str]] = {}
        self.failure: StoryFailure | None = None
        """The story that differs; None if there is none."""
        self.unlike: Pair | None = None
        """The method that differs as deployed only; None if there is none."""
        self._sampling: list[Pair] = []

    def run(self, name: str) -> CheckResult:
        """Check the whole lifecycle.

        Args:
            name: the name of the lifecycle in Hypothesis' database.

        Raises:
            UsageError: if a method that was declared to learn returns nothing that requires grad.
        """
        try:
            self._try_eager()
            story = canonical(self._sides.acting, list(self._learning), self._options.batch, self._possible())
            failure = self._trial.run_possible(story)
            if failure is None:
                self._require_called(story)
            self._require_compiled(failure.story if failure else story, failure)
            failure = failure or self._train()
            failure = self._search(failure, story, name)
            # Before the methods that sample are compiled again.
            capture = self._capture()
            self._sides.progress.step("drawing as deployed")
            unlike = None if failure else self._as_deployed()
        except Stop as stop:
            return self._result(stop.verdict, stop.reason, self._capture())
        if failure is not None:
            return self._differs(failure, capture)
        if unlike is not None:
            result = self._result(Verdict.DIFFERS, unlike.reason, capture)
            return dataclasses.replace(result, worst=unlike.difference, differences=(unlike.difference,))
        self._note_left_out()
        self._note_wrapped()
        return self._result(*self._trial.evidence.verdict(), capture)

    # --- before the first story ---

    def _try_eager(self) -> None:
        """Find out in eager which methods act, learn and draw random numbers."""
        for name, pair in self._sides.by_name.items():
            recipe = recipes.random_recipe(pair.tree, self._options.batch[0], self._options.seed)
            if name in self._sides.acting:
                outcome = pair.first_eager(recipe, "rollout")
                if outcome.error is not None:
                    text = self._raised(pair, recipe, outcome.error) + only_trains(name, pair, recipe)
                    raise Stop(Verdict.EAGER_FAILED, text)
                if outcome.drew():
                    self._sampling.append(pair)
            if name in self._sides.learning:
                self._try_learning(name, pair, recipe)
            pair.drop_deployed_code_that_draws()

    def _try_learning(self, name: str, pair: Pair, recipe: Recipe) -> None:
        """Find out whether a method learns.

        Raises:
            Stop: if a method that was declared to learn raises.
            UsageError: if it returns nothing that requires grad.
        """
        outcome = pair.first_eager(recipe, "update")
        if outcome.error is not None:
            text = self._raised(pair, recipe, outcome.error)
            if self._sides.must_learn:
                raise Stop(Verdict.EAGER_FAILED, f"learning by {name}, {text}")
            self._notes.append(f"{name} does not learn: {text}")
        elif outcome.gradients:
            self._learning[name] = [leaf for leaf, grad in outcome.gradients.items() if grad is not None]
        elif self._sides.must_learn:
            asked = "a loss is declared" if name == "loss" else f"learn={name!r}"
            raise UsageError(f"{asked}, but nothing that it returns in train() requires grad")

    @staticmethod
    def _raised(pair: Pair, recipe: Recipe, error: BaseException) -> str:
        return eager_raises(error, recipe.batch, pair.tree, pair.twins.eager)

    def _require_called(self, story: Story) -> None:
        """Raise `Stop` if eager raised whenever it acted or learnt: only loads and changes are left then."""
        plain = dict.fromkeys(move.template for move in story if move.plain)
        refused = [
            f"{move}, on which {self._trial.rejected[move]}"
            for move in plain
            if self._trial.is_rejected(move)
        ]
        if plain and len(refused) == len(plain):
            raise Stop(
                Verdict.EAGER_FAILED, f"no acting or learning was compared: left out {'; '.join(refused)}"
            )

    def _require_compiled(self, story: Story, failure: StoryFailure | None) -> None:
        """Raise `Stop` if a method of the story was not compiled. After an exception, methods did not run."""
        if failure is None or failure.differences[0].problem != "exception":
            for method in dict.fromkeys(move.method for move in story if move.method):
                require_compiled(self._sides.by_name[method], self._options)

    def _possible(self) -> Possible:
        """Return what the policy allows besides acting and learning."""
        changes = self._sides.eager.changes
        laid_out = self._options.layouts and recipes.layouts(self._sides.first.tree)
        modes = layers_with_modes(internals.uncompiled(self._sides.first.twins.eager))
        return Possible(
            manners=[m for m in ACTING if m is not Manner.LAYOUT or laid_out],
            settled=bool(modes),
            changes=list(changes.possible()),
            layer=changes.layer(list(self._learning.values())),
        )

    # --- more stories ---

    def _train(self) -> StoryFailure | None:
        """Take consecutive optimizer steps, if there are seconds left."""
        if self._out_of_budget():
            return None
        return self._trial.run_possible(
            training(list(self._learning), self._options.batch[0], self._options.steps)
        )

    def _search(self, first: StoryFailure | None, known: Story, name: str) -> StoryFailure | None:
        """Search with Hypothesis for a story that fails, or for a shorter one than `first`."""
        shortest = None if first is None else suppress_stop_if_found([first], lambda: self._shortest(first))
        if shortest is not None:
            return shortest
        failures = [] if first is None else [first]
        moves = list(dict.fromkeys(dataclasses.replace(move, seed=0) for move in known))
        moves = [move for move in moves if not self._trial.is_rejected(move)]
        if first is None:
            # In another order these moves would compile code that the first story did not.
            moves = [m for m in moves if m.change not in MAY_COMPILE and m.manner is not Manner.SETTLED]
        drawn = self._options.examples
        examples = (examples_of_profile() if drawn is None else drawn) // EXAMPLES_PER_STORY

        def fails(story: Story) -> bool:
            if self._out_of_budget():
                return False
            failure = suppress_stop_if_found(failures, lambda: self._trial(story))
            if failure is not None:
                failures.append(failure)
            return failure is not None

        replayed = search(
            stories(moves),
            fails,
            # Finding a known failure again and shortening it needs more stories than looking for one.
            examples=examples if first is None else max(examples, LEAST_TO_SHRINK),
            shrink_s=self._options.shrink_seconds,
            digest=f"{name}-{LIFECYCLE}",
        )
        if replayed or not failures:
            return failures[-1] if failures else None
        again = suppress_stop_if_found(failures, lambda: self._trial(failures[0].story))
        return again or dataclasses.replace(failures[0], replayed=False)

    def _shortest(self, failure: StoryFailure) -> StoryFailure | None:
        """Return the failure in a story of at most three moves; None if it needs more.

        The stories are the last move alone, after one other, after a change of numbers that is made twice,
        and before and after one other.
        """
        *before, last = failure.story
        changes = self._sides.eager.changes
        names = {m.change: changes.names(m.change)[:MOST_NAMED] for m in before if m.change}
        # Named changes first, so that the story names the one buffer or attribute.
        named = [dataclasses.replace(m, name=name) for m in before for name in names.get(m.change, ())]
        # Also with another seed than the last move: otherwise both calls have equal outputs.
        others = named + [
            dataclasses.replace(move, seed=seed) for move in before for seed in (move.seed, last.seed + 1)
        ]
        others = list(dict.fromkeys(others))
        pairs = [(move, last) for move in others]
        # A number's second value may have been kept, and the last move may fail because of what code keeps
        # from an earlier call of the same kind.
        longer = [(move, move, last) for move in others if move.change is Change.ANNEALED]
        longer += [(last, move, last) for move in others]
        for story in [(last,), *pairs, *longer]:
            # Twice: a failure that depends on the number of the call does not repeat.
            again = self._trial(story) and self._trial(story)
            if again is not None:
                return again
        return None

    def _out_of_budget(self) -> bool:
        reason = self._sides.first.out_of_seconds()
        note = f"no more stories: {reason}"
        if reason and note not in self._notes:
            self._notes.append(note)
        return bool(reason)

    def _as_deployed(self) -> Unlike | None:
        """Return the difference of a method that samples, compiled as it is deployed; None if it has none."""
        try:
            for pair in self._sampling:
                unlike = unlike_as_deployed(pair, self._options)
                if unlike is not None:
                    self.unlike = pair
                    return unlike
        except CompileFailed as error:
            raise Stop(Verdict.COMPILE_FAILED, str(error)) from None
        return None

    # --- the result ---

    def _differs(self, failure: StoryFailure, capture: Capture) -> CheckResult:
        self.failure = failure
        if failure.replayed:
            self._notes += rounding_causes(
                self._options,
                lambda lenient: StoryTrial(self._sides, lenient)(failure.story) is None,
                self._trial.rerun(failure.story),
            )
        differences = self._trial.differences(failure)
        reasons = list(likeness(failure, self._trial.rerun, self._trial.tolerance))
        if not failure.replayed:
            reasons.insert(0, does_not_repeat(f"move {failure.move}", self._trial.rerun(failure.story)))
        return dataclasses.replace(
            self._result(Verdict.DIFFERS, "; ".join(reasons), capture),
            worst=differences[0],
            differences=differences,
            example=story_text(failure.story),
        )

    def _capture(self) -> Capture:
        return dataclasses.replace(self._sides.capture, added=self._trial.added)

    def _note_left_out(self) -> None:
        for move, text in self._trial.rejected.items():
            self._notes.append(f"left out: {move}, {'after' if move.change else 'on'} which {text}")
        if not self._learning:
            self._notes.append("no method's outputs require grad: the lifecycle has no learning")

    def _note_wrapped(self) -> None:
        if not self._sides.first.twins.deployed:
            return
        names = [n for n in self._sides.first.twins.compiled.state_dict() if WRAPPER in n]
        if names:
            self._notes.append(
                f"the state_dict() of the compiled policy has {len(names)} names with {WRAPPER!r} in them, "
                f"such as {names[0]}, which a plain module can't load: save the state_dict() of the module "
                f"inside, or compile it in place with module.compile()"
            )

    def _result(self, verdict: Verdict, reason: str, capture: Capture) -> CheckResult:
        methods = dict.fromkeys([*self._sides.acting, *self._sides.learning])
        evidence, pairs = self._trial.evidence, self._sides.by_name.values()
        of_pairs = [n for p in pairs for n in (*p.notes, *p.recorder.notes(eager_raised=evidence.rejected))]
        return CheckResult(
            method="+".join(methods),
            phase=LIFECYCLE,
            verdict=verdict,
            reason=reason,
            examples=evidence.examples,
            attempts=evidence.attempts,
            rounding=evidence.rounding,
            worst=evidence.worst,
            capture=capture,
            notes=(*self._notes, *dict.fromkeys((*of_pairs, *evidence.notes()))),
            backend="as deployed" if self._sides.first.twins.deployed else self._options.backend_name,
        )
