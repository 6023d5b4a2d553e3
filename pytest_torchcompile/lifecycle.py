"""The lifecycle of a policy: one compiled object and its eager twin go through the same stories.

A single call can't show weights that are stale after an optimizer step, an output that the next call
overwrites, or code of the one mode that answers in the other. First comes a story in which each of
these would show, then optimizer steps in a row, then stories that Hypothesis makes of the same moves,
so that few graphs are added to those of the two phases.
"""

from __future__ import annotations

import dataclasses

from pytest_torchcompile import recipes
from pytest_torchcompile.errors import CompileFailed, UsageError
from pytest_torchcompile.freshness import FROZEN, frozen
from pytest_torchcompile.known import rounding_causes
from pytest_torchcompile.life import WRAPPER
from pytest_torchcompile.lives import Lives
from pytest_torchcompile.options import LIFECYCLE, CheckOptions
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.recipes import Recipe
from pytest_torchcompile.results import Capture, CheckResult, Difference, Verdict
from pytest_torchcompile.search import examples_of_profile, search
from pytest_torchcompile.story import Manner, Story, canonical, stories, told, training
from pytest_torchcompile.telling import StoryFailure, Telling
from pytest_torchcompile.texts import raised_text
from pytest_torchcompile.trees import declared
from pytest_torchcompile.trial import Stop, require_compiled

EXAMPLES_PER_STORY = 5
"""Examples of a phase that one drawn story stands for, so that a lifecycle costs no more than a phase."""

LEAST_TO_SHRINK = 50
"""Stories drawn to find again, and to shorten, a failure of the first ones."""


class LifecycleProtocol:
    """The lifecycle of one policy while it is checked.

    Args:
        lives: its methods on both sides.
        options: how to check it.
    """

    def __init__(self, lives: Lives, options: CheckOptions) -> None:
        self._lives = lives
        self._options = options
        self._telling = Telling(lives, options)
        self._notes = list(lives.first.twins.notes)
        self._learning: list[str] = []
        self.failure: StoryFailure | None = None
        """The story that the lifecycle differs in, once it was told."""
        self.frozen: Pair | None = None
        """The method that returns the same draw again and again."""
        self._sampling: list[Pair] = []

    def run(self, name: str) -> CheckResult:
        """The whole lifecycle.

        Args:
            name: tells it apart in Hypothesis' database.

        Raises:
            UsageError: if nothing can be learnt from what was declared to be learnt by.
        """
        try:
            self._try_eager()
            story = canonical(self._lives.acting, self._learning, self._options.batch, self._manners())
            failure = self._telling.tell(story)
            self._require_compiled(failure.story if failure else story, failure)
            failure = failure or self._telling.tell(
                training(self._learning, self._options.batch[0], self._options.steps)
            )
            failure = self._search(failure, story, name)
            # What is asked for fresh samples may be compiled anew.
            capture = self._capture()
            still = None if failure else self._frozen()
        except Stop as stop:
            return self._result(stop.verdict, stop.reason, self._capture())
        if failure is not None:
            return self._differs(failure, capture)
        if still is not None:
            result = self._result(Verdict.DIFFERS, FROZEN, capture)
            return dataclasses.replace(result, worst=still, differences=(still,))
        self._note_left_out()
        self._note_wrapped()
        return self._result(*self._telling.evidence.verdict(), capture)

    # --- before the first story ---

    def _try_eager(self) -> None:
        """Find out which methods act and learn in eager, and what they draw."""
        for name, pair in self._lives.by_name.items():
            recipe = recipes.random_recipe(pair.tree, self._options.batch[0], self._options.seed)
            if name in self._lives.acting:
                outcome = pair.first_eager(recipe, "rollout")
                if outcome.error is not None:
                    raise Stop(Verdict.EAGER_FAILED, self._raised(pair, recipe, outcome.error))
                if outcome.drew():
                    self._sampling.append(pair)
            if name in self._lives.learning:
                self._try_learning(name, pair, recipe)
            pair.drop_other_draws()

    def _try_learning(self, name: str, pair: Pair, recipe: Recipe) -> None:
        """Let a method learn if it can; that one which was declared to can't is the user's error."""
        outcome = pair.first_eager(recipe, "update")
        if outcome.error is not None:
            text = self._raised(pair, recipe, outcome.error)
            if self._lives.must_learn:
                raise Stop(Verdict.EAGER_FAILED, f"learning by {name}, {text}")
            self._notes.append(f"{name} does not learn: {text}")
        elif outcome.gradients:
            self._learning.append(name)
        elif self._lives.must_learn:
            raise UsageError(f"learn={name!r}, but nothing that it returns in train() requires grad")

    @staticmethod
    def _raised(pair: Pair, recipe: Recipe, error: Exception) -> str:
        return (
            f"eager raises {raised_text(error)} on inputs with batch {recipe.batch} declared as "
            f"{declared(pair.tree)}"
        )

    def _require_compiled(self, story: Story, failure: StoryFailure | None) -> None:
        """Return if each method of a story was compiled; what came after an exception never ran."""
        if failure is None or failure.differences[0].problem != "exception":
            for method in dict.fromkeys(move.method for move in story if move.method):
                require_compiled(self._lives.by_name[method], self._options)

    def _manners(self) -> list[Manner]:
        """How the policy acts besides, the last one being the one that nothing can follow."""
        tree = self._lives.first.tree
        return [m for m in Manner if m and (m is not Manner.LAYOUT or recipes.layouts(tree))]

    # --- more stories ---

    def _search(self, first: StoryFailure | None, known: Story, name: str) -> StoryFailure | None:
        """Let Hypothesis look for a story that fails, or for a shorter one than `first`."""
        shortest = None if first is None else self._shortest(first)
        if shortest is not None:
            return shortest
        failures = [] if first is None else [first]
        moves = list(dict.fromkeys(dataclasses.replace(move, seed=0) for move in known))
        moves = [move for move in moves if not self._telling.is_rejected(move)]
        drawn = self._options.examples
        examples = (examples_of_profile() if drawn is None else drawn) // EXAMPLES_PER_STORY

        def fails(story: Story) -> bool:
            failure = None if self._out_of_budget() else self._telling(story)
            if failure is not None:
                failures.append(failure)
            return failure is not None

        replayed = search(
            stories(moves),
            fails,
            # To find a failure again, and make it smaller, takes more than to look whether there is one.
            examples=examples if first is None else max(examples, LEAST_TO_SHRINK),
            shrink_s=self._options.shrink_seconds,
            digest=f"{name}-{LIFECYCLE}",
        )
        if replayed or not failures:
            return failures[-1] if failures else None
        again = self._telling(failures[0].story)
        return again or dataclasses.replace(failures[0], replayed=False)

    def _shortest(self, failure: StoryFailure) -> StoryFailure | None:
        """The failure by its last move alone, or by that and one move before; None if it takes more."""
        *before, last = failure.story
        # The same move before with another seed, because equal outputs could not be told apart.
        others = [
            dataclasses.replace(move, seed=seed) for move in before for seed in (move.seed, last.seed + 1)
        ]
        for story in [(last,), *((move, last) for move in dict.fromkeys(others))]:
            # Told twice, because what depends on the number of the call does not come again.
            again = self._telling(story) and self._telling(story)
            if again is not None:
                return again
        return None

    def _out_of_budget(self) -> bool:
        if self._lives.capture.compile_s <= self._options.max_seconds:
            return False
        note = f"compiling took more than max_seconds={self._options.max_seconds:g}: no more stories"
        if note not in self._notes:
            self._notes.append(note)
        return True

    def _frozen(self) -> Difference | None:
        """What a method that samples returns again and again, compiled as it is deployed."""
        try:
            for pair in self._sampling:
                still = frozen(pair, self._options)
                if still is not None:
                    self.frozen = pair
                    return still
        except CompileFailed as error:
            raise Stop(Verdict.COMPILE_FAILED, str(error)) from None
        return None

    # --- the result ---

    def _differs(self, failure: StoryFailure, capture: Capture) -> CheckResult:
        self.failure = failure
        if failure.replayed:
            self._notes += rounding_causes(
                self._options,
                lambda lenient: Telling(self._lives, lenient)(failure.story) is None,
                self._telling.rerun(failure.story),
            )
        differences = self._telling.differences(failure)
        reasons = list(self._telling.likeness(failure))
        if not failure.replayed:
            number = failure.move
            reasons.insert(0, f"depends on what ran before: differed on move {number}, not when tried again")
        return dataclasses.replace(
            self._result(Verdict.DIFFERS, "; ".join(reasons), capture),
            worst=differences[0],
            differences=differences,
            example=told(failure.story),
        )

    def _capture(self) -> Capture:
        return dataclasses.replace(self._lives.capture, added=self._telling.added)

    def _note_left_out(self) -> None:
        for (kind, method, manner), text in self._telling.rejected.items():
            move = ", ".join(filter(None, [method, str(manner)]))
            self._notes.append(f"left out: {kind}({move}), on which {text}")
        if not self._learning:
            self._notes.append("no method's outputs require grad: the lifecycle has no learning")

    def _note_wrapped(self) -> None:
        if not self._lives.first.twins.deployed:
            return
        names = [n for n in self._lives.first.twins.compiled.state_dict() if WRAPPER in n]
        if names:
            self._notes.append(
                f"{len(names)} names in the state_dict() of what is deployed have {WRAPPER!r} in them "
                f"({names[0]} first), which a plain module does not load: save that of the module inside, or "
                f"compile it in place with module.compile()"
            )

    def _result(self, verdict: Verdict, reason: str, capture: Capture) -> CheckResult:
        methods = dict.fromkeys([*self._lives.acting, *self._lives.learning])
        return CheckResult(
            method="+".join(methods),
            phase=LIFECYCLE,
            verdict=verdict,
            reason=reason,
            examples=self._telling.evidence.examples,
            rounding=self._telling.evidence.rounding,
            worst=self._telling.evidence.worst,
            capture=capture,
            notes=tuple(self._notes),
            backend="as deployed" if self._lives.first.twins.deployed else self._options.backend_name,
        )
