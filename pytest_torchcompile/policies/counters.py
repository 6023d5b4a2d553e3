"""The numbers, booleans and strings among a policy's attributes, which calls count up and guards depend on.

Other state is restored before each call. These values are not: if compiled code depends on a counter, each
call compiles again, and a check has to see that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from pytest_torchcompile.policies.reachable import Place, Reachable

CounterValues = dict[Place, Any]
"""Counters by place."""

SCALARS = (bool, int, float, str)

_NOT_USERS = frozenset({"abc", "builtins", "enum", "torch", "typing"})
"""Packages whose classes have no attributes that count calls."""


def is_torch_layer(module: nn.Module | None) -> bool:
    """Return whether a module is a layer of torch's, whose float attributes are settings without rounding."""
    return module is not None and type(module).__module__.startswith("torch.nn")


class Counters:
    """The counters of a module.

    Args:
        model: the module.
        found: what is reachable from it.
    """

    def __init__(self, model: nn.Module, found: Reachable) -> None:
        self._model = model
        self._found = found
        self._places = [place for place in found.values if place[0] not in found.containers]
        self._first = {p: found.values[p] for p in self._places if isinstance(found.values[p], SCALARS)}
        self._of_classes = {
            (path, name): value
            for path, owner in found.owners.items()
            for name, value in _class_scalars(type(owner)).items()
            if name not in found.spaces[path]
        }
        self._of_modes: dict[Place, dict[bool, Any]] = {}
        self._left_to_reset: set[Place] = set()

    def now(self) -> CounterValues:
        """Return the present values, also of those that a class defines and a call may replace."""
        left_out = self._of_modes.keys() | self._left_to_reset
        values = {place: self._value(place) for place in (*self._places, *self._of_classes)}
        return {
            place: value
            for place, value in values.items()
            if isinstance(value, SCALARS) and place not in left_out
        }

    def _value(self, place: Place) -> Any:
        return self._found.spaces[place[0]].get(place[1], self._of_classes.get(place))

    def assign(self, values: CounterValues) -> None:
        """Assign values, such as those that another module's counters have."""
        for (path, name), value in values.items():
            space = self._found.spaces[path]
            if (path, name) in self._of_classes and value is self._of_classes[path, name]:
                space.pop(name, None)
            elif space.get(name) is not value:
                space[name] = value

    def restore(self) -> None:
        """Assign the values that were found at construction."""
        self.assign(self._first | self._of_classes)

    def keeps(self, place: Place, original: Any, value: Any) -> bool:
        """Return whether a value is a counter, which replaces another or one that a class defines."""
        if place in self._left_to_reset or place[0] in self._found.containers:
            return False
        return isinstance(value, SCALARS) and (isinstance(original, SCALARS) or place in self._of_classes)

    def floats(self) -> dict[Place, float]:
        """Return the present finite floats that a user may assign.

        Those of torch's own modules are settings, a frozen dataclass forbids it, and what a class defines
        belongs to all of its objects.
        """
        modules, frozen = self._found.modules, self._found.frozen()
        return {
            place: value
            for place, value in self.now().items()
            if type(value) is float
            and math.isfinite(value)
            and place not in self._of_classes
            and place[0] not in frozen
            and not is_torch_layer(modules.get(place[0]))
        }

    def switch(self, training: bool) -> set[Place]:
        """Put the module into ``train()`` or ``eval()``; return the places that this changes."""
        if self._model.training is training:
            return set()
        before = self.now()
        self._model.train(training)
        now = self.now()
        return {place for place, old in before.items() if now.get(place) is not old and now.get(place) != old}

    def leave_to_modes(self, places: Iterable[Place]) -> None:
        """Leave out what the policy itself changes in ``train()`` and ``eval()``.

        From now on `reset_modes` gives them the values that they had first in the mode.
        """
        for place in places:
            self._of_modes.setdefault(place, {})
        self.reset_modes()

    def leave_to_reset(self, places: Iterable[Place]) -> None:
        """Leave out values that belong to other state, such as the flag of a lazy initialisation.

        From now on `ModuleState.reset` restores them with it.
        """
        self._left_to_reset.update(places)

    @property
    def left_to_modes(self) -> bool:
        """Whether the policy changes some in ``train()`` and ``eval()``."""
        return bool(self._of_modes)

    def reset_modes(self) -> None:
        """Assign to those that were left to the modes the values that they had first in this mode."""
        for place, values in self._of_modes.items():
            now = self._value(place)
            first = values.setdefault(self._model.training, now)
            if now is not first:
                self.assign({place: first})


def _class_scalars(kind: type) -> dict[str, Any]:
    """Return the numbers, booleans and strings that a user's class and its bases define, by name."""
    users = (base for base in reversed(kind.__mro__) if base.__module__.partition(".")[0] not in _NOT_USERS)
    return {
        name: value
        for base in users
        for name, value in vars(base).items()
        if type(value) in SCALARS and not name.startswith("__")
    }
