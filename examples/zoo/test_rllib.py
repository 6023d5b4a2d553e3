"""RLlib: nothing to declare, an RLModule carries its spaces and takes a dict with ``obs``."""

import numpy as np
import pytest
from gymnasium import spaces
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

VECTOR = spaces.Box(-np.inf, np.inf, (8,), np.float32)
TORQUES = spaces.Box(-1.0, 1.0, (3,), np.float32)


def ppo(actions):
    return DefaultPPOTorchRLModule(
        observation_space=VECTOR,
        action_space=actions,
        model_config=DefaultModelConfig(fcnet_hiddens=[32, 32]),
        catalog_class=PPOCatalog,
    )


@pytest.mark.compiled_equivalence(methods=["forward_inference", "forward_exploration"], phases="rollout")
@pytest.mark.parametrize("actions", [spaces.Discrete(4), TORQUES], ids=["discrete", "continuous"])
def test_acting(actions):
    return ppo(actions)


@pytest.mark.compiled_equivalence(methods=["forward_train", "compute_values"], phases="update")
def test_learning():
    return ppo(TORQUES)
