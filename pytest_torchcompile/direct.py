"""Functions to compile and compare by hand: in an ordinary test, under ``@given``, in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from torch import nn

from pytest_torchcompile.checking.callables import InPhase, require_inputs
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.single_call import SingleCall
from pytest_torchcompile.checking.stops import Stop, require_repeated
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.compiling.capture import why_not_compiled
from pytest_torchcompile.compiling.failures import failure_text
from pytest_torchcompile.compiling.toolchain import repeat_without_broken_files
from pytest_torchcompile.errors import CompileFailed, NotEquivalent, UsageError
from pytest_torchcompile.generation.recipes import Recipe, random_recipe
from pytest_torchcompile.options import PHASES, REFERENCES, CheckOptions, validated
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.input_advice import eager_raises
from pytest_torchcompile.policies.methods import as_methods
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.snapshots import copied, map_tensors
from pytest_torchcompile.policies.twins import Factory
from pytest_torchcompile.reports import failure
from pytest_torchcompile.results import Capture, CheckResult, Verdict
from pytest_torchcompile.runtime.isolation import Settings, compilers_warnings_recorded, isolated


class CompiledPolicy(InPhase):
    """A compiled method of a policy, returned by `compile_policy`.

    A call runs the compiled method in its phase: in ``eval()`` mode without gradients in ``rollout``, in
    ``train()`` mode with gradients in ``update``.
    """

    def __init__(self, pair: Pair, options: CheckOptions) -> None:
        super().__init__(pair.compiled, pair.phase)
        self._pair = pair
        self._options = options
        self.name = pair.method.name
        self.eager: Callable[..., Any] = InPhase(pair.eager, pair.phase)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the compiled method returns.

        Raises:
            CompileFailed: if the call compiles and that fails.
            Exception: if the method raises; eager's exception if eager raises on these inputs too.
        """
        try:
            # A failure to compile under inference mode leaves torch's dispatcher changed before torch 2.13.
            with Settings(), compilers_warnings_recorded():
                return super().__call__(*args, **kwargs)
        except Exception as error:
            self._require_eager_accepts(args, kwargs)
            self.fail(error)

    def _require_eager_accepts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call eager on copies of the inputs, so that its exception is raised and not compiled's."""
        self.eager(*map_tensors(copied, args), **map_tensors(copied, kwargs))

    def fail(self, error: BaseException) -> NoReturn:
        """Raise `error`, or `CompileFailed` from it if the compiler raised it."""
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
        """Return the compiled side that `measure_speedup` times; see `Pair.as_deployed`."""
        return self._pair.as_deployed()

    @property
    def capture(self) -> Capture:
        """What has been compiled so far."""
        return self._pair.capture

    def __repr__(self) -> str:
        return f"<CompiledPolicy {self.name}-{self.phase}: {failure.capture_line(self.capture)}>"


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
    """Compile a method and call it once, so that a failure to compile is raised here.

    Args:
        factory: returns a new module, and is called twice; or a module, which is copied.
        method: the name of a method, or an adapter ``f(model, **inputs)``.
        observation: spec of the first argument; see `check_equivalence`.
        inputs: specs of further arguments, by name.
        observe: see `check_equivalence`.
        reset: see `check_equivalence`.
        phase: ``rollout`` or ``update``.
        options: see `CheckOptions`.

    Returns:
        A callable. Its `eager` is the same method of an equal module; its `capture` says what was compiled.

    Raises:
        CompileFailed: if torch.compile raises; under pytest the plugin skips the test.
        NotEquivalent: if nothing was compiled.
        UsageError: if the declaration does not fit the module, eager raises, or eager returns different
            results for the same inputs and seed.

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
        try:
            error = _compile(pair, random_recipe(pair.tree, merged.batch[0], merged.seed))
        finally:
            pair.restore()
    policy = CompiledPolicy(pair, merged)
    if error is not None:
        policy.fail(error)
    reason = why_not_compiled(pair.capture, named, merged, pair.recorder)
    if reason:
        raise NotEquivalent(f"{named.name}-{phase}: {reason}")
    return policy


def _compile(pair: Pair, recipe: Recipe) -> BaseException | None:
    """Call the compiled side for the first time; return the exception of the call, if it raised one.

    Raises:
        UsageError: if eager raises, or returns something else when it is called again.
    """
    expected = pair.first_eager(recipe)
    if expected.error is not None:
        text = eager_raises(expected.error, recipe.batch, pair.tree, pair.twins.eager)
        raise UsageError(text) from expected.error

    def again() -> Outcome:
        pair.begin_call()
        return pair.run(pair.eager, recipe)

    try:
        require_repeated(expected, again(), Tolerance(), again)
    except Stop as stop:
        raise UsageError(stop.reason) from None
    errors: list[BaseException | None] = []

    def attempt() -> tuple[BaseException, ...]:
        errors.append(pair.run(pair.compiled, recipe).error)
        return pair.recorder.failures if errors[-1] is not None else ()

    repeat_without_broken_files(attempt)
    return errors[-1]


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
    """Call both once and compare what they leave: outputs, state, inputs, gradients, random state.

    Args:
        eager: the reference: a module, a bound method, a function, or ``policy.eager``.
        compiled: the candidate. It may share its module with `eager`; the module's state is restored. If one
            of the two is a plain function, attributes are not compared.
        args: positional inputs; each side gets copies.
        phase: ``rollout`` (eval mode, no gradients) or ``update`` (train mode, gradients).
        atol: absolute tolerance.
        rtol: tolerance relative to eager's value. The larger of the two tolerances applies.
        reference: with ``float64``, differences that rounding explains pass; with ``eager`` they do not.
        seed: seed of the random generators before each call.
        kwargs: keyword inputs; each side gets copies.

    Raises:
        NotEquivalent: if the two differ; an `AssertionError` that names the output, the index, both values
            and the allowed difference. Also if the comparison proves nothing: eager returns different results
            for the same inputs, compiled ran no compiled code, or no value was finite.
        CompileFailed: if the call compiles and that fails.
        UsageError: if the inputs do not fit the parameters of `eager`, or an argument is not accepted.

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
    tolerance = Tolerance(
        atol=validated("atol", atol, "assert_equivalent()"),
        rtol=validated("rtol", rtol, "assert_equivalent()"),
    )
    once = SingleCall(eager, compiled, args, kwargs, phase, seed)
    with isolated():
        try:
            judgement, notes = once.judged(tolerance, reference)
            nothing = once.nothing_shown(judgement)
        except Stop as stop:
            raise NotEquivalent(f"{_name(compiled)}-{phase}: {stop.reason}") from None
        except TypeError:
            require_inputs("assert_equivalent", eager, args, kwargs)
            raise
        finally:
            once.restore()
    if not judgement.differences and nothing:
        raise NotEquivalent(f"{_name(compiled)}-{phase}: {nothing}")
    if judgement.differences:
        notes = (*filter(None, [once.other_weights()]), *notes)
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


def _name(function: Any) -> str:
    if isinstance(function, CompiledPolicy):
        return function.name
    if isinstance(function, nn.Module):
        return "forward"
    return getattr(function, "__name__", type(function).__name__)
