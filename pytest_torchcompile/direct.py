"""The check's parts for use by hand: in an ordinary test, under ``@given``, in a notebook."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.checking.evidence import Evidence
from pytest_torchcompile.checking.known_causes import OTHER_NUMBERS, rounding_cause
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.stops import Stop, require_repeated
from pytest_torchcompile.comparing.float64 import widened
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.references import References, references
from pytest_torchcompile.comparing.tolerance import Judgement, judge
from pytest_torchcompile.compiling.capture import Recorder, failure_text, why_not_compiled
from pytest_torchcompile.errors import CompileFailed, NotEquivalent, UsageError
from pytest_torchcompile.generation.recipes import random_recipe
from pytest_torchcompile.options import PHASES, REFERENCES, CheckOptions
from pytest_torchcompile.policies.calls import Around, Outcome, Side
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.holders import Holder, is_holder
from pytest_torchcompile.policies.methods import as_methods
from pytest_torchcompile.policies.outputs import NamedValues
from pytest_torchcompile.policies.snapshots import copied, map_tensors
from pytest_torchcompile.policies.state import ModuleState, unequal_numbers
from pytest_torchcompile.policies.twins import Factory
from pytest_torchcompile.reports import failure
from pytest_torchcompile.results import Capture, CheckResult, Verdict
from pytest_torchcompile.runtime.isolation import isolated
from pytest_torchcompile.specs.trees import declared
from pytest_torchcompile.texts import raised_text


class CompiledPolicy:
    """A compiled method of a policy, ready to call; made by `compile_policy`.

    Calling it runs the compiled method in its phase: ``eval()`` without gradients in ``rollout``,
    ``train()`` with gradients in ``update``.
    """

    def __init__(self, pair: Pair, options: CheckOptions) -> None:
        self._pair = pair
        self._options = options
        self.name = pair.method.name
        self.phase = pair.phase
        self.eager: Callable[..., Any] = _InPhase(pair.eager, pair.phase)
        self._compiled = _InPhase(pair.compiled, pair.phase)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the compiled method returns.

        Raises:
            CompileFailed: if these inputs need a compile and it fails.
        """
        try:
            return self._compiled(*args, **kwargs)
        except Exception as error:
            self._eager_must_accept(args, kwargs)
            self.fail(error)

    def _eager_must_accept(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Return if eager takes these inputs; otherwise its exception is the one to tell."""
        self.eager(*map_tensors(copied, args), **map_tensors(copied, kwargs))

    def fail(self, error: BaseException) -> NoReturn:
        """Raise `error`, as `CompileFailed` if it came out of the compiler."""
        if not self._pair.recorder.is_compile_failure(error):
            raise error
        result = CheckResult(
            method=self.name,
            phase=self.phase,
            verdict=Verdict.COMPILE_FAILED,
            reason=failure_text(error),
            capture=self.capture,
            backend=self._options.backend_name,
        )
        raise CompileFailed(
            f"{result.case}: {result.reason}", result=result, strict=self._options.strict
        ) from error

    def as_deployed(self) -> Side | None:
        """The compiled side as `measure_speedup` times it; see `Pair.as_deployed`."""
        return self._pair.as_deployed()

    @property
    def capture(self) -> Capture:
        """What has been compiled so far."""
        return self._pair.capture

    def __repr__(self) -> str:
        return f"<CompiledPolicy {self.name}-{self.phase}: {failure.capture_line(self.capture)}>"


class _InPhase:
    """A side, called as its users call it: no reset, no seed."""

    def __init__(self, side: Side, phase: str) -> None:
        self.side = side
        self._phase = phase

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.side.model is not None:
            self.side.model.train(self._phase == "update")
        with self.side.around(), torch.set_grad_enabled(self._phase == "update"):
            return self.side.invoke(args, kwargs)


def compile_policy(
    factory: Factory,
    method: Any = "forward",
    *,
    observation: Any = None,
    inputs: Mapping[str, Any] | None = None,
    observe: Callable[[Any], Any] | None = None,
    reset: Callable[[Any], Any] | None = None,
    phase: str = "rollout",
    **options: Any,
) -> CompiledPolicy:
    """A compiled method that has been called once, so that what can't be compiled shows here.

    Args:
        factory: makes the module, is run twice; or a module, which is copied.
        method: a name, or an adapter ``f(model, **inputs)``.
        observation: spec of its first argument; see `check_equivalence`.
        inputs: specs of further arguments by name.
        observe: see `check_equivalence`.
        reset: likewise.
        phase: ``rollout`` or ``update``.
        options: see `CheckOptions`.

    Returns:
        A callable with `eager`, the same method of an equal module, and `capture`.

    Raises:
        CompileFailed: if torch.compile raises; under pytest the plugin makes it a skip.
        NotEquivalent: if nothing was compiled.
        UsageError: if the declaration and the module don't fit, or eager raises, or does not repeat itself.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> policy = compile_policy(lambda: nn.Linear(8, 2), observation=Box((8,)), backend="eager")
        >>> x = torch.zeros(5, 8)
        >>> torch.equal(policy(x), policy.eager(x))
        True
        >>> policy.capture.coverage
        1.0
    """
    if "phases" in options:
        raise UsageError(
            f"compile_policy() takes one phase; write phase={PHASES[0]!r} or phase={PHASES[1]!r}"
        )
    merged = CheckOptions.merge(("compile_policy()", options))
    if phase not in PHASES:
        raise UsageError(f"phase={phase!r}; accepted: {', '.join(PHASES)}")
    (named,) = as_methods([method])
    with isolated(merged.threads):
        pair = Pair(
            factory,
            named,
            phase,
            declaration=Declaration(
                observation=observation, inputs=inputs, methods=[method], observe=observe, reset=reset
            ),
            options=merged,
        )
        recipe = random_recipe(pair.tree, merged.batch[0], merged.seed)
        expected = pair.first_eager(recipe)
        if expected.error is not None:
            raise UsageError(
                f"eager raises {raised_text(expected.error)} on inputs declared as {declared(pair.tree)}"
            ) from expected.error
        try:
            require_repeated(expected, pair.eager_again(recipe), Tolerance())
        except Stop as stop:
            raise UsageError(stop.reason) from None
        error = pair.run(pair.compiled, recipe).error
        pair.restore()
    policy = CompiledPolicy(pair, merged)
    if error is not None:
        policy.fail(error)
    reason = why_not_compiled(pair.capture, named, merged, pair.recorder)
    if reason:
        raise NotEquivalent(f"{named.name}-{phase}: {reason}")
    return policy


def assert_equivalent(
    eager: Callable[..., Any],
    compiled: Callable[..., Any],
    *args: Any,
    phase: str = "rollout",
    atol: float = 1e-5,
    rtol: float = 1e-5,
    reference: str = "float64",
    seed: int = 0,
    **kwargs: Any,
) -> None:
    """Return if one call of each leaves the same behind: outputs, state, inputs, gradients, random state.

    Args:
        eager: the reference: a module, a bound method, a function, or ``policy.eager``.
        compiled: the candidate; it may share its module with `eager`, whose state is put back. Where one of
            the two is a function that is no method, what they leave in attributes is not compared.
        args: inputs; each side gets copies.
        phase: ``rollout`` (eval, no grad) or ``update`` (train, gradients).
        atol: allowed absolute difference where eager is small.
        rtol: allowed difference relative to eager where it is large.
        reference: ``float64`` also excuses what rounding explains; ``eager`` does not.
        seed: of whatever the two draw.
        kwargs: further inputs.

    Raises:
        NotEquivalent: an AssertionError that names the output, the index, both values, what was allowed; or
            says why nothing was shown: eager does not repeat itself, compiled runs eager, nothing was finite.
        CompileFailed: if the call needs a compile and it fails.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(8, 2)
        >>> assert_equivalent(layer, torch.compile(layer, backend="eager"), torch.zeros(3, 8))
    """
    __tracebackhide__ = True
    if phase not in PHASES:
        raise UsageError(f"phase={phase!r}; accepted: {', '.join(PHASES)}")
    if reference not in REFERENCES:
        raise UsageError(f"reference={reference!r}; accepted: {', '.join(REFERENCES)}")
    once = _Once(eager, compiled, args, kwargs, phase, seed)
    with isolated():
        try:
            judgement, notes = once.judged(Tolerance(atol=atol, rtol=rtol), reference)
            nothing = once.nothing_shown(judgement)
        except Stop as stop:
            raise NotEquivalent(f"{_name(compiled)}-{phase}: {stop.reason}") from None
        finally:
            once.restore()
    if not judgement.differences and nothing:
        raise NotEquivalent(f"{_name(compiled)}-{phase}: {nothing}")
    if judgement.differences:
        raise NotEquivalent(
            failure.failure_text(
                CheckResult(
                    method=_name(compiled),
                    phase=phase,
                    verdict=Verdict.DIFFERS,
                    differences=judgement.differences,
                    examples=1,
                    notes=notes,
                    capture=compiled.capture if isinstance(compiled, CompiledPolicy) else Capture(),
                    backend="as given",
                )
            )
        )


class _Once:
    """One call of each side on inputs given by hand; see `assert_equivalent`."""

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
            side: {} if side.state is None else side.state.counters()
            for side in (self._eager, self._compiled)
        }
        self._expected = Outcome()
        self._changed = False
        self._ran_compiled = False

    def _run(self, side: Side, under: Around, wide: bool = False) -> Outcome:
        convert = widened if wide else copied
        if side.state is not None:
            side.state.set_counters(self._counters[side])
        outcome = side.call(
            map_tensors(convert, self._args),
            map_tensors(convert, dict(self._kwargs)),
            phase=self._phase,
            seed=self._seed,
            under=under,
        )
        if self._eager.state is None or self._compiled.state is None:
            # A function leads to no attributes, whatever it calls.
            outcome.state, outcome.left = NamedValues(), {}
        return outcome

    def _rerun(self, under: Around = contextlib.nullcontext, wide: bool = False) -> Outcome:
        return self._run(self._eager, under, wide)

    def judged(self, tolerance: Tolerance, reference: str) -> tuple[Judgement, tuple[str, ...]]:
        """What calling both sides concludes, and the known cause of what differs.

        Raises:
            CompileFailed: if the compiler does; what eager raises is raised as it is.
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
        if compiled_before and any(d.problem == "random state" for d in judgement.differences):
            return judgement, (OTHER_NUMBERS,)
        if judgement.differences and reference == "eager" and not judge_by(asked).differences:
            return judgement, (rounding_cause(self._rerun),)
        return judgement, ()

    def _repeated(self, tolerance: Tolerance) -> Outcome:
        """What eager leaves behind, twice alike but for Python's numbers, which are then not compared.

        Raises:
            Stop: if it does not repeat itself; what it raises is raised as it is.
        """
        expected = self._rerun()
        if expected.error is not None:
            raise expected.error
        self._changed = self._eager.state is not None and self._eager.state.changed()
        again = self._rerun()
        unlike = unequal_numbers(expected.state, again.state) if again.error is None else []
        for state in (self._eager.state, self._compiled.state):
            if unlike and state is not None:
                state.unrepeatable.update(unlike)
        self._expected = self._rerun() if unlike else expected
        require_repeated(self._expected, self._rerun() if unlike else again, tolerance)
        return self._expected

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        with self._recorder.watching(), internals.compiled_code_run() as ran:
            yield
            self._ran_compiled |= ran()

    def nothing_shown(self, judgement: Judgement) -> str:
        """Why what agreed shows nothing; empty if it shows something."""
        evidence = Evidence()
        # One call can't tell a number that is always the same from one that is computed.
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
        """Leave the modules as they were found."""
        for side in (self._eager, self._compiled):
            side.restore()


def side_of(function: Any, around: Around) -> Side:
    """A side made of a bare callable, with the module it belongs to.

    Raises:
        UsageError: if it can't be called.
    """
    if isinstance(function, CompiledPolicy):
        function = function._compiled
    if isinstance(function, _InPhase):
        # By position, as the other side may be any callable.
        side = function.side
        return Side(side.function, side.model, leading=side.leading, around=side.around, cast=side.cast)
    if not callable(function):
        raise UsageError(f"{function!r} is not callable; give a module, a bound method or a function")
    model = internals.module_of(function) or _holder_of(function)
    # The caller's own weights are at stake, whoever writes to them.
    state = None if model is None else ModuleState(model, parameters=True)
    return Side(function, model, around=around, state=state)


def _holder_of(function: Any) -> Holder | None:
    """The policy whose method `function` is, compiled or not, if it holds modules but is none."""
    owner = internals.owner_of(function)
    return Holder(owner) if is_holder(owner) else None


def _name(function: Any) -> str:
    if isinstance(function, CompiledPolicy):
        return function.name
    if isinstance(function, nn.Module):
        return "forward"
    return getattr(function, "__name__", type(function).__name__)
