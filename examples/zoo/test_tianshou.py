"""tianshou: policies take a Batch and return one."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy, ProbabilisticActorPolicy
from tianshou.data import Batch
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from tianshou.utils.net.discrete import DiscreteActor
from torch.distributions import Independent, Normal

from pytest_torchcompile import Box, Wrapped

VECTOR = spaces.Box(-np.inf, np.inf, (8,), np.float32)
OBSERVATION = Wrapped(Box((8,)), lambda obs: Batch(obs=obs, info=Batch()))


@pytest.mark.compiled_equivalence(observation=OBSERVATION)
def test_discrete_policy():
    net = Net(state_shape=(8,), hidden_sizes=[32])
    actor = DiscreteActor(preprocess_net=net, action_shape=(4,), softmax_output=False)
    return DiscreteActorPolicy(actor=actor, action_space=spaces.Discrete(4), observation_space=VECTOR)


def diagonal(loc_and_scale):
    return Independent(Normal(*loc_and_scale), 1)


@pytest.mark.compiled_equivalence(observation=OBSERVATION)
def test_continuous_policy():
    net = Net(state_shape=(8,), hidden_sizes=[32])
    return ProbabilisticActorPolicy(
        actor=ContinuousActorProbabilistic(preprocess_net=net, action_shape=(3,), unbounded=True),
        dist_fn=diagonal,
        action_scaling=False,
        action_bound_method=None,
        action_space=spaces.Box(-1.0, 1.0, (3,), np.float32),
        observation_space=VECTOR,
    )


@pytest.mark.compiled_equivalence(observation=Box((8,)), inputs={"act": Box((3,), -1, 1)})
def test_critic():
    return ContinuousCritic(
        preprocess_net=Net(state_shape=(8,), action_shape=(3,), hidden_sizes=[32], concat=True)
    )


@pytest.mark.compiled_equivalence(observation=Wrapped(Box((8,)), torch.Tensor.numpy), phases="rollout")
def test_numpy_observations():
    net = Net(state_shape=(8,), hidden_sizes=[32])
    return DiscreteActor(preprocess_net=net, action_shape=(4,))
