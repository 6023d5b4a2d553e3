"""Builds the two sides of one method in one phase, and calls them with the same recipe."""

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
from pytest_torchcompile.compiling.capture import Recorder, Uses
from pytest_torchcompile.compiling.compilation import compile_method, require_known
from pytest_torchcompile.compiling.work import Work, owners_of
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.generation.recipes import Recipe, random_recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.backward import FROM_ALL, Learning
from pytest_torchcompile.policies.binding import OBSERVATION, Arguments, Binding, bind_all, without_defaults
from pytest_torchcompile.policies.calls import Around, Side, training_in
from pytest_torchcompile.policies.counters import CounterValues
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.holders import policy_of
from pytest_torchcompile.policies.input_advice import advice, eager_raises
from pytest_torchcompile.policies.loss import called_methods
from pytest_torchcompile.policies.methods import Method, as_methods, beside_forward
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.state import ModuleState
from pytest_torchcompile.policies.twins import Factory, Twins, build_twins
from pytest_torchcompile.results import Capture
from pytest_torchcompile.runtime.autocast import autocasting
from pytest_torchcompile.runtime.budget import Budget
from pytest_torchcompile.runtime.isolation import seed_everything
from pytest_torchcompile.runtime.progress import Progress, silent
from pytest_torchcompile.specs.trees import declared
from pytest_torchcompile.texts import some


class Pair:
    """The eager and the compiled side of a method. Nothing is compiled before the first call.

    Args:
        factory: returns a new module; or a module.
        method: the method to call.
        phase: ``rollout`` or ``update``.
        declaration: what the user says about the policy. Each method takes its own of the declared inputs.
        options: how to compile.
        progress: receives a line for each step.
        beside: a pair of another method; this pair shares its modules and their recorded state.
        remember_parameters: whether to copy the parameters too, so that they can be restored.

    Raises:
        UsageError: if the declaration does not fit the module.
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
        self.budget: Budget = beside.budget if beside else Budget(options.max_seconds)
        self.method = method
        self.phase = phase
        self.factory = factory
        self.declaration = declaration
        self._options = options
        self.progress = progress
        self._examples = 0
        # A factory may call a method that it has compiled, and its graphs may run again during the check.
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
        others = beside_forward(self.twins.eager) if declaration.methods is None else []
        if others:
            self.twins.notes.append(
                f"not checked: {some(others)}; to check them too: methods={['forward', *others]!r}; "
                f"to silence this note: methods='forward'"
            )
        self.recorder = Recorder(self.twins.compiled, progress, options.max_seconds)
        self._draws = False
        self._counters: CounterValues = {}
        self._used: set[str] = set()
        self.accepted: Recipe | None = None
        """An example on which eager returned in this pair's phase; None before the first one."""
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
        """Call each method once in eager, which initialises lazy parameters."""
        bindings = self._bindings(model)
        model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for method in as_methods(self.declaration.checked):
                binding = bindings[method.name]
                recipe = random_recipe(binding.tree, self._options.batch[0], self._options.seed)
                args, kwargs, _ = binding.arguments(recipe)
                leading = () if method.adapter is None else (policy_of(model),)
                try:
                    method.of(model)(*leading, *args, **kwargs)
                except Exception as error:
                    known = advice(error, binding.tree, model)
                    if not known:
                        raise
                    raise UsageError(eager_raises(error, recipe.batch, binding.tree, model)) from error

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
        # By default inductor draws other random numbers than eager for the same seed. The setting that makes
        # them equal changes the compiled code, so it is used only if the method draws.
        numbers = internals.eager_random_numbers() if self._draws else contextlib.nullcontext()
        with numbers, internals.raised_recompile_limit(), self.recorder.watching():
            yield

    def begin(self, recipe: Recipe) -> None:
        """Begin an example."""
        self._examples += 1
        self.recorder.begin(recipe)
        self.begin_call()

    def begin_call(self) -> None:
        """Record compiled's counters, from which the next calls of eager start.

        Counters are not reset between calls of compiled. If a guard depends on a counter, every call compiles
        again, and the check has to see that.
        """
        state = self.compiled.state
        self._counters = {} if state is None else state.counters.now()

    def out_of_seconds(self) -> str:
        """Return why nothing more is tried, if the case has taken long enough; empty otherwise."""
        limit = self._options.max_seconds
        return f"the case took more than max_seconds={limit:g}" if self.budget.left < 0 else ""

    def report_step(self, what: str) -> None:
        """Report a step on the current example as progress."""
        self.progress.step(f"example {self._examples}, {what}")

    @property
    def shared(self) -> bool:
        """Whether both sides are one module, because no second one could be built."""
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
        """Call one side on new inputs.

        Args:
            side: the side to call.
            recipe: the example.
            under: makes a further context for the call.
            wide: whether the inputs are converted to float64.
            phase: the phase; empty for that of the pair.
            tree: the specs of the inputs; None for those declared.
            learning: how gradients are computed; None for `self.learning`.
        """
        learning = learning or self.learning
        self._switch(training_in(phase or self.phase, learning))
        if side.state is not None and (side is self.eager or self.shared):
            side.state.counters.assign(self._counters)
        bound = self.arguments(recipe, wide=wide, tree=tree)
        between = None
        if learning.interrupted or learning.accumulated:
            other = random_recipe(self.tree, recipe.batch, recipe.seed + 1, recipe.time)
            inputs = self.arguments(other, wide=wide)
            between = inputs.args, inputs.kwargs
        return side.call(
            bound.args,
            bound.kwargs,
            drawn=bound.drawn,
            phase=phase or self.phase,
            seed=recipe.seed,
            under=under,
            learning=learning,
            between=between,
        )

    def _switch(self, training: bool) -> None:
        """Put both sides into ``train()`` or ``eval()``.

        A number or flag that this changes is no counter that compiled hands on to eager. It may tell what the
        side has done to its weights, such as merged an adapter.
        """
        states = [side.state for side in (self.eager, self.compiled) if side.state is not None]
        changed = set().union(*(state.counters.switch(training) for state in states))
        if changed:
            for state in states:
                state.counters.leave_to_modes(changed)
            self._counters = {place: n for place, n in self._counters.items() if place not in changed}

    def notice_written(self, side: Side, outcome: Outcome) -> None:
        """Add the parameters that the last call of `side` wrote to to its outcome; see `written.notice`."""
        other = self.compiled if side is self.eager else self.eager
        written.notice(side, other, outcome, shared=self.shared)

    def arguments(self, recipe: Recipe, *, wide: bool, tree: Any = None) -> Arguments:
        """Return new inputs for a recipe.

        Args:
            recipe: the example.
            wide: whether to convert them to float64.
            tree: the specs; None for those declared.
        """
        # The function of a `Wrapped` input may draw random numbers.
        seed_everything(recipe.seed)
        binding = self.binding if tree is None else dataclasses.replace(self.binding, tree=tree)
        return binding.arguments(recipe, of=widened) if wide else binding.arguments(recipe)

    def first_eager(self, recipe: Recipe, phase: str = "") -> Outcome:
        """Make the first eager call in a phase; record what the method uses, draws and writes to.

        A second call finds the attributes that eager does not repeat.
        """
        self.progress.step("the first eager call")
        uses, work = Uses(self.twins.eager), Work(owners_of(self.twins.eager))
        self._switch(training_in(phase or self.phase, self.learning))
        counters = {} if self.eager.state is None else self.eager.state.counters.now()

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
            counted = self.eager.state.counters.now()
            self.eager.state.counters.assign(counters)
            again = self.run(self.eager, recipe, phase=phase)
            unequal = unrepeatable.leave_out((self.eager, self.compiled), outcome, again)
            if unequal:
                self.notes.append(f"not compared, as eager does not repeat it: {some(unequal)}")
            if again.error is None:
                self._reset_flags(
                    {p: v for p, v in counted.items() if v is not counters.get(p)}, recipe, phase
                )
        return outcome

    def _reset_flags(self, counted: CounterValues, recipe: Recipe, phase: str) -> None:
        """Let the reset restore flags that a call has set, if the next one raises with them.

        A first call may create tensors and set a flag. The reset deletes the tensors, so the flag goes too.

        Args:
            counted: the counters that the call has changed.
            recipe: the example.
            phase: the phase; empty for that of the pair.
        """
        flags = {place: value for place, value in counted.items() if isinstance(value, bool)}
        if not flags or self.eager.state is None:
            return
        self.eager.state.counters.assign(flags)
        if self.run(self.eager, recipe, phase=phase).error is not None:
            for side in (self.eager, self.compiled):
                if side.state is not None:
                    side.state.counters.leave_to_reset(flags)

    def drop_deployed_code_that_draws(self) -> None:
        """Drop the compiled code of a factory that returns something compiled, if the method draws.

        If the factory has called it, its code draws inductor's random numbers, which differ from eager's by
        design. Call this after the first eager call, which shows whether the method draws.
        """
        if self._draws and self.twins.deployed:
            torch.compiler.reset()

    def with_own_recorder(self, learning: Learning) -> Pair:
        """Return a copy with another `learning`.

        It records its graphs, its recompiles and what eager uses separately, and adds to the same notes.
        """
        other = copy.copy(self)
        other.learning = learning
        other._used = set()
        other.recorder = Recorder(self.twins.compiled, limit_s=self._options.max_seconds)
        other.compiled = self.compiled.replaced(self.compiled.function, other._while_compiled)
        return other

    def without_defaults(self) -> Pair | None:
        """Return a copy that leaves out the inputs whose default is None; None if there are none.

        It records its graphs and recompiles separately.
        """
        binding = without_defaults(self.method, self.twins.eager, self.binding)
        if binding is None:
            return None
        other = self.with_own_recorder(self.learning)
        other.binding, other.tree = binding, binding.tree
        return other

    def compiled_anew(self, options: CheckOptions) -> Pair:
        """Return a copy with the same modules, whose compiled side is compiled again with other options."""
        other = copy.copy(self)
        other._options = options
        other.progress = silent
        other.recorder = Recorder(self.twins.compiled, limit_s=options.max_seconds)
        function = compile_method(self.method, self.twins.compiled, options)
        other.compiled = self.compiled.replaced(function, other._while_compiled)
        return other

    def on_one_thread(self) -> Side | None:
        """Return the compiled side with single-threaded kernels; None if that is impossible.

        A failing assertion in a single-threaded kernel raises. In a kernel with several threads it ends the
        process, and on an accelerator it leaves the device unusable.
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
        """Return the compiled side without what the check adds to it; None if that is impossible.

        Nothing is recorded. A method that draws is compiled again, to draw inductor's random numbers.
        """
        function = self.compiled.function
        if self._draws and self.twins.deployed:
            return None
        if self._draws:
            function = compile_method(self.method, self.twins.compiled, self._options)
        return self.compiled.replaced(function, internals.raised_recompile_limit)

    def reset_as_deployed(self) -> Side:
        """Return the compiled side without eager's random numbers, if the factory returns something compiled.

        The object is the user's, so it is compiled again only if all compiled code of the process is dropped.
        Call this last, because that includes the code that the check compiled.
        """
        torch.compiler.reset()
        return self.compiled.replaced(self.compiled.function, internals.raised_recompile_limit)

    @property
    def draws(self) -> bool:
        """Whether the first eager call drew random numbers."""
        return self._draws

    @property
    def capture(self) -> Capture:
        """What has been compiled so far, of the parameters and work that eager used."""
        return self.recorder.capture(self._used)

    def restore(self) -> None:
        """Restore both modules to the state in which they were found; one may be the user's own."""
        for side in (self.eager, self.compiled):
            side.restore()
