"""Compiling a policy for training, once a check has shown that this changes nothing.

The policy is compiled in place: its class, its ``state_dict()`` and the code that trains it stay as they
are, and where the check fails there is nothing to take back. The check itself works on copies.
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
from pytest_torchcompile.compiling.capture import Recorder, compile_function, failure_text
from pytest_torchcompile.errors import CompileFailed, NotEquivalent, UsageError
from pytest_torchcompile.generation.recipes import random_recipe
from pytest_torchcompile.options import PHASES, CheckOptions
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.holders import Holder, is_holder, policy_of
from pytest_torchcompile.policies.methods import Method, as_methods, bind, input_tree
from pytest_torchcompile.policies.state import ModuleState
from pytest_torchcompile.policies.twins import comes_compiled
from pytest_torchcompile.reports import failure
from pytest_torchcompile.results import CheckResult, Verdict, versions
from pytest_torchcompile.runtime.autocast import autocasting
from pytest_torchcompile.runtime.isolation import isolated

_log = logging.getLogger("pytest_torchcompile")

Policy = TypeVar("Policy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compilation:
    """What `compile_checked` did with a policy, and on what grounds.

    Args:
        compiled: whether the policy's methods go through compiled code.
        reason: why they don't; empty if they do.
        results: the checks that were made.
        graphs: how many graphs the warm-up compiled.
        compile_s: seconds that this took.
        settings: the options that shape what is compiled and what is allowed.
    """

    compiled: bool
    reason: str = ""
    results: tuple[CheckResult, ...] = ()
    graphs: int = 0
    compile_s: float = 0.0
    settings: Mapping[str, str | int | float | None] = dataclasses.field(default_factory=dict)

    def metadata(self) -> dict[str, str | int | float | None]:
        """Flat, JSON-able fields for a checkpoint, Weights & Biases or TensorBoard.

        What holds of the policy comes first; then the fields of `CheckResult.metadata` of each case, under
        ``method-phase/field``.
        """
        whole: dict[str, str | int | float | None] = {
            "compiled": self.compiled,
            "reason": self.reason,
            "graphs": self.graphs,
            "compile_s": round(self.compile_s, 3),
        }
        said_once = {**self.settings, **versions()}
        cases = {
            f"{result.case}/{name}": value
            for result in self.results
            for name, value in result.metadata().items()
            if name not in said_once
        }
        return whole | said_once | cases


_compilations: dict[int, Compilation] = {}
"""By the policy's identity, because a policy need not be hashable."""


def compilation_of(policy: Any) -> Compilation:
    """What `compile_checked` did with this policy.

    Raises:
        UsageError: if it was not given to `compile_checked`; a copy of one that was is eager.
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
    """Compile methods of a policy in place if copies of it pass the check; else leave it eager.

    What was found is logged to ``pytest_torchcompile``, a fallback as a warning with the figures. Random
    numbers, weights and gradients are not touched. Copies and pickles of the policy are eager, as those
    of a module compiled by ``Module.compile()`` are; ``state_dict()`` has no ``_orig_mod.``. Once
    compiled, ``torch.distributions`` no longer validate their arguments, as in every process that compiles.

    Args:
        policy: a module, or an object that holds some.
        observation: see `check_equivalence`, as for the other arguments down to `loss`.
        inputs: likewise.
        methods: names of the methods to compile; no adapters.
        observe: likewise.
        reset: likewise.
        act: likewise.
        learn: likewise.
        loss: likewise.
        enabled: False leaves the policy alone.
        fallback: False raises where the policy would have stayed eager.
        warm_up: how often to call each compiled method in each of `phases`, with each batch size of
            `batch`, so that training does not begin with compiling. A compile that fails here falls back too.
        options: see `CheckOptions`; with `benchmark_seconds` the speedup and the memory are measured,
            with `min_speedup` a policy that is surely slower stays eager.

    Returns:
        The same object. `compilation_of` it tells what was done.

    Raises:
        UsageError: if the declaration and the policy don't fit, or it comes compiled.
        NotEquivalent: with ``fallback=False``, if the check fails.
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
    results = tuple(check_methods(model, declaration, merged))
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
        # As an import of torch's compiler leaves it, which ends before the check puts it back. Compiled
        # code that validates breaks its graphs, and the check did without.
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
                f"compile_checked() can't put {method.name} in the place of a method; methods are names here"
            )
    return [method.name for method in methods]


def _require_passed(results: tuple[CheckResult, ...]) -> None:
    """Return if compiling keeps what the policy computes, and is not slower than was allowed.

    Raises:
        CompileFailed: if nothing failed but compiling.
        NotEquivalent: with the figures of every case that is no good.
    """
    failed = [result for result in results if not result.verdict.passed]
    slow = [result for result in results if result.speedup is not None and result.speedup.too_slow]
    text = "\n\n".join([*map(failure.failure_text, failed), *map(failure.slow_text, slow)])
    if failed and not slow and all(result.verdict is Verdict.COMPILE_FAILED for result in failed):
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
    """A compiled method in the place of the policy's own.

    A copy of a compiled function would still call the original's weights, and can't be pickled. So a
    deep copy or a pickle of this is the plain method of the copied policy.
    """

    def __init__(self, plain: Callable[..., Any], compiled: Callable[..., Any]) -> None:
        functools.update_wrapper(self, compiled)
        self._plain = plain
        self._compiled = compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the compiled method returns."""
        return self._compiled(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return copy.copy, (self._plain,)


def _compiled(
    model: nn.Module, declaration: Declaration, options: CheckOptions, warm_up: int, compilation: Compilation
) -> Compilation:
    """Compile the methods in place and warm them up; what was done is undone if that fails."""
    with contextlib.ExitStack() as undo:
        for method in as_methods(declaration.methods):
            undo.callback(_put_in_place(method, model, options))
        recorder = Recorder(model)
        with isolated(), recorder.watching():
            _warm_up(model, declaration, options, warm_up)
        undo.pop_all()
    capture = recorder.capture(set())
    return dataclasses.replace(compilation, graphs=capture.graphs, compile_s=capture.compile_s)


def _put_in_place(method: Method, model: nn.Module, options: CheckOptions) -> Callable[[], None]:
    """Compile a method where it is; returns what undoes it."""
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
    """Call what was compiled as training will.

    Raises:
        CompileFailed: if a call raises, as it did not in the check.
    """
    tree = input_tree(declaration, model)
    phases = [phase for phase in options.phases if phase in PHASES]
    for method in as_methods(declaration.methods) if times else ():
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
