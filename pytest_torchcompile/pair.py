"""The two sides of one method in one phase, ready to be called with the same recipe."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
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
from pytest_torchcompile.loss import users_loss
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policy import (
    OBSERVATION,
    Arguments,
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
from pytest_torchcompile.state import Counters, ModuleState
from pytest_torchcompile.trees import declared
from pytest_torchcompile.twins import Factory, Twins, build_twins


class Pair:
    """Eager and compiled, from a declaration to callables; nothing is compiled before the first call.

    Args:
        factory: makes the module, or is one.
        method: what to call.
        phase: ``rollout`` or ``update``.
        declaration: what was said of the policy; its inputs are shared out among its methods.
        options: how to compile.
        progress: told when a compile begins and ends.
        beside: a pair of another method, whose modules and remembered state this one shares.
        remember_parameters: whether to remember the parameters too, for who writes to them.

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
        beside: Pair | None = None,
        remember_parameters: bool = False,
    ) -> None:
        require_known(options)
        self.method = method
        self.phase = phase
        self.factory = factory
        self.declaration = declaration
        self._options = options
        # A factory may call what it has compiled; such graphs have to be known when they run again.
        with internals.graphs_run(lambda graph, taken: None):
            self.twins: Twins = (
                beside.twins if beside else build_twins(factory, options.seed, self._first_call)
            )
        self.binding = self._bindings(self.twins.eager)[method.name]
        self.tree = self.binding.tree
        given = {
            *(declaration.inputs or {}),
            *((OBSERVATION,) if declaration.observation is not None else ()),
        }
        own = {name: spec for name, spec in self.tree.items() if name not in given}
        if own:
            self.twins.notes.append(f"inputs are the policy's own spaces: {declared(own)}")
        self.recorder = Recorder(self.twins.compiled, progress, options.max_seconds)
        self._draws = False
        self._counters: Counters = {}
        self._used: set[str] = set()
        parameters = remember_parameters or self.shared
        self.eager: Side = self._side(
            method.of(self.twins.eager),
            self.twins.eager,
            lambda: torch.compiler.set_stance("force_eager"),
            beside.eager.state if beside else ModuleState(self.twins.eager, parameters=parameters),
        )
        model = self.twins.compiled
        function = method.of(model) if self.twins.deployed else compile_method(method, model, options)
        self.compiled: Side = self._side(
            function,
            model,
            self._while_compiled,
            beside.compiled.state if beside else ModuleState(model, parameters=parameters),
        )

    def _bindings(self, model: nn.Module) -> dict[str, Binding]:
        """What each method is called with, and the user's loss, which takes everything."""
        tree = input_tree(self.declaration, model)
        loss = self.declaration.loss
        methods = (*as_methods(self.declaration.methods), *((users_loss(loss),) if loss else ()))
        bindings = {method.name: bind(method, model, tree) for method in methods}
        require_all_taken(bindings, tree)
        return bindings

    def _first_call(self, model: nn.Module) -> None:
        """Call each method once, which gives lazily initialised parameters their shapes."""
        bindings = self._bindings(model)
        model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for method in as_methods(self.declaration.methods):
                binding = bindings[method.name]
                recipe = random_recipe(binding.tree, self._options.batch[0], self._options.seed)
                args, kwargs, _ = binding.arguments(recipe)
                leading = () if method.adapter is None else (policy_of(model),)
                method.of(model)(*leading, *args, **kwargs)

    def _side(
        self, function: Callable[..., Any], model: nn.Module, around: Around, state: ModuleState | None
    ) -> Side:
        leading = () if self.method.adapter is None else (policy_of(model),)
        return Side(
            function,
            model,
            leading=leading,
            names=self.binding.positional,
            around=around,
            state=state,
            observe=self.declaration.observe,
            reset=self.declaration.reset,
        )

    @contextlib.contextmanager
    def _while_compiled(self) -> Iterator[None]:
        # Inductor draws other numbers than eager for the same seed unless it is told not to; told
        # without need, it would compile something else than what is deployed.
        numbers = internals.eager_random_numbers() if self._draws else contextlib.nullcontext()
        with numbers, internals.raised_recompile_limit(), self.recorder.watching():
            yield

    def begin(self, recipe: Recipe) -> None:
        """Begin an example: eager, however often it runs, starts from compiled's counters.

        Counters are not put back between examples, because a guard on one that grows compiles anew on
        every call, which has to show.
        """
        self.recorder.begin(recipe)
        state = self.compiled.state
        self._counters = {} if state is None else state.counters()

    @property
    def shared(self) -> bool:
        """Whether both sides are one module, because no second one could be had."""
        return self.twins.eager is self.twins.compiled

    def run(
        self,
        side: Side,
        recipe: Recipe,
        *,
        under: Around = contextlib.nullcontext,
        wide: bool = False,
        phase: str = "",
        tree: Any = None,
    ) -> Outcome:
        """Call one side on inputs of its own.

        Args:
            side: which.
            recipe: the inputs.
            under: a further context.
            wide: whether the inputs are float64.
            phase: another than this pair's.
            tree: other inputs than those declared.
        """
        if side.state is not None and (side is self.eager or self.shared):
            side.state.set_counters(self._counters)
        bound = self.arguments(recipe, wide=wide, tree=tree)
        return side.call(
            bound.args,
            bound.kwargs,
            drawn=bound.drawn,
            phase=phase or self.phase,
            seed=recipe.seed,
            under=under,
        )

    def arguments(self, recipe: Recipe, *, wide: bool, tree: Any = None) -> Arguments:
        """New inputs, float64 ones if they are to be `wide`, made by another `tree` if one is given."""
        # A `Wrapped` input may draw as it is made.
        seed_everything(recipe.seed)
        binding = self.binding if tree is None else dataclasses.replace(self.binding, tree=tree)
        return binding.arguments(recipe, of=widened) if wide else binding.arguments(recipe)

    def first_eager(self, recipe: Recipe, phase: str = "") -> Outcome:
        """The first eager call in a phase, which tells what the method uses, draws and writes to."""
        uses = Uses(self.twins.eager)
        outcome = self.run(self.eager, recipe, under=lambda: uses, phase=phase)
        self._used |= uses.used
        self._draws |= bool(outcome.drew())
        self._protect_written()
        return outcome

    def drop_other_draws(self) -> None:
        """Have what comes compiled, and draws, compiled anew; once it is known from eager whether it draws.

        What its factory has called draws inductor's random numbers, which are others by design.
        """
        if self._draws and self.twins.deployed:
            torch.compiler.reset()

    def _protect_written(self) -> None:
        """Remember the parameters that the first call wrote to by the other side's, not yet called."""
        eager, compiled = self.eager.state, self.compiled.state
        if not self.shared and eager is not None and compiled is not None and eager.written():
            names = eager.written()
            compiled.protect(names, self.twins.compiled)
            eager.protect(names, self.twins.compiled)

    def compiled_anew(self, options: CheckOptions) -> Pair:
        """The same two modules, the compiled side under other options and on code of its own."""
        other = copy.copy(self)
        other._options = options
        other.recorder = Recorder(self.twins.compiled, limit_s=options.max_seconds)
        function = compile_method(self.method, self.twins.compiled, options)
        other.compiled = self.compiled.replaced(function, other._while_compiled)
        return other

    def on_one_thread(self) -> Side | None:
        """The compiled side with kernels that can raise, compiled anew if need be; None if it can't be had.

        A kernel that runs on several threads ends the process instead, and one on another device
        leaves the device unusable.
        """
        if any(parameter.device.type != "cpu" for parameter in self.twins.compiled.parameters()):
            return None
        if torch.get_num_threads() == 1:
            return self.compiled
        if self.twins.deployed:
            return None

        @contextlib.contextmanager
        def around() -> Iterator[None]:
            with internals.kernels_for_one_thread(), self._while_compiled():
                yield

        function = compile_method(self.method, self.twins.compiled, self._options)
        return self.compiled.replaced(function, around)

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
