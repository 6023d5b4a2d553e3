"""Memory that outputs share in compiled or in eager only, strides, the order of keys, zeros for None."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_checks import assert_differs, assert_passes, check
from torch import nn

from pytest_torchcompile import Box, CheckResult, Verdict
from pytest_torchcompile.comparing.representation import ZERO_GRADIENTS
from pytest_torchcompile.policies.aliasing import aliases, overlap

compiling = torch.compiler.is_compiling


class Shares(nn.Module):
    """In eager each output has memory of its own; in compiled it shares that of `what`, unless "nothing"."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.net = nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.ones(5))
        self.register_buffer("mean", torch.zeros(5))
        self.hidden = torch.zeros(5)
        self.what = what

    def forward(self, x: torch.Tensor) -> Any:
        h = self.net(x).detach()
        made = {
            "output": (h, h.clone()),
            "view": (h[:, :3], h[:, 2:].clone()),
            "input": (h, x.clone()),
            "parameter": (h, self.scale.detach().clone()),
            "buffer": (h, self.mean.clone()),
            "attribute": (h, self.hidden.clone()),
        }
        shared = {
            "output": (h, h),
            "view": (h[:, :3], h[:, 2:]),
            "input": (h, x),
            "parameter": (h, self.scale.detach()),
            "buffer": (h, self.mean),
            "attribute": (h, self.hidden),
        }
        what = self.what.removeprefix("no ")
        return (shared if compiling() and what == self.what else made)[what]


def run(policy: type[nn.Module], *args: Any, **options: Any) -> CheckResult:
    return check(
        lambda: policy(*args),
        observation=Box((5,)),
        **{"backend": "eager", "examples": 2, "phase": "rollout"} | options,
    )


@pytest.mark.parametrize(
    ("what", "path", "shared"),
    [
        ("output", "output[0]", "output[1]"),
        ("view", "output[0]", "output[1]"),
        ("input", "output[1]", "input observation"),
        ("parameter", "output[1]", "parameter scale"),
        ("buffer", "output[1]", "buffer mean"),
        ("attribute", "output[1]", "attribute hidden"),
    ],
)
def test_memory_that_compiled_alone_shares_differs(what: str, path: str, shared: str) -> None:
    result = run(Shares, what)
    assert_differs(result, path)
    assert result.differences[0].problem == "memory"
    assert result.differences[0].compiled == f"shares that of {shared}"
    assert_passes(run(Shares, f"no {what}"))


class Shared(nn.Module):
    """Shares in eager what compiled, if `lost`, has apart."""

    def __init__(self, what: str, lost: bool) -> None:
        super().__init__()
        self.net = nn.Linear(5, 4)
        self.what = what
        self.lost = lost

    def forward(self, x: torch.Tensor) -> Any:
        h = self.net(x)
        lost = self.lost and compiling()
        if self.what == "memory":
            return h, h.clone() if lost else h
        if self.what == "strides":
            return h.t().contiguous().t() if lost else h
        return {"b": h, "a": -h} if lost else {"a": -h, "b": h}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("memory", "output[0] shares the memory of output[1] in eager and not in compiled"),
        ("strides", "different strides of output: (4, 1) in eager, (1, 4) in compiled"),
        ("keys", "different order of keys: eager has output['a'] where compiled has output['b']"),
    ],
)
def test_what_is_represented_otherwise_is_a_remark(what: str, said: str) -> None:
    result = run(Shared, what, True)
    assert_passes(result)
    assert [remark for remark in result.remarks if remark.startswith(said)]
    silent = run(Shared, what, False)
    assert_passes(silent)
    assert not silent.remarks
    assert run(Shared, what, True, beyond="fail").verdict is Verdict.DIFFERS


class Heads(nn.Module):
    """Each output has parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = nn.Linear(5, 4), nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.actor(x), self.critic(x)


class OneHead(nn.Linear):
    def __init__(self) -> None:
        super().__init__(5, 4)


@pytest.mark.parametrize(
    ("policy", "backend", "remarks"),
    [(Heads, "aot_eager", [ZERO_GRADIENTS]), (Heads, "eager", []), (OneHead, "aot_eager", [])],
)
def test_zeros_for_none_are_a_remark_that_fails_nothing(
    policy: type[nn.Module], backend: str, remarks: list[str]
) -> None:
    for beyond in ("remark", "fail"):
        result = run(policy, phase="update", backend=backend, beyond=beyond)
        assert_passes(result)
        assert [remark for remark in result.remarks if "gradients" in remark] == remarks


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_policy_whose_outputs_share_memory_is_silent(backend: str, phase: str) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(5, 6)
            self.log_std = nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> Any:
            h = self.net(x)
            mean, other = h.chunk(2, dim=-1)
            return mean, other, h, mean.clone(), self.log_std.expand_as(mean), x, {"z": h.t(), "a": other}

    result = run(Views, phase=phase, backend=backend)
    assert_passes(result)
    assert not result.remarks


# --- what overlaps --------------------------------------------------------------------------------


def test_columns_of_one_matrix_have_no_element_in_common() -> None:
    whole = torch.zeros(4, 6)
    assert not overlap(whole[:, :3], whole[:, 3:])
    assert overlap(whole[:, :4], whole[:, 3:])
    assert not overlap(whole[0], whole[1])
    assert overlap(whole, whole.t())
    assert not overlap(whole[:, ::2], whole[:, 1::2])
    assert overlap(whole[1].expand(3, 6), whole)
    assert overlap(whole.view(torch.int16), whole)


def test_what_has_no_memory_shares_none() -> None:
    empty = torch.zeros(0)
    sparse = torch.eye(3).to_sparse()
    assert not aliases({"output": empty, "other": empty}, {})
    assert not aliases({"output": sparse, "other": sparse}, {"input x": sparse})
