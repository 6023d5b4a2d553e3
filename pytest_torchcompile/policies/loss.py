"""The loss and the optimizer by which a policy learns in its lifecycle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.methods import OBSERVATION, Method, as_methods

CLIP, VALUE, ENTROPY = 0.2, 0.5, 0.01
"""Clip range, and the weights of the value loss and the entropy bonus: those of CleanRL's ``ppo.py``."""
LEARNING_RATE, EPSILON, LARGEST_NORM = 2.5e-4, 1e-5, 0.5
"""Of Adam and of the gradient, likewise from there."""

_FAR = 1e4
"""Masked logits lie beyond this, or at minus infinity; a ratio of those would be no number."""


def ppo_loss(outputs: Mapping[str, torch.Tensor], seed: int) -> torch.Tensor:
    """The loss of proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347).

    Which output is a log-probability and which a value can't be told, and the arithmetic does not depend
    on it: each output takes each part, against old values, advantages and returns that are drawn.

    Args:
        outputs: floating outputs that require grad, of any shape.
        seed: of what is drawn; the same numbers for the same shapes.

    Returns:
        A scalar.
    """
    generator = torch.Generator().manual_seed(seed)
    losses = [_loss(output, generator) for _, output in sorted(outputs.items())]
    return torch.stack(losses).sum()


def _loss(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    values = torch.where(output.detach().abs() < _FAR, output, 0.0).float()
    change, advantage, target = (
        torch.randn(values.shape, generator=generator, dtype=torch.float32).to(values) for _ in range(3)
    )
    ratio = torch.exp(values - values.detach() + CLIP * change)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
    loss = VALUE * F.mse_loss(values, target) - surrogate
    if values.dim() > 1:
        probabilities = values.softmax(-1)
        entropy = -(probabilities * values.log_softmax(-1)).sum(-1).mean()
        loss = loss - ENTROPY * entropy
    return loss


def optimizer_of(parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    """PPO's optimizer of these parameters."""
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, eps=EPSILON)


def users_loss(loss: Callable[[Any, dict[str, Any]], Any]) -> Method:
    """The user's ``loss(policy, batch)`` as a method, which takes every declared input.

    Raises:
        UsageError: from the method, if the loss is no scalar that requires grad.
    """

    def of_inputs(policy: Any, *observation: Any, **inputs: Any) -> Any:
        batch = dict(zip((OBSERVATION,), observation, strict=False)) | inputs
        value = loss(policy, batch)
        if not (isinstance(value, torch.Tensor) and value.numel() == 1 and value.requires_grad):
            what = f"a tensor shaped {tuple(value.shape)}" if isinstance(value, torch.Tensor) else "no tensor"
            raise UsageError(f"loss returned {what}; it must return a scalar that requires grad")
        return value

    return Method("loss", of_inputs)


class Methods:
    """A policy as its user calls it, but for some methods that are replaced, by compiled ones.

    Args:
        policy: the policy.
        functions: the methods by name; ``forward`` is the call, ``actor.log_prob`` lies deeper.
    """

    def __init__(self, policy: Any, functions: Mapping[str, Callable[..., Any]]) -> None:
        self._policy = policy
        self._functions = functions

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the policy."""
        return self._functions.get("forward", self._policy)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in self._functions:
            return self._functions[name]
        value = getattr(self._policy, name)
        inside = {
            path.removeprefix(f"{name}."): function
            for path, function in self._functions.items()
            if path.startswith(f"{name}.")
        }
        return Methods(value, inside) if inside else value


def called_methods(declaration: Declaration) -> tuple[Method, ...]:
    """Return the declared methods and, if the user gives a loss, the loss as one more."""
    loss = (users_loss(declaration.loss),) if declaration.loss else ()
    return (*as_methods(declaration.methods), *loss)
