"""The two sides of one method in one phase, ready to be called with the same recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.calls import Around, Outcome, Side
from pytest_torchcompile.capture import Progress, Recorder, Uses, compile_method, require_known, silent
from pytest_torchcompile.declaration import Declaration
from pytest_torchcompile.holders import policy_of
from pytest_torchcompile.isolation import seed_everything
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policy import (
    OBSERVATION,
    Binding,
    Method,
    as_methods,
    bind,
    input_tree,
    require_all_taken,
)
from pytest_torchcompile.recipes import Recipe, random_recipe
from pytest_torchcompile.results import Capture
from pytest_torchcompile.rounding import widened
from pytest_torchcompile.spaces import declared
from pytest_torchcompile.state import Counters
from pytest_torchcompile.twins import Factory, build_twins


class Pair:
    """Eager and compiled, from a declaration to callables; nothing is compiled before the first call.

    Args:
        factory: makes the module, or is one.
        method: what to call.
        phase: ``rollout`` or ``update``.
        declaration: what was said of the policy; its inputs are shared out among its methods.
        options: how to compile.
        progress: told when a compile begins and ends.

    Raises:
        UsageError: if the declaration and the module don't fit.
    """

    def __init__(
        self,
        factory: Factory,
        method: Method,
        phase: str,
        *,
        declaration: Declaration,
        options: CheckOptions,
        progress: Progress = silent,
    ) -> None:
        require_known(options)
        self.method = method
        self.phase = phase
        self._declaration = declaration
        self._options = options
        # A factory may call what it has compiled; such graphs have to be known when they run again.
        with internals.graphs_run(lambda graph, taken: None):
            self.twins = build_twins(factory, options.seed, self._first_call)
        self.binding = self._bindings(self.twins.eager)[method.name]
        self.tree = self.binding.tree
        given = {
            *(declaration.inputs or {}),
            *((OBSERVATION,) if declaration.observation is not None else ()),
        }
        own = {name: spec for name, spec in self.tree.items() if name not in given}
        if own:
            self.twins.notes.append(f"inputs are the policy's own spaces: {declared(own)}")
        self.recorder = Recorder(self.twins.compiled, progress)
        self._draws = False
        self._counters: Counters = {}
        self._used: set[str] = set()
        self.eager = self._side(
            method.of(self.twins.eager),
            self.twins.eager,
            lambda: torch.compiler.set_stance("force_eager"),
        )
        model = self.twins.compiled
        function = method.of(model) if self.twins.deployed else compile_method(method, model, options)
        self.compiled = self._side(function, model, self._while_compiled)

    def _bindings(self, model: nn.Module) -> dict[str, Binding]:
        """What each method is called with."""
        tree = input_tree(self._declaration, model)
        methods = as_methods(self._declaration.methods)
        bindings = {method.name: bind(method, model, tree) for method in methods}
        require_all_taken(bindings, tree)
        return bindings

    def _first_call(self, model: nn.Module) -> None:
        """Call each method once, which gives lazily initialised parameters their shapes."""
        bindings = self._bindings(model)
        model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for method in as_methods(self._declaration.methods):
                binding = bindings[method.name]
                recipe = random_recipe(binding.tree, self._options.batch[0], self._options.seed)
                args, kwargs, _ = binding.arguments(recipe)
                leading = () if method.adapter is None else (policy_of(model),)
                method.of(model)(*leading, *args, **kwargs)

    def _side(self, function: Callable[..., Any], model: nn.Module, around: Around) -> Side:
        leading = () if self.method.adapter is None else (policy_of(model),)
        return Side(
            function,
            model,
            leading=leading,
            names=self.binding.positional,
            around=around,
            remember_parameters=self.twins.eager is self.twins.compiled,
            observe=self._declaration.observe,
            reset=self._declaration.reset,
        )

    @contextlib.contextmanager
    def _while_compiled(self) -> Iterator[None]:
        # Inductor draws other numbers than eager for the same seed unless it is told not to; told
        # without need, it would compile something else than what is deployed.
        numbers = internals.eager_random_numbers() if self._draws else contextlib.nullcontext()
        with numbers, internals.raised_recompile_limit(), self.recorder.watching():
            yield

    def begin(self) -> None:
        """Begin an example: eager, however often it runs, starts from compiled's counters.

        Counters are not put back between examples, because a guard on one that grows compiles anew on
        every call, which has to show.
        """
        state = self.compiled.state
        self._counters = {} if state is None else state.counters()

    def run(
        self,
        side: Side,
        recipe: Recipe,
        *,
        under: Around = contextlib.nullcontext,
        wide: bool = False,
    ) -> Outcome:
        """Call one side on inputs of its own; `wide` gives it float64 ones."""
        if side.state is not None and (side is self.eager or self.twins.eager is self.twins.compiled):
            side.state.set_counters(self._counters)
        # A `Wrapped` input may draw as it is made.
        seed_everything(recipe.seed)
        bound = self.binding.arguments(recipe, of=widened) if wide else self.binding.arguments(recipe)
        return side.call(
            bound.args, bound.kwargs, drawn=bound.drawn, phase=self.phase, seed=recipe.seed, under=under
        )

    def first_eager(self, recipe: Recipe) -> Outcome:
        """The first eager call, which tells what the method uses, draws and writes to."""
        uses = Uses(self.twins.eager)
        outcome = self.run(self.eager, recipe, under=lambda: uses)
        self._used = uses.used
        self._draws = bool(outcome.drew())
        self._protect_written()
        return outcome

    def _protect_written(self) -> None:
        """Remember the parameters that the first call wrote to by the other side's, not yet called."""
        eager, compiled = self.eager.state, self.compiled.state
        shared = self.twins.eager is self.twins.compiled
        if not shared and eager is not None and compiled is not None and eager.written():
            names = eager.written()
            compiled.protect(names, self.twins.compiled)
            eager.protect(names, self.twins.compiled)

    def as_deployed(self) -> Side | None:
        """The compiled side without what the check adds; None if it can't be had.

        Nobody watches, and what samples is compiled anew to draw inductor's own random numbers.
        """
        function = self.compiled.function
        if self._draws and self.twins.deployed:
            return None
        if self._draws:
            function = compile_method(self.method, self.twins.compiled, self._options)
        return self.compiled.replaced(function, internals.raised_recompile_limit)

    def reset_as_deployed(self) -> Side:
        """The compiled side of what came compiled, without eager's random numbers.

        It is the user's object, so that it can only be compiled anew by dropping all compiled code of
        the process; what the check compiled is lost, so that this comes last.
        """
        torch.compiler.reset()
        return self.compiled.replaced(self.compiled.function, internals.raised_recompile_limit)

    @property
    def draws(self) -> bool:
        """Whether the first eager call drew random numbers."""
        return self._draws

    @property
    def capture(self) -> Capture:
        """What has been compiled so far of what eager used."""
        return self.recorder.capture(self._used)

    def restore(self) -> None:
        """Leave both modules as they were found; one of them may be the user's own."""
        for side in (self.eager, self.compiled):
            side.restore()
