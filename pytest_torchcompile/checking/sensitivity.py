"""Measure how much of a policy the examples of a case reach: gradients that are not zero, outputs that vary.

A check whose examples reach half of a policy says little about the other half.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.results import Sensitivity


class SensitivityRecord:
    """Accumulates, over the examples, which parameters had a nonzero gradient and which outputs varied.

    Args:
        model: the module; its parameters that require gradients are counted.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = internals.uncompiled(model).named_parameters()
        self._parameters = {
            name: torch.zeros_like(parameter, dtype=torch.bool)
            for name, parameter in parameters
            if parameter.requires_grad
        }
        self._differentiated = False
        self._outputs: dict[str, _Output] = {}

    def add(self, eager: Outcome, batch: int) -> None:
        """Add one call of eager.

        Args:
            eager: the outcome of a call with finite inputs.
            batch: the batch size of the call.
        """
        self._differentiated |= bool(eager.gradients)
        for name, reached in self._parameters.items():
            gradient = eager.gradients.get(name)
            if gradient is not None:
                reached |= gradient != 0
        for path, output in eager.outputs.tensors.items():
            self._outputs.setdefault(path, _Output()).add(output, batch)

    def sensitivity(self) -> Sensitivity:
        """Return the counts; those of parameters are 0 if no call was differentiated."""
        reached = self._parameters if self._differentiated else {}
        varied = {path: output.varied() for path, output in self._outputs.items()}
        return Sensitivity(
            parameters=sum(int(mask.sum()) for mask in reached.values()),
            of_parameters=sum(mask.numel() for mask in reached.values()),
            outputs=sum(int(mask.sum()) for mask in varied.values()),
            of_outputs=sum(mask.numel() for mask in varied.values()),
            unreached=_by_module({name: bool(mask.any()) for name, mask in reached.items()}),
            constant=tuple(path for path, mask in varied.items() if not mask.any()),
        )


class _Output:
    """Records which elements differ between the rows of an output.

    Rows lie along the first dimension that was as long as the batch in every example. An output without
    such a dimension, such as a table, is a single row. Rows of sequences differ in shape; rows are compared
    with rows of the same shape.
    """

    def __init__(self) -> None:
        self._dims: list[int] | None = None
        self._first: dict[torch.Size, torch.Tensor] = {}
        self._varied: dict[torch.Size, torch.Tensor] = {}

    def add(self, output: torch.Tensor, batch: int) -> None:
        dims = [dim for dim, size in enumerate(output.shape) if size == batch]
        if self._dims is not None:
            dims = [dim for dim in self._dims if dim in dims]
            if dims[:1] != self._dims[:1]:
                self._first, self._varied = {}, {}
        self._dims = dims
        rows = output.movedim(dims[0], 0) if dims else output[None]
        first = self._first.setdefault(rows.shape[1:], rows[0].clone())
        varied = self._varied.setdefault(rows.shape[1:], torch.zeros_like(first, dtype=torch.bool))
        varied |= (rows != first).any(0)

    def varied(self) -> torch.Tensor:
        """Return the mask of the row shape in which the most elements varied."""
        return max(self._varied.values(), key=lambda mask: int(mask.sum()))


def _by_module(reached: dict[str, bool]) -> tuple[str, ...]:
    """Return the names of the parameters that were not reached.

    If no parameter of a module was reached, the name of the module stands for them.
    """

    def module_of(name: str) -> str:
        return name.rpartition(".")[0]

    alive = {module_of(name) for name, some in reached.items() if some}
    unreached: Iterable[str] = (name for name, some in reached.items() if not some)
    named = (name if module_of(name) in alive else module_of(name) or name for name in unreached)
    return tuple(dict.fromkeys(named))
