"""LeanRL-style agents: the method that acts comes compiled, and is checked as it is deployed."""

import pytest
import torch
from tensordict import from_module
from torch import nn
from torch.distributions import Normal

from pytest_torchcompile import Box


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        self.actor_mean = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
        self.actor_logstd = nn.Parameter(torch.zeros(1, 3))

    def get_value(self, x):
        return self.critic(x)

    def get_action_and_value(self, obs, action=None):
        mean = self.actor_mean(obs)
        choices = Normal(mean, self.actor_logstd.expand_as(mean).exp())
        if action is None:
            action = mean + choices.stddev * torch.randn_like(mean)
        return action, choices.log_prob(action).sum(1), choices.entropy().sum(1), self.critic(obs)


@pytest.mark.compiled_equivalence(
    observation=Box((8,)), inputs={"action": Box((3,))}, methods="get_action_and_value", phases="update"
)
def test_learning():
    return Agent()


@pytest.mark.compiled_equivalence(observation=Box((8,)), methods="get_action_and_value", phases="rollout")
def test_acting_as_deployed():
    """The agent that acts shares the weights of the one that learns, and is compiled by the user."""
    agent, inference = Agent(), Agent()
    from_module(agent).data.to_module(inference)
    inference.get_action_and_value = torch.compile(inference.get_action_and_value)
    return inference
