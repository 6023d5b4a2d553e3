"""The loss and the optimizer with which a policy learns in its lifecycle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.binding import OBSERVATION
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.methods import Method, as_methods

CLIP, VALUE, ENTROPY = 0.2, 0.5, 0.01
"""Clip range, and the weights of the value loss and the entropy bonus: those of CleanRL's ``ppo.py``."""
LEARNING_RATE, EPSILON, LARGEST_NORM = 2.5e-4, 1e-5, 0.5
"""Adam's learning rate and epsilon, and the gradient's largest norm: those of CleanRL's ``ppo.py``."""

_LARGEST_LOGIT = 1e4
"""Masked logits are larger than this in absolute value, or minus infinity. Their ratio would be NaN."""


def ppo_loss(outputs: Mapping[str, torch.Tensor], seed: int) -> torch.Tensor:
    """Return the loss of proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347).

    The function can't know which output is a log-probability and which is a value. It applies every term of
    the loss to each output, with drawn old values, advantages and returns.

    Args:
        outputs: floating-point outputs and attributes that require grad, of any shape.
        seed: seed of the drawn numbers; they are the same for the same shapes.

    Returns:
        A scalar.
    """
    generator = torch.Generator().manual_seed(seed)
    losses = [_loss(output, generator) for _, output in sorted(outputs.items())]
    return torch.stack(losses).sum()


def _loss(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    values = torch.where(output.detach().abs() < _LARGEST_LOGIT, output, 0.0).float()
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
    """Return PPO's optimizer for these parameters."""
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, eps=EPSILON)


def users_loss(loss: Callable[[Any, dict[str, Any]], Any]) -> Method:
    """Return the user's ``loss(policy, batch)`` as a method that takes every declared input.

    The method raises `UsageError` if the loss is no scalar. Whether it requires grad is compared, as compiled
    code may lose that.
    """

    def of_inputs(policy: Any, *observation: Any, **inputs: Any) -> Any:
        batch = dict(zip((OBSERVATION,), observation, strict=False)) | inputs
        value = loss(policy, batch)
        if not (isinstance(value, torch.Tensor) and value.numel() == 1):
            what = f"a tensor shaped {tuple(value.shape)}" if isinstance(value, torch.Tensor) else "no tensor"
            raise UsageError(f"loss returned {what}; it must return a scalar that requires grad")
        return value

    return Method("loss", of_inputs)


class Methods:
    """A proxy of a policy with some methods replaced, such as by compiled ones.

    Args:
        policy: the policy.
        functions: the replacements by name: ``forward`` for the call of the policy, ``actor.log_prob`` for a
            method of one of its attributes.
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
    return (*as_methods(declaration.checked), *loss)
