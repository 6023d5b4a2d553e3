"""CleanRL-style agents, as in its `ppo.py` (discrete) and `ppo_continuous_action.py`.

While acting, `get_action_and_value` samples; while learning, it is given the action. Each is checked
in the phase it runs in. Neither agent has a `forward`, which is what `torch.compile(agent)` would take.
"""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal

from pytest_torchcompile import Box, Discrete


def layer(inputs, outputs, std=2**0.5):
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, std)
    nn.init.constant_(linear.bias, 0.0)
    return linear


def network(inputs, outputs, std):
    return nn.Sequential(layer(inputs, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, outputs, std))


class DiscreteAgent(nn.Module):
    def __init__(self, observations=8, actions=4):
        super().__init__()
        self.critic = network(observations, 1, std=1.0)
        self.actor = network(observations, actions, std=0.01)

    def get_value(self, x):
        return self.critic(x)

    def get_action_and_value(self, x, action=None):
        probs = Categorical(logits=self.actor(x))
        if action is None:
            action = probs.sample()
        return action, probs.log_prob(action), probs.entropy(), self.critic(x)


class ContinuousAgent(nn.Module):
    def __init__(self, observations=8, actions=3):
        super().__init__()
        self.critic = network(observations, 1, std=1.0)
        self.actor_mean = network(observations, actions, std=0.01)
        self.actor_logstd = nn.Parameter(torch.zeros(1, actions))

    def get_value(self, x):
        return self.critic(x)

    def get_action_and_value(self, x, action=None):
        mean = self.actor_mean(x)
        probs = Normal(mean, self.actor_logstd.expand_as(mean).exp())
        if action is None:
            action = probs.sample()
        return action, probs.log_prob(action).sum(1), probs.entropy().sum(1), self.critic(x)


@pytest.mark.compiled_equivalence(
    observation=Box((8,)), methods=["get_value", "get_action_and_value"], phases="rollout"
)
@pytest.mark.parametrize("agent", [DiscreteAgent, ContinuousAgent])
def test_acting(agent):
    return agent()


@pytest.mark.compiled_equivalence(
    observation=Box((8,)),
    inputs={"action": Discrete(4)},
    methods="get_action_and_value",
    phases="update",
)
def test_learning_discrete():
    return DiscreteAgent()


@pytest.mark.compiled_equivalence(
    observation=Box((8,)),
    inputs={"action": Box((3,), low=-2, high=2)},
    methods="get_action_and_value",
    phases="update",
)
def test_learning_continuous():
    return ContinuousAgent()
