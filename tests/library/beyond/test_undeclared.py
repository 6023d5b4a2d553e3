"""Checks beyond what was declared: an empty batch, late hooks, copies, overwritten inputs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_checks import assert_passes, check
from torch import nn

from pytest_torchcompile import Box, CheckResult, Verdict
from pytest_torchcompile.beyond.overwriting import REMARK
from pytest_torchcompile.beyond.undeclared import IGNORED_HOOK
from pytest_torchcompile.internals import ignores_late_hooks
from pytest_torchcompile.policies.copies import stale_methods

OBSERVATION = Box((8,))


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(torch.tanh(self.body(x))))

    def act(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).argmax(-1)


def checked(factory: Any, phase: str = "rollout", **arguments: Any) -> CheckResult:
    small = {"observation": OBSERVATION, "batch": (4, 7), "examples": 2, "steps": 1}
    return check(factory, phase, **small | arguments)


def with_run(change: Callable[[Callable[..., Any], tuple[Any, ...]], Any]) -> Callable[..., Any]:
    """A backend whose graphs are called by `change`."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return lambda *args: change(graph.forward, args)

    return backend


def is_empty(args: tuple[Any, ...]) -> bool:
    return any(isinstance(a, torch.Tensor) and a.numel() == 0 for a in args)


# --- an empty batch -------------------------------------------------------------------------------


def raising(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if is_empty(args):
        raise AssertionError("no rows")
    return run(*args)


def one_row(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    found = run(*args)
    return tuple(torch.zeros(1, *o.shape[1:]) for o in found) if is_empty(args) else found


@pytest.mark.parametrize("phase", ["rollout", "update"])
@pytest.mark.parametrize(
    ("change", "what"),
    [(raising, "compiled raises AssertionError: no rows"), (one_row, "output differs (shape): eager (0, 4)")],
)
def test_an_empty_batch(change: Any, what: str, phase: str) -> None:
    result = checked(Policy, phase, backend=with_run(change))
    assert_passes(result)
    (remark,) = result.remarks
    assert remark.startswith(f"on an empty batch, which eager accepts in {phase}, {what}")
    right = checked(Policy, phase)
    assert_passes(right)
    assert not right.remarks


class Counting:
    """An object that counts its calls, which no graph does."""

    def __init__(self) -> None:
        self.policy, self.calls = Policy(), 0

    def act(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.policy(x)


def test_an_empty_batch_begins_with_equal_counters() -> None:
    result = checked(Counting, methods="act")
    assert_passes(result)
    assert not result.remarks


def test_an_empty_batch_does_not_touch_the_case() -> None:
    with_it = checked(Policy)
    without = checked(Policy, beyond="off")
    for field in ("graphs", "recompiles", "breaks"):
        assert getattr(with_it.capture, field) == getattr(without.capture, field)


def test_an_empty_batch_that_eager_rejects_is_not_compiled() -> None:
    class NotEmpty(Policy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x - x.max())

    seen: list[bool] = []

    def watching(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        seen.append(is_empty(args))
        return run(*args)

    result = checked(NotEmpty, backend=with_run(watching))
    assert_passes(result)
    assert not result.remarks
    assert set(seen) == {False}


def test_what_a_policy_warns_of_on_an_empty_batch_is_not_passed_on(recwarn: pytest.WarningsRecorder) -> None:
    class Complaining(Policy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) == 0:
                warnings.warn("no rows", stacklevel=1)
            return super().forward(x)

    assert_passes(checked(Complaining))
    assert not [w for w in recwarn if "no rows" in str(w.message)]


# --- a hook that comes late -----------------------------------------------------------------------


def test_a_late_hook_is_ignored_by_torchs_default() -> None:
    assert ignores_late_hooks()
    result = checked(Policy, "lifecycle")
    assert_passes(result)
    assert result.remarks == (IGNORED_HOOK,)
    assert "skip_nnmodule_hook_guards" in IGNORED_HOOK


def test_a_late_hook_is_seen_where_hooks_are_guarded() -> None:
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        assert not checked(Policy, "lifecycle").remarks


def test_without_submodules_there_is_no_hook() -> None:
    assert not checked(lambda: nn.Linear(8, 4), "lifecycle").remarks


# --- copies ---------------------------------------------------------------------------------------


def with_compiled(name: str) -> Policy:
    policy = Policy()
    setattr(policy, name, torch.compile(getattr(policy, name), backend="eager"))
    return policy


def with_call_compiled() -> Policy:
    policy = Policy()
    policy.compile(backend="eager")
    return policy


class Twice(nn.Module):
    """An online and a target network."""

    def __init__(self, made: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.online = made()
        self.target = copy.deepcopy(self.online)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.online(x) - self.target(x))


@pytest.mark.parametrize("name", ["forward", "act"])
def test_a_copy_of_what_comes_compiled_is_a_remark_and_fails_if_declared(name: str) -> None:
    result = checked(lambda: with_compiled(name), "lifecycle", methods=name)
    assert_passes(result)
    (remark,) = (remark for remark in result.remarks if remark != IGNORED_HOOK)
    assert remark.startswith(
        "a copy.deepcopy of the policy, such as a target network, still uses the original's weights in"
    )
    remedy = "module.compile()" if name == "forward" else "target.act = torch.compile(target.act)"
    assert remedy in remark
    declared = checked(lambda: with_compiled(name), "lifecycle", methods=name, copies=True)
    assert (declared.verdict, declared.reason) == (Verdict.DIFFERS, remark)


@pytest.mark.parametrize(
    "factory", [with_call_compiled, lambda: torch.compile(Policy(), backend="eager"), Policy]
)
def test_a_copy_that_is_right(factory: Any) -> None:
    result = checked(factory, "lifecycle", copies=True)
    assert_passes(result)
    assert result.remarks == (IGNORED_HOOK,)


def test_a_policy_that_is_or_holds_such_a_copy_fails() -> None:
    for factory in (
        lambda: copy.deepcopy(with_compiled("forward")),
        lambda: Twice(lambda: with_compiled("forward")),
    ):
        result = checked(factory)
        assert result.verdict is Verdict.NOT_COMPILED
        assert "still use the original's weights instead of its own: " in result.reason
        assert "write module.compile() instead" in result.reason
    assert_passes(checked(lambda: torch.compile(Twice(Policy), backend="eager")))


def test_a_method_of_another_object_is_no_stale_copy() -> None:
    policy, other = Policy(), nn.Linear(8, 16)
    policy.encode = torch.compile(other.forward, backend="eager")  # type: ignore[assignment]
    policy.own = torch.compile(policy.act, backend="eager")  # type: ignore[assignment]
    assert stale_methods(policy) == []
    assert stale_methods(copy.deepcopy(policy)) == ["own"]


# --- an input that is overwritten -----------------------------------------------------------------


class Product(nn.Module):
    """A product of an input, whose backward reads the input again."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Unwatched(torch.autograd.Function):
    """A product that keeps its input where autograd does not watch it, as inductor's code does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.kept = x
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return None, ctx.kept.T @ gradients[0]


def unwatched(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    x, weight = sorted((a for a in args if isinstance(a, torch.Tensor)), key=lambda a: a.requires_grad)
    return (Unwatched.apply(x, weight),) if weight.requires_grad and torch.is_grad_enabled() else run(*args)


def test_an_overwritten_input_that_compiled_does_not_notice() -> None:
    result = checked(Product, "update", backend=with_run(unwatched))
    assert_passes(result)
    assert result.remarks == (REMARK,)
    assert ".clone()" in REMARK
    noticed = checked(Product, "update", backend="aot_eager")
    assert_passes(noticed)
    assert not noticed.remarks


def test_an_overwritten_input_that_nothing_depends_on() -> None:
    assert not checked(Policy, "update", backend="aot_eager").remarks
