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
from pytest_torchcompile.checking import unrepeatable, written
from pytest_torchcompile.comparing.float64 import widened
from pytest_torchcompile.compiling.capture import Recorder, Uses, compile_method, require_known
from pytest_torchcompile.compiling.work import Work, owners_of
from pytest_torchcompile.generation.recipes import Recipe, random_recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.backward import FROM_ALL, Learning
from pytest_torchcompile.policies.calls import Around, Outcome, Side
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.holders import policy_of
from pytest_torchcompile.policies.loss import called_methods
from pytest_torchcompile.policies.methods import OBSERVATION, Arguments, Binding, Method, as_methods, bind_all
from pytest_torchcompile.policies.state import Counters, ModuleState
from pytest_torchcompile.policies.twins import Factory, Twins, build_twins
from pytest_torchcompile.results import Capture
from pytest_torchcompile.runtime.autocast import autocasting
from pytest_torchcompile.runtime.isolation import seed_everything
from pytest_torchcompile.runtime.progress import Progress, silent
from pytest_torchcompile.specs.trees import declared
from pytest_torchcompile.texts import some


class Pair:
    """Eager and compiled, from a declaration to callables; nothing is compiled before the first call.

    Args:
        factory: makes the module, or is one.
        method: what to call.
        phase: ``rollout`` or ``update``.
        declaration: what was said of the policy; its inputs are shared out among its methods.
        options: how to compile.
        progress: told what is done.
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
        self.progress = progress
        self._examples = 0
        # A factory may call what it has compiled; such graphs have to be known when they run again.
        with internals.graphs_run(lambda call: None):
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
        self.accepted: Recipe | None = None
        """An example on which eager has returned, in this pair's phase."""
        self.learning = FROM_ALL
        self.notes: list[str] = []
        parameters = remember_parameters or self.shared
        self.eager: Side = self._side(
            method.of(self.twins.eager),
            self.twins.eager,
            lambda: torch.compiler.set_stance("force_eager"),
            beside.eager.state if beside else ModuleState(self.twins.eager, parameters=parameters),
            is_compiled=False,
        )
        model = self.twins.compiled
        function = method.of(model) if self.twins.deployed else compile_method(method, model, options)
        self.compiled: Side = self._side(
            function,
            model,
            self._while_compiled,
            beside.compiled.state if beside else ModuleState(model, parameters=parameters),
            is_compiled=True,
        )

    def _bindings(self, model: nn.Module) -> dict[str, Binding]:
        return bind_all(called_methods(self.declaration), self.declaration, model)

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
        self,
        function: Callable[..., Any],
        model: nn.Module,
        around: Around,
        state: ModuleState | None,
        *,
        is_compiled: bool,
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
            cast=autocasting(self._options.autocast, model),
            is_compiled=is_compiled,
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
        self._examples += 1
        self.recorder.begin(recipe)
        state = self.compiled.state
        self._counters = {} if state is None else state.counters()

    def report_step(self, what: str) -> None:
        """Tell what is done on the example that was begun."""
        self.progress.step(f"example {self._examples}, {what}")

    def eager_again(self, recipe: Recipe) -> Outcome:
        """Eager called once more, from the counters that compiled starts from."""
        if self.eager.state is not None and self.compiled.state is not None:
            self.eager.state.set_counters(self.compiled.state.counters())
        return self.run(self.eager, recipe)

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
        learning: Learning | None = None,
    ) -> Outcome:
        """Call one side on inputs of its own.

        Args:
            side: which.
            recipe: the inputs.
            under: a further context.
            wide: whether the inputs are float64.
            phase: another than this pair's.
            tree: other inputs than those declared.
            learning: another way to learn than `self.learning`.
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
            learning=learning or self.learning,
        )

    def notice_written(self, side: Side, outcome: Outcome) -> None:
        """Compare and restore the parameters that the last call of `side` wrote to; see `written.notice`."""
        other = self.compiled if side is self.eager else self.eager
        written.notice(side, other, outcome, shared=self.shared)

    def arguments(self, recipe: Recipe, *, wide: bool, tree: Any = None) -> Arguments:
        """New inputs, float64 ones if they are to be `wide`, made by another `tree` if one is given."""
        # A `Wrapped` input may draw as it is made.
        seed_everything(recipe.seed)
        binding = self.binding if tree is None else dataclasses.replace(self.binding, tree=tree)
        return binding.arguments(recipe, of=widened) if wide else binding.arguments(recipe)

    def first_eager(self, recipe: Recipe, phase: str = "") -> Outcome:
        """The first eager call in a phase, which tells what the method uses, draws and writes to."""
        self.progress.step("the first eager call")
        uses, work = Uses(self.twins.eager), Work(owners_of(self.twins.eager))
        counters = {} if self.eager.state is None else self.eager.state.counters()

        @contextlib.contextmanager
        def watched() -> Iterator[None]:
            with uses, work:
                yield

        outcome = self.run(self.eager, recipe, under=watched, phase=phase)
        if outcome.error is None and phase in ("", self.phase):
            self.accepted = recipe
        self._used |= uses.used
        self.recorder.expect(work)
        self._draws |= bool(outcome.drew())
        self.learning = self.learning.leaving_out(outcome.unfollowed)
        self.notice_written(self.eager, outcome)
        if not self.shared:
            written.protect(self.eager, self.compiled)
        if outcome.error is None and self.eager.state is not None:
            self.eager.state.set_counters(counters)
            again = self.run(self.eager, recipe, phase=phase)
            unequal = unrepeatable.leave_out((self.eager, self.compiled), outcome, again)
            if unequal:
                self.notes.append(f"not compared, as eager does not repeat it: {some(unequal)}")
        return outcome

    def drop_deployed_code_that_draws(self) -> None:
        """Have what comes compiled, and draws, compiled anew; once it is known from eager whether it draws.

        What its factory has called draws inductor's random numbers, which are others by design.
        """
        if self._draws and self.twins.deployed:
            torch.compiler.reset()

    def with_own_recorder(self, learning: Learning) -> Pair:
        """The same two sides, which learn otherwise, and whose graphs and recompiles are recorded apart."""
        other = copy.copy(self)
        other.learning = learning
        other.recorder = Recorder(self.twins.compiled, limit_s=self._options.max_seconds)
        other.compiled = self.compiled.replaced(self.compiled.function, other._while_compiled)
        return other

    def compiled_anew(self, options: CheckOptions) -> Pair:
        """The same two modules, the compiled side under other options and on code of its own."""
        other = copy.copy(self)
        other._options = options
        other.progress = silent
        other.recorder = Recorder(self.twins.compiled, limit_s=options.max_seconds)
        function = compile_method(self.method, self.twins.compiled, options)
        other.compiled = self.compiled.replaced(function, other._while_compiled)
        return other

    def on_one_thread(self) -> Side | None:
        """The compiled side with kernels that can raise, compiled anew if need be; None if it can't be had.

        A kernel that runs on several threads ends the process instead, and one on another device
        leaves the device unusable.
        """
        devices = {parameter.device.type for parameter in self.twins.compiled.parameters()}
        if devices - {"cpu", "meta"}:
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
