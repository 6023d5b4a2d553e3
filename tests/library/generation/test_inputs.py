"""Layouts, shared memory and large integers reach both sides, and faults for such inputs are found."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_checks import assert_differs, assert_passes, check
from torch import nn

from pytest_torchcompile import (
    Box,
    Discrete,
    Image,
    LegalAction,
    LegalMask,
    State,
    Tokens,
    UsageError,
    Verdict,
)

OPTIONS = {"examples": 0, "batch": (4, 7)}
Wrong = Callable[[torch.Tensor], bool]


class Net(nn.Module):
    """A linear layer over whatever it is given."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.net = nn.Linear(elements, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.flatten(1).float())


def wrong_where(wrong: Wrong, seen: list[bool] | None = None) -> Any:
    """A backend whose graphs are wrong where an input (no parameter) is as `wrong` says."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            given = [a for a in args if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter)]
            odd = any(wrong(a) for a in given)
            if seen is not None:
                seen.append(odd)
            return tuple(o + 1 if odd and o.is_floating_point() else o for o in graph(*args))

        return run

    return backend


def is_dense(x: torch.Tensor) -> bool:
    """Whether the elements lie side by side, in whatever order."""
    return x.numel() == 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def last_is_not_innermost(x: torch.Tensor) -> bool:
    return len(x) > 1 and x.stride(-1) != 1 and is_dense(x)


def batch_is_innermost(x: torch.Tensor) -> bool:
    return len(x) > 1 and x.stride(0) == 1


def is_offset(x: torch.Tensor) -> bool:
    return x.storage_offset() > 0


def is_expanded(x: torch.Tensor) -> bool:
    return 0 in x.stride()


def is_channels_last_3d(x: torch.Tensor) -> bool:
    return x.dim() == 5 and len(x) > 1 and x.is_contiguous(memory_format=torch.channels_last_3d)


def only_at_seven(x: torch.Tensor) -> bool:
    return len(x) == 7 and last_is_not_innermost(x)


@pytest.mark.parametrize("shape", [(6,), (4, 5), (2, 3, 4), (2, 2, 3, 4)], ids=str)
@pytest.mark.parametrize(
    "wrong", [last_is_not_innermost, is_offset, is_expanded, only_at_seven], ids=lambda f: f.__name__
)
def test_a_fault_in_one_layout_is_found(shape: tuple[int, ...], wrong: Wrong) -> None:
    seen: list[bool] = []
    backend = wrong_where(wrong, seen)
    policy = functools.partial(Net, torch.Size(shape).numel())
    result = check(policy, observation=Box(shape), backend=backend, **OPTIONS)
    assert_differs(result, "output")
    assert True in seen
    assert False in seen


@pytest.mark.parametrize(
    ("shape", "wrong"),
    [
        ((4, 5), batch_is_innermost),
        ((2, 3, 4), batch_is_innermost),
        ((2, 2, 3, 4), batch_is_innermost),
        ((2, 2, 3, 4), is_channels_last_3d),
        (
            ("T", 4),
            lambda x: x.dim() == 3 and x.shape[1] > 1 and x.stride(0) < x.stride(1) and x.stride(2) == 1,
        ),
    ],
)
def test_a_fault_in_one_permutation_is_found(shape: tuple[Any, ...], wrong: Wrong) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.flatten(1).mean(1, keepdim=True))

    result = check(Mean, observation=Box(shape), backend=wrong_where(wrong), **OPTIONS)
    assert_differs(result, "output")


@pytest.mark.parametrize(
    ("shape", "phase"),
    [((6,), "update"), ((4, 5), "rollout"), ((2, 3, 4), "update"), ((2, 2, 3, 4), "rollout")],
)
def test_a_correct_policy_passes_in_every_layout(shape: tuple[int, ...], phase: str) -> None:
    policy = functools.partial(Net, torch.Size(shape).numel())
    result = check(policy, phase, observation=Box(shape), backend="aot_eager", **OPTIONS)
    assert_passes(result)
    assert not result.notes


def test_each_layout_adds_one_graph_at_most() -> None:
    result = check(functools.partial(Net, 24), observation=Box((2, 3, 4)), **OPTIONS)
    layouts = [text.rpartition(" on ")[2] for text in result.capture.recompiles]
    assert layouts[1:] == [
        f"batch 4, {name}" for name in ("expanded", "strided", "transposed", "permuted", "channels_last")
    ]


def test_the_example_names_its_layout() -> None:
    wrong = wrong_where(last_is_not_innermost)
    result = check(functools.partial(Net, 20), observation=Box((4, 5)), backend=wrong, batch=(4, 7))
    assert_differs(result, "output")
    assert result.example.endswith("transposed")


def test_an_input_that_is_written_in_place_and_expanded() -> None:
    """Eager itself raises on it: one row can't be written to as if it were several."""

    class Clamps(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.clamp_(-1, 1))

    result = check(functools.partial(Clamps, 6), observation=Box((6,)), backend="aot_eager", **OPTIONS)
    assert_passes(result)
    assert any("eager itself raised on 2 examples: RuntimeError" in note for note in result.notes)


# --- inputs that share their memory ---------------------------------------------------------------


class Steps(nn.Module):
    """Writes to one of its inputs, then reads the other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        x.mul_(2.0)
        return self.net(x) + self.net(following)


class ReadsFirst(Steps):
    """Compiled, it has read the other input before it writes."""

    def forward(self, x: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            early = following.clone()
            x.mul_(2.0)
            return self.net(x) + self.net(early)
        return super().forward(x, following)


class Reads(Steps):
    """Writes to neither."""

    def forward(self, x: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        return self.net(x) + self.net(following)


TWO = {"observation": Box((5,)), "inputs": {"following": Box((5,))}}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_write_to_one_input_shows_in_the_other(backend: str) -> None:
    correct = check(Steps, backend=backend, **TWO, **OPTIONS)
    assert_passes(correct)
    # Torch itself is wrong about views, which tells nothing of this policy.
    assert len(correct.remarks) == (backend == "aot_eager")
    assert all(text.startswith("if the inputs are views of one tensor") for text in correct.remarks)
    result = check(ReadsFirst, backend=backend, **TWO, **OPTIONS)
    assert_differs(result, "output")
    assert result.example.endswith("; observation and following are one tensor")


def test_inputs_with_other_specs_never_share_memory() -> None:
    inputs = {"observation": Box((5,)), "inputs": {"following": Box((5,), low=-3.0)}}
    assert_passes(check(ReadsFirst, **inputs, **OPTIONS))


def test_views_of_one_tensor() -> None:
    def are_views(a: torch.Tensor, b: torch.Tensor) -> bool:
        return a is not b and a.data_ptr() == b.data_ptr()

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            given = [a for a in args if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter)]
            odd = any(are_views(a, b) for a in given for b in given)
            return tuple(o + odd for o in graph(*args))

        return run

    result = check(Reads, backend=backend, **TWO, **OPTIONS)
    assert_differs(result, "output")
    assert result.example.endswith("; observation and following are views of one tensor")


# --- integers -------------------------------------------------------------------------------------


class Counter(nn.Module):
    """Takes large whole numbers: ids, steps, scores."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.net = nn.Embedding(64, 4), nn.Linear(3, 4)

    def forward(self, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.table(n.long() % 64).sum(1) + self.net(n / 2**20), n // 3


def wraps(n: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return n.to(dtype).to(n.dtype)


@pytest.mark.parametrize(
    ("dtype", "phase"),
    [
        (torch.int8, "rollout"),
        (torch.uint8, "update"),
        (torch.int16, "rollout"),
        (torch.uint16, "update"),
        (torch.int32, "rollout"),
        (torch.int32, "update"),
    ],
    ids=str,
)
def test_integers_that_wrap_are_found(dtype: torch.dtype, phase: str) -> None:
    """The fault is above zero only, so the example has to be at the edge itself."""

    class Narrow(Counter):
        def forward(self, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            narrow = torch.where(n >= 0, wraps(n, dtype), n)
            return super().forward(narrow if torch.compiler.is_compiling() else n)

    assert_differs(check(Narrow, phase, observation=Box((3,), dtype="int64"), **OPTIONS), "output[1]")


@pytest.mark.parametrize("edge", [127, 128, -129, 255, 256, 32767, 32768, -32769, 2**31, -(2**31)])
def test_one_integer_that_is_wrong_is_found(edge: int) -> None:
    class Odd(Counter):
        def forward(self, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return super().forward(n + (n == edge) if torch.compiler.is_compiling() else n)

    assert_differs(check(Odd, "update", observation=Box((3,), dtype="int64"), **OPTIONS), "output[0]")


@pytest.mark.parametrize(
    ("dtype", "phase"), [("int64", "rollout"), ("int64", "update"), ("int32", "update"), ("uint8", "rollout")]
)
def test_correct_policies_of_integers_pass(dtype: str, phase: str) -> None:
    assert_passes(check(Counter, phase, observation=Box((3,), dtype=dtype), backend="aot_eager", **OPTIONS))


# --- bounds, constants ----------------------------------------------------------------------------


class Root(Net):
    """Defined for what its bounds admit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x.sqrt())
        return (
            torch.where(x.isnan().any() | x.isinf().any(), y + 1, y) if torch.compiler.is_compiling() else y
        )


def test_a_bounded_input_is_never_nan_or_infinite() -> None:
    assert_passes(check(functools.partial(Root, 4), observation=Box((4,), low=0.0, high=9.0), **OPTIONS))
    odd = check(functools.partial(Root, 4), observation=Box((4,), low=0.0), **OPTIONS)
    assert "inf" in odd.example


def test_an_empty_state_is_handed_over_as_it_is() -> None:
    class Agent(Net):
        def forward(self, x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
            assert state == ()
            return super().forward(x), state

    assert_passes(check(functools.partial(Agent, 4), observation=Box((4,)), inputs={"state": ()}, **OPTIONS))


@pytest.mark.parametrize(
    ("constant", "line"),
    [
        (torch.zeros(4, 17), r"observation=Box\(\(17,\)\)"),
        (torch.zeros(4, 17, dtype=torch.int64), r"observation=Box\(\(17,\), dtype='int64'\)"),
        (torch.zeros(4, 3, 8, 8).numpy(), r"observation=Box\(\(3, 8, 8\)\)"),
        ({"x": torch.zeros(4, 17)}, r"observation=Box\(\(17,\)\)"),
        ((), r"observation is \(\), which is no spec"),
        ({"greedy": True}, r"which is no spec; declare what Net observes.*observation=Box\(\(17,\)\)"),
    ],
)
def test_an_observation_that_never_varies_is_refused(constant: Any, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        check(functools.partial(Net, 17), observation=constant, **OPTIONS)


def test_inputs_that_never_vary_are_refused() -> None:
    with pytest.raises(UsageError, match=r"x is a tensor of shape \(4, 17\), but must be a spec.*x=Box"):
        check(functools.partial(Net, 17), inputs={"x": torch.zeros(4, 17)}, **OPTIONS)


def test_a_constant_tensor_beside_a_spec() -> None:
    class Shifted(Net):
        def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return super().forward(x + shift)

    inputs = {"observation": Box((5,)), "inputs": {"shift": torch.ones(5)}}
    assert_passes(check(functools.partial(Shifted, 5), **inputs, **OPTIONS))


def test_a_process_that_flushes_denormals_is_checked() -> None:
    torch.set_flush_denormal(True)
    try:
        result = check(functools.partial(Net, 5), observation=Box((5,)), examples=20)
    finally:
        torch.set_flush_denormal(False)
    assert_passes(result)


def test_states_in_other_layouts() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(4, 8)

        def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            return self.cell(x, state[0])

    inputs = {"observation": Box((4,)), "inputs": {"state": State((1, 8), batch_dim=1)}}
    assert_passes(check(Recurrent, **inputs, **OPTIONS))
    assert check(Recurrent, backend=wrong_where(is_expanded), **inputs, **OPTIONS).verdict is Verdict.DIFFERS


def test_a_policy_of_actions_alone() -> None:
    class Values(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)

        def forward(self, action: torch.Tensor) -> torch.Tensor:
            return self.table(action)

    assert_passes(check(Values, observation=Discrete(5), **OPTIONS))
    strided = check(
        Values, observation=Discrete(5), backend=wrong_where(lambda x: x.stride(0) == 2), **OPTIONS
    )
    assert_differs(strided, "output")


# --- the ends of a declared range -----------------------------------------------------------------


class Rows(nn.Module):
    """A layer, and an embedding of an index."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.rows = nn.Embedding(rows, 2)

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return self.net(x) + self.rows(index).reshape(len(x), -1, 2).sum(1)


@pytest.mark.parametrize(
    ("spec", "last"),
    [(Discrete(5000), 4999), (Discrete(70, start=-30), 39), (Tokens(50000, 6), 49999)],
    ids=repr,
)
def test_a_fault_at_the_last_index_is_found(spec: Any, last: int) -> None:
    class Shifted(Rows):
        def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return super().forward(x, index.abs())

    def at_last(x: torch.Tensor) -> bool:
        return x.dtype == torch.int64 and bool((x == last).any())

    policy, inputs = functools.partial(Shifted, 50000), {"x": Box((3,)), "index": spec}
    assert_differs(check(policy, inputs=inputs, backend=wrong_where(at_last), **OPTIONS), "output")
    assert_passes(check(policy, inputs=inputs, **OPTIONS))


@pytest.mark.parametrize(
    ("spec", "corner"),
    [
        (Box((4,), low=0, high=255), [255.0] * 4),
        (Box((4,), low=-3), [-3.0] * 4),
        (Box((3,), low=[-1, -2, 0], high=[1, 2, 10]), [1.0, 2.0, 10.0]),
        (Box((3,), low=[-1, -2, 0], high=[1, 2, 10]), [-1.0, -2.0, 0.0]),
        (Image((1, 2, 2)), [255] * 4),
    ],
    ids=str,
)
def test_a_fault_where_all_is_at_a_bound_is_found(spec: Any, corner: list[float]) -> None:
    def at_corner(x: torch.Tensor) -> bool:
        return x.dtype == (torch.uint8 if isinstance(spec, Image) else torch.float32) and bool(
            (x.flatten(1) == torch.tensor(corner)).all()
        )

    result = check(
        functools.partial(Net, len(corner)), observation=spec, backend=wrong_where(at_corner), **OPTIONS
    )
    assert_differs(result, "output")
    assert_passes(check(functools.partial(Net, len(corner)), observation=spec, **OPTIONS))


def test_a_fault_at_the_last_legal_action_is_found() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 13527)

        def forward(self, x: torch.Tensor, mask: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
            scores = self.net(x).masked_fill(~mask, -torch.inf).log_softmax(-1)
            return scores.gather(-1, action[:, None])[:, 0]

    def at_last(x: torch.Tensor) -> bool:
        return x.dtype == torch.int64 and bool((x == 13526).any())

    inputs = {"x": Box((3,)), "mask": LegalMask(13527), "action": LegalAction("mask")}
    assert_differs(check(Masked, inputs=inputs, backend=wrong_where(at_last), **OPTIONS), "output")
    assert_passes(check(Masked, inputs=inputs, **OPTIONS))


# --- small numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [3e-3, 1e-4, 3e-6])
@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_a_fault_beside_small_numbers_is_found(eps: float, phase: str) -> None:
    class Normalised(nn.Module):
        def __init__(self, wrong: float) -> None:
            super().__init__()
            self.net = nn.Linear(8, 3)
            self.wrong = wrong

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            eps = self.wrong if torch.compiler.is_compiling() else 1e-12
            return self.net(nn.functional.normalize(x, dim=-1, eps=eps))

    found = check(functools.partial(Normalised, eps), phase, observation=Box((8,)), **OPTIONS)
    assert_differs(found, "output")
    assert_passes(check(functools.partial(Normalised, 1e-12), phase, observation=Box((8,)), **OPTIONS))
