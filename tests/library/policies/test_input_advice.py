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
    LegalAction,
    MultiBinary,
    MultiDiscrete,
    OneHot,
    State,
    Tokens,
    Verdict,
    Wrapped,
    check_equivalence,
)
from pytest_torchcompile.policies.input_advice import advice
from pytest_torchcompile.specs import conventions

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


class Acts(nn.Module):
    """A policy with 4 logits and an embedding of 12 rows; `forward` is a function of it and its inputs."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.pi = nn.Linear(8, 4)
        self.table = nn.Embedding(12, 4)

    def forward(self, x: torch.Tensor, action: Any) -> Any:
        return self.function(self, x, action)


def log_prob(m: Any, x: Any, action: Any) -> Any:
    return torch.distributions.Categorical(logits=m.pi(x), validate_args=False).log_prob(action)


def gathered(m: Any, x: Any, action: Any) -> Any:
    return m.pi(x).gather(1, action[:, None])


def by_converted(m: Any, x: Any, action: Any) -> Any:
    return m.pi(x).gather(1, action.long()[:, None])


def filled(m: Any, x: Any, action: Any) -> Any:
    action_mask = action["action_mask"]
    return m.pi(x).masked_fill(~action_mask, -1.0)


def chosen(m: Any, x: Any, action: Any) -> Any:
    return torch.where(action, m.pi(x), -1.0)


def looked_up(m: Any, x: Any, action: Any) -> Any:
    return m.pi(x) + m.table(action)


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


class Lstm(nn.Module):
    """A policy with an LSTM, whose state `given` passes on to it."""

    def __init__(self, given: Any = lambda states: states, layer: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.given = given
        self.rnn = layer(8, 16)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, states: Any) -> Any:
        x = x if isinstance(self.rnn, nn.LSTMCell) else x[None]
        return self.head(x), self.rnn(x, self.given(states))


def unpacked(states: Any) -> Any:
    h, c = states
    return h, c


def by_index(states: Any) -> Any:
    return states[0], states[1]


RIGHT = "states=(State((1, 16), batch_dim=1), State((1, 16), batch_dim=1))"

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
    "state of another size": (
        recurrent,
        Box((8,)),
        {"state": State((1, 9), batch_dim=1)},
        "state=State((1, 16), batch_dim=1)",
    ),
    "state without layers": (recurrent, Box((8,)), {"state": State(16)}, "state=State((1, 16), batch_dim=1)"),
    "too many actions": (lambda: Acts(gathered), Box((8,)), {"action": Discrete(9)}, "action=Discrete(4)"),
    "too many for a distribution": (
        lambda: Acts(log_prob),
        Box((8,)),
        {"action": Discrete(9)},
        "action=Discrete(4)",
    ),
    "floats for a distribution": (
        lambda: Acts(log_prob),
        Box((8,)),
        {"action": Box(4)},
        "action=Discrete(4)",
    ),
    "a float": (lambda: Acts(by_converted), Box((8,)), {"action": Box(())}, "action=Discrete(4)"),
    "floats into one of two": (
        lambda: Acts(looked_up),
        Box((8,)),
        {"action": Box(12)},
        "action=Discrete(12)",
    ),
    "a mask of floats": (
        lambda: Acts(filled),
        Box((8,)),
        {"action": {"action_mask": MultiBinary(4)}},
        "action={'action_mask': LegalMask(4)}",
    ),
    "a condition of floats": (
        lambda: Acts(chosen),
        Box((8,)),
        {"action": MultiBinary(4)},
        "action=MultiBinary((4,), dtype='bool')",
    ),
    "states": (Lstm, Box((8,)), {"states": (State((1, 16)), State((1, 16)))}, RIGHT),
    "one state of two": (Lstm, Box((8,)), {"states": State((1, 16), batch_dim=1)}, RIGHT),
    "one state of two, batch first": (Lstm, Box((8,)), {"states": State((1, 16))}, RIGHT),
    "one state, unpacked": (
        lambda: Lstm(unpacked),
        Box((8,)),
        {"states": State((1, 16), batch_dim=1)},
        RIGHT,
    ),
    "one state, by index": (
        lambda: Lstm(by_index),
        Box((8,)),
        {"states": State((1, 16), batch_dim=1)},
        RIGHT,
    ),
    "one state of a cell": (
        lambda: Lstm(layer=nn.LSTMCell),
        Box((8,)),
        {"states": State(16)},
        "states=(State((16,)), State((16,)))",
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


def test_nothing_is_guessed_of_indices() -> None:
    """The index may be a number of the policy itself, or come from another input."""
    above = "index 4 is out of bounds for dimension 1 with size 4"
    one = {"observation": Box((8,)), "action": Discrete(9)}
    assert advice(RuntimeError(above), one, mlp()).endswith("write action=Discrete(4)")
    assert advice(IndexError(above), one, mlp()) == ""
    # These specs draw no 4.
    for spec in (Discrete(4), Discrete(9, start=5), Box((), 0, 3, "int64"), Tokens(4), Box((2,))):
        assert advice(RuntimeError(above), {"observation": Box((8,)), "action": spec}, mlp()) == ""
    for other in (Discrete(7), MultiDiscrete((9, 9)), LegalAction("mask"), Tokens(9), Box((), 0, 9, "int64")):
        assert advice(RuntimeError(above), {**one, "goal": other}, mlp()) == ""
    classes = RuntimeError("Class values must be smaller than num_classes.")
    assert "write" not in advice(classes, {"observation": Discrete(20)}, embedding())


def test_nothing_is_guessed_of_masks() -> None:
    """The floats that are used as a mask are none of the inputs whose name the line has."""

    def other(m: Any, x: Any, action: Any) -> Any:
        mask = m.pi(x)
        return mask.masked_fill(mask, -1.0)

    verdict, reason = reason_of(lambda: Acts(other), Box((8,)), {"action": MultiBinary(4)})
    assert verdict is Verdict.EAGER_FAILED
    assert "write" not in reason


def test_nothing_is_guessed_of_states() -> None:
    """The state that does not fit is no input, the input may be another one, or the layer takes no batch."""
    kept = RuntimeError("Expected hidden size (1, 4, 16), got [1, 1, 16]")
    assert advice(kept, {"observation": Box((8,)), "context": State((3,))}, recurrent()) == ""
    sequences = RuntimeError("Expected hidden size (1, 1, 16), got [4, 1, 16]")
    assert advice(sequences, {"observation": Box((8,)), "state": State((1, 16))}, recurrent()) == ""
    unbatched = RuntimeError("For unbatched 2-D input, hx should also be 2-D but got 3-D tensor")
    assert advice(unbatched, {"observation": Box((8,)), "state": State((1, 16), 1)}, recurrent()) == ""
    two = {"actor": (State((1, 16)),) * 2, "critic": (State((1, 16)),) * 2}
    wrong = RuntimeError("Expected hidden[0] size (1, 4, 16), got [4, 1, 16]")
    assert advice(wrong, two, Lstm()) == ""
    other = {"states": State((1, 16), 1)}
    assert advice(IndexError("index 1 is out of bounds for dimension 0 with size 1"), other, Lstm()) == ""
    assert advice(ValueError("not enough values to unpack (expected 2, got 1)"), other, Lstm()) == ""


@pytest.mark.parametrize(
    ("layer", "parameters", "name", "line"),
    [
        (nn.LSTM(8, 16), ["x", "hx"], "hx", "(State((1, 16), batch_dim=1), State((1, 16), batch_dim=1))"),
        (nn.LSTM(8, 16), ["x", "h", "c"], "h", "State((1, 16), batch_dim=1)"),
        (nn.LSTM(8, 16, proj_size=4), ["x", "hx", "cx"], "hx", "State((1, 4), batch_dim=1)"),
        (nn.LSTM(8, 16, proj_size=4), ["x", "hx", "cx"], "cx", "State((1, 16), batch_dim=1)"),
        (nn.GRU(8, 16, 2, bidirectional=True), ["x", "state"], "state", "State((4, 16), batch_dim=1)"),
        (nn.GRUCell(8, 16), ["x", "hidden"], "hidden", "State((16,))"),
        (nn.GRU(8, 16), ["x", "goal"], "goal", "Box((8,))"),
        (nn.Linear(8, 16), ["x", "state"], "state", "State((1, 64), batch_dim=1)"),
        (nn.Linear(8, 16), ["x", "h"], "h", "Box((8,))"),
    ],
)
def test_a_missing_state_has_the_sizes_of_the_recurrent_layer(
    layer: nn.Module, parameters: list[str], name: str, line: str
) -> None:
    assert conventions.proposed_input(name, Calls(None, layer=layer), parameters) == line


def test_a_missing_state_of_a_policy_is_proposed() -> None:
    with pytest.raises(pytest_torchcompile.UsageError, match=re.escape(f"{{'states': {RIGHT[7:]}}}")):
        reason_of(Lstm, Box((8,)), {})
