"""The protocol of a check: one case from a factory to a `CheckResult`.

Eager first, so that the user's own error is told as such; then the fixed examples; then those that
Hypothesis draws. Facts are collected on the way and the verdict is drawn from them at the end.
Nothing raises for a failing verdict here: that is up to the caller.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from pytest_torchcompile import internals, recipes, strategies, tensors
from pytest_torchcompile.calls import Around, Outcome, Side
from pytest_torchcompile.capture import (
    Recorder,
    Uses,
    compile_method,
    failure_text,
    require_known,
)
from pytest_torchcompile.evidence import Evidence, some
from pytest_torchcompile.isolation import isolated
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policy import Binding, Method, as_methods, bind, input_tree, require_all_taken
from pytest_torchcompile.recipes import Recipe
from pytest_torchcompile.results import CheckResult, Difference, Verdict
from pytest_torchcompile.rounding import (
    DEGENERATE_SHIFT,
    SHIFT,
    Floor,
    float64_reference,
    rounding_floor,
    widened,
)
from pytest_torchcompile.search import examples_of_profile, search
from pytest_torchcompile.state import map_tensors
from pytest_torchcompile.tolerance import Judgement, Tolerance, judge
from pytest_torchcompile.twins import Twins, build_twins

RECOMPILES_IN_A_ROW = 3
"""Calls in a row that compile again for a shape already seen; so many are no coincidence."""

Factory = Callable[[], Any] | nn.Module


def check_equivalence(
    factory: Factory,
    *,
    observation: Any = None,
    inputs: Mapping[str, Any] | None = None,
    methods: Any = "forward",
    **options: Any,
) -> list[CheckResult]:
    """Check every method of a policy in every phase; compiled must compute what eager does.

    Args:
        factory: makes the module, is run twice; or a module, which is copied.
        observation: spec of the first argument of every method, batch left out; None takes the
            module's ``observation_space``. A function is given the built module.
        inputs: specs of further arguments by parameter name, given to the methods that take them.
        methods: a name, an adapter ``f(model, **inputs)``, or several.
        options: see `CheckOptions`.

    Returns:
        A `CheckResult` for each method and phase. Nothing is raised for a failing verdict.

    Raises:
        UsageError: if the declaration and the module don't fit, before anything is compiled.

    Example:
        >>> from torch import nn
        >>> results = check_equivalence(
        ...     lambda: nn.Linear(8, 2), observation=Box((8,)), backend="aot_eager", phases="rollout"
        ... )
        >>> [str(result.verdict) for result in results]
        ['equal']
    """
    merged = CheckOptions.merge(("check_equivalence()", options))
    named = as_methods(methods)
    return [
        check_case(
            factory, method, phase, methods=named, observation=observation, inputs=inputs, options=merged
        )
        for method in named
        for phase in merged.phases
    ]


def check_case(
    factory: Factory,
    method: Method,
    phase: str,
    *,
    methods: tuple[Method, ...],
    observation: Any,
    inputs: Mapping[str, Any] | None,
    options: CheckOptions,
    name: str = "",
    compiling: Callable[[], None] = lambda: None,
) -> CheckResult:
    """Check one method in one phase.

    Args:
        factory: see `check_equivalence`.
        method: the method of this case.
        phase: ``rollout`` or ``update``.
        methods: all methods of the test, among which the inputs are shared out.
        observation: see `check_equivalence`.
        inputs: likewise.
        options: likewise.
        name: tells this case apart in Hypothesis' database.
        compiling: called when a compile begins.
    """
    with isolated(options.threads), internals.raised_recompile_limit() as limit:
        require_known(options)
        twins = build_twins(factory, options.seed)
        tree = input_tree(observation, inputs, twins.eager)
        bindings = {each.name: bind(each, twins.eager, tree) for each in methods}
        require_all_taken(bindings.values(), tree)
        check = _Check(twins, method, phase, bindings[method.name], options, limit, compiling)
        try:
            return check.run(name or method.name)
        finally:
            check.restore()


class _Stop(BaseException):
    """Ends a check with a verdict; no `Exception`, so that Hypothesis lets it through."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        self.verdict = verdict
        self.reason = reason


@dataclasses.dataclass(kw_only=True)
class _Failure:
    """An example on which compiled differs."""

    recipe: Recipe
    judgement: Judgement
    call: int
    replayed: bool = True


class _Check:
    """One case while it runs."""

    def __init__(
        self,
        twins: Twins,
        method: Method,
        phase: str,
        binding: Binding,
        options: CheckOptions,
        limit: int,
        compiling: Callable[[], None],
    ) -> None:
        self._twins = twins
        self._method = method
        self._phase = phase
        self._binding = binding
        self._options = options
        self._limit = limit
        self._tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
        self._eager = self._side(
            method.of(twins.eager),
            twins.eager,
            lambda: torch.compiler.set_stance("force_eager"),
        )
        self._recorder = Recorder(twins.compiled, compiling)
        self._compiled = self._compile(random=False)
        self._draws = False
        self._used: set[str] = set()
        self._notes = list(twins.notes)
        self._evidence = Evidence()
        self._calls = 0
        self._seen: set[tuple[Any, ...]] = set()
        self._recompiled_in_a_row = 0

    # --- setting up

    def _side(self, function: Callable[..., Any], model: nn.Module, around: Around) -> Side:
        leading = () if self._method.adapter is None else (model,)
        return Side(function, model, leading=leading, names=self._binding.positional, around=around)

    def _compile(self, *, random: bool) -> Side:
        model = self._twins.compiled
        deployed = self._twins.deployed
        method = self._method
        function = method.of(model) if deployed else compile_method(method, model, self._options)

        @contextlib.contextmanager
        def around() -> Any:
            numbers = internals.eager_random_numbers() if random else contextlib.nullcontext()
            with numbers, self._recorder.watching():
                yield

        return self._side(function, model, around)

    def restore(self) -> None:
        """Leave both modules as they were found; one of them may be the user's own."""
        for side in (self._eager, self._compiled):
            if side.state is not None:
                side.state.restore()

    # --- the protocol

    def run(self, name: str) -> CheckResult:
        """The whole check."""
        ladder = recipes.ladder(
            self._binding.tree,
            self._options.batch,
            nonfinite=self._options.nonfinite,
            seed=self._options.seed,
        )
        try:
            self._try_eager(ladder[0][1])
            failure = self._climb([recipe for _, recipe in ladder])
            self._require_captured()
            failure = self._search(failure, name)
        except _Stop as stop:
            return self._result(stop.verdict, stop.reason)
        if failure is not None:
            return self._differs(failure)
        return self._result(*self._evidence.verdict())

    def _try_eager(self, recipe: Recipe) -> None:
        """The first eager call: what it raises, draws and uses."""
        uses = Uses(self._twins.eager)
        outcome = self._run(self._eager, recipe, under=lambda: uses)
        if outcome.error is not None:
            raise _Stop(
                Verdict.EAGER_FAILED,
                f"eager raises on the first example ({tensors.describe(self._binding.tree, recipe)}): "
                f"{type(outcome.error).__name__}: {outcome.error}",
            )
        self._used = uses.used
        if outcome.drew:
            # Inductor draws other numbers for the same seed unless it is told not to.
            self._compiled = self._compile(random=True)
        if self._phase == "update" and not outcome.gradients:
            self._notes.append("no output requires grad: the update phase compared the forward only")
        self._protect_written()

    def _protect_written(self) -> None:
        """Remember the parameters that the first call wrote to by the other side's, not yet called."""
        eager, compiled = self._eager.state, self._compiled.state
        if eager is not None and compiled is not None and eager.written():
            compiled.protect(eager.written(), self._twins.compiled)
            eager.protect(eager.written(), self._twins.compiled)

    def _climb(self, recipes: list[Recipe]) -> _Failure | None:
        """Try the fixed examples up to the first failure."""
        for recipe in recipes:
            failure = self._try(recipe)
            if failure is not None:
                return failure
        return None

    def _search(self, first: _Failure | None, name: str) -> _Failure | None:
        """Let Hypothesis look for a failing example, or for a smaller one than `first`."""
        examples = self._options.examples
        count = examples_of_profile() if examples is None else examples
        failures = [] if first is None else [first]

        def fails(recipe: Recipe) -> bool:
            if self._out_of_budget():
                return False
            failure = self._try(recipe)
            if failure is not None:
                failures.append(failure)
            return failure is not None

        tree = self._binding.tree
        replayed = search(
            strategies.recipes(tree, self._batches()),
            fails,
            examples=count,
            shrink_s=self._options.shrink_seconds,
            digest=f"{name}-{self._method.name}-{self._phase}",
        )
        if not failures:
            return None
        if replayed:
            return failures[-1]
        original = failures[0]
        again = self._try(original.recipe)
        return dataclasses.replace(original, replayed=again is not None) if again is None else again

    def _batches(self) -> st.SearchStrategy[int]:
        """Batch sizes to draw: only those already met where each new one would be compiled anew."""
        sizes = self._options.batch
        if self._options.dynamic is False or self._specialises():
            return st.sampled_from(sorted(sizes))
        return st.integers(min(sizes), max(sizes))

    def _specialises(self) -> bool:
        """Whether a batch size between the others, not met before, is compiled for itself."""
        between = (min(self._options.batch) + max(self._options.batch)) // 2
        if between in self._options.batch:
            return False
        self._try(recipes.random_recipe(self._binding.tree, between, self._options.seed))
        return self._recorder.compiled_in_last_call

    def _out_of_budget(self) -> bool:
        over = self._recorder.compile_s > self._options.max_seconds
        note = (
            f"compiling took more than max_seconds={self._options.max_seconds:g}: "
            f"no example was drawn after number {self._evidence.examples}"
        )
        if over and not any(text.startswith("compiling took more") for text in self._notes):
            self._notes.append(note)
        return over

    # --- one example

    def _run(
        self,
        side: Side,
        recipe: Recipe,
        *,
        under: Around = contextlib.nullcontext,
        wide: bool = False,
    ) -> Outcome:
        args, kwargs = self._binding.arguments(recipe)
        if wide:
            args, kwargs = map_tensors(widened, args), map_tensors(widened, kwargs)
        return side.call(args, kwargs, phase=self._phase, seed=recipe.seed, under=under)

    def _try(self, recipe: Recipe) -> _Failure | None:
        """Call both sides on one example and compare; a failure, or None."""
        eager = self._run(self._eager, recipe)
        if eager.error is not None:
            self._evidence.reject(eager.error)
            return None
        compiled = self._run(self._compiled, recipe)
        self._calls += 1
        if compiled.error is not None and self._recorder.is_compile_failure(compiled.error):
            raise _Stop(
                Verdict.COMPILE_FAILED,
                f"{failure_text(compiled.error)}, on call {self._calls} (batch {recipe.batch})",
            )
        self._watch_recompiles(recipe)
        judgement = judge(
            eager,
            compiled,
            self._tolerance,
            None if self._options.reference == "eager" else lambda: self._floor(eager, recipe),
            finite_inputs=self._finite_inputs(recipe),
        )
        degenerate = recipes.is_degenerate(self._binding.tree, recipe)
        self._evidence.add(eager, judgement, degenerate=degenerate)
        if not judgement.differences:
            return None
        return _Failure(recipe=recipe, judgement=judgement, call=self._calls)

    def _floor(self, eager: Outcome, recipe: Recipe) -> Floor:
        return rounding_floor(
            eager,
            lambda under, wide=False: self._run(self._eager, recipe, under=under, wide=wide),
            DEGENERATE_SHIFT if recipes.is_degenerate(self._binding.tree, recipe) else SHIFT,
        )

    def _finite_inputs(self, recipe: Recipe) -> bool:
        args, kwargs = self._binding.arguments(recipe)
        finite = True

        def look(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal finite
            finite = finite and (not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()))
            return tensor

        map_tensors(look, (args, kwargs))
        return finite

    def _watch_recompiles(self, recipe: Recipe) -> None:
        """Stop if call after call compiles for shapes already seen."""
        shape = (recipe.batch, recipe.time, tuple(fill.layout for fill in recipe.fills))
        if shape in self._seen:
            again = self._recorder.compiled_in_last_call
            self._recompiled_in_a_row = self._recompiled_in_a_row + 1 if again else 0
        self._seen.add(shape)
        if self._recompiled_in_a_row >= RECOMPILES_IN_A_ROW:
            reasons = self._recorder.capture(self._used).recompiles
            raise _Stop(
                Verdict.NOT_COMPILED,
                f"{self._recompiled_in_a_row} calls in a row compiled again for shapes already seen; torch "
                f"gives up after {self._limit} and runs eager in silence. The guard that fails: "
                f"{reasons[-1] if reasons else 'unknown'}",
            )

    # --- conclusions

    def _require_captured(self) -> None:
        capture = self._recorder.capture(self._used)
        if capture.graphs == 0:
            raise _Stop(Verdict.NOT_COMPILED, f"no graph was captured: {self._why_no_graph()}")
        if capture.coverage == 0:
            raise _Stop(
                Verdict.NOT_COMPILED,
                f"{capture.graphs} graphs were captured, but none takes any of the {len(self._used)} "
                f"parameters that eager uses; left eager: {some(capture.modules_left_eager)}",
            )
        if capture.coverage is not None and capture.coverage < self._options.min_coverage:
            raise _Stop(
                Verdict.NOT_COMPILED,
                f"{capture.coverage:.0%} of the parameters were compiled, "
                f"min_coverage={self._options.min_coverage:g} asks for more; "
                f"left eager: {some(capture.modules_left_eager)}",
            )

    def _why_no_graph(self) -> str:
        name = self._method.name
        if self._twins.deployed:
            return (
                f"the factory returned something compiled, but {name!r} does not go through it (an "
                f"OptimizedModule hands every method but forward to the eager module); write "
                f"model.{name} = torch.compile(model.{name}) instead"
            )
        if torch.compile.__module__ != "torch":
            return (
                f"torch.compile has been replaced by {torch.compile.__module__}.{torch.compile.__qualname__}"
            )
        reasons = [internals.why_disabled(), self._recorder.suppressed()]
        return "; ".join(filter(None, reasons)) or (
            f"dynamo skipped {name!r}; run with TORCH_LOGS=dynamo to see why"
        )

    def _differs(self, failure: _Failure) -> CheckResult:
        reason = (
            ""
            if failure.replayed
            else (f"depends on what ran before: it differed on call {failure.call} and not when tried again")
        )
        with_reference = self._with_float64(failure)
        result = self._result(Verdict.DIFFERS, reason)
        return dataclasses.replace(
            result,
            worst=with_reference[0],
            differences=with_reference,
            example=tensors.describe(self._binding.tree, failure.recipe),
        )

    def _with_float64(self, failure: _Failure) -> tuple[Difference, ...]:
        differences = failure.judgement.differences
        if self._options.reference == "eager":
            return differences
        reference = float64_reference(
            self._eager,
            lambda under, wide=False: self._run(self._eager, failure.recipe, under=under, wide=wide),
        )
        if reference is None:
            return differences
        values = reference.elementwise() | reference.differentiated()
        return tuple(_refer(difference, values.get(difference.path)) for difference in differences)

    def _result(self, verdict: Verdict, reason: str) -> CheckResult:
        deployed = self._twins.deployed
        return CheckResult(
            method=self._method.name,
            phase=self._phase,
            verdict=verdict,
            reason=reason,
            examples=self._evidence.examples,
            rounding=self._evidence.rounding,
            worst=self._evidence.worst,
            capture=self._recorder.capture(self._used),
            notes=(*self._notes, *self._evidence.notes(), *self._limit_note()),
            backend="as deployed" if deployed else self._options.backend_name,
        )

    def _limit_note(self) -> list[str]:
        recompiles = len(self._recorder.capture(self._used).recompiles)
        if recompiles <= self._limit:
            return []
        return [
            f"{recompiles} recompiles exceed your recompile_limit of {self._limit}: outside the check "
            f"torch would run some of these calls eager, in silence"
        ]


def _refer(difference: Difference, reference: torch.Tensor | None) -> Difference:
    """`difference` with the float64 reference's value at the worst element."""
    if reference is None or difference.index is None or difference.problem != "values":
        return difference
    if reference.dtype != torch.float64 or len(difference.index) != reference.dim():
        return difference
    value = float(reference[difference.index])
    eager, compiled = abs(float(difference.eager) - value), abs(float(difference.compiled) - value)
    closer = "eager" if eager < compiled else "compiled" if compiled < eager else "neither"
    return dataclasses.replace(difference, float64=f"{value:.9g}", closer=closer)
