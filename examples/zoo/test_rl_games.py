"""rl_games: one dict with an ``is_train`` flag, `prev_actions` and observations that it normalises."""

import pytest
from rl_games.algos_torch.models import ModelA2CContinuousLogStd
from rl_games.algos_torch.network_builder import A2CBuilder

from pytest_torchcompile import Box

PARAMS = {
    "separate": False,
    "space": {
        "continuous": {
            "mu_activation": "None",
            "sigma_activation": "None",
            "mu_init": {"name": "default"},
            "sigma_init": {"name": "const_initializer", "val": 0},
            "fixed_sigma": True,
        }
    },
    "mlp": {"units": [32, 32], "activation": "elu", "initializer": {"name": "default"}},
}


def build():
    builder = A2CBuilder()
    builder.load(PARAMS)
    return ModelA2CContinuousLogStd(builder).build(
        {
            "actions_num": 3,
            "input_shape": (8,),
            "num_seqs": 1,
            "value_size": 1,
            "normalize_value": True,
            "normalize_input": True,
        }
    )


# Given a NaN, eager's torch.normal raises and inductor's goes on; leave `nonfinite` out to see it.
@pytest.mark.compiled_equivalence(
    observation={"is_train": False, "obs": Box((8,))}, phases="rollout", nonfinite=False
)
def test_acting():
    return build()


@pytest.mark.compiled_equivalence(
    observation={"is_train": True, "prev_actions": Box((3,)), "obs": Box((8,))},
    phases="update",
    batch=(4, 7, 2, 33),
)
def test_learning():
    return build()
