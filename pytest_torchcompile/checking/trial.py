"""One example: both sides called on it, and what they leave behind judged.

What the examples of a case show is summed up on the way; what makes further examples pointless ends
the check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Collection, Iterator

import torch

from pytest_torchcompile import internals
from pytest_torchcompile.checking import written
from pytest_torchcompile.checking.contracts import is_contract, rejection_difference, rejection_text
from pytest_torchcompile.checking.evidence import Evidence
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.repeating import caused_by_earlier_call
from pytest_torchcompile.checking.sensitivity import SensitivityRecord
from pytest_torchcompile.checking.stops import RECOMPILES_IN_A_ROW, Stop, compiles_again, require_repeated
from pytest_torchcompile.comparing import nonfinite, representation
from pytest_torchcompile.comparing.float64 import errors, with_float64
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.references import References, references
from pytest_torchcompile.comparing.rounding import Floor, scale_for
from pytest_torchcompile.comparing.tolerance import Judgement, judge
from pytest_torchcompile.compiling.capture import failure_text
from pytest_torchcompile.compiling.recompiling import Recompiling
from pytest_torchcompile.generation import recipes, tensors
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.backward import Learning
from pytest_torchcompile.policies.calls import Outcome, Rerun
from pytest_torchcompile.results import Deviation, Difference, Sensitivity, Verdict
from pytest_torchcompile.texts import first_line

MOST_WITH_FLOAT64 = 4
"""Examples beyond the tolerance whose distance to float64 is kept: enough for a picture, two calls each."""


MOST_SINGLE_OUTPUTS = 8
"""At most so many outputs are learnt from alone."""


@dataclasses.dataclass(kw_only=True)
class Failure:
    """An example on which compiled differs; `learning` is how it was learnt from, if not as usual."""

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
    """

    def __init__(self, pair: Pair, options: CheckOptions) -> None:
        self.evidence = Evidence()
        self.recompile_limit = internals.recompile_limit()
        self.small = True
        """Whether tensors that are small throughout have to be right to a share of their own size."""
        self._pair = pair
        self._options = options
        self._tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
        self._calls = 0
        self._recompiling = Recompiling(RECOMPILES_IN_A_ROW)
        self._repeats = False
        self._sensitivity_record = SensitivityRecord(pair.twins.eager) if options.sensitivity else None
        self._examples_with_float64 = 0
        self._rejections: set[str] = set()
        self.extra_checks = True
        """Whether this is the ladder: writes are looked for by value, each output is learnt from alone."""
        self._learnt: set[tuple[int, int, Learning]] = set()
        self._finite_alone: dict[str, bool] = {}
        self._left_out: list[str] = []

    def __call__(self, recipe: Recipe) -> Failure | None:
        """Call both sides on one example and compare; a failure, or None.

        Raises:
            Stop: if the compiler fails, or compiles on every call, or eager does not repeat itself, or
                raises for a reason of its own.
        """
        pair = self._pair
        pair.begin(recipe)
        eager, compiled, changed = self._called(recipe, pair.learning)
        finite = tensors.is_finite(pair.tree, recipe)
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
            self._leave_to_remarks(pair.learning, eager, compiled)
        judgement = self._judged(recipe, pair.learning, eager, compiled, finite)
        degenerate = recipes.equal_terms(pair.tree, recipe) > 0
        self.evidence.add(eager, judgement, degenerate=degenerate, changed=changed)
        self.evidence.keep(self._deviation(recipe, judgement))
        if judgement.differences:
            return Failure(recipe=recipe, judgement=judgement, call=self._calls)
        beyond = () if finite else nonfinite.nonfinite_remarks(eager, compiled)
        for kind, sentence in (*beyond, *representation.representation_remarks(eager, compiled)):
            self.evidence.remark(sentence, kind)
        return self._learn_from_each(recipe, eager) if self.extra_checks and finite else None

    def _called(self, recipe: Recipe, learning: Learning) -> tuple[Outcome, Outcome, bool]:
        """What both sides leave behind, and whether eager changed any tensor of the policy or its inputs."""
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
        """Compiled held against eager, which is asked again for its floors the way it was asked."""
        return judge(
            eager,
            compiled,
            self._tolerance,
            None if self._options.reference == "eager" else self._references(eager, recipe, learning),
            finite_inputs=finite,
            small=self.small,
        )

    # --- learning from single outputs ---

    def _learn_from_each(self, recipe: Recipe, eager: Outcome) -> Failure | None:
        """Try a loss of each output alone: once for each size, and where the gradient of all is not finite.

        A gradient of one output that is no number makes one of all of them no number, and hides the others.
        """
        if len(eager.learnt_from) < 2:
            return None
        hidden = not _finite_gradients(eager)
        for path in eager.learnt_from[:MOST_SINGLE_OUTPUTS]:
            learning = dataclasses.replace(self._pair.learning, outputs=frozenset({path}))
            way = (recipe.batch, recipe.time, learning)
            if hidden or way not in self._learnt:
                self._learnt.add(way)
                failure = self._learn(recipe, learning, hidden=hidden)
                if failure is not None:
                    return failure
        return None

    def _learn(self, recipe: Recipe, learning: Learning, *, hidden: bool) -> Failure | None:
        """Both sides learn from an example in another way; a failure, or None."""
        eager, compiled, _ = self._called(recipe, learning)
        if eager.error is not None:
            return None
        if compiled.error is not None and self._pair.recorder.is_compile_failure(compiled.error):
            raise Stop(Verdict.COMPILE_FAILED, f"{failure_text(compiled.error)}, on call {self._calls}")
        for path in learning.outputs or ():
            self._finite_alone[path] = self._finite_alone.get(path, False) or _finite_gradients(eager)
        if hidden:
            self._leave_to_remarks(learning, eager, compiled)
        judgement = self._judged(recipe, learning, eager, compiled, finite=True)
        self.evidence.add_learning(eager, judgement)
        if not judgement.differences:
            return None
        return Failure(recipe=recipe, judgement=judgement, call=self._calls, learning=learning)

    def _leave_to_remarks(self, learning: Learning, eager: Outcome, compiled: Outcome) -> None:
        """Compare no gradient that only compiled makes no number of, where an output that is left out does.

        AOTAutograd gives such an output a gradient of zeros, and zero times infinity is no number.
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
                f"learning from {learning}, compiled's gradients are not "
                f"finite and eager's are: torch.compile gives the other outputs gradients of zeros, one of "
                f"which is multiplied by an infinity; detach() what is not learnt from"
            )

    def leave_out_of_loss(self) -> list[str]:
        """Learn no more from the outputs whose own gradient was never finite, unless all are; their paths."""
        never = [path for path, finite in self._finite_alone.items() if not finite]
        if not never or len(never) == len(self._finite_alone):
            return []
        self._pair.learning = self._pair.learning.leaving_out(never)
        self._left_out = never
        return never

    def sensitivity(self) -> Sensitivity | None:
        """How much of the policy the examples have reached; None if nobody asks."""
        return None if self._sensitivity_record is None else self._sensitivity_record.sensitivity()

    def _deviation(self, recipe: Recipe, judgement: Judgement) -> Deviation:
        """What this example showed, with the distances to float64 if it is among the first that exceed."""
        verdict = Verdict.DIFFERS if judgement.differences else Verdict.EQUAL
        if judgement.rounding:
            verdict = Verdict.WITHIN_ROUNDING
        largest = judgement.largest or Difference(path="")
        if verdict is not Verdict.EQUAL and self._examples_with_float64 < MOST_WITH_FLOAT64:
            self._examples_with_float64 += 1
            (largest,) = self._with_float64((largest,), recipe)
        eager_error, compiled_error = errors(largest)
        return Deviation(
            example=self.evidence.examples,
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
        """Eager raised: so must compiled, and alike, unless the compiler noticed before it ran."""
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
            odd = f"that lie in memory as {recipe.shape}" if finite else "with a NaN or an infinity"
            self.evidence.remark(f"on inputs {odd} {rejection_text(difference)}")
            return None
        judgement = Judgement(differences=(difference,), worst=difference)
        return Failure(recipe=recipe, judgement=judgement, call=self._calls)

    def rerun(self, recipe: Recipe) -> Rerun:
        """Calls eager again on one example."""
        return self._rerun(recipe, self._pair.learning)

    def _rerun(self, recipe: Recipe, learning: Learning) -> Rerun:
        pair = self._pair
        return lambda under, wide=False: pair.run(
            pair.eager, recipe, under=under, wide=wide, learning=learning
        )

    def _references(self, eager: Outcome, recipe: Recipe, learning: Learning) -> References:
        """What eager can be asked about this example."""
        scale = scale_for(recipes.equal_terms(self._pair.tree, recipe))
        rerun = self._rerun(recipe, learning)
        asked = references(eager, self._pair.eager, rerun, scale)

        def floors(paths: Collection[str]) -> Iterator[Floor]:
            # The first time, and where none explains, also whether eager repeats itself.
            if not self._repeats:
                require_repeated(eager, rerun(contextlib.nullcontext), self._tolerance)
                self._repeats = True
            yield from asked.floors(paths)
            require_repeated(eager, rerun(contextlib.nullcontext), self._tolerance)

        return dataclasses.replace(asked, floors=floors)

    def _watch_recompiles(self, recipe: Recipe) -> None:
        """Stop if call after call compiles for shapes already seen."""
        shape = (recipe.batch, recipe.time, recipe.shared, tuple(fill.layout for fill in recipe.fills))
        if self._recompiling.add(shape, self._pair.recorder.compiled_in_last_call):
            raise compiles_again(
                self._recompiling.in_a_row, self.recompile_limit, self._pair.capture.recompiles
            )

    def differences(self, failure: Failure) -> tuple[Difference, ...]:
        """What differs in a failure, with the float64 reference's values where there is one."""
        return self._with_float64(failure.judgement.differences, failure.recipe)

    def _with_float64(self, differences: tuple[Difference, ...], recipe: Recipe) -> tuple[Difference, ...]:
        if self._options.reference == "eager":
            return differences
        return with_float64(differences, self._pair.eager, self.rerun(recipe))


def _is_finite(gradient: torch.Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())


def _finite_gradients(outcome: Outcome) -> bool:
    """Whether all gradients of a call are finite."""
    return all(map(_is_finite, outcome.gradients.values()))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Run the body without what torch prints and logs of the exceptions in its graphs."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
