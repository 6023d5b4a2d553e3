"""A shogi policy in the manner of Keisei: a residual tower with BatchNorm, 13,527 moves, legal moves only.

`LegalMask` draws masks with at least one legal move, `LegalAction` moves that are legal under them. The
tower is a narrow one here, so that it compiles in seconds.
"""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from pytest_torchcompile import Box, LegalAction, LegalMask

PLANES, BOARD, MOVES = 46, 9, 13527


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class ResidualTower(nn.Module):
    def __init__(self, channels=16, blocks=2):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(PLANES, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.tower = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.policy_head = nn.Sequential(
            nn.Conv2d(channels, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 81, MOVES)
        )
        self.value_head = nn.Sequential(
            nn.Conv2d(channels, 2, 1),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * 81, 1),
            nn.Tanh(),
        )

    def forward(self, obs):
        features = self.tower(self.stem(obs))
        return self.policy_head(features), self.value_head(features).squeeze(-1)

    def distribution(self, obs, legal_mask):
        logits, value = self(obs)
        if legal_mask is not None:
            logits = torch.where(legal_mask, logits, torch.finfo(logits.dtype).min)
        return Categorical(probs=F.softmax(logits, dim=-1)), value

    def get_action_and_value(self, obs, legal_mask=None, deterministic=False):
        moves, value = self.distribution(obs, legal_mask)
        action = moves.probs.argmax(-1) if deterministic else moves.sample()
        return action, moves.log_prob(action), value

    def evaluate_actions(self, obs, actions, legal_mask=None):
        moves, value = self.distribution(obs, legal_mask)
        return moves.log_prob(actions), moves.entropy(), value


BOARDS = Box((PLANES, BOARD, BOARD), low=0, high=1)


@pytest.mark.compiled_equivalence(
    observation=BOARDS,
    inputs={"legal_mask": LegalMask(MOVES)},
    methods="get_action_and_value",
    phases="rollout",
)
def test_acting():
    return ResidualTower()


@pytest.mark.compiled_equivalence(
    observation=BOARDS,
    inputs={"legal_mask": LegalMask(MOVES), "actions": LegalAction("legal_mask")},
    methods="evaluate_actions",
)
def test_learning():
    return ResidualTower()
