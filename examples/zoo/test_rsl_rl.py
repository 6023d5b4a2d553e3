"""rsl_rl: a call, then properties; and a recurrent model that keeps its hidden state."""

import pytest
import torch
from rsl_rl.models import MLPModel, RNNModel
from tensordict import TensorDict

from pytest_torchcompile import Box, State, Wrapped

GAUSSIAN = {"class_name": "rsl_rl.modules.GaussianDistribution", "init_std": 1.0}


def tensordict(tensors):
    return TensorDict(tensors, batch_size=tensors["policy"].shape[:1])


def build(model, **options):
    obs = tensordict({"policy": torch.zeros(1, 12)})
    groups = {"actor": ["policy"]}
    return model(obs, groups, "actor", 4, hidden_dims=[32, 32], distribution_cfg=GAUSSIAN, **options)


def act(model, obs):
    """What PPO does with the actor when it collects."""
    actions = model(obs, stochastic_output=True)
    return {
        "actions": actions,
        "log_prob": model.get_output_log_prob(actions),
        "mean": model.output_mean,
        "std": model.output_std,
        "entropy": model.output_entropy,
    }


OBSERVATION = Wrapped({"policy": Box((12,))}, tensordict)


# Without its lifecycle: under autocast to bfloat16 inductor's log_prob is wrong on the CPU (torch 2.13).
@pytest.mark.compiled_equivalence(observation=OBSERVATION, methods=act, phases="rollout,update")
def test_actor():
    return build(MLPModel, obs_normalization=True)


def act_from(model, obs, hidden_state):
    model.reset(hidden_state=hidden_state)
    return act(model, obs)


@pytest.mark.compiled_equivalence(
    observation=OBSERVATION,
    inputs={"hidden_state": State((1, 32), batch_dim=1)},
    methods=act_from,
    phases="rollout",
)
def test_recurrent_actor():
    return build(RNNModel, rnn_type="gru", rnn_hidden_dim=32)
