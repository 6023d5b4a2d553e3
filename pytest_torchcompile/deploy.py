"""Compiles a policy for training, after a check has shown that compiled computes what eager does.

The policy is compiled in place: its class, its ``state_dict()`` and the code that trains it do not change.
The check uses copies of the policy, so if it fails, the policy itself is unchanged.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.check import check_methods
from pytest_torchcompile.compiling.capture import Recorder
from pytest_torchcompile.compiling.compilation import compile_function
from pytest_torchcompile.compiling.failures import failure_text
from pytest_torchcompile.errors import CompileFailed, NotEquivalent, UsageError
from pytest_torchcompile.generation.recipes import random_recipe
from pytest_torchcompile.options import PHASES, CheckOptions
from pytest_torchcompile.policies.binding import bind, input_tree
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.holders import Holder, is_holder, policy_of
from pytest_torchcompile.policies.methods import Method, as_methods
from pytest_torchcompile.policies.state import ModuleState
from pytest_torchcompile.policies.twins import comes_compiled
from pytest_torchcompile.reports import failure
from pytest_torchcompile.results import CheckResult, Verdict, versions
from pytest_torchcompile.runtime.autocast import autocasting
from pytest_torchcompile.runtime.isolation import isolated
from pytest_torchcompile.timing.speed import timing_if_asked

_log = logging.getLogger("pytest_torchcompile")

Policy = TypeVar("Policy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compilation:
    """What `compile_checked` did with a policy, and why.

    Args:
        compiled: whether the policy's methods run compiled code.
        reason: why they don't; empty if they do.
        results: the results of the check.
        graphs: how many graphs the warm-up compiled.
        compile_s: seconds that this took.
        settings: the options that affect what is compiled and what is allowed.
    """

    compiled: bool
    reason: str = ""
    results: tuple[CheckResult, ...] = ()
    graphs: int = 0
    compile_s: float = 0.0
    settings: Mapping[str, str | int | float | None] = dataclasses.field(default_factory=dict)

    def metadata(self) -> dict[str, str | int | float | None]:
        """Return a flat dict that ``json.dumps`` accepts, for a checkpoint, Weights & Biases or TensorBoard.

        Fields of the whole policy come first, then those of `CheckResult.metadata` of each case, under
        ``method-phase/field``.
        """
        whole: dict[str, str | int | float | None] = {
            "compiled": self.compiled,
            "reason": self.reason,
            "graphs": self.graphs,
            "compile_s": round(self.compile_s, 3),
        }
        common = {**self.settings, **versions()}
        cases = {
            f"{result.case}/{name}": value
            for result in self.results
            for name, value in result.metadata().items()
            if name not in common
        }
        return whole | common | cases


_compilations: dict[int, Compilation] = {}
"""By the ``id()`` of the policy, because a policy may not be hashable."""


def compilation_of(policy: Any) -> Compilation:
    """Return what `compile_checked` did with this policy.

    Raises:
        UsageError: if it was not given to `compile_checked`. A copy of a policy that was given is eager.
    """
    if id(policy) not in _compilations:
        raise UsageError(f"this {type(policy).__name__} was not given to compile_checked()")
    return _compilations[id(policy)]


def compile_checked(
    policy: Policy,
    *,
    observation: Any = None,
    inputs: Mapping[str, Any] | None = None,
    methods: Any = "forward",
    observe: Callable[[Any], Any] | None = None,
    reset: Callable[[Any], Any] | None = None,
    act: Any = None,
    learn: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    enabled: bool = True,
    fallback: bool = True,
    warm_up: int = 0,
    **options: Any,
) -> Policy:
    """Compile methods of a policy in place if copies of it pass the check; otherwise leave it eager.

    The logger ``pytest_torchcompile`` gets the results; if the policy stays eager, it gets a warning with the
    figures. Random states, weights and gradients are unchanged. Copies and pickles of the policy are eager,
    as for ``Module.compile()``; ``state_dict()`` has no ``_orig_mod.``. After compiling,
    ``torch.distributions`` no longer validates arguments, as in every process that compiles.

    Args:
        policy: a module, or an object that holds some.
        observation: see `check_equivalence`.
        inputs: see `check_equivalence`.
        methods: names of the methods to compile; no adapters.
        observe: see `check_equivalence`.
        reset: see `check_equivalence`.
        act: see `check_equivalence`.
        learn: see `check_equivalence`.
        loss: see `check_equivalence`.
        enabled: False leaves the policy eager, without a check.
        fallback: False raises instead of leaving the policy eager.
        warm_up: how often to call each compiled method in each of `phases`, with each batch size of
            `batch`, so that training does not begin with compiling. If this fails, the policy stays eager
            too.
        options: see `CheckOptions`. With `benchmark_seconds` the speedup and the memory are measured. With
            `min_speedup`, a policy whose speedup is certainly smaller stays eager, as does one that exceeds
            `max_graph_breaks`, `max_recompiles` or `max_compile_seconds`.

    Returns:
        The same object. Call `compilation_of` on it to see what was done.

    Raises:
        UsageError: if the declaration does not fit the policy, or the policy comes compiled.
        NotEquivalent: with ``fallback=False``, if the check fails, or a case is too slow or over budget.
        CompileFailed: with ``fallback=False``, if compiling fails.

    Example:
        >>> from torch import nn
        >>> model = compile_checked(
        ...     nn.Linear(8, 2), observation=Box((8,)), backend="aot_eager", phases="rollout"
        ... )
        >>> compilation_of(model).compiled, list(model.state_dict())
        (True, ['weight', 'bias'])
    """
    merged = CheckOptions.merge(("compile_checked()", options))
    declaration = Declaration(
        observation=observation,
        inputs=inputs,
        methods=methods,
        observe=observe,
        reset=reset,
        act=act,
        learn=learn,
        loss=loss,
    )
    model = _as_module(policy)
    names = _names_of(as_methods(methods))
    if not enabled:
        _remember(policy, Compilation(compiled=False, reason="not enabled", settings=merged.settings()))
        return policy
    if comes_compiled(model):
        raise UsageError(f"{type(policy).__name__} comes compiled; give compile_checked() the plain one")
    results = tuple(check_methods(model, declaration, merged, time=timing_if_asked(merged)))
    compilation = Compilation(compiled=True, results=results, settings=merged.settings())
    try:
        _require_passed(results)
        compilation = _compiled(model, declaration, merged, warm_up, compilation)
    except (NotEquivalent, CompileFailed) as error:
        if not fallback:
            raise
        _log.warning("%s stays eager: %s", type(policy).__name__, error)
        compilation = dataclasses.replace(compilation, compiled=False, reason=str(error))
    else:
        # Importing torch's compiler disables argument validation; the check restored it afterwards. It is
        # disabled again, as during the check, because validation in compiled code causes graph breaks.
        internals.set_argument_validation(False)
        _log.info("%s: compiled %s. %s", type(policy).__name__, ", ".join(names), _summary(results))
    _remember(policy, compilation)
    return policy


def _as_module(policy: Any) -> nn.Module:
    if isinstance(policy, nn.Module):
        return policy
    if not is_holder(policy):
        raise UsageError(f"compile_checked() got {policy!r}; it takes a module, or an object that holds some")
    return Holder(policy)


def _names_of(methods: tuple[Method, ...]) -> list[str]:
    for method in methods:
        if method.adapter is not None:
            raise UsageError(
                f"compile_checked() can't compile the function {method.name} in place; give names of methods"
            )
    return [method.name for method in methods]


def _require_passed(results: tuple[CheckResult, ...]) -> None:
    """Return if every case passed, none is slower than allowed, and none exceeds a budget for compiling.

    Raises:
        CompileFailed: if compiling failed, and there was no other failure.
        NotEquivalent: for any other failure; the message has the figures of every failing case.
    """
    failed = [result for result in results if not result.verdict.passed]
    slow = [result for result in results if result.speedup is not None and result.speedup.too_slow]
    costly = [result for result in results if result.verdict.passed and result.exceeded]
    others = [*map(failure.slow_text, slow), *map(failure.budget_text, costly)]
    text = "\n\n".join([*map(failure.failure_text, failed), *others])
    if failed and not others and all(result.verdict is Verdict.COMPILE_FAILED for result in failed):
        raise CompileFailed(text, result=failed[0])
    if text:
        raise NotEquivalent(text)


def _summary(results: tuple[CheckResult, ...]) -> str:
    return "; ".join(
        f"{result.case}: {result.verdict}" + (f", speedup {result.speedup}" if result.speedup else "")
        for result in results
    )


def _remember(policy: Any, compilation: Compilation) -> None:
    if id(policy) not in _compilations:
        weakref.finalize(policy, _compilations.pop, id(policy), None).atexit = False
    _compilations[id(policy)] = compilation


# --- in place -------------------------------------------------------------------------------------


class CompiledMethod:
    """A compiled method that replaces the policy's own.

    A copy of a compiled function would still use the original's weights, and can't be pickled. So a deep
    copy or a pickle of this object is the plain method of the copied policy.
    """

    def __init__(self, plain: Callable[..., Any], compiled: Callable[..., Any]) -> None:
        functools.update_wrapper(self, compiled)
        self._plain = plain
        self._compiled = compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the compiled method."""
        return self._compiled(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return copy.copy, (self._plain,)


def _compiled(
    model: nn.Module, declaration: Declaration, options: CheckOptions, warm_up: int, compilation: Compilation
) -> Compilation:
    """Compile the methods in place and warm them up; undo this if it fails."""
    with contextlib.ExitStack() as undo:
        for method in as_methods(declaration.checked):
            undo.callback(_put_in_place(method, model, options))
        recorder = Recorder(model)
        with isolated(), recorder.watching():
            _warm_up(model, declaration, options, warm_up)
        undo.pop_all()
    capture = recorder.capture(set())
    return dataclasses.replace(compilation, graphs=capture.graphs, compile_s=capture.compile_s)


def _put_in_place(method: Method, model: nn.Module, options: CheckOptions) -> Callable[[], None]:
    """Compile a method in place; return a function that undoes this."""
    plain = method.of(model)
    if isinstance(plain, nn.Module):
        internals.set_compiled_call(plain, compile_function(internals.eager_call(plain), options))
        return functools.partial(internals.set_compiled_call, plain, None)
    path, _, name = method.name.rpartition(".")
    owner = functools.reduce(getattr, path.split(".") if path else [], policy_of(model))
    own = vars(owner).get(name)
    setattr(owner, name, CompiledMethod(plain, compile_function(plain, options)))
    return functools.partial(delattr, owner, name) if own is None else lambda: setattr(owner, name, own)


def _warm_up(model: nn.Module, declaration: Declaration, options: CheckOptions, times: int) -> None:
    """Call the compiled methods `times` times in each phase, with each batch size.

    Raises:
        CompileFailed: if a call raises.
    """
    tree = input_tree(declaration, model)
    phases = [phase for phase in options.phases if phase in PHASES]
    for method in as_methods(declaration.checked) if times else ():
        binding = bind(method, model, tree)
        state = ModuleState(model, parameters=True)
        side = Side(
            method.of(model),
            model,
            names=binding.positional,
            state=state,
            reset=declaration.reset,
            cast=autocasting(options.autocast, model),
        )
        try:
            for phase, batch, _ in itertools.product(phases, options.batch, range(times)):
                recipe = random_recipe(binding.tree, batch, options.seed)
                bound = binding.arguments(recipe)
                error = side.call(bound.args, bound.kwargs, phase=phase, seed=recipe.seed).error
                if error is not None:
                    raise CompileFailed(
                        f"the warm-up of {method.name} failed in {phase} with batch {batch}: "
                        f"{failure_text(error)}"
                    ) from error
        finally:
            side.restore()
