"""sb3-contrib: a mask as a numpy array, and the LSTM's states with their batch in the second dimension."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from pytest_torchcompile import Box, Discrete, Flag, LegalAction, LegalMask, State, Wrapped

VECTOR = spaces.Box(-np.inf, np.inf, (8,), np.float32)
MOVES = spaces.Discrete(6)


def rate(_):
    return 3e-4


@pytest.mark.compiled_equivalence(
    inputs={
        "action_masks": Wrapped(LegalMask(6), torch.Tensor.numpy),
        "actions": LegalAction("action_masks"),
    },
    methods=["forward", "evaluate_actions"],
)
def test_maskable_ppo():
    return MaskableActorCriticPolicy(VECTOR, MOVES, rate)


HIDDEN = (State((1, 32), batch_dim=1), State((1, 32), batch_dim=1))


# By default dynamo does not trace nn.LSTM.
@pytest.mark.compiled_equivalence(
    inputs={"lstm_states": RNNStates(HIDDEN, HIDDEN), "episode_starts": Flag("float32")},
    methods="forward",
    phases="rollout",
)
def test_recurrent_ppo_acts():
    return RecurrentActorCriticPolicy(VECTOR, MOVES, rate, lstm_hidden_size=32)


@pytest.mark.compiled_equivalence(
    observation=Box((8,), per_step=True),
    inputs={
        "actions": Discrete(6, per_step=True),
        "lstm_states": RNNStates(HIDDEN, HIDDEN),
        "episode_starts": Flag("float32", per_step=True),
    },
    methods="evaluate_actions",
    phases="update",
)
def test_recurrent_ppo_learns():
    return RecurrentActorCriticPolicy(VECTOR, MOVES, rate, lstm_hidden_size=32)
