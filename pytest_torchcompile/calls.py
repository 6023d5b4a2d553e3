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
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from pytest_torchcompile import internals, isolation
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.holders import policy_of
from pytest_torchcompile.outputs import NamedValues, is_mapping, named_values
from pytest_torchcompile.state import ModuleState
from pytest_torchcompile.texts import raised_text

Around = Callable[[], contextlib.AbstractContextManager[Any]]
Gradients = dict[str, torch.Tensor | None]


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """Everything that one call leaves behind.

    The tensors are copies: a later call of the same side writes to the module's own.

    Args:
        error: what it raised, in forward or backward.
        outputs: what it returned.
        requires_grad: paths of the outputs that autograd follows.
        gradients: by parameter (or input) name; None where autograd found no path.
        state: buffers, tensor attributes, written parameters after the call.
        inputs: the inputs after the call, which may have changed them.
        seed: of the random generators before the call.
        random: the random generators after the call.
    """

    error: Exception | None = None
    outputs: NamedValues = dataclasses.field(default_factory=NamedValues)
    requires_grad: frozenset[str] = frozenset()
    gradients: Gradients = dataclasses.field(default_factory=dict)
    state: NamedValues = dataclasses.field(default_factory=NamedValues)
    inputs: NamedValues = dataclasses.field(default_factory=NamedValues)
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
        return self.outputs.tensors | self.state.tensors | self.inputs.tensors

    def differentiated(self) -> dict[str, torch.Tensor]:
        """The gradients that exist, compared tensor by tensor."""
        return {
            f"gradient of {name}": gradient
            for name, gradient in self.gradients.items()
            if gradient is not None
        }

    def plain(self) -> dict[str, Any]:
        """The values compared by ``==``."""
        return self.outputs.plain | self.inputs.plain | self.state.plain


class Backward(NamedTuple):
    """The backward pass of one call, under seeded normal ``grad_outputs``."""

    roots: list[torch.Tensor]
    leaves: dict[str, torch.Tensor]
    directions: list[torch.Tensor]

    def __call__(self) -> Gradients:
        """Gradients by parameter (or input) name, without touching any ``.grad``."""
        found = torch.autograd.grad(
            self.roots, list(self.leaves.values()), self.directions, allow_unused=True
        )
        return dict(zip(self.leaves, found, strict=True))


Differentiate = Callable[[Outcome], Gradients]


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
    ) -> None:
        self.function = function
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

    def call(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        phase: str,
        seed: int,
        drawn: Mapping[str, torch.Tensor] = types.MappingProxyType({}),
        under: Around = contextlib.nullcontext,
    ) -> Outcome:
        """Reset the state, then take one `step` in ``rollout`` or ``update``."""
        self.reset(phase)
        differentiate = functools.partial(self._gradients, seed=seed) if phase == "update" else None
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
                    returned = self.function(*self.leading, *args, **kwargs)
            except (MemoryError, torch.OutOfMemoryError, UsageError):
                raise
            except Exception as error:
                if internals.is_configuration_error(error):
                    raise
                return Outcome(error=error)
            outcome.random = isolation.RandomState()
            outcome.outputs = named_values(returned)
            outcome.inputs = self.named_inputs(args, kwargs, drawn)
            if differentiate is not None:
                try:
                    outcome.gradients = differentiate(outcome)
                except (MemoryError, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    return Outcome(error=error)
            outcome.state = self.values()
        outcome.requires_grad = frozenset(p for p, t in outcome.outputs.tensors.items() if t.requires_grad)
        for values in (outcome.outputs, outcome.inputs, outcome.state):
            values.tensors = {path: tensor.detach().clone() for path, tensor in values.tensors.items()}
        return outcome

    def _gradients(self, outcome: Outcome, seed: int) -> Gradients:
        """Gradients under seeded normal ``grad_outputs``."""
        backward = self.backward(outcome.outputs, outcome.inputs, seed)
        return backward() if backward else {}

    def reset(self, phase: str) -> None:
        """Put the module's state back and switch it to the mode of the phase.

        Raises:
            UsageError: if the user's `reset` raises.
        """
        if self.state is not None and self.model is not None:
            self.state.reset()
            self.model.train(phase == "update")
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

    def backward(self, outputs: NamedValues, inputs: NamedValues, seed: int) -> Backward | None:
        """The backward pass of a call, ready to run; None if there is nothing to differentiate."""
        roots = [
            tensor
            for _, tensor in sorted(outputs.tensors.items())
            if tensor.requires_grad and tensor.is_floating_point()
        ]
        leaves = dict(self._leaves(inputs))
        if not roots or not leaves:
            return None
        generator = torch.Generator().manual_seed(seed)
        directions = [
            torch.randn(root.shape, generator=generator, dtype=torch.float32).to(root) for root in roots
        ]
        return Backward(roots, leaves, directions)

    def _leaves(self, inputs: NamedValues) -> Iterator[tuple[str, torch.Tensor]]:
        if self.model is not None:
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    yield name, parameter
        for path, tensor in inputs.tensors.items():
            if tensor.requires_grad and tensor.is_leaf:
                yield path, tensor


def _asked(name: str, function: Callable[[Any], Any], model: nn.Module | None) -> Any:
    """What a function of the user's returns for the policy."""
    try:
        return function(policy_of(model))
    except Exception as error:
        raise UsageError(f"{name} raised {raised_text(error)}") from error


def _is_comparable(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray, list, tuple)) or is_mapping(value)
