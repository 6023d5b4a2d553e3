"""Stable-Baselines3's `ActorCriticPolicy`, the network behind its PPO and A2C.

Nothing is declared: the policy has an `observation_space` and an `action_space`, and these are taken.
`forward` samples actions; compiled and eager are given the same random numbers.
"""

import numpy as np
import pytest
from gymnasium.spaces import Box as BoxSpace
from gymnasium.spaces import Discrete as DiscreteSpace
from stable_baselines3.common.policies import ActorCriticPolicy

OBSERVATION = BoxSpace(-1.0, 1.0, (6,), np.float32)


def policy(action_space):
    return ActorCriticPolicy(OBSERVATION, action_space, lr_schedule=lambda _: 3e-4, net_arch=[32, 32])


@pytest.mark.compiled_equivalence(methods=["forward", "evaluate_actions"])
def test_discrete_actions():
    return policy(DiscreteSpace(4))


@pytest.mark.compiled_equivalence(methods=["forward", "evaluate_actions"])
def test_continuous_actions():
    return policy(BoxSpace(-1.0, 1.0, (2,), np.float32))
