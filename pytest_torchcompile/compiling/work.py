"""Count the floating-point operations of a call: products, convolutions, attention and recurrent kernels.

The share of the operations that runs inside graphs shows what compiling a method can gain. The share of the
parameters does not, because a graph takes a parameter regardless of what it computes with it.

The eager call is counted while it runs. The compiled call cannot be counted like that, because the operators
inside its graphs are visible too. So each of its graphs is counted on tensors without storage, by the same
formulas.
"""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import flop_registry

from pytest_torchcompile import internals
from pytest_torchcompile.texts import first_line

Operations = collections.Counter[str]
"""Floating-point operations by place: the module whose parameters they take, or else the user's line."""

_ITSELF = "(the module itself)"


class Work(internals.DispatchMode):
    """Counts the floating-point operations in its body, without those of backward passes.

    Args:
        owners: the name of the module that owns a parameter, by the parameter's storage key.
    """

    def __init__(self, owners: Mapping[int, str]) -> None:
        super().__init__()
        self.operations: Operations = collections.Counter()
        self.lines: dict[str, str] = {}
        """By place, the first line of the user's code there, ``file:line``."""
        self._owners = owners

    def line(self) -> str:
        """Return the innermost running line of the user's code, ``file:line``."""
        return internals.running_users_line()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func.overloadpacket) or _torch_formula(func.overloadpacket)
        if formula is None:
            # In inference mode composite operators arrive undecomposed: a linear layer, an LSTM.
            return self._in_parts(func, args, kwargs)
        output = func(*args, **kwargs)
        if not internals.in_backward() and _is_floating(output):
            self._add(args, formula(args, kwargs, output))
        return output

    def _in_parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        parts = NotImplemented
        if func.namespace != "prim":
            with self:
                parts = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if parts is NotImplemented else parts

    def _add(self, args: tuple[Any, ...], operations: int) -> None:
        taken = [part for value in args for part in (value if isinstance(value, (list, tuple)) else [value])]
        tensors = [value for value in taken if isinstance(value, torch.Tensor)]
        owner = next(
            (self._owners[k] for k in map(internals.storage_key, tensors) if k in self._owners), None
        )
        line = self.line()
        place = line if owner is None else owner or _ITSELF
        self.operations[place] += operations
        self.lines.setdefault(place, line)


class _GraphWork(Work):
    """Counts the operations of a graph; takes the user's line from the node that runs."""

    node: fx.Node

    def line(self) -> str:
        return internals.user_line(self.node.meta.get("stack_trace")) or ""


class _GraphInterpreter(fx.Interpreter):
    """Runs a graph and passes the running node to `work`."""

    def __init__(self, module: fx.GraphModule, work: _GraphWork) -> None:
        super().__init__(module)
        self._work = work

    def run_node(self, n: fx.Node) -> Any:
        self._work.node = n
        return super().run_node(n)


def owners_of(model: nn.Module) -> dict[int, str]:
    """Return the name of the owning module by the storage key of each parameter; "" is `model` itself."""
    named = internals.uncompiled(model).named_parameters()
    keys = {internals.storage_key(parameter): name.rpartition(".")[0] for name, parameter in named}
    return {key: owner for key, owner in keys.items() if key is not None}


def work_of_graph(call: internals.GraphCall, owners: Mapping[int, str]) -> Operations:
    """Return the operations of one run of a graph, computed from shapes without running it.

    Raises:
        Exception: whatever an operator raises whose output shape depends on the numbers.
    """
    try:
        return _work_of_graph(call, owners, torch.no_grad())
    except RuntimeError:
        # A hook on a tensor is part of the graph, and takes a tensor that requires grad.
        return _work_of_graph(call, owners, torch.enable_grad())


def _work_of_graph(
    call: internals.GraphCall, owners: Mapping[int, str], grad_mode: contextlib.AbstractContextManager[Any]
) -> Operations:
    fake = internals.fake_tensors()
    known, args = dict(owners), []
    for value in call.args:
        tensor = fake.from_tensor(value) if isinstance(value, torch.Tensor) else value
        if tensor is not value and (key := internals.storage_key(value)) in owners:
            known[internals.storage_key(tensor)] = owners[key]
        args.append(tensor)
    work = _GraphWork(known)
    with grad_mode, fake, work:
        _GraphInterpreter(call.module, work).run(*args)
    return work.operations


class CountedWork:
    """Counts how much of an eager call's work the graphs of a compiled call with equal shapes do.

    Args:
        eager: the counted work of the eager call.
        model: the module that is compiled.
    """

    def __init__(self, eager: Work, model: nn.Module) -> None:
        self._eager = eager
        self._owners = owners_of(model)
        self._inside: Operations = collections.Counter()
        self.unknown = ""
        """Why the graphs could not be counted; empty if they were."""

    def add(self, call: internals.GraphCall) -> None:
        """Add a run of a graph in the compiled call."""
        if not self.all or self.unknown:
            return
        try:
            self._inside += work_of_graph(call, self._owners)
        except Exception as error:
            self.unknown = first_line(error)

    @property
    def all(self) -> int:
        """The floating-point operations of the eager call; 0 if the graphs could not be counted."""
        return 0 if self.unknown else self._eager.operations.total()

    @property
    def inside(self) -> int:
        """The floating-point operations that graphs do, at most `all`."""
        return min(self._inside.total(), self.all)

    @property
    def left_eager(self) -> dict[str, int]:
        """The floating-point operations that no graph does, by place with its line, the largest first."""
        if self.inside == self.all:
            return {}
        found = {}
        for place, operations in (self._eager.operations - self._inside).most_common():
            line = self._eager.lines[place]
            found[place if line in ("", place) else f"{place} at {line}"] = operations
        return found


# --- formulas -------------------------------------------------------------------------------------

Formula = Callable[[tuple[Any, ...], dict[str, Any], Any], int]


def _is_floating(output: Any) -> bool:
    first = output[0] if isinstance(output, (list, tuple)) else output
    return isinstance(first, torch.Tensor) and (first.is_floating_point() or first.is_complex())


def _torch_formula(packet: Any) -> Formula | None:
    """Return torch's own formula for an operator; None if it has none."""
    counted = flop_registry.get(packet)
    if counted is None:
        return None
    return lambda args, kwargs, output: int(counted(*args, **kwargs, out_val=output))


def _product(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """A product of the last two tensors: each output element is a sum over the columns of the left one."""
    left = [value for value in args if isinstance(value, torch.Tensor)][-2]
    return 2 * int(output.numel()) * int(left.shape[-1])


def _batched_sum(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """``addbmm``, which sums over the batch too."""
    left = args[1]
    return 2 * int(output.numel()) * int(left.shape[0]) * int(left.shape[-1])


def _recurrent(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Each row of the input is multiplied by each weight matrix once; biases do not count."""
    rows = math.prod(args[0].shape[:-1])
    weights = args[1] if isinstance(args[1], (list, tuple)) else args[1:5]
    return 2 * int(rows) * sum(int(weight.numel()) for weight in weights if weight.dim() == 2)


def _trilinear(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """``nn.Bilinear``: each row of the inputs is multiplied by the whole weight."""
    return 2 * int(math.prod(args[0].shape[:-1])) * int(args[1].numel())


def _attention(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """The scores of each query with each key, and the weighted sums of the values."""
    query, key, value = (tensor.shape for tensor in args[:3])
    pairs = math.prod(query[:-1]) * key[-2]
    return 2 * int(pairs) * int(query[-1] + value[-1])


def _encoder(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """The fast path of ``nn.TransformerEncoderLayer``: its four matrices, and attention of all to all."""
    source = args[0]
    matrices = sum(int(args[position].numel()) for position in (3, 5, 14, 16))
    return _fused(source, source, matrices)


def _multi_head(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """The fast path of ``nn.MultiheadAttention``: its two matrices, and attention of all to all."""
    return _fused(args[0], args[1], int(args[5].numel()) + int(args[7].numel()))


def _fused(query: torch.Tensor, key: torch.Tensor, matrices: int) -> int:
    rows = int(math.prod(query.shape[:-1]))
    return 2 * rows * matrices + 4 * rows * int(key.shape[-2]) * int(query.shape[-1])


_aten = torch.ops.aten
_FORMULAS: dict[Any, Formula] = {
    _aten.mv: _product,
    _aten.addmv: _product,
    _aten.dot: _product,
    _aten.vdot: _product,
    _aten._addmm_activation: _product,
    _aten._grouped_mm: lambda args, kwargs, output: 2 * int(output.numel()) * int(args[0].shape[-1]),
    _aten.addbmm: _batched_sum,
    _aten._trilinear: _trilinear,
    _aten.mkldnn_rnn_layer: _recurrent,
    _aten._cudnn_rnn: _recurrent,
    _aten.miopen_rnn: _recurrent,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_fused_attention_overrideable: _attention,
    _aten._transformer_encoder_layer_fwd: _encoder,
    _aten._native_multi_head_attention: _multi_head,
}
