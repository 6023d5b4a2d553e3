"""Calls each side once on inputs that the user passes, and judges the outcomes like those of a case."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.checking import unrepeatable
from pytest_torchcompile.checking.callables import side_of
from pytest_torchcompile.checking.evidence import Evidence
from pytest_torchcompile.checking.known_causes import OTHER_NUMBERS, rounding_cause
from pytest_torchcompile.checking.stops import require_repeated
from pytest_torchcompile.comparing.float64 import widened
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.references import References, references
from pytest_torchcompile.comparing.tolerance import Judgement, judge
from pytest_torchcompile.compiling.capture import Recorder
from pytest_torchcompile.compiling.failures import failure_text
from pytest_torchcompile.errors import CompileFailed
from pytest_torchcompile.policies.calls import Around, Side
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.outputs import NamedValues
from pytest_torchcompile.policies.snapshots import copied, map_tensors
from pytest_torchcompile.policies.state import same
from pytest_torchcompile.texts import some


class SingleCall:
    """One call of each side on inputs that the user passes; see `assert_equivalent` for the arguments."""

    def __init__(
        self,
        eager: Callable[..., Any],
        compiled: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        phase: str,
        seed: int,
    ) -> None:
        self._eager = side_of(eager, lambda: torch.compiler.set_stance("force_eager"))
        self._compiled = side_of(compiled, internals.eager_random_numbers)
        self._compiled.is_compiled = True
        self._comes_compiled = internals.is_compiled(compiled)
        self._recorder = Recorder(self._compiled.model or nn.Module())
        self._args = args
        self._kwargs = kwargs
        self._phase = phase
        self._seed = seed
        self._counters = {
            side: {} if side.state is None else side.state.counters.now()
            for side in (self._eager, self._compiled)
        }
        self._expected = Outcome()
        self._changed = False
        self._ran_compiled = False

    def _run(self, side: Side, under: Around, wide: bool = False) -> Outcome:
        convert = widened if wide else copied
        if side.state is not None:
            side.state.counters.assign(self._counters[side])
        outcome = side.call(
            map_tensors(convert, self._args),
            map_tensors(convert, dict(self._kwargs)),
            phase=self._phase,
            seed=self._seed,
            under=under,
        )
        if self._eager.state is None or self._compiled.state is None:
            # The attributes that a plain function changes are unknown.
            outcome.state, outcome.left, outcome.generators = NamedValues(), {}, {}
        return outcome

    def _rerun(self, under: Around = contextlib.nullcontext, wide: bool = False) -> Outcome:
        return self._run(self._eager, under, wide)

    def judged(self, tolerance: Tolerance, reference: str) -> tuple[Judgement, tuple[str, ...]]:
        """Call both sides; return the judgement and the known causes of its differences.

        Raises:
            CompileFailed: if compiling fails.
            Stop: if eager returns different results when it is called again.
            Exception: if eager raises it.
        """
        expected = self._repeated(tolerance)
        actual = self._run(self._compiled, self._watching)
        if actual.error is not None and self._recorder.is_compile_failure(actual.error):
            raise CompileFailed(failure_text(actual.error)) from actual.error

        def judge_by(asked: References | None) -> Judgement:
            return judge(expected, actual, tolerance, asked, small=True)

        asked = references(expected, self._eager, self._rerun)
        judgement = judge_by(asked if reference == "float64" else None)
        compiled_before = self._comes_compiled and not self._recorder.compile_s
        if compiled_before and any(d.path.startswith("random state") for d in judgement.differences):
            return judgement, (OTHER_NUMBERS,)
        if judgement.differences and reference == "eager" and not judge_by(asked).differences:
            return judgement, (rounding_cause(self._rerun),)
        return judgement, ()

    def _repeated(self, tolerance: Tolerance) -> Outcome:
        """Return eager's outcome, after a second call has shown that it is repeatable.

        Plain attributes with different values after the second call are left out of all outcomes.

        Raises:
            Stop: if anything else differs.
            Exception: if eager raises it.
        """
        expected = self._rerun()
        if expected.error is not None:
            raise expected.error
        self._changed = self._eager.state is not None and self._eager.state.changed()
        again = self._rerun()
        left_out = unrepeatable.leave_out((self._eager, self._compiled), expected, again)
        self._expected = self._rerun() if left_out else expected
        require_repeated(self._expected, self._rerun() if left_out else again, tolerance, self._rerun)
        return self._expected

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        with self._recorder.watching(), internals.compiled_code_run() as ran:
            yield
            self._ran_compiled |= ran()

    def other_weights(self) -> str:
        """Return a sentence if the sides are two modules with different weights; empty otherwise."""
        one, other = self._eager.model, self._compiled.model
        if one is None or other is None or one is other:
            return ""
        theirs = dict(other.named_parameters())
        unequal = [
            name for name, mine in one.named_parameters() if name in theirs and not same(mine, theirs[name])
        ]
        if not unequal:
            return ""
        return (
            f"the two modules have different weights ({some(unequal)}): compile the module that you compare "
            f"with, or load its state_dict() into the other"
        )

    def nothing_shown(self, judgement: Judgement) -> str:
        """Return why a comparison without differences proves nothing; empty if it proves something."""
        evidence = Evidence()
        # One call cannot distinguish a constant output from a computed one, so any number counts.
        number = any(value is not None for value in self._expected.outputs.plain.values())
        number |= not judgement.finite.isdisjoint(self._expected.outputs.tensors)
        evidence.add(self._expected, judgement, degenerate=False, changed=self._changed or number)
        verdict, reason = evidence.verdict()
        if not verdict.passed:
            return reason
        if self._ran_compiled or self._recorder.capture(set()).graphs:
            return ""
        return (
            f"what was given as compiled ran no compiled code ({internals.why_disabled() or 'it is eager'}); "
            f"give torch.compile(model), or torch.compile(model.act) of a method other than forward"
        )

    def restore(self) -> None:
        """Restore the modules to the state in which they were found."""
        for side in (self._eager, self._compiled):
            side.restore()
