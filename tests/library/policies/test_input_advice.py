"""If the declared inputs do not fit the policy, the reason has the line to write, and that line works."""

from __future__ import annotations

import re
import types
from typing import Any

import pytest
import torch
from torch import nn

import pytest_torchcompile
from pytest_torchcompile import (
    Box,
    Discrete,
    Image,
    OneHot,
    State,
    Tokens,
    Verdict,
    Wrapped,
    check_equivalence,
)
from pytest_torchcompile.policies.input_advice import advice

SPECS = {name: getattr(pytest_torchcompile, name) for name in pytest_torchcompile.__all__}


class Calls(nn.Module):
    """A policy whose `forward` is a function of the module and the observation."""

    def __init__(self, function: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Any, state: Any = None) -> Any:
        return self.function(self, x) if state is None else self.function(self, x, state)


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    return Calls(lambda m, x: m.layer(x), layer=nn.Linear(8, 4, dtype=dtype))


def conv() -> nn.Module:
    return Calls(lambda m, x: m.layer(x).mean((1, 2, 3)), layer=nn.Conv2d(3, 4, 3))


def embedding() -> nn.Module:
    return Calls(lambda m, x: m.head(m.layer(x)), layer=nn.Embedding(10, 4), head=nn.Linear(4, 2))


def keyed() -> nn.Module:
    return Calls(lambda m, x: m.layer(x["state"]), layer=nn.Linear(8, 4))


def recurrent(layers: int = 1) -> nn.Module:
    gru = nn.GRU(8, 16, num_layers=layers, batch_first=True)
    return Calls(lambda m, x, state: m.layer(x[:, None], state)[0], layer=gru)


# policy, observation, further inputs: the line to write
LINES: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "features": (mlp, Box((9,)), {}, "observation=Box((8,))"),
    "features, bounded": (mlp, Box((9,), low=-1, high=1), {}, "observation=Box((8,), low=-1, high=1)"),
    "features, nested": (keyed, {"state": Box((7,))}, {}, "observation={'state': Box((8,))}"),
    "features of a one-hot": (mlp, OneHot(5), {}, "observation=OneHot(8)"),
    "float64": (lambda: mlp(torch.float64), Box((8,)), {}, "observation=Box((8,), dtype='float64')"),
    "pixels": (conv, Image((3, 16, 16)), {}, "observation=Box((3, 16, 16), low=0, high=255)"),
    "channels last": (conv, Box((16, 16, 3)), {}, "observation=Box((3, 16, 16))"),
    "no channels": (conv, Box((16, 16)), {}, "observation=Box((3, 16, 16))"),
    "other channels": (conv, Box((4, 16, 16)), {}, "observation=Box((3, 16, 16))"),
    "whole numbers": (mlp, Discrete(8), {}, "observation=OneHot(8)"),
    "an index": (embedding, Box((), low=0, high=9), {}, "observation=Discrete(10)"),
    "indices": (embedding, Box((5,), low=0, high=9), {}, "observation=Tokens(10, length=5)"),
    "too many values": (embedding, Discrete(2000), {}, "observation=Discrete(10)"),
    "too many tokens": (embedding, Tokens(2000, 5), {}, "observation=Tokens(10, length=5)"),
    "another key": (keyed, {"obs": Box((8,))}, {}, "observation={'state': Box((8,))}"),
    "no dict": (keyed, Box((8,)), {}, "observation={'state': Box((8,))}"),
    "state": (recurrent, Box((8,)), {"state": State((1, 16))}, "state=State((1, 16), batch_dim=1)"),
    "state of two layers": (
        lambda: recurrent(2),
        Box((8,)),
        {"state": Box((2, 16))},
        "state=State((2, 16), batch_dim=1)",
    ),
}


def reason_of(policy: Any, observation: Any, inputs: dict[str, Any]) -> tuple[Verdict, str]:
    (result,) = check_equivalence(
        policy,
        observation=observation,
        inputs=inputs,
        phases="rollout",
        backend="eager",
        examples=0,
        batch=4,
        layouts=False,
        beyond="off",
    )
    return result.verdict, result.reason


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("case", LINES)
def test_the_line_to_write_is_given_and_works(case: str) -> None:
    policy, observation, inputs, line = LINES[case]
    verdict, reason = reason_of(policy, observation, inputs)
    assert verdict is Verdict.EAGER_FAILED
    written = re.search(r": write (.*)$", reason)
    assert written is not None, reason
    assert written[1] == line
    declared = {"observation": observation, **inputs, **eval(f"dict({line})", dict(SPECS))}
    verdict, reason = reason_of(policy, declared.pop("observation"), declared)
    assert verdict is not Verdict.EAGER_FAILED, reason


def test_a_lazy_policy_is_told_the_line_too() -> None:
    policy = Calls(
        lambda m, x: m.head(m.layer(x).flatten(1)), layer=nn.Conv2d(3, 4, 3), head=nn.LazyLinear(2)
    )
    with pytest.raises(pytest_torchcompile.UsageError, match=r"write observation=Box\(\(3, 16, 16\)\)$"):
        reason_of(lambda: policy, Box((16, 16, 3)), {})


def test_a_policy_on_no_device_or_on_several_is_told_so() -> None:
    meta = Calls(lambda m, x: m.layer(x), layer=nn.Linear(8, 4, device="meta"))
    _, reason = reason_of(lambda: meta, Box((8,)), {})
    assert reason.endswith("hold no numbers: build the policy on the cpu")

    def split() -> nn.Module:
        policy = Calls(lambda m, x: m.layer(x * m.scale), layer=nn.Linear(8, 4))
        policy.scale = torch.ones(8, device="meta")  # type: ignore[assignment]
        return policy

    _, reason = reason_of(split, Box((8,)), {})
    assert "the policy is on several devices, scale on meta and layer.weight on cpu" in reason

    def split_in_a_list() -> nn.Module:
        policy = Calls(lambda m, x: m.layer(x * m.scaled[1]), layer=nn.Linear(8, 4))
        policy.scaled = [nn.ReLU(), torch.ones(8, device="meta")]  # type: ignore[assignment]
        return policy

    _, reason = reason_of(split_in_a_list, Box((8,)), {})
    assert "the policy is on several devices, scaled.1 on meta and layer.weight on cpu" in reason


def test_a_policy_on_an_accelerator_is_told_how_to_move_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_torchcompile.policies import input_advice

    weight = types.SimpleNamespace(device="cuda:0")
    monkeypatch.setattr(input_advice, "_named_tensors", lambda policy: {"layer.weight": weight})
    error = RuntimeError("Expected all tensors to be on the same device, but found at least two devices")
    assert advice(error, {"observation": Box((8,))}, mlp()).endswith(
        "write observation=Wrapped(Box((8,)), lambda x: x.to('cuda:0'))"
    )


def test_a_container_of_a_library_is_proposed() -> None:
    policy = Calls(lambda m, x: m.layer(x.obs), layer=nn.Linear(8, 4))
    _, reason = reason_of(lambda: policy, Box((8,)), {})
    assert "write observation=Wrapped({'obs': Box((8,))}, lambda t: Batch(**t))" in reason
    fits = Wrapped({"obs": Box((8,))}, lambda t: types.SimpleNamespace(**t))
    assert reason_of(lambda: policy, fits, {})[0] is not Verdict.EAGER_FAILED


def test_nothing_is_guessed() -> None:
    """Two inputs may be at fault, the bounds are arrays, or the policy raises for a reason of its own."""
    import numpy as np

    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x9 and 8x16)")
    two = {"observation": Box((9,)), "goal": Box((9,))}
    assert "write" not in advice(error, two, mlp())
    bounded = {"observation": Box((9,), low=np.zeros(9), high=np.ones(9))}
    assert "write" not in advice(error, bounded, mlp())
    assert advice(ValueError("not today"), {"observation": Box((8,))}, mlp()) == ""
    assert advice(KeyError(3), {"observation": Box((8,))}, mlp()) == ""
