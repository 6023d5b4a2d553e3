"""Runs the backward pass of one call.

Gradients are computed by ``torch.autograd.backward``, as in training: ``torch.autograd.grad`` does not run
post-accumulate-grad hooks, and reentrant checkpoints raise under it.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from pytest_torchcompile import internals
from pytest_torchcompile.texts import some

Gradients = dict[str, torch.Tensor | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """Which outputs a loss is computed from in the update phase, and the mode of the policy.

    Args:
        outputs: paths of the outputs that the loss is computed from; None means all.
        without: paths of the outputs that are left out of the loss.
        summed: whether the loss is the plain sum of the outputs: the gradient of each is one number in
            memory for all elements.
        interrupted: whether the policy is called on other inputs between forward and backward.
        accumulated: whether the gradients are added to those of such a call, as over several minibatches.
        training: whether the policy is in ``train()``; in ``eval()`` otherwise.
    """

    outputs: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    summed: bool = False
    interrupted: bool = False
    accumulated: bool = False
    training: bool = True

    def __str__(self) -> str:
        of = "all outputs" if self.outputs is None else f"{some(sorted(self.outputs))} alone"
        without = f" but {some(sorted(self.without))}" if self.outputs is None and self.without else ""
        between = ", with another call before the backward" * self.interrupted
        between += ", added to the gradients of another call" * self.accumulated
        return f"{'the sum of ' * self.summed}{of}{without}{between}{'' if self.training else ', in eval()'}"

    def leaving_out(self, paths: Iterable[str]) -> Learning:
        """Return a copy that leaves out `paths` as well."""
        return dataclasses.replace(self, without=self.without | set(paths))

    def roots(self, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the outputs that the loss is computed from, in the order of their paths."""
        return {
            path: tensor
            for path, tensor in learnt_from(outputs).items()
            if path not in self.without and (self.outputs is None or path in self.outputs)
        }


FROM_ALL = Learning()


class Backward(NamedTuple):
    """The backward pass of one call, with seeded normal gradients of its outputs.

    Args:
        roots: the outputs that are differentiated.
        leaves: by name, the tensors whose gradients are computed.
        directions: the gradients of the roots.
        before: another backward, which runs first and to whose gradients those of this one are added.
    """

    roots: list[torch.Tensor]
    leaves: dict[str, torch.Tensor]
    directions: list[torch.Tensor]
    before: Backward | None = None

    def __call__(self) -> Gradients:
        """Return the gradients by name of the leaf. Every ``.grad`` is restored."""
        kept = {name: leaf.grad for name, leaf in self.leaves.items()}
        try:
            for leaf in self.leaves.values():
                leaf.grad = None
            if self.before is not None:
                torch.autograd.backward(self.before.roots, self.before.directions)
            torch.autograd.backward(self.roots, self.directions)
            return {name: leaf.grad for name, leaf in self.leaves.items()}
        finally:
            for name, leaf in self.leaves.items():
                leaf.grad = kept[name]


def backward_of(
    outputs: Mapping[str, torch.Tensor],
    leaves: dict[str, torch.Tensor],
    seed: int,
    learning: Learning = FROM_ALL,
) -> Backward | None:
    """Return the backward pass of a call, not yet run; None if there is nothing to differentiate.

    Args:
        outputs: by path, as the call returned them.
        leaves: by name.
        seed: seed of the gradients of the outputs. Each is drawn separately, so that it does not depend on
            which other outputs exist.
        learning: which outputs the loss is computed from, and how.
    """
    roots = learning.roots(outputs)
    if not roots or not leaves:
        return None
    directions = [
        _of_sum(root) if learning.summed else _direction(path, root, seed) for path, root in roots.items()
    ]
    return Backward(list(roots.values()), leaves, directions)


def learnt_from(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the outputs that a loss can be computed from, in the order of their paths."""
    return {
        path: tensor
        for path, tensor in sorted(outputs.items())
        if (tensor.is_floating_point() or tensor.is_complex()) and internals.has_history(tensor)
    }


def _of_sum(root: torch.Tensor) -> torch.Tensor:
    """Return the gradient of ``root.sum()`` as autograd passes it on: a one that is expanded."""
    return torch.ones((), device=root.device, dtype=root.dtype).expand(root.shape)


def _direction(path: str, root: torch.Tensor, seed: int) -> torch.Tensor:
    """Return a seeded normal gradient of `root`: a plain tensor, which a compiled backward expects."""
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(path.encode()))
    dtype = torch.complex64 if root.is_complex() else torch.float32
    drawn = torch.randn(root.shape, generator=generator, dtype=dtype)
    return drawn.to(device=root.device, dtype=root.dtype)
