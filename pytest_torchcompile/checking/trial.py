"""Calls both sides on one example and judges their outcomes.

A trial accumulates evidence over the examples of a case. It raises `Stop` when no further example can change
the verdict.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator

import torch

from pytest_torchcompile import internals
from pytest_torchcompile.checking import written
from pytest_torchcompile.checking.contracts import is_contract, rejection_difference, rejection_text
from pytest_torchcompile.checking.evidence import Evidence
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.repeating import caused_by_earlier_call
from pytest_torchcompile.checking.sensitivity import SensitivityRecord
from pytest_torchcompile.checking.stops import (
    RECOMPILES_IN_A_ROW,
    Stop,
    compiles_again,
    require_repeatable,
    require_repeated,
)
from pytest_torchcompile.comparing import nonfinite, representation
from pytest_torchcompile.comparing.float64 import errors, with_float64
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.references import References, references
from pytest_torchcompile.comparing.rounding import Floor, comparable, scale_for
from pytest_torchcompile.comparing.tolerance import Judgement, judge
from pytest_torchcompile.compiling.failures import failure_text
from pytest_torchcompile.compiling.recompiling import Recompiling
from pytest_torchcompile.generation import recipes
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.backward import Learning
from pytest_torchcompile.policies.calls import Rerun
from pytest_torchcompile.policies.ordinary import is_finite
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.results import Deviation, Difference, Sensitivity, Verdict
from pytest_torchcompile.runtime.isolation import quietly
from pytest_torchcompile.specs import trees
from pytest_torchcompile.texts import first_line

MOST_WITH_FLOAT64 = 4
"""The number of examples above the tolerance whose distances to float64 are recorded, at most.

It is enough for a plot, and each costs two more calls.
"""

MOST_SINGLE_OUTPUTS = 8
"""The number of outputs whose gradients are also computed separately, at most."""


@dataclasses.dataclass(kw_only=True)
class Failure:
    """An example on which compiled differs.

    Args:
        recipe: the example.
        judgement: what differs.
        call: the number of the call of each side.
        learning: how gradients were computed; None for the pair's own `learning`.
        replayed: whether the difference appeared again when the example was repeated.
    """

    recipe: Recipe
    judgement: Judgement
    call: int
    learning: Learning | None = None
    replayed: bool = True


class Trial:
    """Tries examples on the two sides of a case, one after the other.

    Args:
        pair: the two sides.
        options: how to compare them.
        evidence: accumulates what the examples show; None begins a new one.
    """

    def __init__(self, pair: Pair, options: CheckOptions, evidence: Evidence | None = None) -> None:
        self.evidence = evidence or Evidence()
        self.recompile_limit = internals.recompile_limit()
        self.small = True
        """Whether a tensor whose largest element is small is compared relative to that element."""
        self._pair = pair
        self._finite_constants = all(map(is_finite, trees.constants(pair.tree)))
        self._options = options
        self._tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
        self._calls = 0
        self._recompiling = Recompiling(RECOMPILES_IN_A_ROW)
        self._repeats = False
        self._sensitivity_record = SensitivityRecord(pair.twins.eager) if options.sensitivity else None
        self._examples_with_float64 = 0
        self._rejections: set[str] = set()
        self.extra_checks = True
        """Whether to look for written parameters, and to compute the gradients of each output separately."""
        self._learnt: set[tuple[int, int, Learning]] = set()
        self._finite_alone: dict[str, bool] = {}
        self._left_out: list[str] = []

    def __call__(self, recipe: Recipe) -> Failure | None:
        """Call both sides on one example and compare them; return the failure, or None.

        Raises:
            Stop: if compiling fails, every call compiles again, eager returns different results for the same
                example, or an earlier call of eager makes it raise.
        """
        pair = self._pair
        pair.begin(recipe)
        eager, compiled, changed = self._called(recipe, pair.learning)
        finite = recipe.is_finite and self._finite_constants
        if eager.error is not None:
            return self._both_reject(recipe, eager.error, compiled.error, finite)
        if compiled.error is not None and pair.recorder.is_compile_failure(compiled.error):
            raise Stop(
                Verdict.COMPILE_FAILED,
                f"{failure_text(compiled.error)}, on call {self._calls} (batch {recipe.batch})",
            )
        self._watch_recompiles(recipe)
        if compiled.error is not None and not finite and not is_contract(compiled.error):
            raised = first_line(compiled.error)
            self.evidence.remark(
                f"on inputs with a NaN or an infinity eager returns and compiled raises {raised}"
            )
            return None
        if self._sensitivity_record is not None and finite:
            self._sensitivity_record.add(eager, recipe.batch)
        if self._left_out:
            self._drop_lost_gradients(pair.learning, eager, compiled)
        judgement = self._judged(recipe, pair.learning, eager, compiled, finite)
        degenerate = recipes.equal_terms(pair.tree, recipe) > 0
        self.evidence.add(eager, judgement, degenerate=degenerate, changed=changed)
        each = self.extra_checks and finite
        hidden = each and not _finite_gradients(eager)
        # Each side's gradients are as large as the policy, and so are those of the float64 reference.
        eager.gradients.clear()
        compiled.gradients.clear()
        self.evidence.keep(self._deviation(recipe, judgement))
        if judgement.differences:
            return Failure(recipe=recipe, judgement=judgement, call=self._calls)
        beyond = () if finite else nonfinite.nonfinite_remarks(eager, compiled)
        for kind, sentence in (*beyond, *representation.representation_remarks(eager, compiled)):
            self.evidence.remark(sentence, kind)
        return self._learn_from_each(recipe, eager.learnt_from, hidden=hidden) if each else None

    def _called(self, recipe: Recipe, learning: Learning) -> tuple[Outcome, Outcome, bool]:
        """Call both sides; return both outcomes, and whether eager changed the state of the policy."""
        pair = self._pair
        pair.report_step("eager call")
        eager = pair.run(pair.eager, recipe, learning=learning)
        if self.extra_checks:
            pair.notice_written(pair.eager, eager)
        changed = self.extra_checks and pair.eager.state is not None and pair.eager.state.changed()
        # Eager raised, so that compiled is expected to raise too; its log output is noise.
        quiet = contextlib.nullcontext if eager.error is None else quietly
        pair.report_step("compiled call")
        compiled = pair.run(pair.compiled, recipe, under=quiet, learning=learning)
        pair.report_step("comparison")
        self._calls += 1
        if self.extra_checks:
            pair.notice_written(pair.compiled, compiled)
        written.complete((pair.eager, eager), (pair.compiled, compiled), shared=pair.shared)
        return eager, compiled, changed

    def _judged(
        self, recipe: Recipe, learning: Learning, eager: Outcome, compiled: Outcome, finite: bool
    ) -> Judgement:
        """Judge the outcomes; the references repeat the call of eager with the same `learning`."""
        return judge(
            eager,
            compiled,
            self._tolerance,
            None if self._options.reference == "eager" else self._references(eager, recipe, learning),
            finite_inputs=finite,
            # Many gradients of a plain sum cancel, such as that of a softmax: what is left is rounding.
            small=self.small and not learning.summed,
        )

    # --- gradients of single outputs ---

    def _learn_from_each(self, recipe: Recipe, paths: tuple[str, ...], *, hidden: bool) -> Failure | None:
        """Compute the gradients of each output separately: once for each size, and whenever they hide others.

        If the gradient of one output is not finite, the sum over all outputs is not finite either, and a
        difference in another output's gradient is hidden.
        """
        if len(paths) < 2:
            return None
        for path in paths[:MOST_SINGLE_OUTPUTS]:
            learning = dataclasses.replace(self._pair.learning, outputs=frozenset({path}))
            way = (recipe.batch, recipe.time, learning)
            if hidden or way not in self._learnt:
                self._learnt.add(way)
                failure = self.learn(recipe, learning, hidden=hidden)
                if failure is not None:
                    return failure
        return None

    def learn(self, recipe: Recipe, learning: Learning, *, hidden: bool = False) -> Failure | None:
        """Compare the gradients that another `learning` computes; return the failure, or None.

        Args:
            recipe: the example.
            learning: how to compute the gradients.
            hidden: whether the gradients of all outputs together were not finite.
        """
        self._pair.begin_call()
        eager, compiled, _ = self._called(recipe, learning)
        if eager.error is not None:
            return None
        if compiled.error is not None and self._pair.recorder.is_compile_failure(compiled.error):
            raise Stop(Verdict.COMPILE_FAILED, f"{failure_text(compiled.error)}, on call {self._calls}")
        for path in learning.outputs or ():
            self._finite_alone[path] = self._finite_alone.get(path, False) or _finite_gradients(eager)
        if hidden:
            self._drop_lost_gradients(learning, eager, compiled)
        judgement = self._judged(recipe, learning, eager, compiled, finite=True)
        self.evidence.add_learning(eager, judgement)
        if not judgement.differences:
            zeros = representation.zero_gradients(eager, compiled)
            if zeros:
                self.evidence.remark(zeros)
            return None
        return Failure(recipe=recipe, judgement=judgement, call=self._calls, learning=learning)

    def _drop_lost_gradients(self, learning: Learning, eager: Outcome, compiled: Outcome) -> None:
        """Leave out the gradients that are finite in eager only, and add a remark about them.

        AOTAutograd passes gradients of zeros to the outputs that `learning` leaves out, and zero times an
        infinite derivative is NaN.
        """
        lost = [
            name
            for name, gradient in eager.gradients.items()
            if _is_finite(gradient) and not _is_finite(compiled.gradients.get(name))
        ]
        for name in lost:
            del eager.gradients[name], compiled.gradients[name]
        if lost:
            self.evidence.remark(
                f"with a loss of {learning}, eager's gradients are finite and compiled's are not: "
                f"torch.compile passes gradients of zeros to the other outputs, and zero times an infinity "
                f"is NaN; detach() the outputs that the loss does not use"
            )

    def leave_out_of_loss(self) -> list[str]:
        """Leave the outputs whose separate gradient was never finite out of the following backward passes.

        Returns:
            The paths of these outputs; empty if that would leave out all of them.
        """
        never = [path for path, finite in self._finite_alone.items() if not finite]
        if not never or len(never) == len(self._finite_alone):
            return []
        self._pair.learning = self._pair.learning.leaving_out(never)
        self._left_out = never
        return never

    def sensitivity(self) -> Sensitivity | None:
        """Return how much of the policy the examples reached; None without the option `sensitivity`."""
        return None if self._sensitivity_record is None else self._sensitivity_record.sensitivity()

    def _deviation(self, recipe: Recipe, judgement: Judgement) -> Deviation:
        """Return the deviation of this example.

        The first `MOST_WITH_FLOAT64` examples above the tolerance include the distances to float64.
        """
        verdict = Verdict.DIFFERS if judgement.differences else Verdict.EQUAL
        if judgement.rounding:
            verdict = Verdict.WITHIN_ROUNDING
        largest = judgement.largest or Difference(path="")
        if verdict is not Verdict.EQUAL and self._examples_with_float64 < MOST_WITH_FLOAT64:
            self._examples_with_float64 += 1
            (largest,) = self._with_float64((largest,), recipe)
        eager_error, compiled_error = errors(largest)
        return Deviation(
            example=self.evidence.compared,
            batch=recipe.batch,
            verdict=verdict,
            path=largest.path,
            difference=largest.difference,
            allowed=largest.allowed,
            floor=largest.floor,
            eager_error=eager_error,
            compiled_error=compiled_error,
        )

    def _both_reject(
        self, recipe: Recipe, eager: BaseException, compiled: BaseException | None, finite: bool
    ) -> Failure | None:
        """Handle an exception of eager: return the failure if compiled does not raise a matching one.

        It is only a remark if the inputs are not finite or have another memory layout, unless one of the
        exceptions was raised on purpose.
        """
        self.evidence.reject(eager)
        difference = rejection_difference(self._pair, eager, compiled)
        if difference is not None or type(eager).__name__ not in self._rejections:
            self._rejections.add(type(eager).__name__)
            trouble = caused_by_earlier_call(self._pair, recipe, eager)
            if trouble:
                raise Stop(Verdict.EAGER_FAILED, trouble)
        if difference is None:
            return None
        layouts = {fill.layout for fill in recipe.fills}
        if (not finite or layouts != {"contiguous"}) and not is_contract(eager, compiled):
            odd = f"of another memory layout ({recipe.shape})" if finite else "with a NaN or an infinity"
            self.evidence.remark(f"on inputs {odd} {rejection_text(difference)}")
            return None
        judgement = Judgement(differences=(difference,), worst=difference)
        return Failure(recipe=recipe, judgement=judgement, call=self._calls)

    def rerun(self, recipe: Recipe) -> Rerun:
        """Return a function that calls eager again on one example."""
        return self._rerun(recipe, self._pair.learning)

    def _rerun(self, recipe: Recipe, learning: Learning) -> Rerun:
        pair = self._pair
        return lambda under=contextlib.nullcontext, wide=False: pair.run(
            pair.eager, recipe, under=under, wide=wide, learning=learning
        )

    def _references(self, eager: Outcome, recipe: Recipe, learning: Learning) -> References:
        """Return the references of this example; `floors` raises `Stop` if eager does not repeat itself."""
        scale = scale_for(recipes.equal_terms(self._pair.tree, recipe))
        rerun = self._rerun(recipe, learning)
        asked = references(eager, self._pair.eager, rerun, scale)

        def once() -> Outcome:
            return rerun(contextlib.nullcontext)

        def floors(paths: Collection[str]) -> Iterator[Floor]:
            # Checked before the first floor of the case, and whenever no floor explains the difference.
            if not self._repeats:
                require_repeatable(eager, self._tolerance, once)
                self._repeats = True
            yield from asked.floors(paths)
            require_repeated(eager, once(), self._tolerance, once)

        return dataclasses.replace(asked, floors=floors)

    def _watch_recompiles(self, recipe: Recipe) -> None:
        """Raise `Stop` if consecutive calls compile again for shapes already seen."""
        shape = (recipe.batch, recipe.time, recipe.shared, tuple(fill.layout for fill in recipe.fills))
        if self._recompiling.add(shape, self._pair.recorder.compiled_in_last_call):
            raise compiles_again(
                self._recompiling.in_a_row, self.recompile_limit, self._pair.capture.recompiles
            )

    def differences(self, failure: Failure) -> tuple[Difference, ...]:
        """Return the differences of a failure, with the values of the float64 reference if it runs."""
        return self._with_float64(failure.judgement.differences, failure.recipe)

    def _with_float64(self, differences: tuple[Difference, ...], recipe: Recipe) -> tuple[Difference, ...]:
        if self._options.reference == "eager":
            return differences
        return with_float64(differences, self._pair.eager, self.rerun(recipe))


def _is_finite(gradient: torch.Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(comparable(gradient)).all())


def _finite_gradients(outcome: Outcome) -> bool:
    """Whether all gradients of a call are finite."""
    return all(map(_is_finite, outcome.gradients.values()))
