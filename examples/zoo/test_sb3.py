"""Stable-Baselines3: nothing to declare, the policies carry their spaces."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.sac.policies import SACPolicy

MOVES = spaces.Discrete(4)
TORQUES = spaces.Box(-1.0, 1.0, (3,), np.float32)
VECTOR = spaces.Box(-np.inf, np.inf, (8,), np.float32)
PIXELS = spaces.Box(0, 255, (3, 36, 36), np.uint8)
METHODS = ["forward", "evaluate_actions", "predict_values"]


def rate(_):
    return 3e-4


@pytest.mark.compiled_equivalence(methods=METHODS)
@pytest.mark.parametrize("actions", [MOVES, TORQUES], ids=["discrete", "continuous"])
def test_mlp(actions):
    return ActorCriticPolicy(VECTOR, actions, rate)


@pytest.mark.compiled_equivalence(methods=METHODS)
def test_cnn():
    return ActorCriticCnnPolicy(PIXELS, MOVES, rate, features_extractor_kwargs={"features_dim": 64})


@pytest.mark.compiled_equivalence(methods=METHODS)
def test_multi_input():
    observation = spaces.Dict({"image": PIXELS, "vector": VECTOR})
    return MultiInputActorCriticPolicy(observation, MOVES, rate)


@pytest.mark.compiled_equivalence(methods=["get_distribution"], phases="rollout")
def test_a_distribution_of_sb3s_own():
    return ActorCriticPolicy(VECTOR, TORQUES, rate)


@pytest.mark.compiled_equivalence(methods=["actor.forward", "actor.action_log_prob", "critic.forward"])
def test_sac():
    return SACPolicy(VECTOR, TORQUES, rate, net_arch=[64, 64])
