"""Calls one side once and records everything that the call leaves behind.

Both sides, the rounding floor and the float64 reference all use `Side.call`, so that they seed, reset, run
and compute gradients in the same way.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.aliasing import aliases, strides
from pytest_torchcompile.policies.backward import FROM_ALL, Backward, Gradients, Learning, backward_of
from pytest_torchcompile.policies.holders import policy_of
from pytest_torchcompile.policies.ordinary import ordinary
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.outputs import NamedValues, is_mapping, named_values
from pytest_torchcompile.policies.state import ModuleState
from pytest_torchcompile.runtime import isolation
from pytest_torchcompile.texts import raised_text

T = TypeVar("T")

Around = Callable[[], contextlib.AbstractContextManager[Any]]


Rerun = Callable[..., Outcome]
"""Calls a side again on the same example, under the context that its first argument makes; ``wide=True``
passes float64 inputs."""
Differentiate = Callable[[Outcome], Gradients]

Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword inputs of a call."""

EXITS = (SystemExit, GeneratorExit)
"""Exceptions that end the process: not derived from `Exception`, and raised neither by an interrupt nor by
pytest."""


def training_in(phase: str, learning: Learning) -> bool:
    """Return whether a call in this phase is in ``train()``."""
    return phase == "update" and learning.training


class Side:
    """A callable with the module whose state it changes.

    Args:
        function: what is called.
        model: the module; None for a function without one.
        leading: arguments that are passed before the inputs (an adapter's model).
        names: names of the positional inputs, for messages.
        around: makes the context that each call and its backward run in.
        state: what calls change in the module; None records it as it is now.
        observe: given the policy after a call, returns what else to compare.
        reset: called with the policy before each call.
        cast: makes the context that the function runs in, but not its backward: autocast, if declared.
        is_compiled: whether this is the compiled side. One of `EXITS` is then recorded in the outcome; from
            the eager side it propagates.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        model: nn.Module | None,
        *,
        leading: tuple[Any, ...] = (),
        names: tuple[str, ...] = (),
        around: Around = contextlib.nullcontext,
        state: ModuleState | None = None,
        observe: Callable[[Any], Any] | None = None,
        reset: Callable[[Any], Any] | None = None,
        cast: Around = contextlib.nullcontext,
        is_compiled: bool = False,
    ) -> None:
        self.function = function
        self.cast = cast
        self.is_compiled = is_compiled
        self.model = None if model is None else internals.uncompiled(model)
        self.state = ModuleState(model) if state is None and model is not None else state
        self.leading = leading
        self._names = names
        self.around = around
        self._observe = observe
        self._reset = reset

    def replaced(
        self, function: Callable[..., Any], around: Around, leading: tuple[Any, ...] | None = None
    ) -> Side:
        """Return a copy of this side that calls `function` in the context `around`.

        Module and state are shared. `leading` replaces the leading arguments if it is given.
        """
        other = copy.copy(self)
        other.function, other.around = function, around
        other.leading = self.leading if leading is None else leading
        return other

    def invoke(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what the function returns, under the declared autocast."""
        with self.cast():
            return self.function(*self.leading, *args, **kwargs)

    def call(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        phase: str,
        seed: int,
        drawn: Mapping[str, torch.Tensor] = types.MappingProxyType({}),
        under: Around = contextlib.nullcontext,
        learning: Learning = FROM_ALL,
        between: Inputs | None = None,
    ) -> Outcome:
        """Reset the state, then take one `step` in ``rollout`` or ``update``.

        With inputs `between`, the function is called on them too, before the backward; see `Learning`.
        """
        self.reset(training=training_in(phase, learning))
        differentiate = None
        if phase == "update":
            differentiate = functools.partial(self._gradients, seed, learning, between)
        return self.step(args, kwargs, seed=seed, drawn=drawn, under=under, differentiate=differentiate)

    def step(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        seed: int,
        drawn: Mapping[str, torch.Tensor] = types.MappingProxyType({}),
        under: Around = contextlib.nullcontext,
        differentiate: Differentiate | None = None,
    ) -> Outcome:
        """Seed the generators and call the function, from the state that the last call left.

        Args:
            args: positional inputs, which the call may change.
            kwargs: keyword inputs, which the call may change.
            seed: seed of every random generator.
            drawn: the tensors that the inputs were made from, by path.
            under: makes a further context for the call.
            differentiate: given the outcome with its outputs still in the graph, returns gradients by
                name; None calls without gradients.

        Returns:
            The outcome, with the exception if the call raised one.

        Raises:
            MemoryError, torch.OutOfMemoryError, UsageError: if the call raises it.
            Exception: of the call, if the user's configuration of the compiler caused it.
        """
        isolation.seed_everything(seed)
        outcome = Outcome(seed=seed)
        if differentiate is not None:
            outcome.earlier = tuple(self._with_history().values())
        with self.around(), under():
            with torch.set_grad_enabled(differentiate is not None):
                returned, settings, error = self._attempt(lambda: self.invoke(args, kwargs))
            if error is not None:
                return Outcome(error=error)
            outcome.settings |= settings
            outcome.random = isolation.RandomState()
            outcome.generators = {} if self.state is None else self.state.generators()
            outcome.outputs = named_values(returned)
            outcome.inputs = self.named_inputs(args, kwargs, drawn)
            outcome.left = self._left_gradients()
            if differentiate is not None:
                gradients, settings, error = self._attempt(functools.partial(differentiate, outcome))
                if gradients is None:
                    return Outcome(error=error)
                outcome.gradients = gradients
                outcome.settings |= {f"{name} after backward": value for name, value in settings.items()}
            outcome.state = self.values()
        # A graph is as large as what its call has saved.
        outcome.earlier = ()
        asking = {path for path, tensor in outcome.outputs.tensors.items() if tensor.requires_grad}
        outcome.requires_grad = frozenset(
            path for path in asking if internals.has_history(outcome.outputs.tensors[path])
        )
        outcome.unfollowed = frozenset(asking - outcome.requires_grad)
        outcome.inference = frozenset(
            path for path, tensor in outcome.outputs.tensors.items() if tensor.is_inference()
        )
        outcome.aliases = aliases(outcome.outputs.tensors, self._not_outputs(outcome))
        outcome.strides = strides(outcome.outputs.tensors)
        for values in (outcome.outputs, outcome.inputs, outcome.state):
            values.tensors = {path: tensor.detach().clone() for path, tensor in values.tensors.items()}
        return outcome

    def _attempt(
        self, function: Callable[[], T]
    ) -> tuple[T, dict[str, Any], None] | tuple[None, dict[str, Any], BaseException]:
        """Return what a function returns and torch's settings after it, which are restored; or its exception.

        Raises:
            MemoryError, torch.OutOfMemoryError, UsageError, Exception: see `step`.
        """
        caught = (Exception, *EXITS) if self.is_compiled else Exception
        try:
            with isolation.Settings():
                return function(), isolation.Settings().values, None
        except (MemoryError, torch.OutOfMemoryError, UsageError):
            raise
        except caught as error:
            if internals.is_configuration_error(error):
                raise
            return None, {}, error

    def _gradients(
        self, seed: int, learning: Learning, between: Inputs | None, outcome: Outcome
    ) -> Gradients:
        """Return the gradients of the leaves, with seeded gradients of the outputs and of attributes.

        A loss may be computed from an attribute too, such as the balance loss of a mixture of experts.
        """
        sources = self.sources(outcome)
        other = None if between is None else self.invoke(*between)
        backward = backward_of(sources, self.leaves(outcome.inputs), seed, learning)
        if backward is None:
            return {}
        if learning.accumulated:
            before = backward_of(named_values(other).tensors, backward.leaves, seed + 1, learning)
            backward = backward._replace(before=before)
        outcome.learnt_from = tuple(learning.roots(sources))
        return backward()

    def sources(self, outcome: Outcome) -> dict[str, torch.Tensor]:
        """Return the outputs of a call, and the attributes that it has made, from which a loss is computed.

        Attributes with a graph from before the call are left out: the policy's constructor or an earlier
        backward may have used up that graph.
        """
        outputs = outcome.outputs.tensors
        known = {id(tensor) for tensor in (*outputs.values(), *outcome.earlier)}
        made = {path: tensor for path, tensor in self._with_history().items() if id(tensor) not in known}
        return outputs | made

    def _with_history(self) -> dict[str, torch.Tensor]:
        """Return the tensors among the buffers and attributes that have an autograd graph, by path."""
        return {} if self.state is None else self.state.followed()

    def _not_outputs(self, outcome: Outcome) -> dict[str, torch.Tensor]:
        """Return the tensors, other than outputs, that an output may share memory with."""
        held = {} if self.state is None else self.state.parameters()
        parameters = {f"parameter {name}": tensor for name, tensor in held.items()}
        return outcome.inputs.tensors | parameters | outcome.state.tensors

    def _left_gradients(self) -> Gradients:
        """Return copies of what the call left in ``.grad``."""
        left = {} if self.state is None else self.state.left_gradients()
        return {name: None if grad is None else grad.detach().clone() for name, grad in left.items()}

    def reset(self, *, training: bool) -> None:
        """Restore the module's state and switch it to ``train()`` or ``eval()``.

        Raises:
            UsageError: if the user's `reset` raises.
        """
        if self.state is not None and self.model is not None:
            self.state.reset()
            self.model.train(training)
        if self._reset is not None:
            _call_hook("reset", self._reset, self.model)

    def restore(self) -> None:
        """Restore the module to the state in which it was found."""
        if self.state is not None:
            self.state.restore()

    def values(self) -> NamedValues:
        """Return the module's state, and what the user's `observe` adds to it."""
        values = NamedValues() if self.state is None else self.state.values()
        if self._observe is not None:
            answer = _call_hook("observe", self._observe, self.model)
            if answer is None:
                raise UsageError("observe returned None; it has to return what is to be compared")
            seen = named_values(answer, "observed")
            values.tensors |= seen.tensors
            values.kinds |= seen.kinds
            values.plain |= seen.plain
        return values

    def named_inputs(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        drawn: Mapping[str, torch.Tensor] = types.MappingProxyType({}),
    ) -> NamedValues:
        """Return the tensors among the inputs of a call, by path, and those that a container hides."""
        found = NamedValues()
        names = self._names or tuple(map(str, range(len(args))))
        for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
            if _is_comparable(value):
                nested = named_values(value, f"input {name}")
                found.tensors |= nested.tensors
        seen = {id(tensor) for tensor in found.tensors.values()}
        for path, tensor in drawn.items():
            if id(tensor) not in seen:
                found.tensors |= ordinary(tensor, f"input {path}")
        return found

    def backward(
        self, outputs: NamedValues, inputs: NamedValues, seed: int, learning: Learning = FROM_ALL
    ) -> Backward | None:
        """Return the backward pass of a call, not yet run; None if there is nothing to differentiate."""
        return backward_of(outputs.tensors, self.leaves(inputs), seed, learning)

    def leaves(self, inputs: NamedValues) -> dict[str, torch.Tensor]:
        """Return the tensors whose gradients are compared: the policy's leaves, inputs that require grad."""
        asking = {p: t for p, t in inputs.tensors.items() if t.requires_grad and t.is_leaf}
        return ({} if self.state is None else self.state.leaves()) | asking


def _call_hook(name: str, function: Callable[[Any], Any], model: nn.Module | None) -> Any:
    """Return what a function of the user's, such as `observe`, returns for the policy."""
    try:
        return function(policy_of(model))
    except Exception as error:
        raise UsageError(f"{name} raised {raised_text(error)}") from error


def _is_comparable(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray, list, tuple)) or is_mapping(value)
