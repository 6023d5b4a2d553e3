"""Input specs: what is accepted, what is refused with which message, and how spaces are converted."""

from __future__ import annotations

import collections
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from pytest_torchcompile import (
    Box,
    Constant,
    Discrete,
    Flag,
    Image,
    LegalAction,
    LegalMask,
    MultiBinary,
    MultiDiscrete,
    OneHot,
    State,
    Tokens,
    UsageError,
)
from pytest_torchcompile.specs.conversion import as_spec, resolve
from pytest_torchcompile.specs.spaces import are_equal
from pytest_torchcompile.specs.trees import dotted, leaves, mask_of, rebuild

Pair = collections.namedtuple("Pair", "board turn")


@pytest.mark.parametrize(
    ("given", "shape"),
    [(8, (8,)), ((8,), (8,)), ([3, 4], (3, 4)), ("T", ("T",)), (("T", 6), ("T", 6)), ((), ())],
)
def test_a_shape_is_a_tuple_of_sizes_however_it_is_written(given: Any, shape: tuple[Any, ...]) -> None:
    assert Box(given).shape == shape


def test_numpy_integers_are_sizes() -> None:
    assert Box((np.int64(3), np.int32(4))).shape == (3, 4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Box((0,)), "positive integers"),
        (lambda: Box((-1, 3)), "positive integers"),
        (lambda: Box((2.5,)), "positive integers"),
        (lambda: Box((True,)), "positive integers"),
        (lambda: Box("U"), "positive integers"),
        (lambda: Box(None), "positive integers"),
        (lambda: Box((2,), low=1.0, high=0.0), "low exceeds high"),
        (lambda: Box((2,), low=[0.0, 2.0], high=[1.0, 1.0]), "low exceeds high"),
        (
            lambda: Box((2,), low=0, high=np.inf, dtype="int64"),
            "high must be finite, because int64 is; write",
        ),
        (lambda: Box((2,), low=[0.0, -np.inf], dtype="int32"), "low must be finite, because int32 is"),
        (
            lambda: Box((2,), low=np.nan, dtype="uint8"),
            "low must be finite, because uint8 is; write None for",
        ),
        (lambda: Image((3, 0, 2)), "positive integers"),
        (lambda: Discrete(0), "n must be a positive integer"),
        (lambda: Discrete(2.0), "n must be a positive integer"),
        (lambda: Discrete(True), "n must be a positive integer"),
        (lambda: MultiDiscrete([]), "nvec must hold positive integers"),
        (lambda: MultiDiscrete([3, 0]), "nvec must hold positive integers"),
        (lambda: OneHot(0), "n must be a positive integer"),
        (lambda: LegalMask(0), "a mask without a legal action leaves nothing to choose"),
        (lambda: LegalAction(""), "mask must be the name of an input"),
        (lambda: LegalAction(LegalMask(3)), "mask must be the name of an input"),
        (lambda: State((2, 8), batch_dim=3), "batch_dim must lie between 0 and 2"),
        (lambda: State((2, 8), batch_dim=-1), "batch_dim must lie between 0 and 2"),
        (lambda: Box(("T", 8), batch_dim=3), "batch_dim must lie between 0 and 2"),
        (lambda: Box((5, 8), low=np.zeros((5, 8)), batch_dim=1), "bounds must be numbers, or arrays of"),
        (lambda: Tokens(0), "vocabulary must be a positive integer"),
        (lambda: Tokens(9, length=0), "length must be a positive integer"),
    ],
)
def test_a_spec_that_describes_nothing_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make()


def test_the_message_names_the_spec() -> None:
    with pytest.raises(UsageError, match=r"^Discrete\(0\): n must be a positive integer"):
        Discrete(0)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (Box((8,)), "Box((8,))"),
        (Box((2,), -1.0, high=1.0, dtype="float64"), "Box((2,), low=-1.0, high=1.0, dtype='float64')"),
        (LegalAction("mask"), "LegalAction('mask')"),
        (State((1, 64), batch_dim=1), "State((1, 64), batch_dim=1)"),
        (Tokens(9), "Tokens(9)"),
    ],
)
def test_a_spec_is_shown_as_it_is_written(spec: Any, text: str) -> None:
    assert repr(spec) == text


def test_a_spec_with_arrays_can_be_shown() -> None:
    assert repr(Box((2,), low=np.zeros(2))) == "Box((2,), low=array([0., 0.]))"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((8,), Box((8,))),
        ((46, 9, 9), Box((46, 9, 9))),
        (("T", 6), Box(("T", 6))),
        (Discrete(3), Discrete(3)),
        ({"board": (3, 3), "turn": Discrete(2)}, {"board": Box((3, 3)), "turn": Discrete(2)}),
        (((8,), Discrete(2)), (Box((8,)), Discrete(2))),
        ([(8,), Flag()], [Box((8,)), Flag()]),
        (Pair((3, 3), Discrete(2)), Pair(Box((3, 3)), Discrete(2))),
        ({"a": {"b": ((4,), 0.5)}}, {"a": {"b": (Box((4,)), Constant(0.5))}}),
        (None, Constant(None)),
        (3, Constant(3)),
        (True, Constant(True)),
        ("greedy", Constant("greedy")),
    ],
    ids=repr,
)
def test_as_spec(given: Any, expected: Any) -> None:
    found = as_spec(given)
    assert found == expected
    assert type(found) is type(expected)


def test_a_tensor_is_a_constant() -> None:
    import torch

    tensor = torch.ones(3)
    assert as_spec(tensor).value is tensor


def test_a_spec_class_that_was_not_called_is_refused() -> None:
    with pytest.raises(UsageError, match=r"observation=Box is a class; write Box\(\.\.\.\)"):
        as_spec(Box)


def test_a_function_within_a_nest_is_refused() -> None:
    with pytest.raises(UsageError, match=r"observation\.board is a function"):
        as_spec({"board": lambda model: Box((3,))})


# --- functions of the module ----------------------------------------------------------------------


class Model:
    obs_dim = 5


def test_a_function_is_given_the_built_module() -> None:
    assert resolve(lambda model: Box((model.obs_dim,)), Model(), "observation") == Box((5,))


def test_what_the_function_returns_is_converted_too() -> None:
    assert resolve(lambda model: {"x": (model.obs_dim,)}, Model(), "observation") == {"x": Box((5,))}


def test_a_function_that_raises_is_named_with_its_module() -> None:
    with pytest.raises(UsageError, match="inputs.action is a function that raised AttributeError .* Model"):
        resolve(lambda model: Box((model.action_dim,)), Model(), "inputs.action")


# --- gymnasium ------------------------------------------------------------------------------------

spaces = gymnasium.spaces


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Box(-np.inf, np.inf, (4,), np.float32), Box((4,), None, None, "float32")),
        (spaces.Box(-np.inf, np.inf, (4,), np.float64), Box((4,), None, None, "float64")),
        (spaces.Box(0, 255, (3, 8, 8), np.uint8), Image((3, 8, 8))),
        (spaces.Discrete(4), Discrete(4)),
        (spaces.Discrete(3, start=-1), Discrete(3, -1)),
        (spaces.MultiDiscrete([3, 2]), MultiDiscrete((3, 2))),
        (spaces.MultiDiscrete([3, 2], np.int32), MultiDiscrete((3, 2), "int32")),
        (spaces.MultiDiscrete([3, 3], start=[1, 1]), Box((2,), 1, 3, "int64")),
        (spaces.MultiDiscrete(np.full((2, 4), 3)), Box((2, 4), 0, 2, "int64")),
        (spaces.MultiBinary(5), MultiBinary((5,), "int8")),
        (spaces.MultiBinary([2, 3]), MultiBinary((2, 3), "int8")),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), (Discrete(2), Discrete(3))),
    ],
    ids=repr,
)
def test_a_gymnasium_space_is_its_spec(space: Any, expected: Any) -> None:
    assert as_spec(space) == expected


def test_bounds_of_a_gymnasium_box_are_kept_per_element() -> None:
    low, high = np.array([-1.0, 0.0], np.float32), np.array([1.0, 5.0], np.float32)
    spec = as_spec(spaces.Box(low, high))
    assert spec.shape == (2,)
    np.testing.assert_array_equal(spec.low, low)
    np.testing.assert_array_equal(spec.high, high)


def test_a_gymnasium_box_bounded_on_one_side_only() -> None:
    spec = as_spec(spaces.Box(0.0, np.inf, (2,)))
    assert spec.high is None
    np.testing.assert_array_equal(spec.low, [0.0, 0.0])


def test_the_largest_float_means_unbounded() -> None:
    most = np.finfo(np.float32).max
    assert as_spec(spaces.Box(-most, most, (4,), np.float32)) == Box((4,), None, None, "float32")


def test_infinite_bounds_of_floats_and_the_largest_integers_are_bounds() -> None:
    """The control of those that are refused."""
    least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    assert as_spec(spaces.Box(least, most, (3,), np.int64)) == Box((3,), least, most, "int64")
    assert Box((3,), low=-np.inf, high=[1.0, 2.0, np.inf]).low == -np.inf
    assert Box((3,), low=None, high=5, dtype="int64").low is None


def test_a_gymnasium_dict_nests() -> None:
    space = spaces.Dict({"camera": spaces.Box(0, 255, (8, 8, 3), np.uint8), "turn": spaces.Discrete(2)})
    assert as_spec(space) == {"camera": Image((8, 8, 3)), "turn": Discrete(2)}


def test_a_space_inside_a_nest_of_specs() -> None:
    assert as_spec({"action": spaces.Discrete(4), "mask": LegalMask(4)})["action"] == Discrete(4)


def test_a_subclass_of_a_space_counts_as_its_base() -> None:
    class Board(spaces.Box):
        pass

    assert as_spec(Board(-np.inf, np.inf, (9, 9), np.float32)) == Box((9, 9), None, None, "float32")


def test_a_space_without_a_spec_is_refused_with_a_declaration_to_paste() -> None:
    with pytest.raises(UsageError, match=r"obs: a space of type Text has no spec.*obs=Box\(\(8,\)\)"):
        as_spec(spaces.Text(5), "obs")


def test_spaces_are_told_by_name_and_never_imported() -> None:
    """A gym space works where only that library is installed, and specs cost no import of torch."""
    script = """
import sys
from pytest_torchcompile.specs.spaces import Discrete
from pytest_torchcompile.specs.conversion import as_spec

Space = type("Space", (), {"__module__": "gym.spaces.space"})
Fake = type("Discrete", (Space,), {"__module__": "gym.spaces.discrete", "n": 4})
assert as_spec(Fake()) == Discrete(4), as_spec(Fake())
assert not {"gym", "gymnasium", "torch", "hypothesis"} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# --- trees ----------------------------------------------------------------------------------------

TREE = {"x": Box((3,)), "y": (Flag(), {"mask": LegalMask(4)}), "z": Pair(Discrete(2), Discrete(3))}


def test_leaves_come_in_the_order_of_the_tree() -> None:
    assert [dotted(path) for path, _ in leaves(TREE)] == ["x", "y.0", "y.1.mask", "z.0", "z.1"]


def test_rebuild_keeps_the_structure_and_its_types() -> None:
    rebuilt = rebuild(TREE, dotted)
    assert rebuilt == {"x": "x", "y": ("y.0", {"mask": "y.1.mask"}), "z": Pair("z.0", "z.1")}
    assert isinstance(rebuilt["z"], Pair)


def test_a_mask_is_found_by_its_name_or_by_its_path() -> None:
    assert mask_of(TREE, LegalAction("mask")) == ("y", 1, "mask")
    assert mask_of(TREE, LegalAction("y.1.mask")) == ("y", 1, "mask")


def test_a_mask_that_no_input_is_called_names_the_inputs() -> None:
    with pytest.raises(
        UsageError, match=r"names no input.*; the inputs are: x, y\.0, y\.1\.mask, z\.0, z\.1"
    ):
        mask_of(TREE, LegalAction("legal"))


def test_the_mask_that_is_meant_is_named() -> None:
    nested = {"observation": {"state": Box((8,)), "action_mask": LegalMask(4)}}
    with pytest.raises(UsageError, match=r"did you mean 'observation\.action_mask'\?\); the inputs are"):
        mask_of(nested, LegalAction("mask"))
    with pytest.raises(UsageError, match=r"did you mean 'legal_mask'\?"):
        mask_of({"legal_mask": LegalMask(4), "other": LegalMask(4)}, LegalAction("legal_maks"))
    for tree in ({"x": Box((8,))}, {"a": LegalMask(4), "b": LegalMask(4)}):
        with pytest.raises(UsageError, match=r"names no input; the inputs are"):
            mask_of(tree, LegalAction("mask"))


def test_a_mask_that_is_not_unique_is_refused() -> None:
    tree = {"us": {"mask": LegalMask(4)}, "them": {"mask": LegalMask(4)}}
    with pytest.raises(UsageError, match="names 2 inputs"):
        mask_of(tree, LegalAction("mask"))
    assert mask_of(tree, LegalAction("them.mask")) == ("them", "mask")


@pytest.mark.parametrize("empty", [(), {}, []], ids=repr)
def test_an_empty_container_is_a_constant(empty: Any) -> None:
    """The initial state of a feed-forward agent; a scalar is a `Box(())`."""
    tree = as_spec({"x": Box((3,)), "state": empty})
    assert [path for path, _ in leaves(tree)] == [("x",)]
    rebuilt = rebuild(tree, lambda path: "tensor")
    assert rebuilt == {"x": "tensor", "state": empty}
    assert not isinstance(as_spec(empty), Box)
    assert as_spec((empty, Box(2)))[0] == empty


def test_specs_are_compared_with_their_bounds() -> None:
    low = np.array([0.0, 1.0])
    assert are_equal(Box((2,), low), Box((2,), low.copy()))
    assert not are_equal(Box((2,), low), Box((2,), low + 1))
    assert not are_equal(Box((2,), low), Box((2,)))
    assert not are_equal(Flag(), LegalMask(2))
