"""Tensors: their memory, their history, those they are made of, and a mode that sees each operator."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """Sees every operator that runs in its body, below autograd; subclasses say what to do with it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def fake_tensors() -> Any:
    """A context in which operators compute shapes only; its `from_tensor` makes a tensor without storage.

    Other tensors that meet such a tensor in the body are made one for the operator, and stay as they are.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def storage_key(tensor: torch.Tensor) -> int:
    """A number that a tensor has in common with its views alone, while it lives; 0 if it has no storage."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def in_backward() -> bool:
    """Whether autograd is computing gradients in this thread."""
    return torch._C._current_graph_task_id() != -1


def has_history(tensor: torch.Tensor) -> bool:
    """Whether ``backward()`` can start from `tensor`.

    A view that was made under ``no_grad`` of what autograd follows says that it requires grad, and nothing
    leads from it to a leaf.
    """
    if not tensor.requires_grad or tensor.grad_fn is not None:
        return tensor.requires_grad
    with torch.enable_grad():
        view = tensor.view_as(tensor).grad_fn
    return view is not None and view.next_functions[0][0] is not None


def inverted_transform(transform: torch.distributions.Transform) -> torch.distributions.Transform | None:
    """What `transform` is the inverse of, if it was made as such by ``.inv``."""
    from torch.distributions.transforms import _InverseTransform

    return transform.inv if isinstance(transform, _InverseTransform) else None


def inner_tensors(tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """The tensors that one of a wrapping subclass holds, by attribute; None if its class does not say."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not is_traceable_wrapper_subclass(tensor):
        return None
    return {name: getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]}


def hides_elements(tensor: torch.Tensor) -> bool:
    """Whether its class handles every operator below autograd, so that its memory may mean nothing."""
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
