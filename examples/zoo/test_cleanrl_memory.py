"""CleanRL-style agents with memory: an LSTM over rows of T x B, and a transformer over past episodes."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical

from pytest_torchcompile import Box, Discrete, Flag, MultiBinary, State, Tokens


class LSTMAgent(nn.Module):
    """As ``ppo_atari_lstm.py``, which resets the state where an episode ended."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 32), nn.Tanh())
        self.lstm = nn.LSTM(32, 16)
        self.actor, self.critic = nn.Linear(16, 4), nn.Linear(16, 1)

    def get_states(self, x, lstm_state, done):
        hidden = self.network(x)
        batch_size = lstm_state[0].shape[1]
        hidden = hidden.reshape((-1, batch_size, self.lstm.input_size))
        done = done.reshape((-1, batch_size))
        new_hidden = []
        for h, d in zip(hidden, done, strict=True):
            keep = (1.0 - d).view(1, -1, 1)
            h, lstm_state = self.lstm(h.unsqueeze(0), (keep * lstm_state[0], keep * lstm_state[1]))
            new_hidden += [h]
        return torch.flatten(torch.cat(new_hidden), 0, 1), lstm_state

    def get_action_and_value(self, x, lstm_state, done, action=None):
        hidden, lstm_state = self.get_states(x, lstm_state, done)
        choices = Categorical(logits=self.actor(hidden))
        if action is None:
            action = choices.sample()
        return action, choices.log_prob(action), choices.entropy(), self.critic(hidden), lstm_state


STATE = (State((1, 16), batch_dim=1), State((1, 16), batch_dim=1))


@pytest.mark.compiled_equivalence(
    observation=Box((8,)),
    inputs={"lstm_state": STATE, "done": Flag("float32")},
    methods="get_action_and_value",
    phases="rollout",
)
def test_lstm_acts():
    return LSTMAgent()


@pytest.mark.compiled_equivalence(
    observation=Box((8,), per_step=True),
    inputs={
        "lstm_state": STATE,
        "done": Flag("float32", per_step=True),
        "action": Discrete(4, per_step=True),
    },
    methods="get_action_and_value",
    phases="update",
)
def test_lstm_learns():
    return LSTMAgent()


class TransformerAgent(nn.Module):
    """As ``ppo_trxl``: attention over the hidden states of earlier steps, which the caller keeps."""

    def __init__(self, length=6, layers=2, dim=16):
        super().__init__()
        self.embed, self.position = nn.Linear(8, dim), nn.Embedding(length, dim)
        self.attention = nn.ModuleList(nn.MultiheadAttention(dim, 2, batch_first=True) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.actor, self.critic = nn.Linear(dim, 4), nn.Linear(dim, 1)

    def features(self, x, memory, memory_mask, memory_indices):
        h = torch.relu(self.embed(x))
        memory = memory + self.position(memory_indices)[:, :, None]
        kept = []
        for layer, (attention, norm) in enumerate(zip(self.attention, self.norms, strict=True)):
            kept.append(h.detach())
            past = torch.cat([memory[:, :, layer], h[:, None]], dim=1)
            unseen = nn.functional.pad(memory_mask == 0, (0, 1), value=False)
            attended, _ = attention(h[:, None], past, past, key_padding_mask=unseen, need_weights=False)
            h = norm(h + attended[:, 0])
        return h, torch.stack(kept, dim=1)

    def get_value(self, x, memory, memory_mask, memory_indices):
        return self.critic(self.features(x, memory, memory_mask, memory_indices)[0])

    def get_action_and_value(self, x, memory, memory_mask, memory_indices, action=None):
        h, kept = self.features(x, memory, memory_mask, memory_indices)
        choices = Categorical(logits=self.actor(h))
        if action is None:
            action = choices.sample()
        return action, choices.log_prob(action), choices.entropy(), self.critic(h), kept


MEMORY = {
    "memory": State((6, 2, 16)),
    "memory_mask": MultiBinary((6,)),
    "memory_indices": Tokens(6, length=6),
}


@pytest.mark.compiled_equivalence(
    observation=Box((8,)), inputs=MEMORY, methods=["get_value", "get_action_and_value"], phases="rollout"
)
def test_transformer_acts():
    return TransformerAgent()


@pytest.mark.compiled_equivalence(
    observation=Box((8,)),
    inputs={**MEMORY, "action": Discrete(4)},
    methods="get_action_and_value",
    phases="update",
)
def test_transformer_learns():
    return TransformerAgent()
