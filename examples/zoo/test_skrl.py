"""skrl: nothing to declare, the models carry their spaces; the role is a string."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from skrl.models.torch import CategoricalMixin, DeterministicMixin, GaussianMixin, Model
from torch import nn

VECTOR = spaces.Box(-np.inf, np.inf, (8,), np.float32)
TORQUES = spaces.Box(-1.0, 1.0, (3,), np.float32)


class Shared(GaussianMixin, DeterministicMixin, Model):
    """One network, two roles, as in skrl's examples."""

    def __init__(self):
        Model.__init__(self, observation_space=VECTOR, action_space=TORQUES, device="cpu")
        GaussianMixin.__init__(self, role="policy")
        DeterministicMixin.__init__(self, role="value")
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ELU())
        self.mean, self.value = nn.Linear(32, 3), nn.Linear(32, 1)
        self.log_std = nn.Parameter(torch.zeros(3))

    def act(self, inputs, *, role=""):
        mixin = GaussianMixin if role == "policy" else DeterministicMixin
        return mixin.act(self, inputs, role=role)

    def compute(self, inputs, role=""):
        features = self.net(inputs["observations"])
        if role == "policy":
            return self.mean(features), {"log_std": self.log_std}
        return self.value(features), {}


@pytest.mark.compiled_equivalence(
    inputs={"role": "policy"}, methods="act", observe=lambda m: m.distribution()
)
def test_policy_role():
    return Shared()


@pytest.mark.compiled_equivalence(inputs={"role": "value"}, methods="act")
def test_value_role():
    return Shared()


class Categorical(CategoricalMixin, Model):
    def __init__(self):
        Model.__init__(self, observation_space=VECTOR, action_space=spaces.Discrete(4), device="cpu")
        CategoricalMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ELU(), nn.Linear(32, 4))

    def compute(self, inputs, role=""):
        return self.net(inputs["observations"]), {}


@pytest.mark.compiled_equivalence(methods="act", phases="rollout")
def test_categorical():
    return Categorical()
