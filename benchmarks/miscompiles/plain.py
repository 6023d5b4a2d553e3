"""Plain reproduction: eager and compiled are called with a report's own inputs and compared.

It knows nothing of the plugin, and has one tolerance. What it says decides whether there is something to
find.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .record import Report

RTOL, ATOL = 1e-3, 1e-4
"""For float32; half precision is allowed ten times as much."""

MODES = ("acting", "learning")
"""In `eval()` without gradients, and in `train()` with them."""


def reproduce(report: Report, *, backend: Any = "inductor") -> dict[str, str]:
    """Return the `outcome` of the plain reproduction and, in `detail`, what differs or was raised.

    The outcome is ``differs``, ``equal``, ``eager failed`` or ``compile failed``.
    """
    for mode in MODES:
        try:
            expected = left_by(report, mode, None)
        except Exception as error:
            return {"outcome": "eager failed", "detail": said(error)}
        try:
            found = left_by(report, mode, backend)
        except Exception as error:
            return {"outcome": "compile failed", "detail": f"{mode}: {said(error)}"}
        difference = compare(expected, found)
        if difference:
            return {"outcome": "differs", "detail": f"{mode}: {difference}"}
    return {"outcome": "equal", "detail": ""}


def left_by(report: Report, mode: str, backend: Any) -> dict[str, Any]:
    """Call a new policy as the report says; return what the calls left, by name.

    Args:
        report: says which policy, which calls, and what happens after each.
        mode: one of `MODES`.
        backend: of torch.compile; None calls the policy itself. Inductor draws eager's random numbers.
    """
    torch.compiler.reset()
    torch.manual_seed(0)
    policy = report.policy()
    policy.train(mode == "learning")
    options = {"fallback_random": True} if backend == "inductor" else None
    called: Any = policy if backend is None else torch.compile(policy, backend=backend, options=options)
    left: dict[str, Any] = {}
    if report.reset is not None:
        report.reset(policy)
    for number, arguments in enumerate(report.calls()):
        torch.manual_seed(number)
        random.seed(number)
        with torch.set_grad_enabled(mode == "learning"):
            outputs = called(*copy.deepcopy(list(arguments.values())))
        leaves = pytree.tree_leaves(outputs)
        for place, leaf in enumerate(leaves):
            # A copy: the next call may write to the memory of this one's outputs.
            left[f"output {place} of call {number}"] = copied(leaf)
        if mode == "learning":
            differentiate(leaves)
        if report.change is not None:
            with torch.no_grad():
                report.change(policy, outputs)
        if report.observe is not None:
            left[f"observed after call {number}"] = copied(report.observe(policy))
        left |= {f"{name} after call {number}": copied(b) for name, b in policy.named_buffers()}
    left |= {f"gradient of {name}": copied(p.grad) for name, p in policy.named_parameters()}
    return left


def copied(value: Any) -> Any:
    """A detached copy of a tensor; anything else as it is."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def differentiate(leaves: list[Any]) -> None:
    """Differentiate a sum of what requires grad, in which each element has a weight of its own."""
    losses = [
        (one.float() * torch.linspace(0.5, 1.5, one.numel()).reshape(one.shape)).sum()
        for one in leaves
        if isinstance(one, torch.Tensor) and one.requires_grad
    ]
    if losses:
        torch.stack(losses).sum().backward()


def compare(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Return the first difference as text; an empty one if there is none."""
    if expected.keys() != found.keys():
        return f"{len(expected)} results became {len(found)}"
    for name, want in expected.items():
        got = found[name]
        half = isinstance(want, torch.Tensor) and want.dtype in (torch.bfloat16, torch.float16)
        factor = 10 if half else 1
        try:
            torch.testing.assert_close(got, want, rtol=RTOL * factor, atol=ATOL * factor, equal_nan=True)
        except (AssertionError, TypeError) as error:
            return f"{name}: {said(error)}"
    return ""


def said(error: BaseException) -> str:
    """The type and the first 300 characters of an exception, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
