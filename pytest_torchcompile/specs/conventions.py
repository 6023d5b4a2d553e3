"""What policies say of their own inputs, so that it need not be declared.

Stable-Baselines3, skrl and RLlib keep gymnasium spaces on the policy. Their classes are known by name;
none is imported.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from pytest_torchcompile.specs import conversion, spaces

ACTION = frozenset({"act", "action", "actions", "acts", "taken_actions"})
"""Names of parameters that take what `action_space` describes."""

# What the first argument is, where it is not the observation alone: name in the argument, attribute.
_ARGUMENTS = {
    "skrl.models.torch.base.Model": {
        "observations": "observation_space",
        "states": "state_space",
        "taken_actions": "action_space",
    },
    "ray.rllib.core.rl_module.rl_module.RLModule": {"obs": "observation_space"},
}

_COLUMNS = "skrl.models.torch.base.Model"
_STORE_FLOATS = frozenset({_COLUMNS, "stable_baselines3.common.policies.BaseModel"})


def own_observation(policy: Any) -> Any:
    """What the policy says that its first argument is; None if it says nothing."""
    for name in conversion.class_names(policy):
        if name in _ARGUMENTS:
            found = {part: _own(policy, attribute) for part, attribute in _ARGUMENTS[name].items()}
            spaces_ = {part: space for part, space in found.items() if space is not None}
            return {part: _given(policy, part, space) for part, space in spaces_.items()} or None
    return _own(policy, "observation_space")


def _own(policy: Any, attribute: str) -> Any:
    """An attribute that describes tensors; None if there is none, or it is something else."""
    try:
        value = getattr(policy, attribute, None)
    except Exception:
        # A property that asks an environment which isn't there yet.
        return None
    return value if conversion.is_description(value) else None


def own_actions(policy: Any, signatures: Iterable[inspect.Signature | None]) -> dict[str, Any]:
    """What each parameter that takes an action, and can't be left out, is given: a spec or a space."""
    space = _own(policy, "action_space")
    if space is None:
        return {}
    parameters = [p for s in signatures if s is not None for p in s.parameters.values()]
    return {
        p.name: _given(policy, p.name, space) for p in parameters if p.name in ACTION and p.default is p.empty
    }


def _given(policy: Any, name: str, space: Any) -> Any:
    """What the policy is given for a space while it learns: actions come out of the library's buffer.

    Stable-Baselines3's and skrl's buffers store float32; Stable-Baselines3 hands out discrete actions as
    integers of one dimension, skrl as a column of floats.
    """
    stores_floats = not _STORE_FLOATS.isdisjoint(conversion.class_names(policy))
    if not stores_floats or name not in ACTION:
        return space
    spec = conversion.as_spec(space, name)
    if isinstance(spec, spaces.Discrete) and _COLUMNS in conversion.class_names(policy) and not spec.start:
        spec = spaces.MultiDiscrete((spec.n,))
    if isinstance(spec, (spaces.Box, spaces.MultiBinary, spaces.MultiDiscrete)):
        return dataclasses.replace(spec, dtype="float32")
    return spec


def proposed_observation(policy: Any) -> str:
    """An observation to put into a message: sizes are read off the first layer, as far as it tells."""
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


def spec_like(tensor: Any) -> str:
    """A spec of tensors such as this one (or array), whose first dimension is the batch, for a message."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"Box({tuple(tensor.shape[1:])}{'' if dtype == 'float32' else f', dtype={dtype!r}'})"


def proposed_input(name: str, policy: Any) -> str:
    """A spec for a parameter of that name, to put into a message."""
    linears = [module for module in _modules(policy) if isinstance(module, nn.Linear)]
    # A critic's head has one output.
    actions = next((m.out_features for m in reversed(linears) if m.out_features > 1), 4)
    if "mask" in name:
        return f"LegalMask({actions})"
    if name in ACTION:
        return f"Discrete({actions})"
    if "done" in name or "start" in name:
        return "Flag()"
    if "state" in name or "hidden" in name:
        return "State((1, 64), batch_dim=1)"
    return "Box((8,))"


def _modules(policy: Any) -> Iterator[nn.Module]:
    return policy.modules() if isinstance(policy, nn.Module) else iter(())
