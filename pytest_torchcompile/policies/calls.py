"""One call of one side, and everything that it leaves behind.

Both sides, the rounding floor and the float64 reference all go through `Side.call`, so that they
can't differ in how they seed, reset, run or take gradients.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.aliasing import Aliases, aliases, strides
from pytest_torchcompile.policies.backward import FROM_ALL, Backward, Gradients, Learning, backward_of
from pytest_torchcompile.policies.holders import policy_of
from pytest_torchcompile.policies.outputs import NamedValues, is_mapping, named_values
from pytest_torchcompile.policies.state import ModuleState
from pytest_torchcompile.runtime import isolation
from pytest_torchcompile.texts import raised_text

LEFT = ".grad of"
"""The prefix of the paths of gradients that a call itself left in ``.grad``."""

Around = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """Everything that one call leaves behind.

    The tensors are copies: a later call of the same side writes to the module's own.

    Args:
        error: what it raised, in forward or backward; no `Exception` only where compiled ends the process.
        outputs: what it returned.
        requires_grad: paths of the outputs that autograd follows.
        unfollowed: paths of those that require grad and have no history, which nothing can learn from.
        learnt_from: paths of the outputs that the gradients are of.
        gradients: by name of the leaf (a parameter, a tensor among the attributes, an input); None where
            autograd found no path.
        left: by name of the leaf, what the call itself left in ``.grad``.
        state: buffers, attributes, flags, written parameters after the call.
        inputs: the inputs after the call, which may have changed them.
        aliases: which outputs share memory with one another, or with what is no output.
        strides: of the outputs, by path.
        seed: of the random generators before the call.
        random: the random generators after the call.
    """

    error: BaseException | None = None
    outputs: NamedValues = dataclasses.field(default_factory=NamedValues)
    requires_grad: frozenset[str] = frozenset()
    unfollowed: frozenset[str] = frozenset()
    learnt_from: tuple[str, ...] = ()
    gradients: Gradients = dataclasses.field(default_factory=dict)
    left: Gradients = dataclasses.field(default_factory=dict)
    state: NamedValues = dataclasses.field(default_factory=NamedValues)
    inputs: NamedValues = dataclasses.field(default_factory=NamedValues)
    aliases: Aliases = frozenset()
    strides: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    seed: int = 0
    random: isolation.RandomState | None = None

    def drew(self) -> tuple[str, ...]:
        """Names of the generators that the call drew from; to tell, they are seeded again."""
        if self.random is None:
            return ()
        isolation.seed_everything(self.seed)
        return isolation.RandomState().unequal(self.random)

    def elementwise(self) -> dict[str, torch.Tensor]:
        """The tensors compared element by element: outputs, state, inputs."""
        found = self.outputs.tensors | self.state.tensors | self.inputs.tensors
        return {path: _real(tensor) for path, tensor in found.items()}

    def differentiated(self) -> dict[str, torch.Tensor]:
        """The gradients that exist, compared tensor by tensor."""
        found = {f"gradient of {name}": gradient for name, gradient in self.gradients.items()}
        found |= {f"{LEFT} {name}": gradient for name, gradient in self.left.items()}
        return {path: _real(gradient) for path, gradient in found.items() if gradient is not None}

    def plain(self) -> dict[str, Any]:
        """The values compared by ``==``."""
        return self.outputs.plain | self.inputs.plain | self.state.plain


Rerun = Callable[..., Outcome]
"""Calls a side again on the same example, under the context made by its first argument; ``wide=True``
hands it float64 inputs."""


Differentiate = Callable[[Outcome], Gradients]

EXITS = (SystemExit, GeneratorExit)
"""No `Exception`, and neither an interrupt of the user's nor an outcome of pytest's."""


class Side:
    """A callable with the module whose state it changes.

    Args:
        function: what is called.
        model: the module; None for a function without one.
        leading: arguments that go before the inputs (an adapter's model).
        names: names of the positional inputs, for messages.
        around: makes the context that each call and its backward run in.
        state: what calls change in the module; None remembers it as it is now.
        observe: given the policy after a call, returns what else to compare.
        reset: called with the policy before each call.
        cast: makes the context that the function, and not its backward, runs in: autocast, if declared.
        is_compiled: whether it is held against eager, so that an exit is an outcome, not the end of the case.
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
        """The same module and its state behind another callable, with its own `leading` if given."""
        other = copy.copy(self)
        other.function, other.around = function, around
        other.leading = self.leading if leading is None else leading
        return other

    def invoke(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The function's answer, under the autocast that was declared."""
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
    ) -> Outcome:
        """Reset the state, then take one `step` in ``rollout`` or ``update``."""
        update = phase == "update"
        self.reset(training=update and learning.training)
        differentiate = functools.partial(self._gradients, seed, learning) if update else None
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
        """Seed and call, from the state that the last call left.

        Args:
            args: inputs that are this call's own.
            kwargs: likewise.
            seed: of every random generator.
            drawn: the tensors of which the inputs were made, by path.
            under: a further context.
            differentiate: given the outcome with its outputs still in the graph, returns gradients by
                name; None calls without gradients.

        Returns:
            The outcome; an exception of the call is in it, unless it means that memory or the user's
            configuration is at fault.
        """
        isolation.seed_everything(seed)
        outcome = Outcome(seed=seed)
        with self.around(), under():
            try:
                with torch.set_grad_enabled(differentiate is not None):
                    returned = self.invoke(args, kwargs)
            except (MemoryError, torch.OutOfMemoryError, UsageError):
                raise
            except self._caught as error:
                if internals.is_configuration_error(error):
                    raise
                return Outcome(error=error)
            outcome.random = isolation.RandomState()
            outcome.outputs = named_values(returned)
            outcome.inputs = self.named_inputs(args, kwargs, drawn)
            outcome.left = self._left()
            if differentiate is not None:
                try:
                    outcome.gradients = differentiate(outcome)
                except (MemoryError, torch.OutOfMemoryError):
                    raise
                except self._caught as error:
                    return Outcome(error=error)
            outcome.state = self.values()
        asking = {path for path, tensor in outcome.outputs.tensors.items() if tensor.requires_grad}
        outcome.requires_grad = frozenset(
            path for path in asking if internals.has_history(outcome.outputs.tensors[path])
        )
        outcome.unfollowed = frozenset(asking - outcome.requires_grad)
        outcome.aliases = aliases(outcome.outputs.tensors, self._beside(outcome))
        outcome.strides = strides(outcome.outputs.tensors)
        for values in (outcome.outputs, outcome.inputs, outcome.state):
            values.tensors = {path: tensor.detach().clone() for path, tensor in values.tensors.items()}
        return outcome

    @property
    def _caught(self) -> tuple[type[BaseException], ...]:
        """What a call may raise without ending the check."""
        return (Exception, *EXITS) if self.is_compiled else (Exception,)

    def _gradients(self, seed: int, learning: Learning, outcome: Outcome) -> Gradients:
        """Gradients under seeded normal gradients of the outputs."""
        backward = self.backward(outcome.outputs, outcome.inputs, seed, learning)
        if backward is None:
            return {}
        outcome.learnt_from = tuple(learning.roots(outcome.outputs.tensors))
        return backward()

    def _beside(self, outcome: Outcome) -> dict[str, torch.Tensor]:
        """What an output may share memory with besides the others."""
        held = {} if self.state is None else self.state.parameters()
        parameters = {f"parameter {name}": tensor for name, tensor in held.items()}
        return outcome.inputs.tensors | parameters | outcome.state.tensors

    def _left(self) -> Gradients:
        """Copies of what the call left in ``.grad``."""
        left = {} if self.state is None else self.state.left_gradients()
        return {name: None if grad is None else grad.detach().clone() for name, grad in left.items()}

    def reset(self, *, training: bool) -> None:
        """Put the module's state back and switch it to ``train()`` or ``eval()``.

        Raises:
            UsageError: if the user's `reset` raises.
        """
        if self.state is not None and self.model is not None:
            self.state.reset()
            self.model.train(training)
        if self._reset is not None:
            _asked("reset", self._reset, self.model)

    def restore(self) -> None:
        """Leave the module as it was found."""
        if self.state is not None:
            self.state.restore()

    def values(self) -> NamedValues:
        """The module's state, and what the user's `observe` adds to it."""
        values = NamedValues() if self.state is None else self.state.values()
        if self._observe is not None:
            answer = _asked("observe", self._observe, self.model)
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
        """The tensors among the inputs of a call, by path, and those that a container hides."""
        found = NamedValues()
        names = self._names or tuple(map(str, range(len(args))))
        for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
            if _is_comparable(value):
                nested = named_values(value, f"input {name}")
                found.tensors |= nested.tensors
        seen = {id(tensor) for tensor in found.tensors.values()}
        found.tensors |= {f"input {p}": tensor for p, tensor in drawn.items() if id(tensor) not in seen}
        return found

    def backward(
        self, outputs: NamedValues, inputs: NamedValues, seed: int, learning: Learning = FROM_ALL
    ) -> Backward | None:
        """The backward pass of a call, ready to run; None if there is nothing to differentiate."""
        return backward_of(outputs.tensors, self.leaves(inputs), seed, learning)

    def leaves(self, inputs: NamedValues) -> dict[str, torch.Tensor]:
        """Tensors whose gradients are compared: the policy's leaves, and inputs with ``requires_grad``."""
        asking = {p: t for p, t in inputs.tensors.items() if t.requires_grad and t.is_leaf}
        return ({} if self.state is None else self.state.leaves()) | asking


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """A complex tensor as its real and imaginary parts, in one more dimension; others as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _asked(name: str, function: Callable[[Any], Any], model: nn.Module | None) -> Any:
    """What a function of the user's returns for the policy."""
    try:
        return function(policy_of(model))
    except Exception as error:
        raise UsageError(f"{name} raised {raised_text(error)}") from error


def _is_comparable(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray, list, tuple)) or is_mapping(value)
