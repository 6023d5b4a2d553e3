"""The backward pass of one call.

Gradients are computed by ``torch.autograd.backward``, as in training. ``torch.autograd.grad`` fires no hooks
of accumulated gradients, and reentrant checkpoints refuse it.
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
    """How a policy learns in a call of the update phase.

    Args:
        outputs: paths of the outputs that the loss is made of; None is all.
        without: paths of those that it is not made of.
        training: whether the policy is in ``train()``; in ``eval()`` otherwise.
    """

    outputs: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    training: bool = True

    def __str__(self) -> str:
        of = "all outputs" if self.outputs is None else f"{some(sorted(self.outputs))} alone"
        without = f" but {some(sorted(self.without))}" if self.outputs is None and self.without else ""
        return f"{of}{without}{'' if self.training else ', in eval()'}"

    def leaving_out(self, paths: Iterable[str]) -> Learning:
        """The same without some more outputs."""
        return dataclasses.replace(self, without=self.without | set(paths))

    def roots(self, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs that the loss is made of, in the order of their paths."""
        return {
            path: tensor
            for path, tensor in learnt_from(outputs).items()
            if path not in self.without and (self.outputs is None or path in self.outputs)
        }


FROM_ALL = Learning()


class Backward(NamedTuple):
    """The backward pass of one call, under seeded normal gradients of its outputs.

    Args:
        roots: the outputs that are learnt from.
        leaves: by name, the tensors whose gradients are asked for.
        directions: the gradients of the roots.
    """

    roots: list[torch.Tensor]
    leaves: dict[str, torch.Tensor]
    directions: list[torch.Tensor]

    def __call__(self) -> Gradients:
        """Gradients by name of the leaf; every ``.grad`` is as it was before."""
        before = {name: leaf.grad for name, leaf in self.leaves.items()}
        try:
            for leaf in self.leaves.values():
                leaf.grad = None
            torch.autograd.backward(self.roots, self.directions)
            return {name: leaf.grad for name, leaf in self.leaves.items()}
        finally:
            for name, leaf in self.leaves.items():
                leaf.grad = before[name]


def backward_of(
    outputs: Mapping[str, torch.Tensor],
    leaves: dict[str, torch.Tensor],
    seed: int,
    learning: Learning = FROM_ALL,
) -> Backward | None:
    """The backward pass of a call, ready to run; None if there is nothing to differentiate.

    Args:
        outputs: by path, as the call returned them.
        leaves: by name.
        seed: of the gradients of the outputs, each drawn by itself, so that none depends on which others
            there are.
        learning: what is learnt from.
    """
    roots = learning.roots(outputs)
    if not roots or not leaves:
        return None
    directions = [_direction(path, root, seed) for path, root in roots.items()]
    return Backward(list(roots.values()), leaves, directions)


def learnt_from(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs that a loss can be made of, in the order of their paths."""
    return {
        path: tensor
        for path, tensor in sorted(outputs.items())
        if (tensor.is_floating_point() or tensor.is_complex()) and internals.has_history(tensor)
    }


def _direction(path: str, root: torch.Tensor, seed: int) -> torch.Tensor:
    """The seeded normal gradient of `root`: a plain tensor, as a compiled backward expects one."""
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(path.encode()))
    dtype = torch.complex64 if root.is_complex() else torch.float32
    drawn = torch.randn(root.shape, generator=generator, dtype=dtype)
    return drawn.to(device=root.device, dtype=root.dtype)
