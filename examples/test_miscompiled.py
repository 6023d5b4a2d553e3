"""Two policies that torch 2.13 miscompiles on CPU. Nothing crashes or warns; they act the same and learn
something else. Each is expected to differ, and `strict=True` makes this file fail under the first torch
that compiles it correctly, so that the mark goes when the fault goes.
"""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from pytest_torchcompile import Box, LegalAction, LegalMask


def miscompiled(reason, where=True):
    # raises: a wrong import or a typo is no miscompile.
    return pytest.mark.xfail(where, strict=True, raises=pytest.fail.Exception, reason=reason)


class InhibitedPolicy(nn.Module):
    """On a 9x9 board, each feature is inhibited by the strongest around it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.actor = nn.Linear(8 * 9 * 9, 82)
        self.critic = nn.Linear(8 * 9 * 9, 1)

    def forward(self, board):
        c = self.conv(board)
        strongest = F.max_pool2d(c, 3, stride=1, padding=1)
        features = (torch.relu(c) - strongest / 2).flatten(1)
        return self.actor(features), self.critic(features)


@pytest.mark.compiled_equivalence(observation=Box((4, 9, 9), low=0, high=1), phases="rollout")
def test_inhibited_acting():
    return InhibitedPolicy()


@miscompiled("the gradients of the convolution: pytorch issue 185509")
@pytest.mark.compiled_equivalence(observation=Box((4, 9, 9), low=0, high=1), phases="update")
def test_inhibited_learning():
    return InhibitedPolicy()


class MaskedPolicy(nn.Module):
    """Masks illegal actions in the usual way; the mask may come as a view of something larger."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.Tanh())
        self.actor = nn.Linear(32, 16)
        self.critic = nn.Linear(32, 1)

    def evaluate_actions(self, obs, actions, legal_mask):
        features = self.body(obs)
        logits = self.actor(features).masked_fill(~legal_mask, -1e8)
        choices = Categorical(logits=logits)
        return choices.log_prob(actions), choices.entropy(), self.critic(features)


@miscompiled(
    "the gradients of the entropy, where the mask is not contiguous",
    where=torch.backends.cpu.get_cpu_capability().startswith("AVX"),  # in vectorised code
)
@pytest.mark.compiled_equivalence(
    observation=Box((8,)),
    inputs={"legal_mask": LegalMask(16), "actions": LegalAction("legal_mask")},
    methods="evaluate_actions",
    phases="update",
)
def test_masked_learning():
    return MaskedPolicy()
