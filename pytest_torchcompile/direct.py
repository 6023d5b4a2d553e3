"""The check's parts for use by hand: in an ordinary test, under ``@given``, in a notebook."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.calls import Outcome, Side
from pytest_torchcompile.capture import (
    Recorder,
    Uses,
    compile_method,
    failure_text,
    first_line,
    require_known,
)
from pytest_torchcompile.isolation import isolated
from pytest_torchcompile.options import PHASES, REFERENCES, CheckOptions
from pytest_torchcompile.policy import as_methods, bind, input_tree, require_all_taken
from pytest_torchcompile.recipes import Recipe, random_recipe
from pytest_torchcompile.reports import failure
from pytest_torchcompile.results import (
    Capture,
    CheckResult,
    CompileFailed,
    NotEquivalent,
    UsageError,
    Verdict,
)
from pytest_torchcompile.rounding import rounding_floor, widened
from pytest_torchcompile.state import copied, map_tensors
from pytest_torchcompile.tolerance import Tolerance, judge
from pytest_torchcompile.twins import build_twins


class CompiledPolicy:
    """A compiled method of a policy, ready to call; made by `compile_policy`.

    Calling it runs the compiled method in its phase: ``eval()`` without gradients in ``rollout``,
    ``train()`` with gradients in ``update``.
    """

    def __init__(self, name: str, phase: str, eager: Side, compiled: Side, recorder: Recorder) -> None:
        self.name = name
        self.phase = phase
        self.eager: Callable[..., Any] = _InPhase(eager, phase)
        self._eager_side = eager
        self._compiled = _InPhase(compiled, phase)
        self._recorder = recorder
        self._used: set[str] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the compiled method returns.

        Raises:
            CompileFailed: if these inputs need a compile and it fails.
        """
        try:
            return self._compiled(*args, **kwargs)
        except Exception as error:
            if self._recorder.is_compile_failure(error):
                raise CompileFailed(f"{self.name}-{self.phase}: {failure_text(error)}") from error
            raise

    def first_call(self, arguments: Callable[[Any], Any], recipe: Recipe) -> None:
        """Call both sides once on fresh inputs, noting what eager uses; `compile_policy` does it."""
        uses = Uses(self._eager_side.model or nn.Module())
        for side, under in ((self._eager_side, lambda: uses), (self._compiled.side, contextlib.nullcontext)):
            args, kwargs = arguments(recipe)
            outcome = side.call(args, kwargs, phase=self.phase, seed=recipe.seed, under=under)
            if side.state is not None:
                side.state.reset()
            if outcome.error is None:
                continue
            if side is self._eager_side:
                raise UsageError(f"eager raises: {first_line(outcome.error)}") from outcome.error
            if self._recorder.is_compile_failure(outcome.error):
                raise CompileFailed(
                    f"{self.name}-{self.phase}: {failure_text(outcome.error)}"
                ) from outcome.error
            raise outcome.error
        self._used = uses.used
        if self.capture.graphs == 0:
            raise NotEquivalent(f"{self.name}-{self.phase}: nothing was compiled, no graph was captured")

    @property
    def capture(self) -> Capture:
        """What has been compiled so far."""
        return self._recorder.capture(self._used)

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
    factory: Callable[[], Any] | nn.Module,
    method: Any = "forward",
    *,
    observation: Any = None,
    inputs: Mapping[str, Any] | None = None,
    phase: str = "rollout",
    **options: Any,
) -> CompiledPolicy:
    """A compiled method that has been called once, so that what can't be compiled shows here.

    Args:
        factory: makes the module, is run twice; or a module, which is copied.
        method: a name, or an adapter ``f(model, **inputs)``.
        observation: spec of its first argument; see `check_equivalence`.
        inputs: specs of further arguments by name.
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
    merged = CheckOptions.merge(("compile_policy()", options))
    if phase not in PHASES:
        raise UsageError(f"phase={phase!r}; accepted: {', '.join(PHASES)}")
    (named,) = as_methods(method)
    with isolated(merged.threads), internals.raised_recompile_limit():
        require_known(merged)
        twins = build_twins(factory, merged.seed)
        tree = input_tree(observation, inputs, twins.eager)
        binding = bind(named, twins.eager, tree)
        require_all_taken([binding], tree)
        recorder = Recorder(twins.compiled)
        function = (
            named.of(twins.compiled) if twins.deployed else compile_method(named, twins.compiled, merged)
        )
        adapter = named.adapter is not None
        eager = Side(
            named.of(twins.eager),
            twins.eager,
            leading=(twins.eager,) if adapter else (),
            names=binding.positional,
            around=lambda: torch.compiler.set_stance("force_eager"),
        )
        compiled = Side(
            function,
            twins.compiled,
            leading=(twins.compiled,) if adapter else (),
            names=binding.positional,
            around=lambda: _recorded(recorder),
        )
        policy = CompiledPolicy(named.name, phase, eager, compiled, recorder)
        recipe = random_recipe(binding.tree, merged.batch[0], merged.seed)
        policy.first_call(binding.arguments, recipe)
    return policy


@contextlib.contextmanager
def _recorded(recorder: Recorder) -> Any:
    with internals.eager_random_numbers(), recorder.watching():
        yield


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
    sides = (
        _side_of(eager, lambda: torch.compiler.set_stance("force_eager")),
        _side_of(compiled, internals.eager_random_numbers),
    )
    recorder = Recorder(sides[1].model or nn.Module())

    def run(side: Side, under: Any = contextlib.nullcontext, wide: bool = False) -> Outcome:
        convert = widened if wide else copied
        return side.call(
            map_tensors(convert, args), map_tensors(convert, kwargs), phase=phase, seed=seed, under=under
        )

    with isolated(torch.get_num_threads()):
        try:
            expected = run(sides[0])
            if expected.error is not None:
                raise expected.error
            actual = run(sides[1], recorder.watching)
            if actual.error is not None and recorder.is_compile_failure(actual.error):
                raise CompileFailed(failure_text(actual.error)) from actual.error
            judgement = judge(
                expected,
                actual,
                Tolerance(atol=atol, rtol=rtol),
                (lambda: rounding_floor(expected, lambda under, wide=False: run(sides[0], under, wide)))
                if reference == "float64"
                else None,
            )
        finally:
            for side in sides:
                if side.state is not None:
                    side.state.restore()
    if judgement.differences:
        raise NotEquivalent(
            failure.failure_text(
                CheckResult(
                    method=_name(eager),
                    phase=phase,
                    verdict=Verdict.DIFFERS,
                    differences=judgement.differences,
                    examples=1,
                    backend="as given",
                )
            )
        )


def _side_of(function: Any, around: Any) -> Side:
    """A side made of a bare callable, with the module it belongs to."""
    if isinstance(function, CompiledPolicy):
        function = function._compiled
    if isinstance(function, _InPhase):
        return function.side
    if not callable(function):
        raise UsageError(f"{function!r} is not callable; give a module, a bound method or a function")
    return Side(function, internals.module_of(function), around=around)


def _name(function: Any) -> str:
    if isinstance(function, nn.Module):
        return "forward"
    return getattr(function, "__name__", type(function).__name__)
