"""Records and restores the random generators among a policy's attributes."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch


class Generators:
    """Random generators among a policy's attributes, and their states at construction.

    Args:
        candidates: values of attributes, by path.
    """

    def __init__(self, candidates: Mapping[str, Any]) -> None:
        self._kept: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Any]] = {}
        for path, value in candidates.items():
            get: Callable[[], Any]
            put: Callable[[Any], Any]
            if isinstance(value, (torch.Generator, np.random.RandomState)):
                get, put = value.get_state, value.set_state
            elif isinstance(value, np.random.Generator):
                bits = value.bit_generator
                get, put = (
                    functools.partial(getattr, bits, "state"),
                    functools.partial(setattr, bits, "state"),
                )
            elif isinstance(value, random.Random):
                get, put = value.getstate, value.setstate
            else:
                continue
            self._kept[path] = get, put, get()

    def reset(self) -> None:
        """Restore the recorded states."""
        for _, put, state in self._kept.values():
            put(state)

    def now(self) -> dict[str, GeneratorState]:
        """Return the present states by path."""
        states = {path: (_comparable(get()), _comparable(old)) for path, (get, _, old) in self._kept.items()}
        return {path: GeneratorState(state, drew=state != old) for path, (state, old) in states.items()}


class GeneratorState(NamedTuple):
    """The state of a random generator, as a value that ``==`` compares.

    Args:
        state: the state.
        drew: whether it differs from the state at construction.
    """

    state: Any
    drew: bool


def _comparable(state: Any) -> Any:
    """Return the state of a generator with bytes in place of tensors and arrays."""
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, np.ndarray):
        return state.tobytes()
    if isinstance(state, dict):
        return {name: _comparable(value) for name, value in state.items()}
    return tuple(map(_comparable, state)) if isinstance(state, tuple) else state
