"""PPO in the manner of CleanRL, whose only line about compiling is the call of `compile_checked`.

    python examples/ppo_loop.py              # compiled by inductor, once the check has passed
    python examples/ppo_loop.py eager        # as before

The task: a point on a line, to be kept near zero by pushes to the left and to the right.
"""

import logging
import sys

import torch
from torch import nn
from torch.distributions import Categorical

from pytest_torchcompile import Box, Discrete, compilation_of, compile_checked

ENVIRONMENTS, STEPS, EPOCHS, MINIBATCH = 16, 32, 2, 128
GAMMA, CLIP = 0.95, 0.2


class Point:
    """Sixteen points at once: place and speed are observed, the reward is minus the distance."""

    def __init__(self):
        self.state = torch.randn(ENVIRONMENTS, 2)

    def step(self, action):
        place, speed = self.state.unbind(1)
        speed = 0.9 * speed + 0.1 * (2 * action - 1)
        self.state = torch.stack([(place + speed).clamp(-3, 3), speed], 1)
        return self.state, -self.state[:, 0].abs()


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))

    def get_value(self, x):
        return self.critic(x).squeeze(-1)

    def get_action_and_value(self, x, action=None):
        probs = Categorical(logits=self.actor(x))
        if action is None:
            action = probs.sample()
        return action, probs.log_prob(action), probs.entropy(), self.get_value(x)


def collect(agent, environment):
    """One rollout: observations, actions, their log-probabilities, returns."""
    rows, rewards = [], []
    with torch.no_grad():
        observation = environment.state
        for _ in range(STEPS):
            action, log_prob, _, value = agent.get_action_and_value(observation)
            rows.append((observation, action, log_prob, value))
            observation, reward = environment.step(action)
            rewards.append(reward)
        following = agent.get_value(observation)
    returns = []
    for reward in reversed(rewards):
        following = reward + GAMMA * following
        returns.append(following)
    observations, actions, log_probs, values = (torch.cat(column) for column in zip(*rows, strict=True))
    returns = torch.cat(returns[::-1])
    return observations, actions, log_probs, returns, returns - values


def learn(agent, optimizer, rollout):
    """The epochs of one rollout."""
    for _ in range(EPOCHS):
        for rows in torch.randperm(ENVIRONMENTS * STEPS).split(MINIBATCH):
            observation, action, old_log_prob, returns, advantage = (column[rows] for column in rollout)
            _, log_prob, entropy, value = agent.get_action_and_value(observation, action)
            ratio = (log_prob - old_log_prob).exp()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            policy_loss = -torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
            loss = policy_loss + 0.5 * (value - returns).square().mean() - 0.01 * entropy.mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def train(iterations=20, seed=0, **compiling):
    """Train an agent; returns it with the mean return of each iteration."""
    torch.manual_seed(seed)
    agent = Agent()
    agent = compile_checked(
        agent,
        observation=Box((2,)),
        inputs={"action": Discrete(2)},
        methods=["get_value", "get_action_and_value"],
        batch=(ENVIRONMENTS, MINIBATCH),
        **compiling,
    )
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    environment = Point()
    history = []
    for _ in range(iterations):
        rollout = collect(agent, environment)
        learn(agent, optimizer, rollout)
        history.append(rollout[3].mean().item())
    return agent, history


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    agent, history = train(enabled="eager" not in sys.argv[1:], examples=10, benchmark_seconds=1)
    print(f"return: {history[0]:.2f} at first, {history[-1]:.2f} in the end")
    checkpoint = {"model": agent.state_dict(), "compilation": compilation_of(agent).metadata()}
    print(f"a checkpoint holds {', '.join(checkpoint['model'])}; compiled: {compilation_of(agent).compiled}")
