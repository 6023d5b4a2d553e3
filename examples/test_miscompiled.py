"""Policies that torch 2.13 miscompiles on CPU. Nothing crashes or warns; they act or learn something else.
Each is expected to differ, and `strict=True` makes this file fail under the first torch that compiles it
correctly, so that the mark goes when the fault goes. `--xfail-tb` shows what the plugin says of each.
"""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from pytest_torchcompile import Box, Image, LegalAction, LegalMask

ISSUES = "https://github.com/pytorch/pytorch/issues"
VECTORISED = torch.backends.cpu.get_cpu_capability().startswith("AVX")


def miscompiled(reason, where=True):
    # raises: a wrong import or a typo is no miscompile.
    return pytest.mark.xfail(where, strict=True, raises=pytest.fail.Exception, reason=reason)


class AnnealedPolicy(nn.Module):
    """Explores less with every call."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.critic = nn.Linear(8, 1)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, observation):
        self.steps += 1
        logits = self.actor(observation) * (1 + self.steps / 10)
        return logits.softmax(-1), self.critic(observation)


@miscompiled(f"backward reads the counter after it has moved: {ISSUES.replace('issues', 'pull')}/197039")
@pytest.mark.compiled_equivalence(observation=Box((8,)), phases="update")
def test_annealed_learning():
    return AnnealedPolicy()


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


@miscompiled(f"the gradients of the convolution: {ISSUES}/185509")
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


@miscompiled("the gradients of the entropy, where the mask is not contiguous", where=VECTORISED)
@pytest.mark.compiled_equivalence(
    observation=Box((8,)),
    inputs={"legal_mask": LegalMask(16), "actions": LegalAction("legal_mask")},
    methods="evaluate_actions",
    phases="update",
)
def test_masked_learning():
    return MaskedPolicy()


class PixelPolicy(nn.Module):
    """Scales each image by its darkest pixel."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Linear(6 * 6, 4)

    def forward(self, pixels):
        flat = pixels.flatten(1)
        darkest = flat.amin(1, keepdim=True)
        return self.actor((flat - darkest).float() / 255)


@miscompiled(f"the least of 16 or more uint8 is 0: {ISSUES}/191499", where=VECTORISED)
@pytest.mark.compiled_equivalence(observation=Image((1, 6, 6)), phases="rollout")
def test_darkest_pixel():
    return PixelPolicy()


class ContrastPolicy(nn.Module):
    """Sums how far all pixels are from white, in whole numbers, for two eyes."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Linear(1, 4)

    def forward(self, pixels):
        darkness = -pixels.abs()
        both = torch.cat([darkness, darkness], dim=1).flatten(1)
        return self.actor(both.sum(1, keepdim=True).float() / 255)


@miscompiled(f"the negative of a uint8 that went through abs is negative: {ISSUES}/187018")
@pytest.mark.compiled_equivalence(observation=Image((1, 4, 4)), phases="rollout")
def test_darkness():
    return ContrastPolicy()


class RememberingPolicy(nn.Module):
    """Keeps what it knew a step ago."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Linear(16, 4)
        self.register_buffer("now", torch.zeros(8))
        self.register_buffer("before", torch.zeros(8))

    def forward(self, observation):
        self.before[:] = self.now[:]
        self.now.add_(observation.mean(0))
        return self.actor(torch.cat([self.now, self.before]))


@miscompiled(f"a copy is taken after the original was changed: {ISSUES}/198131")
@pytest.mark.compiled_equivalence(observation=Box((8,)), phases="rollout")
def test_remembering():
    return RememberingPolicy()


class MirroredPolicy(nn.Module):
    """Writes its observation into its memory, then averages that with its mirror image."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.register_buffer("memory", torch.linspace(-1, 1, 32).reshape(4, 8))
        self.register_buffer("places", torch.arange(4))

    def forward(self, observation):
        self.memory.index_put_((self.places,), self.memory + observation.mean(0))
        self.memory.add_(self.memory.flip(0)).div_(2)
        return self.actor(self.memory)


@miscompiled(f"rows are read after they were written: {ISSUES}/198270")
@pytest.mark.compiled_equivalence(observation=Box((8,)), phases="rollout")
def test_mirrored_memory():
    return MirroredPolicy()


class TracingPolicy(nn.Module):
    """Updates all of its traces at once, as optimizers do."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Linear(8, 4)
        self.register_buffer("traces", torch.linspace(-1, 1, 64).reshape(8, 8))

    def forward(self, observation):
        torch._foreach_add_([self.traces], [self.traces.flip(0)])
        return self.actor(observation + self.traces.sum(0))


@miscompiled(f"rows are read after they were written: {ISSUES}/198033")
@pytest.mark.compiled_equivalence(observation=Box((8,)), phases="rollout")
def test_traces():
    return TracingPolicy()


class HalfPrecisionPolicy(nn.Module):
    """Draws its actions around a mean in bfloat16, as under autocast, and says how likely each was."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Linear(6, 3)
        self.critic = nn.Linear(6, 1)
        self.std = nn.Parameter(torch.full((3,), 0.5))

    def forward(self, observation):
        mean = self.actor(observation).bfloat16()
        action = torch.normal(mean, self.std.expand_as(mean))
        return action, -(((action - mean) / self.std) ** 2).sum(-1) / 2, self.critic(observation)


@miscompiled(f"bfloat16 actions are read as if they were float32: {ISSUES.replace('issues', 'pull')}/194557")
@pytest.mark.compiled_equivalence(observation=Box((6,)), phases="rollout")
def test_actions_in_half_precision():
    return HalfPrecisionPolicy()
