"""Inspect tensors (storage, autograd history, inner tensors), and intercept the operators that run."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """Base class of modes that intercept every operator in their body, below autograd."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def fake_tensors() -> Any:
    """Return a context in which operators compute only shapes; `from_tensor` makes a tensor without storage.

    An operator in the body may mix such tensors with ordinary ones, which it does not change.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def storage_key(tensor: torch.Tensor) -> int:
    """Return a key that only a tensor and its views share, while they live; 0 without a storage."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def in_backward() -> bool:
    """Whether autograd is computing gradients in this thread."""
    return torch._C._current_graph_task_id() != -1


def has_history(tensor: torch.Tensor) -> bool:
    """Whether ``backward()`` can start from `tensor`.

    A view created under ``no_grad`` may have ``requires_grad=True`` although no path leads from it to a leaf.
    """
    if not tensor.requires_grad or tensor.grad_fn is not None:
        return tensor.requires_grad
    with torch.enable_grad():
        view = tensor.view_as(tensor).grad_fn
    return view is not None and view.next_functions[0][0] is not None


def inverted_transform(transform: torch.distributions.Transform) -> torch.distributions.Transform | None:
    """Return the transform whose ``.inv`` is `transform`; None if it was not made by ``.inv``."""
    from torch.distributions.transforms import _InverseTransform

    return transform.inv if isinstance(transform, _InverseTransform) else None


def inner_tensors(tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """Return the inner tensors of a wrapper subclass by attribute; None if the class declares none."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not is_traceable_wrapper_subclass(tensor):
        return None
    return {name: getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]}


def hides_elements(tensor: torch.Tensor) -> bool:
    """Whether the tensor's class handles every operator itself, so that its memory may be meaningless."""
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
