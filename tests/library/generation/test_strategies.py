"""Tensors from specs: everything drawn matches its spec, and failing examples shrink."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import gymnasium
import hypothesis
import numpy as np
import pytest
import torch
from drawing import draws
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

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
    observations,
)
from pytest_torchcompile.generation.descriptions import describe
from pytest_torchcompile.generation.recipes import (
    LAYOUTS,
    Fill,
    Recipe,
    equal_specs,
    in_other_memory,
    ladder,
    layouts,
    random_recipe,
)
from pytest_torchcompile.generation.strategies import recipes
from pytest_torchcompile.generation.tensors import build, leaves
from pytest_torchcompile.specs.conversion import as_spec

# --- every spec -----------------------------------------------------------------------------------

SPECS = [
    (Box((3, 2)), (3, 2), torch.float32),
    (Box(()), (), torch.float32),
    (Box((3,), dtype=torch.float64), (3,), torch.float64),
    (Box((3,), dtype="bfloat16"), (3,), torch.bfloat16),
    (Box((3,), dtype=np.float16), (3,), torch.float16),
    (Box((3,), dtype="int32"), (3,), torch.int32),
    (Box((3,), dtype="bool"), (3,), torch.bool),
    (Image((3, 8, 8)), (3, 8, 8), torch.uint8),
    (Discrete(4), (), torch.int64),
    (MultiDiscrete([3, 2, 5]), (3,), torch.int64),
    (MultiBinary(6), (6,), torch.float32),
    (MultiBinary((2, 3), dtype="int8"), (2, 3), torch.int8),
    (OneHot(5), (5,), torch.float32),
    (OneHot(5, dtype="int64"), (5,), torch.int64),
    (LegalMask(7), (7,), torch.bool),
    (LegalMask(7, dtype="float32"), (7,), torch.float32),
    (Flag(), (), torch.bool),
    (Flag(dtype="float32"), (), torch.float32),
    (State((2, 8)), (2, 8), torch.float32),
    (State((4,), dtype="float64"), (4,), torch.float64),
    (Tokens(9, length=6), (6,), torch.int64),
]


@pytest.mark.parametrize(("spec", "shape", "dtype"), SPECS, ids=lambda value: repr(value))
def test_shape_and_dtype_are_those_of_the_spec(spec: Any, shape: Any, dtype: torch.dtype) -> None:
    drawn = draws(observations(spec, batch=(1, 9)))
    assert {tensor.dtype for tensor in drawn} == {dtype}
    assert {tuple(tensor.shape[1:]) for tensor in drawn} == {shape}
    sizes = {tensor.shape[0] for tensor in drawn}
    assert sizes <= set(range(1, 10))
    assert len(sizes) > 3


@pytest.mark.parametrize("spec", [spec for spec, _, _ in SPECS], ids=repr)
def test_the_draws_of_a_spec_are_not_all_alike(spec: Any) -> None:
    drawn = draws(observations(spec, batch=4))
    assert sum(not torch.equal(drawn[0], tensor) for tensor in drawn[1:]) > len(drawn) // 4


def test_the_state_puts_the_batch_where_it_is_told() -> None:
    drawn = draws(observations({"x": Box((3,)), "state": State((1, 8), batch_dim=1)}, batch=(2, 5)))
    for value in drawn:
        assert value["state"].shape == (1, value["x"].shape[0], 8)


def test_a_state_is_zeros_or_of_the_order_of_one() -> None:
    drawn = draws(observations(State((2, 8))), 200)
    assert any(bool((state == 0).all()) for state in drawn)
    assert any(bool((state != 0).all()) for state in drawn)
    assert max(float(state.abs().max()) for state in drawn) < 10


def test_a_sequence_has_one_length_per_example_in_all_inputs() -> None:
    drawn = draws(observations({"x": Box(("T", 4)), "ids": Tokens(9)}))
    assert len({value["x"].shape[1] for value in drawn}) > 4
    assert all(value["x"].shape[1] == value["ids"].shape[1] for value in drawn)


@pytest.mark.parametrize(
    ("spec", "least", "most"),
    [
        (Discrete(4), 0, 3),
        (Discrete(3, start=-1), -1, 1),
        (Tokens(9, length=6), 0, 8),
        (Image((4, 4)), 0, 255),
        (MultiBinary(6), 0, 1),
        (Flag(), 0, 1),
    ],
    ids=repr,
)
def test_integers_reach_both_ends_of_their_range_and_no_further(spec: Any, least: int, most: int) -> None:
    values = torch.cat([tensor.to(torch.int64).reshape(-1) for tensor in draws(observations(spec), 100)])
    assert int(values.min()) == least
    assert int(values.max()) == most


def test_each_column_of_a_multi_discrete_has_its_own_range() -> None:
    rows = torch.cat(draws(observations(MultiDiscrete([3, 2, 5])), 100))
    assert rows.amin(0).tolist() == [0, 0, 0]
    assert rows.amax(0).tolist() == [2, 1, 4]


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.MultiDiscrete([3, 2, 5]),
        gymnasium.spaces.MultiDiscrete([3, 2, 5], start=[1, -1, 0]),
        gymnasium.spaces.MultiDiscrete(np.array([[3, 2, 5], [2, 2, 4]])),
        gymnasium.spaces.MultiDiscrete([3, 2, 5], dtype=np.int32),
        gymnasium.spaces.MultiDiscrete(
            np.array([[3, 2], [2, 4]]), np.uint8, start=np.array([[9, 8], [7, 6]])
        ),
    ],
    ids=repr,
)
def test_all_values_of_a_multi_discrete_space_are_drawn_and_no_others(space: Any) -> None:
    rows = torch.cat(draws(observations(space), 100)).numpy()
    assert rows.dtype == space.dtype
    assert all(map(space.contains, rows))
    np.testing.assert_array_equal(rows.min(0), space.start)
    np.testing.assert_array_equal(rows.max(0), space.start + space.nvec - 1)


def test_a_one_hot_row_holds_one_one() -> None:
    rows = torch.cat(draws(observations(OneHot(5)), 100))
    assert bool((rows.sum(1) == 1).all())
    assert set(rows.unique().tolist()) == {0.0, 1.0}
    assert set(rows.argmax(1).tolist()) == set(range(5))


# --- bounds ---------------------------------------------------------------------------------------


def _extremes(spec: Any, count: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.cat([tensor.double() for tensor in draws(observations(spec), count)])
    return rows.amin(0), rows.amax(0)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_bounds_hold_for_every_draw_in_every_dtype(dtype: str) -> None:
    """Compared as a user would, in the tensor's own dtype."""
    drawn = draws(observations(Box((3, 4), low=0.1, high=0.3, dtype=dtype)), 150)
    assert all(bool(((tensor >= 0.1) & (tensor <= 0.3)).all()) for tensor in drawn)
    values = torch.cat([tensor.reshape(-1).float() for tensor in drawn])
    assert float(values.max() - values.min()) > 0.15


def test_edits_keep_the_bounds() -> None:
    tree = as_spec(Box((2, 2), low=-1.0, high=2.0))
    fill = Fill(stop=0, edits=((0, 1e4), (3, -1e4)))
    value = build(tree, Recipe(1, 1, 0, (fill,)))
    assert value.tolist() == [[[2.0, 0.0], [0.0, -1.0]]]


def test_bounds_per_element_hold_for_bulk_and_edits() -> None:
    low, high = np.array([0.0, 10.0, -5.0]), np.array([1.0, 11.0, -4.0])
    least, most = _extremes(Box((3,), low, high))
    assert bool((least >= torch.tensor(low)).all())
    assert bool((most <= torch.tensor(high)).all())
    assert bool((most - least > 0.8).all())


def test_bounds_on_one_side() -> None:
    least, most = _extremes(Box((3,), low=5.0))
    assert float(least.min()) == 5.0
    assert float(most.max()) > 20
    least, most = _extremes(Box((3,), high=-5.0))
    assert float(most.max()) == -5.0
    assert float(least.min()) < -20


def test_integer_bounds_are_inclusive() -> None:
    least, most = _extremes(Box((3,), low=-2, high=3, dtype="int64"))
    assert least.tolist() == [-2, -2, -2]
    assert most.tolist() == [3, 3, 3]


def test_bounds_of_a_box_of_integers_beyond_the_usual_range() -> None:
    least, most = _extremes(Box((3,), low=500, dtype="int64"))
    assert float(least.min()) == 500
    assert float(most.max()) > 500


def test_unbounded_draws_are_mostly_of_the_order_of_one_and_sometimes_large() -> None:
    drawn = draws(observations(Box((64,)), batch=4), 400)
    scales = torch.tensor([float(tensor.std()) for tensor in drawn])
    assert 0.3 < float((scales < 2).float().mean()) < 1
    assert float(scales.max()) > 1e3


def test_draws_are_finite() -> None:
    """NaN and infinities belong to the fixed examples of a check, never to a user's own test."""
    assert all(bool(torch.isfinite(tensor).all()) for tensor in draws(observations(Box((5,))), 200))


def test_a_gymnasium_box_unbounded_in_one_element_only() -> None:
    low, high = np.array([-1.0, -np.inf], np.float32), np.array([1.0, np.inf], np.float32)
    least, most = _extremes(gymnasium.spaces.Box(low, high))
    assert least[0] >= -1
    assert most[0] <= 1
    assert 10 < float(most[1]) < 1e6


def test_the_largest_float_in_one_element_means_unbounded_there() -> None:
    """CartPole did so for years; used as a bound, it would fill the element with values of 1e38."""
    most_float = np.finfo(np.float32).max
    low, high = np.array([-1.0, -most_float], np.float32), np.array([1.0, most_float], np.float32)
    _, most = _extremes(gymnasium.spaces.Box(low, high))
    assert most[0] <= 1
    assert 10 < float(most[1]) < 1e6


# --- masks and actions ----------------------------------------------------------------------------

MASKED = {"observation": {"x": Box((3,)), "legal": LegalMask(6)}, "action": LegalAction("legal")}


def test_every_row_of_a_mask_has_a_legal_action() -> None:
    rows = torch.cat(draws(observations(LegalMask(6)), 150))
    assert bool(rows.any(1).all())
    counts = set(rows.sum(1).tolist())
    assert counts >= {1, 2, 3, 4, 5, 6}


def test_the_only_legal_action_can_be_any() -> None:
    rows = torch.cat(draws(observations(LegalMask(4)), 200))
    single = rows[rows.sum(1) == 1].float().argmax(1)
    assert set(single.tolist()) == {0, 1, 2, 3}


def test_an_edit_cannot_take_the_last_legal_action() -> None:
    tree = as_spec(LegalMask(2))
    fill = Fill(stop=0, edits=((0, 0), (1, 0)))
    assert bool(build(tree, Recipe(1, 1, 0, (fill,))).any())


def test_actions_are_legal_under_their_mask() -> None:
    drawn = draws(observations(MASKED), 150)
    for value in drawn:
        mask, action = value["observation"]["legal"], value["action"]
        assert action.dtype == torch.int64
        assert action.shape == mask.shape[:1]
        assert bool(mask.gather(1, action[:, None]).all())
    assert {int(a) for value in drawn for a in value["action"]} == set(range(6))


def test_actions_are_not_always_the_first_legal_one() -> None:
    drawn = draws(observations(MASKED), 100)
    later = [
        int((value["action"] != value["observation"]["legal"].float().argmax(1)).sum()) for value in drawn
    ]
    assert sum(later) > 0


def test_edited_actions_stay_legal() -> None:
    tree = as_spec({"mask": LegalMask(5), "action": LegalAction("mask")})
    for edit in range(10):
        mask = Fill(seed=edit)
        action = Fill(seed=edit, edits=((0, edit), (2, 255 - edit)))
        value = build(tree, Recipe(3, 1, 0, (mask, action)))
        assert bool(value["mask"].gather(1, value["action"][:, None]).all())


def test_an_action_under_a_mask_that_is_a_constant() -> None:
    mask = torch.tensor([[False, True, False], [True, False, True]])
    drawn = draws(observations({"mask": Constant(mask), "action": LegalAction("mask")}, batch=2))
    assert {int(value["action"][0]) for value in drawn} == {1}
    assert {int(value["action"][1]) for value in drawn} == {0, 2}


def test_a_constant_mask_without_a_legal_action_is_refused() -> None:
    tree = as_spec({"mask": Constant(torch.tensor([[False, False]])), "action": LegalAction("mask")})
    with pytest.raises(UsageError, match="needs two dimensions .* and a legal action in each row"):
        build(tree, random_recipe(tree, 1, 0))


# --- nests, constants -----------------------------------------------------------------------------


def test_a_nest_of_specs_is_a_nest_of_tensors_with_one_batch_size() -> None:
    spec = {"board": (2, 3), "more": (Flag(), [Discrete(3)]), "camera": gymnasium.spaces.Discrete(2)}
    for value in draws(observations(spec)):
        size = value["board"].shape[0]
        assert value["board"].shape == (size, 2, 3)
        assert isinstance(value["more"], tuple)
        assert isinstance(value["more"][1], list)
        assert value["more"][0].shape == value["more"][1][0].shape == value["camera"].shape == (size,)


def test_leaves_of_one_kind_are_drawn_apart() -> None:
    drawn = draws(observations({"a": Box((8,)), "b": Box((8,))}))
    assert any(not torch.equal(value["a"], value["b"]) for value in drawn)


def test_constants_pass_through() -> None:
    value = draws(observations({"x": (3,), "greedy": True, "name": "policy", "none": None}), 3)[0]
    assert value["greedy"] is True
    assert value["name"] == "policy"
    assert value["none"] is None


@pytest.mark.parametrize("constant", [torch.ones(3), np.ones(3)], ids=["tensor", "array"])
def test_changing_a_drawn_constant_leaves_the_users_own_alone(constant: Any) -> None:
    for value in draws(observations({"x": (3,), "c": constant}), 3):
        assert value["c"] is not constant
        value["c"][0] = 9
    assert float(constant[0]) == 1.0


def test_requires_grad_is_the_specs() -> None:
    drawn = draws(observations({"x": Box((3,), requires_grad=True), "y": Box((3,))}), 3)
    assert all(value["x"].requires_grad and value["x"].is_leaf for value in drawn)
    assert not any(value["y"].requires_grad for value in drawn)


# --- layouts --------------------------------------------------------------------------------------


def other_memory(tree: Any, sizes: tuple[int, ...], seed: int) -> list[Recipe]:
    laid_out, views = in_other_memory(tree, sizes, seed)
    return [*laid_out, *views]


SHAPES = {1: (), 2: (3,), 3: (3, 4), 4: (3, 4, 5), 5: (2, 3, 4, 5)}
"""By the number of dimensions with the batch."""

LAID_OUT = {
    "offset": lambda x: x.is_contiguous() and x.storage_offset() == 1,
    "sliced": lambda x: x.is_contiguous() and x.storage_offset() == x[0].numel(),
    "expanded": lambda x: x.stride(0) == 0,
    "strided": lambda x: x.stride(-1) == 2,
    "transposed": lambda x: x.mT.is_contiguous() and not x.is_contiguous(),
    "batch_second": lambda x: x.transpose(0, 1).is_contiguous() and not x.is_contiguous(),
    "permuted": lambda x: x.permute(*reversed(range(x.dim()))).is_contiguous() and x.stride(0) == 1,
    "channels_last": lambda x: x.is_contiguous(memory_format=torch.channels_last),
    "channels_last_3d": lambda x: x.is_contiguous(memory_format=torch.channels_last_3d),
}


def test_every_layout_is_described() -> None:
    assert ("contiguous", *LAID_OUT) == LAYOUTS


@pytest.mark.parametrize(
    ("dims", "layout"),
    [
        (dims, layout)
        for dims, shape in SHAPES.items()
        for layout in layouts(Box(("T", *shape[1:]) if shape else ()))
    ],
)
def test_a_layout_changes_how_a_tensor_lies_and_no_value(dims: int, layout: str) -> None:
    tree = as_spec(Box(SHAPES[dims]))
    plain = build(tree, random_recipe(tree, 2, 1))
    laid_out = build(tree, random_recipe(tree, 2, 1, like=Fill(layout=layout)))
    if layout == "expanded":
        plain = plain[:1].expand_as(plain)
    assert torch.equal(plain, laid_out)
    assert LAID_OUT[layout](laid_out)
    assert not LAID_OUT[layout](build(tree, random_recipe(tree, 2, 1)))


def test_layouts_by_dimensions() -> None:
    simple = ["offset", "sliced", "expanded", "strided"]
    assert layouts(as_spec(Discrete(3))) == simple
    assert layouts(as_spec(Box((3,)))) == [*simple, "transposed"]
    assert layouts(as_spec(Box((3, 4)))) == [*simple, "transposed", "permuted"]
    assert layouts(as_spec(Box(("T", 4)))) == [*simple, "transposed", "batch_second", "permuted"]
    assert layouts(as_spec(Box((3, 4, 5)))) == [*simple, "transposed", "permuted", "channels_last"]
    assert layouts(as_spec(Box((2, 3, 4, 5))))[-1] == "channels_last_3d"
    assert layouts(as_spec({"c": Constant(torch.ones(3, 3))})) == []


def test_an_expanded_state_repeats_its_first_episode() -> None:
    tree = as_spec(State((2, 4), batch_dim=1))
    state = build(tree, random_recipe(tree, 3, 1, like=Fill(layout="expanded")))
    assert state.shape == (2, 3, 4)
    assert state.stride()[1] == 0


def test_a_time_major_input_has_the_batch_second_and_stays_within_its_bounds() -> None:
    declared = {
        "frames": Box(("T", 2), low=[-1.0, 0.0], high=[0.0, 2.0], batch_dim=1),
        "done": MultiBinary(("T",), "bool", batch_dim=1),
        "pixels": Image(("T", 3), batch_dim=1),
    }
    tree = as_spec(declared)
    for number, layout in enumerate(["contiguous", *layouts(tree)]):
        value = build(tree, random_recipe(tree, 3, number, 4, Fill(layout=layout)))
        shapes = {name: tuple(tensor.shape) for name, tensor in value.items()}
        assert shapes == {"frames": (4, 3, 2), "done": (4, 3), "pixels": (4, 3, 3)}
        assert bool((value["frames"] >= torch.tensor([-1.0, 0.0])).all())
        assert bool((value["frames"] <= torch.tensor([0.0, 2.0])).all())
        assert value["done"].dtype is torch.bool


def test_an_action_is_legal_under_an_expanded_mask() -> None:
    tree = as_spec({"mask": LegalMask(7), "action": LegalAction("mask")})
    for number in range(20):
        value = build(tree, random_recipe(tree, 5, number, like=Fill(layout="expanded")))
        assert bool(value["mask"].gather(1, value["action"][:, None]).all())


def test_what_is_applied_to_each_tensor_keeps_its_layout() -> None:
    tree = as_spec({"x": Box((3, 4), requires_grad=True), "n": Discrete(3)})
    recipe = random_recipe(tree, 2, 1, like=Fill(layout="expanded"))
    wide = leaves(tree, recipe, lambda t: t.double() if t.is_floating_point() else t)
    assert wide[("x",)].dtype == torch.float64
    assert wide[("x",)].requires_grad
    assert wide[("x",)].stride(0) == wide[("n",)].stride(0) == 0


def test_drawn_layouts_are_those_asked_for() -> None:
    drawn = draws(observations(Box((3, 4, 5)), batch=(2, 5), layouts=("contiguous", "channels_last")))
    kinds = {(x.is_contiguous(), x.is_contiguous(memory_format=torch.channels_last)) for x in drawn}
    assert kinds == {(True, False), (False, True)}
    assert all(x.is_contiguous() for x in draws(observations(Box((3, 4, 5)), batch=(2, 5))))


# --- recipes --------------------------------------------------------------------------------------

EVERYTHING = {
    "x": Box((3, 4)),
    "bounded": Box((2,), low=0.0, high=1.0),
    "image": Image((3, 4, 4)),
    "mask": LegalMask(5),
    "action": LegalAction("mask"),
    "hot": OneHot(4),
    "state": State((1, 4), batch_dim=1),
    "ids": Tokens(7),
    "flag": Flag(),
    "c": Constant(torch.arange(3)),
}


def _flat(value: Any) -> list[torch.Tensor]:
    return list(value.values())


def test_a_recipe_builds_equal_and_separate_tensors_each_time() -> None:
    tree = as_spec(EVERYTHING)
    for recipe in draws(recipes(tree, st.integers(1, 9), layouts=LAYOUTS), 30):
        first, second = _flat(build(tree, recipe)), _flat(build(tree, recipe))
        for one, two in zip(first, second, strict=True):
            assert torch.equal(one, two)
            assert one.stride() == two.stride()
            assert one.data_ptr() != two.data_ptr()


def test_recipes_are_plain_values() -> None:
    recipe = draws(recipes(as_spec(EVERYTHING), st.integers(1, 9)), 20)[-1]
    assert eval(repr(recipe), {"Recipe": Recipe, "Fill": Fill}) == recipe
    assert isinstance(hash(recipe), int)


def test_a_smaller_batch_begins_with_the_same_values() -> None:
    """Otherwise an example would change while Hypothesis shrinks its batch."""
    tree = as_spec(Box((3,)))
    long = build(tree, random_recipe(tree, 9, 3))
    short = build(tree, random_recipe(tree, 4, 3))
    assert torch.equal(long[:4], short)


def test_the_seed_of_the_recipe_is_drawn() -> None:
    """A single seed does not show a frozen random stream."""
    seeds = {recipe.seed for recipe in draws(recipes(as_spec(Box((2,))), st.just(2)), 30)}
    assert len(seeds) > 10


# --- the fixed examples ---------------------------------------------------------------------------


def _ladder(tree: Any, **changes: Any) -> list[Any]:
    arguments = {"nonfinite": True, "seed": 0} | changes
    return [build(tree, recipe) for recipe in ladder(tree, (4, 7, 1, 33), **arguments)]


def test_the_fixed_examples_meet_every_batch_size_and_content() -> None:
    found = _ladder(as_spec(Box((3, 4, 4))))
    sizes = [x.shape[0] for x in found]
    assert sizes[0] == 4, "the first example has the declared batch size"
    assert set(sizes[:5]) == {4, 7, 1, 33}, "each regime of the compiler is met first"
    for value in (0, 1, -1):
        assert any(bool((x == value).all()) for x in found), value
    assert any(bool(torch.isfinite(x).all()) and float(x.std()) > 1e3 for x in found)
    assert [int(x.isnan().sum()) for x in found if bool(x.isnan().any())] == [1]
    assert [int(x.isinf().sum()) for x in found if bool(x.isinf().any())] == [1]


def test_the_fixed_examples_are_contiguous_and_apart() -> None:
    for recipe in ladder(as_spec({"a": Box((3,)), "b": Box((3,))}), (4, 7), nonfinite=True, seed=0):
        assert not recipe.shared
        assert {fill.layout for fill in recipe.fills} == {"contiguous"}


def test_each_layout_is_met_at_two_sizes() -> None:
    tree = as_spec(Box((3, 4, 4)))
    recipes_ = other_memory(tree, (4, 7, 1, 33), 5)
    met = [(recipe.fills[0].layout, recipe.batch) for recipe in recipes_]
    assert met == [(layout, size) for layout in layouts(tree) for size in (4, 7)]
    assert len({recipe.seed for recipe in recipes_}) == len(recipes_)
    (size,) = {recipe.batch for recipe in other_memory(tree, (4,), 5)}
    assert size == 4


# --- inputs that share their memory ---------------------------------------------------------------


TWO = {"observation": Box((3,)), "next": Box((3,)), "other": Box((3,), low=0.0)}


def test_inputs_with_equal_specs() -> None:
    assert equal_specs(as_spec(TWO)) == [(0, 1)]
    assert equal_specs(as_spec({"a": Box((3,)), "b": Box((4,)), "c": Box((3,), dtype="float64")})) == []
    bounds = np.array([1.0, 2.0, 3.0])
    equal = {"a": Box((3,), high=bounds), "b": Box((3,), high=bounds.copy()), "c": Box((3,), high=2 * bounds)}
    assert equal_specs(as_spec(equal)) == [(0, 1)]
    actions = {"mask": LegalMask(3), "a": LegalAction("mask"), "b": LegalAction("mask")}
    assert equal_specs(as_spec(actions)) == []


def test_the_last_examples_share_memory() -> None:
    tree = as_spec(TWO)
    one, views = (r for r in other_memory(tree, (4, 7), 0) if r.shared)
    value = build(tree, one)
    assert value["observation"] is value["next"]
    assert value["other"] is not value["next"]
    value = build(tree, views)
    first, second = value["observation"], value["next"]
    assert first is not second
    second[0] = 9.0
    assert first[0].tolist() == [9.0, 9.0, 9.0]
    assert not any(r.shared for r in other_memory(as_spec({"x": Box((3,)), "y": Box((4,))}), (4,), 0))


def test_shared_masks_keep_their_actions_legal() -> None:
    tree = as_spec({"mask": LegalMask(5), "next_mask": LegalMask(5), "action": LegalAction("mask")})
    for number in range(20):
        for recipe in other_memory(tree, (6, 7), number)[-2:]:
            assert recipe.shared
            value = build(tree, recipe)
            assert bool(value["mask"].gather(1, value["action"][:, None]).all())


def test_all_inputs_with_one_spec_share_their_memory() -> None:
    tree = as_spec(
        (Box((2,), requires_grad=True), Box((2,), requires_grad=True), Box((2,), requires_grad=True))
    )
    found = build(tree, other_memory(tree, (4, 7), 0)[-1])
    assert len({id(tensor) for tensor in found}) == 3
    assert len({tensor.data_ptr() for tensor in found}) == 1
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in found)


def test_shared_memory_is_described_and_kept_while_shrinking() -> None:
    tree = as_spec(TWO)
    shared = other_memory(tree, (4, 7), 0)[-1]
    assert describe(tree, shared).endswith("; observation and next are views of one tensor")
    assert shared.shape == "batch 4, views of one tensor"
    drawn = draws(recipes(tree, st.integers(1, 4), like=shared), 10)
    assert {recipe.shared for recipe in drawn} == {shared.shared}


# --- integers -------------------------------------------------------------------------------------


def _held(spec: Any, sizes: tuple[int, ...] = (4, 7, 1, 33)) -> set[int]:
    tree = as_spec(spec)
    found = (build(tree, r).reshape(-1).tolist() for r in ladder(tree, sizes, nonfinite=True, seed=0))
    return {int(value) for values in found for value in values}


NEAR = {127, 128, 255, 256, 32767, 32768, 65535, 65536}


@pytest.mark.parametrize("sizes", [(4, 7, 1, 33), (2,), (1,)])
def test_integers_on_each_side_of_what_narrower_dtypes_hold(sizes: tuple[int, ...]) -> None:
    held = _held(Box((3,), dtype="int64"), sizes)
    assert held >= NEAR | {-value for value in NEAR} | {2**31 - 1, 2**31, -(2**31), -(2**31) - 1}


@pytest.mark.parametrize(
    ("spec", "held", "not_held"),
    [
        (Box((3,), dtype=torch.int32), NEAR | {-32769, 2**31 - 1, -(2**31)}, {2**31}),
        (Box((3,), dtype="int16"), {127, 128, 32767, -128, -129, -32768}, {32768}),
        (Box((3,), dtype=np.int8), {127, -128, -127}, {128}),
        (Box((3,), dtype="uint8"), {127, 128, 255}, {-1}),
        (Box((3,), low=0, high=300, dtype="int64"), {127, 128, 255, 256}, {-1, 32767}),
        (Discrete(70000), NEAR, {-1}),
        (Discrete(200, start=-150), {-127, -128, -129}, {127}),
        (Tokens(50257, length=3), {127, 128, 32767, 32768}, {65535}),
        (MultiDiscrete((2, 300)), {127, 128, 255, 256}, set()),
        (Box((2,), np.array([0, -5]), np.array([3, 200]), "int64"), {127, 128}, {255}),
    ],
    # The sets have no names: their order changes with who read the file, and xdist wants one order.
    ids=lambda value: "" if isinstance(value, set) else repr(value),
)
def test_integers_that_the_dtype_holds_and_the_spec_admits(
    spec: Any, held: set[int], not_held: set[int]
) -> None:
    found = _held(spec)
    assert found >= held
    assert not found & not_held


def test_large_integers_are_not_beside_small_ones() -> None:
    """Beside 2^31 a difference at 128 is lost in rounding."""
    tree = as_spec(Box((3,), dtype="int64"))
    for recipe in ladder(tree, (4, 33), nonfinite=True, seed=0):
        value = build(tree, recipe).abs()
        assert not (bool((value == 128).any()) and bool((value >= 2**31).any()))


def test_integers_that_failed_can_be_found_again() -> None:
    drawn = draws(observations(Box((3,), dtype="int64")), 300)
    assert any(bool((value.abs() >= 32767).any()) for value in drawn)


@pytest.mark.parametrize(
    ("spec", "ends"),
    [
        (Discrete(5000), [4999]),
        (Discrete(5000, start=-7), [4992]),
        (Tokens(50257, length=3), [50256]),
        (Image((2, 2)), [255]),
        (Box((2,), low=-3, high=300), [-3, 300]),
        (Box((2,), low=-3, high=300, dtype="int64"), [-3, 300]),
    ],
    ids=repr,
)
def test_some_example_is_all_at_each_end_of_a_declared_range(spec: Any, ends: list[int]) -> None:
    found = _ladder(as_spec(spec))
    for end in ends:
        assert any(bool((value == end).all()) for value in found), end


@pytest.mark.parametrize("spec", [Box((6,)), Box((2, 3), low=0.0), Box(("T", 4), batch_dim=1)], ids=repr)
def test_some_example_has_small_rows(spec: Any) -> None:
    found = (value.transpose(0, spec.batch_dim).flatten(1) for value in _ladder(as_spec(spec)))
    sizes = [value.norm(dim=1) for value in found]
    assert any(
        bool(((size > 0) & (size < 0.1)).all()) and float(size.max() / size.min()) > 1000 for size in sizes
    )


def test_each_element_is_at_its_own_bound() -> None:
    spec = Box((3,), low=np.array([-2.0, 0.5, -np.inf]), high=np.array([np.inf, 3.0, np.inf]))
    rows = [value[0].tolist() for value in _ladder(as_spec(spec))]
    assert [0.0, 3.0, 0.0] in rows
    assert [-2.0, 0.5, 0.0] in rows
    assert [2, 0, 299] in [value[0].tolist() for value in _ladder(as_spec(MultiDiscrete((3, 1, 300))))]


def test_the_last_legal_action_under_a_mask_that_is_all_legal() -> None:
    tree = as_spec({"x": Box((2,)), "mask": LegalMask(300), "action": LegalAction("mask")})
    last = [value for value in _ladder(tree) if bool((value["action"] == 299).all())]
    assert any(bool(value["mask"].all()) and len(value["x"].unique()) > 2 for value in last)


@pytest.mark.parametrize(
    "spec",
    [Box((3,)), Box((3,), -1, 1), LegalMask(4), Flag(), State((2,)), Box((2,), dtype="int8")],
    ids=repr,
)
def test_no_example_is_added_for_a_bound_that_is_met_or_absent(spec: Any) -> None:
    assert not any(
        math.isinf(fill.rest) for r in ladder(as_spec(spec), (4,), nonfinite=True, seed=0) for fill in r.fills
    )


@pytest.mark.parametrize(
    "spec", [Box((3,)), Discrete(4), LegalMask(3), Flag(), Box((3,), dtype="bool")], ids=repr
)
def test_others_have_no_such_examples(spec: Any) -> None:
    tree = as_spec(spec)
    assert not any(r.fills[0].edits for r in ladder(tree, (4, 7), nonfinite=False, seed=0))


# --- what bounds keep out -------------------------------------------------------------------------


def _odd(spec: Any) -> list[float]:
    """What is not finite among the fixed examples."""
    found = torch.cat([value.reshape(-1) for value in _ladder(as_spec(spec))])
    return found[~torch.isfinite(found)].tolist()


def test_bounds_keep_nan_and_infinity_out() -> None:
    assert _odd(Box((3,), low=-1.0, high=1.0)) == []
    assert _odd(Box((3,), low=0.0)) == [math.inf]
    assert _odd(Box((3,), high=0.0)) == [-math.inf]
    nan, infinite = _odd(Box((3,)))
    assert math.isnan(nan)
    assert infinite == math.inf


def test_an_element_without_bounds_gets_them() -> None:
    low, high = np.array([-1.0, -np.inf], np.float32), np.array([1.0, np.inf], np.float32)
    for value in _ladder(as_spec(Box((2,), low, high))):
        assert bool(torch.isfinite(value[:, 0]).all())
    assert len(_odd(Box((2,), low, high))) == 2


def test_the_first_input_without_bounds_gets_them() -> None:
    tree = as_spec({"bounded": Box((2,), low=0.0, high=1.0), "free": Box((2,))})
    values = [build(tree, recipe) for recipe in ladder(tree, (4, 7), nonfinite=True, seed=0)]
    assert all(bool(torch.isfinite(value["bounded"]).all()) for value in values)
    assert sum(not bool(torch.isfinite(value["free"]).all()) for value in values) == 2


def test_edits_that_are_not_finite_keep_the_bounds() -> None:
    tree = as_spec(Box((2,), low=np.array([2.0, -np.inf]), high=np.array([3.0, np.inf])))
    edits = tuple((place, value) for place, value in enumerate((math.nan, math.nan, math.inf, -math.inf)))
    value = build(tree, Recipe(2, 1, 0, (Fill(stop=0, edits=edits),)))
    assert value[0, 0] == 2.0
    assert math.isnan(value[0, 1])
    assert value[1].tolist() == [3.0, -math.inf]


def test_the_fixed_examples_without_nonfinite_values() -> None:
    found = _ladder(as_spec(Box((3,))), nonfinite=False)
    assert all(bool(torch.isfinite(x).all()) for x in found)
    assert len(found) == len(_ladder(as_spec(Box((3,))))) - 2


def test_the_fixed_examples_of_bounded_inputs_keep_the_bounds() -> None:
    for x in _ladder(as_spec(Box((3,), low=-0.75, high=0.5))):
        finite = x[torch.isfinite(x)]
        assert bool(((finite >= -0.75) & (finite <= 0.5)).all())


def test_integer_inputs_get_no_nan() -> None:
    image = as_spec(Image((3, 4, 4)))
    assert len(_ladder(image)) == len(_ladder(image, nonfinite=False))


def test_another_seed_gives_other_fixed_examples() -> None:
    first = _ladder(as_spec(Box((3,))))[0]
    assert torch.equal(first, _ladder(as_spec(Box((3,))))[0])
    assert not torch.equal(first, _ladder(as_spec(Box((3,))), seed=1)[0])


# --- shrinking and cost ---------------------------------------------------------------------------


def test_a_process_that_flushes_denormals() -> None:
    """Hypothesis refuses to draw subnormal numbers there."""
    tree = as_spec({"x": Box((3,)), "state": State((2,))})
    before = observations(tree)
    torch.set_flush_denormal(True)
    try:
        drawn = [*draws(observations(tree), 100), *draws(before, 100)]
    finally:
        torch.set_flush_denormal(False)
    assert len(drawn) == 200
    assert any(bool((value["x"] != 0).any()) for value in drawn)


@pytest.mark.parametrize("under", range(6))
def test_a_failure_shrinks_to_the_smallest_batch_and_one_element(under: int) -> None:
    failing: list[torch.Tensor] = []

    @seed(under)
    @settings(
        max_examples=300,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(observations(Box((46, 9, 9))))
    def sample_2_is_not_below_minus_5(x: torch.Tensor) -> None:
        if x.shape[0] > 2 and bool((x[2] < -5).any()):
            failing.append(x)
            raise AssertionError

    with pytest.raises(AssertionError):
        sample_2_is_not_below_minus_5()
    smallest = failing[-1]
    assert smallest.shape == (3, 46, 9, 9)
    assert int((smallest != 0).sum()) == 1
    assert float(smallest[2].min()) < -5


def test_drawing_boards_is_cheap() -> None:
    """200 draws should take 2 s; a limit of four times that still detects filling element by element."""
    started = time.perf_counter()
    assert len(draws(observations(Box((46, 9, 9)), batch=8), 200)) == 200
    assert time.perf_counter() - started < 8


# --- describing an example ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "fill", "text"),
    [
        (Box((2, 2)), Fill(stop=0), "batch 1; observation: zeros"),
        (Box((2, 2)), Fill(stop=0, edits=((3, -6.0),)), "batch 1; observation: zeros, [0, 1, 1] = -6"),
        (Box((2, 3)), Fill(stop=0, rest=1.0), "batch 1; observation: all 1"),
        (
            Box((2, 3), low=[-1, -2, -3], high=[4, 5, 6]),
            Fill(stop=0, rest=math.inf),
            "batch 1; observation: the largest values",
        ),
        (Box((2, 3)), Fill(seed=5, scale=10.0), "batch 1; observation: random (seed 5, scale 10)"),
        (
            Box((2, 3)),
            Fill(seed=5, scale=0.01, fading=True),
            "batch 1; observation: random (seed 5, scale 0.01 in the first row to 1e-06 in the last)",
        ),
        (Box((2, 3)), Fill(seed=5, layout="strided"), "batch 1; observation: random (seed 5), strided"),
        (LegalMask(6), Fill(stop=0), "batch 1; observation: all legal"),
        (Box(("T", 8)), Fill(seed=5), "batch 1; T = 3; observation: random (seed 5)"),
        (
            Box((2, 4)),
            Fill(seed=5, edits=((1, float("nan")),)),
            "batch 1; observation: random (seed 5), [0, 0, 1] = nan",
        ),
    ],
)
def test_an_example_is_described_in_one_line(spec: Any, fill: Fill, text: str) -> None:
    assert describe(as_spec(spec), Recipe(1, 3, 0, (fill,))) == text


def test_each_input_is_described_under_its_name() -> None:
    tree = as_spec({"observation": Box((2,)), "mask": LegalMask(2), "action": LegalAction("mask")})
    recipe = Recipe(2, 1, 0, (Fill(stop=0), Fill(stop=0), Fill(stop=0)))
    assert describe(tree, recipe) == "batch 2; observation: zeros; mask: all legal; action: 0, 0"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"spec": Box((2,)), "batch": 0}, "batch=0; accepted"),
        ({"spec": Box((2,)), "batch": (3, 2)}, r"batch=\(3, 2\); accepted"),
        ({"spec": Box((2,)), "batch": 2.5}, "batch=2.5; accepted"),
        ({"spec": Box((2,)), "batch": "ab"}, "batch='ab'; accepted"),
        ({"spec": Box((2,)), "layouts": ("diagonal",)}, "layouts=.*accepted: contiguous"),
        ({"spec": Box((2,)), "layouts": ()}, "layouts=.*accepted: contiguous"),
        ({"spec": Box((2,), dtype="floot")}, "'floot' is no torch dtype"),
        ({"spec": Box((2,), low=[1.0, 2.0, 3.0])}, "observation: Box.*broadcast"),
        ({"spec": Box((2,), low=float("nan"))}, "Box"),
        ({"spec": {"x": {"y": Box((2,), dtype="complex64")}}}, r"x\.y: Box"),
        ({"spec": {"action": LegalAction("mask")}}, "names no input"),
        ({"spec": Box}, "is a class; write"),
        ({"spec": lambda model: Box((2,))}, "is a function"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        observations(**arguments)


def test_a_numpy_integer_is_a_batch_size() -> None:
    assert draws(observations(Box((2,)), batch=np.int64(3)), 2)[0].shape == (3, 2)


def test_a_strategy_of_batch_sizes() -> None:
    drawn = draws(observations(Box((2,)), batch=st.sampled_from([2, 8])))
    assert {x.shape[0] for x in drawn} == {2, 8}


# --- the project's Hypothesis settings ------------------------------------------------------------

TEST_FILE = """
from hypothesis import given
from pytest_torchcompile import Box, observations

@given(observations(Box((3,))))
def test_drawn(x):
    with open("drawn.txt", "a") as file:
        file.write(f"{x.tolist()}\\n")
"""


def _drawn_under(pytester: pytest.Pytester, *arguments: str) -> str:
    pytester.makepyfile(test_drawn=TEST_FILE)
    log = Path(pytester.path, "drawn.txt")
    log.unlink(missing_ok=True)
    plugins = ("-p", "no:randomly", "-p", "no:cacheprovider")
    result = pytester.runpytest_subprocess(*plugins, *arguments)
    result.assert_outcomes(passed=1)
    return log.read_text()


def test_the_hypothesis_seed_of_the_command_line_decides_what_is_drawn(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "from hypothesis import settings\n"
        "settings.register_profile('few', max_examples=7, database=None, deadline=None)\n"
        "settings.load_profile('few')\n"
    )
    first = _drawn_under(pytester, "--hypothesis-seed=1")
    assert len(first.splitlines()) == 7, "the profile's number of examples"
    assert _drawn_under(pytester, "--hypothesis-seed=1") == first


def test_what_failed_is_tried_first_the_next_time() -> None:
    """The example database works with recipes as with any other value."""
    database = hypothesis.database.InMemoryExampleDatabase()

    def run() -> list[torch.Tensor]:
        tried: list[torch.Tensor] = []

        @settings(max_examples=200, deadline=None, database=database, suppress_health_check=list(HealthCheck))
        @given(observations(Box((8,))))
        def nothing_beyond_5000(x: torch.Tensor) -> None:
            tried.append(x)
            assert not bool((x > 5000).any())

        with pytest.raises(AssertionError):
            nothing_beyond_5000()
        return tried

    smallest = run()[-1]
    first_tried = run()[0]
    assert torch.equal(first_tried, smallest)
