"""Finds the specs that a policy of a known library has for its own inputs, so users need not declare them.

Stable-Baselines3, skrl and RLlib store gymnasium spaces on the policy. Their classes are recognised by name,
without an import.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from pytest_torchcompile.specs import conversion, spaces

ACTION = frozenset({"act", "action", "actions", "acts", "taken_actions"})
"""Names of parameters that take an action from ``action_space``."""

# Classes whose first argument is a dict of inputs: its keys, and the policy's attributes that describe them.
_ARGUMENTS = {
    "skrl.models.torch.base.Model": {
        "observations": "observation_space",
        "states": "state_space",
        "taken_actions": "action_space",
    },
    "ray.rllib.core.rl_module.rl_module.RLModule": {"obs": "observation_space"},
}

_SKRL = "skrl.models.torch.base.Model"
_FLOAT_BUFFERS = frozenset({_SKRL, "stable_baselines3.common.policies.BaseModel"})


def own_observation(policy: Any) -> Any:
    """Return the space of the policy's first argument; None if the policy has none."""
    for name in conversion.class_names(policy):
        if name in _ARGUMENTS:
            found = {part: _space_of(policy, attribute) for part, attribute in _ARGUMENTS[name].items()}
            spaces_ = {part: space for part, space in found.items() if space is not None}
            return {part: _from_buffer(policy, part, space) for part, space in spaces_.items()} or None
    return _space_of(policy, "observation_space")


def _space_of(policy: Any, attribute: str) -> Any:
    """Return an attribute that is a space or a spec; None if there is none, or it is something else."""
    try:
        value = getattr(policy, attribute, None)
    except Exception:
        # A property may need an environment that does not exist yet.
        return None
    return value if conversion.is_description(value) else None


def own_actions(policy: Any, signatures: Iterable[inspect.Signature | None]) -> dict[str, Any]:
    """Return the spec or space of each required parameter that takes an action, by name."""
    space = _space_of(policy, "action_space")
    if space is None:
        return {}
    parameters = [p for s in signatures if s is not None for p in s.parameters.values()]
    return {
        p.name: _from_buffer(policy, p.name, space)
        for p in parameters
        if p.name in ACTION and p.default is p.empty
    }


def _from_buffer(policy: Any, name: str, space: Any) -> Any:
    """Return the spec of what the policy gets for a space while it learns, from the library's buffer.

    Stable-Baselines3's and skrl's buffers store float32. Stable-Baselines3 passes discrete actions as
    integers of one dimension, skrl as a column of floats.
    """
    stores_floats = not _FLOAT_BUFFERS.isdisjoint(conversion.class_names(policy))
    if not stores_floats or name not in ACTION:
        return space
    spec = conversion.as_spec(space, name)
    if isinstance(spec, spaces.Discrete) and _SKRL in conversion.class_names(policy) and not spec.start:
        spec = spaces.MultiDiscrete((spec.n,))
    if isinstance(spec, spaces.Box) and not spec.is_float:
        # A `Box` of floats would have fractions.
        return spaces.Wrapped(spec, torch.Tensor.float)
    if isinstance(spec, (spaces.Box, spaces.MultiBinary, spaces.MultiDiscrete)):
        return dataclasses.replace(spec, dtype="float32")
    return spec


def proposed_observation(policy: Any) -> str:
    """Return an observation spec for a message, with the input size of the policy's first layer if known."""
    for module in _modules(policy):
        match module:
            case nn.Linear():
                return f"Box(({module.in_features},))"
            case nn.Conv2d():
                return f"Box(({module.in_channels}, 84, 84))"
            case nn.Embedding():
                return f"Tokens({module.num_embeddings})"
            case nn.RNNBase() | nn.RNNCellBase():
                return f'Box(("T", {module.input_size}))'
    return "Box((8,))"


def spec_like(tensor: Any, policy: Any) -> str:
    """Return a spec, for a message, of tensors like this one.

    Its first dimension is the batch, unless it has one only, or as many as the policy's first layer takes.
    """
    shape = tuple(tensor.shape)
    if len(shape) > 1 and f"Box({shape})" != proposed_observation(policy):
        shape = shape[1:]
    dtype = str(tensor.dtype).removeprefix("torch.")
    weights = next((p.dtype for m in _modules(policy) for p in m.parameters()), torch.float32)
    # An array is float64 because NumPy makes it so.
    usual = weights is torch.float32 and dtype in ("float32", "float64")
    return f"Box({shape}{'' if usual else f', dtype={dtype!r}'})"


def own_states(modules: Iterable[nn.Module]) -> list[Any]:
    """Return the specs of the states of the recurrent layers among `modules`, each once.

    The state of an LSTM is a tuple of two, ``(h, c)``. Those of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` have
    the batch in the second dimension, also with ``batch_first=True``.

    Example:
        >>> own_states([nn.GRU(8, 32), nn.LSTMCell(8, 16)])
        [State((1, 32), batch_dim=1), (State((16,)), State((16,)))]
    """
    found: list[Any] = []
    for module in modules:
        match module:
            case nn.RNNBase():
                layers = module.num_layers * (2 if module.bidirectional else 1)
                hidden = spaces.State((layers, module.proj_size or module.hidden_size), batch_dim=1)
                cell = spaces.State((layers, module.hidden_size), batch_dim=1)
            case nn.RNNCellBase():
                hidden = cell = spaces.State((module.hidden_size,))
            case _:
                continue
        state = (hidden, cell) if isinstance(module, (nn.LSTM, nn.LSTMCell)) else hidden
        if state not in found:
            found.append(state)
    return found


_HIDDEN = frozenset({"h", "hx", "h0", "h_0", "hidden"})
_CELL = frozenset({"c", "cx", "c0", "c_0", "cell"})


def proposed_input(name: str, policy: Any, parameters: Iterable[str] = ()) -> str:
    """Return a spec, for a message, of a parameter with this name.

    Args:
        name: the parameter.
        policy: the policy, whose layers tell sizes.
        parameters: all parameters of the method; a cell state among them is no part of the hidden state.
    """
    linears = [module for module in _modules(policy) if isinstance(module, nn.Linear)]
    # A critic's head has one output.
    actions = next((m.out_features for m in reversed(linears) if m.out_features > 1), 4)
    if "mask" in name:
        return f"LegalMask({actions})"
    if name in ACTION:
        return f"Discrete({actions})"
    if "done" in name or "start" in name:
        return "Flag()"
    is_state = "state" in name or "hidden" in name or name == "hx"
    states = own_states(_modules(policy))
    if len(states) == 1 and (is_state or name in _HIDDEN | _CELL):
        (state,) = states
        if isinstance(state, tuple) and (name in ("h", *_CELL) or not _CELL.isdisjoint(parameters)):
            return repr(state[name in _CELL])
        return repr(state)
    return "State((1, 64), batch_dim=1)" if is_state else "Box((8,))"


def _modules(policy: Any) -> Iterator[nn.Module]:
    return policy.modules() if isinstance(policy, nn.Module) else iter(())
