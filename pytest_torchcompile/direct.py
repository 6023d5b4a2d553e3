"""The check's parts for use by hand: in an ordinary test, under ``@given``, in a notebook."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.calls import Around, Outcome, Side
from pytest_torchcompile.capture import Recorder, failure_text, why_not_compiled
from pytest_torchcompile.declaration import Declaration
from pytest_torchcompile.errors import CompileFailed, NotEquivalent, UsageError
from pytest_torchcompile.holders import Holder, is_holder
from pytest_torchcompile.isolation import isolated
from pytest_torchcompile.known import OTHER_NUMBERS, rounding_cause
from pytest_torchcompile.measure import Tolerance
from pytest_torchcompile.options import PHASES, REFERENCES, CheckOptions
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.policy import as_methods
from pytest_torchcompile.recipes import random_recipe
from pytest_torchcompile.reports import failure
from pytest_torchcompile.results import Capture, CheckResult, Verdict
from pytest_torchcompile.rounding import Floor, rounding_floors, widened
from pytest_torchcompile.state import copied, map_tensors
from pytest_torchcompile.texts import raised_text
from pytest_torchcompile.tolerance import Judgement, judge
from pytest_torchcompile.trees import declared
from pytest_torchcompile.twins import Factory


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

    def fail(self, error: Exception) -> NoReturn:
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
            return self.side.function(*self.side.leading, *args, **kwargs)


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
        UsageError: if the declaration and the module don't fit, or eager raises.

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
        compiled: the candidate; it may share its module with `eager`, whose state is put back.
        args: inputs; each side gets copies.
        phase: ``rollout`` (eval, no grad) or ``update`` (train, gradients).
        atol: allowed absolute difference where eager is small.
        rtol: allowed difference relative to eager where it is large.
        reference: ``float64`` also excuses what rounding explains; ``eager`` does not.
        seed: of whatever the two draw.
        kwargs: further inputs.

    Raises:
        NotEquivalent: an AssertionError that names the output, the index, both values, what was allowed.
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
        finally:
            once.restore()
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
        self._comes_compiled = internals.is_compiled(compiled)
        self._recorder = Recorder(self._compiled.model or nn.Module())
        self._args = args
        self._kwargs = kwargs
        self._phase = phase
        self._seed = seed

    def _run(self, side: Side, under: Around, wide: bool = False) -> Outcome:
        convert = widened if wide else copied
        return side.call(
            map_tensors(convert, self._args),
            map_tensors(convert, dict(self._kwargs)),
            phase=self._phase,
            seed=self._seed,
            under=under,
        )

    def _rerun(self, under: Around = contextlib.nullcontext, wide: bool = False) -> Outcome:
        return self._run(self._eager, under, wide)

    def judged(self, tolerance: Tolerance, reference: str) -> tuple[Judgement, tuple[str, ...]]:
        """What calling both sides concludes, and the known cause of what differs.

        Raises:
            CompileFailed: if the compiler does; what eager raises is raised as it is.
        """
        expected = self._rerun()
        if expected.error is not None:
            raise expected.error
        actual = self._run(self._compiled, self._recorder.watching)
        if actual.error is not None and self._recorder.is_compile_failure(actual.error):
            raise CompileFailed(failure_text(actual.error)) from actual.error

        def judge_by(floors: Callable[[], Iterator[Floor]] | None) -> Judgement:
            return judge(expected, actual, tolerance, floors)

        floors = functools.partial(rounding_floors, expected, self._rerun)
        judgement = judge_by(floors if reference == "float64" else None)
        compiled_before = self._comes_compiled and not self._recorder.compile_s
        if compiled_before and any(d.problem == "random state" for d in judgement.differences):
            return judgement, (OTHER_NUMBERS,)
        if judgement.differences and reference == "eager" and not judge_by(floors).differences:
            return judgement, (rounding_cause(self._rerun),)
        return judgement, ()

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
        return Side(side.function, side.model, leading=side.leading, around=side.around)
    if not callable(function):
        raise UsageError(f"{function!r} is not callable; give a module, a bound method or a function")
    return Side(function, internals.module_of(function) or _holder_of(function), around=around)


def _holder_of(function: Any) -> Holder | None:
    """The policy whose method `function` is, compiled or not, if it holds modules but is none."""
    owner = getattr(getattr(function, "_torchdynamo_orig_callable", function), "__self__", None)
    return Holder(owner) if is_holder(owner) else None


def _name(function: Any) -> str:
    if isinstance(function, CompiledPolicy):
        return function.name
    if isinstance(function, nn.Module):
        return "forward"
    return getattr(function, "__name__", type(function).__name__)
