"""A check leaves the process as it found it.

Random generators, grad mode, default dtype, threads and the validation of distribution arguments
are global to the process. All are put back, however the check ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pytest_torchcompile import internals


def _cuda_in_use() -> bool:
    """Whether CUDA has been initialised; asking for its generators would initialise it."""
    return torch.cuda.is_initialized()  # type: ignore[no-untyped-call,no-any-return]  # torch leaves it untyped


class RandomState:
    """The state of every generator that a policy may draw from: torch (all devices), numpy, python."""

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
        self.numpy: Any = np.random.get_state()
        self.python = random.getstate()

    def restore(self) -> None:
        """Put every generator back."""
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def unequal(self, other: RandomState) -> tuple[str, ...]:
        """The names of the generators whose states differ."""
        names = []
        mine, theirs = [self.torch, *self.cuda], [other.torch, *other.cuda]
        if len(mine) != len(theirs) or not all(map(torch.equal, mine, theirs)):
            names.append("torch")
        # Name, keys, position, and a normal number kept for the next call, if there is one.
        if self.numpy[2:] != other.numpy[2:] or not np.array_equal(self.numpy[1], other.numpy[1]):
            names.append("numpy")
        if self.python != other.python:
            names.append("python")
        return tuple(names)


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), numpy and python."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # What `torch.manual_seed` queues for absent devices costs a millisecond and is never freed.
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class Stream:
    """Random numbers that go on from call to call, as they do in training."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._left: RandomState | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Run the body with the generators where the last one left them."""
        if self._left is None:
            seed_everything(self._seed)
        else:
            self._left.restore()
        yield
        self._left = RandomState()


_validations: list[bool] = []
"""Whether the user has distributions validate their arguments, for each check that is going on."""


@contextlib.contextmanager
def users_validation() -> Iterator[None]:
    """Run the body, the user's factory, with distributions validating as the user has it.

    What it changes outlives the check: Stable-Baselines3 and rsl_rl switch the validation off when they
    are imported, or make their first policy, and don't do it twice.
    """
    if not _validations:
        yield
        return
    internals.set_argument_validation(_validations[-1])
    try:
        yield
    finally:
        _validations[-1] = internals.argument_validation()
        internals.set_argument_validation(False)


_deferred: list[list[warnings.WarningMessage]] = []


@contextlib.contextmanager
def deferred_warnings() -> Iterator[Callable[[], None]]:
    """Keep the warnings that `isolated` would emit at its end; yields what emits them.

    Under ``-W error`` that raises, so that whoever has a result to save does it first.
    """
    kept: list[warnings.WarningMessage] = []
    _deferred.append(kept)
    try:
        yield lambda: _emit_again(kept)
    finally:
        _deferred.remove(kept)


@contextlib.contextmanager
def isolated(threads: int | None = None) -> Iterator[None]:
    """Run the body with `threads` torch threads, if given; afterwards the process is as it was before.

    Warnings are recorded while the body runs, because under ``-W error`` dynamo's own would turn
    into exceptions inside the compiler. Those not from torch are emitted again at the end.
    """
    before = RandomState()
    grad, dtype, count = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    _validations.append(internals.argument_validation())
    caught: list[warnings.WarningMessage] = []
    try:
        with internals.quiet_trace_log(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if threads is not None:
                torch.set_num_threads(threads)
            # What importing dynamo does to every process that compiles; both sides run like that.
            internals.set_argument_validation(False)
            with _out_of_collections():
                yield
    finally:
        internals.set_argument_validation(_validations.pop())
        torch.set_num_threads(count)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        before.restore()
        if _deferred:
            _deferred[-1].extend(caught)
    if not _deferred:
        _emit_again(caught)


@contextlib.contextmanager
def _out_of_collections() -> Iterator[None]:
    """Keep all objects that there are by now out of the garbage collector's way.

    Compiling sets off collection after collection, and each full one would go through all that torch,
    dynamo and the user have imported: a tenth of a check's time.
    """
    torch.compiler.list_backends()  # imports dynamo
    if gc.get_freeze_count():
        # Somebody else froze objects, and all are unfrozen at once.
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _emit_again(caught: list[warnings.WarningMessage]) -> None:
    """Emit each distinct warning of the user's code, under the caller's filters.

    Not those of torch's code, nor those that say that we do something unusual, such as differentiating.
    """
    not_theirs = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in (torch.__file__, __file__))
    distinct = {
        (str(warning.message), warning.category, warning.filename, warning.lineno): warning
        for warning in caught
        if not warning.filename.startswith(not_theirs)
    }
    for warning in distinct.values():
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
