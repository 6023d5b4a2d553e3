"""What one call of a policy leaves behind."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from pytest_torchcompile.policies.aliasing import Aliases
from pytest_torchcompile.policies.backward import Gradients
from pytest_torchcompile.policies.generators import GeneratorState
from pytest_torchcompile.policies.outputs import NamedValues
from pytest_torchcompile.runtime import isolation

GRADIENT = "gradient of"
"""The prefix of the paths of gradients that a backward computed."""

LEFT = ".grad of"
"""The prefix of the paths of gradients that a call itself left in ``.grad``."""


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """Everything that one call leaves behind.

    The tensors are copies, because a later call of the same side may write to the originals.

    Args:
        error: what the call raised, in forward or backward. It is an `Exception`, except if the compiled side
            raises one of `EXITS`.
        outputs: what it returned.
        requires_grad: paths of the outputs that require grad and have an autograd history.
        unfollowed: paths of the outputs that require grad but have no history, so no gradient flows back.
        inference: paths of the outputs that are inference tensors, which no gradient may be computed from.
        learnt_from: paths of the outputs whose gradients were computed.
        gradients: by name of the leaf (a parameter, a tensor among the attributes, an input); None if
            autograd found no path to it.
        left: by name of the leaf, what the call itself left in ``.grad``.
        state: buffers, attributes, flags and written parameters after the call.
        inputs: the inputs after the call, which may have changed them.
        earlier: tensors among the policy's attributes that had a graph before the call; empty after it.
        aliases: which outputs share memory with one another, or with a tensor that is no output.
        strides: strides of the outputs, by path.
        seed: seed of the random generators before the call.
        random: state of the random generators after the call.
        generators: states of the random generators among the policy's attributes after the call, by path.
        settings: torch's settings of the process after the call and after its backward, by name. They are
            restored each time.
    """

    error: BaseException | None = None
    outputs: NamedValues = dataclasses.field(default_factory=NamedValues)
    requires_grad: frozenset[str] = frozenset()
    unfollowed: frozenset[str] = frozenset()
    inference: frozenset[str] = frozenset()
    learnt_from: tuple[str, ...] = ()
    gradients: Gradients = dataclasses.field(default_factory=dict)
    left: Gradients = dataclasses.field(default_factory=dict)
    state: NamedValues = dataclasses.field(default_factory=NamedValues)
    inputs: NamedValues = dataclasses.field(default_factory=NamedValues)
    earlier: tuple[torch.Tensor, ...] = ()
    aliases: Aliases = frozenset()
    strides: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    seed: int = 0
    random: isolation.RandomState | None = None
    generators: dict[str, GeneratorState] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def drew(self) -> tuple[str, ...]:
        """Return the names of the generators that the call drew from."""
        if self.random is None:
            return ()
        now = isolation.RandomState()
        isolation.seed_everything(self.seed)
        seeded = isolation.RandomState()
        now.restore()
        return seeded.unequal(self.random)

    def elementwise(self) -> dict[str, torch.Tensor]:
        """Return the tensors that are compared element by element: outputs, state, inputs."""
        found = self.outputs.tensors | self.state.tensors | self.inputs.tensors
        return {path: _real(tensor) for path, tensor in found.items()}

    def differentiated(self) -> dict[str, torch.Tensor]:
        """Return the gradients that exist, which are compared tensor by tensor."""
        found = {f"{GRADIENT} {name}": gradient for name, gradient in self.gradients.items()}
        found |= {f"{LEFT} {name}": gradient for name, gradient in self.left.items()}
        return {path: _real(gradient) for path, gradient in found.items() if gradient is not None}

    def plain(self) -> dict[str, Any]:
        """Return the values that are compared by ``==``."""
        return self.outputs.plain | self.inputs.plain | self.state.plain


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """Return a complex tensor as real and imaginary parts in a new last dimension; others unchanged."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
