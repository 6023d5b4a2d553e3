"""Compiles a case, a story or a part of one again, and compares it with eager.

An explanation is a series of such comparisons: with other backends, without some steps of the compiler, of
single submodules and of single graphs. Each may need a compile, so all share one `Budget`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.beyond.rejection import Attempt
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.stops import Stop
from pytest_torchcompile.checking.trial import Trial
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.references import references
from pytest_torchcompile.comparing.tolerance import judge
from pytest_torchcompile.compiling.capture import Recorder
from pytest_torchcompile.compiling.compilation import compile_method
from pytest_torchcompile.compiling.failures import failure_text
from pytest_torchcompile.errors import CompileFailed, UsageError
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.lifecycle.sides import LifecycleSides
from pytest_torchcompile.lifecycle.stories import Story
from pytest_torchcompile.lifecycle.trial import StoryTrial
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Around, Side
from pytest_torchcompile.policies.methods import Method
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.snapshots import copied, map_tensors
from pytest_torchcompile.results import Difference
from pytest_torchcompile.runtime.budget import Budget
from pytest_torchcompile.specs.invalid_inputs import InvalidInputs


class CannotCompare(Exception):
    """A subject can't be compiled or compared in this way; the message says why."""


class Subject(Protocol):
    """Something whose compiled code may differ from eager."""

    def differences(
        self, options: CheckOptions, under: Around = contextlib.nullcontext
    ) -> tuple[Difference, ...]:
        """Compile it again and return its differences from eager; none if it agrees.

        Args:
            options: how to compile.
            under: returns the context in which to compile and call.

        Raises:
            CannotCompare: if it doesn't compile.
            OutOfTime: if the budget is used up.
        """


class WholeCase:
    """A case, called on the example that failed.

    Args:
        pair: the case.
        recipe: the example.
        budget: the budget of the explanation.
    """

    def __init__(self, pair: Pair, recipe: Recipe, budget: Budget) -> None:
        self.pair = pair
        self.recipe = recipe
        self._budget = budget

    def differences(
        self, options: CheckOptions, under: Around = contextlib.nullcontext
    ) -> tuple[Difference, ...]:
        """See `Subject`."""
        self._budget.require()
        trial = Trial(self.pair.compiled_anew(options), options)
        try:
            with under():
                failure = trial(self.recipe)
        except Stop as stop:
            raise CannotCompare(stop.reason) from None
        return () if failure is None else failure.judgement.differences


class RejectedInputs:
    """A case, called on inputs that eager rejects.

    Args:
        pair: the case.
        wrong: the inputs.
        recipe: the example of them.
        budget: the budget of the explanation.
    """

    def __init__(self, pair: Pair, wrong: InvalidInputs, recipe: Recipe, budget: Budget) -> None:
        self._pair = pair
        self._wrong = wrong
        self._recipe = recipe
        self._budget = budget

    def differences(
        self, options: CheckOptions, under: Around = contextlib.nullcontext
    ) -> tuple[Difference, ...]:
        """See `Subject`."""
        self._budget.require()
        pair = self._pair.compiled_anew(options)
        with under():
            found = Attempt(pair, self._recipe)(self._wrong)
        if pair.recorder.failures:
            raise CannotCompare(failure_text(pair.recorder.failures[0]))
        return () if found is None else (found.difference,)


class WholeStory:
    """A lifecycle, run with the story that failed.

    Args:
        sides: the two sides of the lifecycle.
        story: the story.
        budget: the budget of the explanation.
    """

    def __init__(self, sides: LifecycleSides, story: Story, budget: Budget) -> None:
        self._sides = sides
        self._story = story
        self._budget = budget

    def differences(
        self, options: CheckOptions, under: Around = contextlib.nullcontext
    ) -> tuple[Difference, ...]:
        """See `Subject`."""
        self._budget.require()
        trial = StoryTrial(self._sides.compiled_anew(options), options)
        try:
            with under():
                # The last move alone comes first: wrong code may keep values from its first call, such as
                # weights, which differ after the story has changed them.
                failure = trial(self._story[-1:]) or trial(self._story)
        except Stop as stop:
            raise CannotCompare(stop.reason) from None
        if failure is None and trial.rejected:
            raise CannotCompare(next(iter(trial.rejected.values())))
        return () if failure is None else failure.differences


class Sampler:
    """A case whose samples, compiled as deployed, have another distribution than eager's.

    Args:
        pair: the case.
        compare: compares the draws of a pair.
        budget: the budget of the explanation.
    """

    def __init__(
        self, pair: Pair, compare: Callable[[Pair, CheckOptions], tuple[Difference, ...]], budget: Budget
    ) -> None:
        self._pair = pair
        self._compare = compare
        self._budget = budget

    def differences(
        self, options: CheckOptions, under: Around = contextlib.nullcontext
    ) -> tuple[Difference, ...]:
        """See `Subject`."""
        self._budget.require()
        try:
            with under():
                return self._compare(self._pair.compiled_anew(options), options)
        except CompileFailed as error:
            raise CannotCompare(str(error)) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A submodule or a graph, called on the arguments that it had in the eager call of a case.

    Args:
        pair: the case.
        eager: the part of the eager side.
        compiled: the part of the compiled side; the same object if it has no state.
        args: its positional arguments. Each call gets copies.
        kwargs: its keyword arguments. Each call gets copies.
        names: the names of the positional arguments.
        seed: the seed of the random numbers and the ``grad_outputs``.
        budget: the budget of the explanation.
    """

    pair: Pair
    eager: nn.Module
    compiled: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: tuple[str, ...] = ()
    seed: int = 0
    budget: Budget

    def differences(
        self, options: CheckOptions, under: Around = contextlib.nullcontext
    ) -> tuple[Difference, ...]:
        """See `Subject`."""
        self.budget.require()
        reference = self._side(self.eager, lambda: torch.compiler.set_stance("force_eager"))
        recorder = Recorder(self.compiled, limit_s=options.max_seconds)
        candidate = self._side(
            self.compiled, lambda: _compiled_context(self.pair.draws, recorder), is_compiled=True
        )
        candidate = candidate.replaced(
            compile_method(Method("forward"), self.compiled, options), candidate.around
        )
        try:
            expected = self._call(reference)
            if expected.error is not None:
                raise CannotCompare("called again on the same arguments, eager raises")
            with under():
                actual = self._call(candidate)
        except UsageError as error:
            raise CannotCompare(str(error)) from None
        finally:
            for side in (reference, candidate):
                side.restore()
        if actual.error is not None and recorder.is_compile_failure(actual.error):
            raise CannotCompare(failure_text(actual.error))
        tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
        asked = None if options.reference == "eager" else references(expected, reference, self._rerun)
        try:
            return judge(expected, actual, tolerance, asked, small=True).differences
        finally:
            reference.restore()

    def _side(self, module: nn.Module, around: Callable[[], Any], *, is_compiled: bool = False) -> Side:
        cast = self.pair.eager.cast
        return Side(module, module, names=self.names, around=around, cast=cast, is_compiled=is_compiled)

    def _rerun(self, under: Around, wide: bool = False) -> Outcome:
        return self._call(self._side(self.eager, lambda: torch.compiler.set_stance("force_eager")), under)

    def _call(self, side: Side, under: Around = contextlib.nullcontext) -> Outcome:
        return side.call(
            map_tensors(copied, self.args),
            map_tensors(copied, dict(self.kwargs)),
            phase=self.pair.phase,
            seed=self.seed,
            under=under,
        )


@contextlib.contextmanager
def _compiled_context(draws: bool, recorder: Recorder) -> Any:
    """The context in which the compiled side of a check runs."""
    numbers = internals.eager_random_numbers() if draws else contextlib.nullcontext()
    with numbers, internals.raised_recompile_limit(), recorder.watching():
        yield
