"""Policies that are no modules but hold some, such as an agent with an actor and a critic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn


class Holder(nn.Module):
    """A module around a policy that is none, so that its parameters have names and a mode.

    Args:
        policy: an object with modules among its attributes, or in dicts and lists among them.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        for name, module in held_modules(policy):
            self.add_module(name, module)


def held_modules(policy: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules among an object's attributes, by name; a dict's are called ``models_actor``."""
    for name, value in getattr(policy, "__dict__", {}).items():
        if isinstance(value, nn.Module):
            yield name, value
        elif isinstance(value, (Mapping, list, tuple)):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            for key, item in items:
                if isinstance(item, nn.Module):
                    yield f"{name}_{key}".replace(".", "_"), item


def policy_of(model: Any) -> Any:
    """What the user made: the policy inside a `Holder`, any other module as it is."""
    return model.policy if isinstance(model, Holder) else model
