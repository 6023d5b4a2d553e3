"""Restore the global state of the process after a check, also if it raises.

That state is the random generators, torch's settings such as grad mode and the number of threads, and the
validation of distribution arguments.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import random
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from pytest_torchcompile import internals
from pytest_torchcompile.texts import is_users_code

FROZEN_AT_START = 1000
"""More objects than any Python begins with that are excluded from garbage collection; 3.12 has 375."""


def _cuda_in_use() -> bool:
    """Whether CUDA is initialised; reading the state of its generators would initialise it."""
    return torch.cuda.is_initialized()  # type: ignore[no-untyped-call,no-any-return]  # torch leaves it untyped


class RandomState:
    """A copy of the states of the random generators of torch (all devices), numpy and python."""

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
        self.numpy: Any = np.random.get_state()
        self.python = random.getstate()

    def restore(self) -> None:
        """Set every generator to its copied state."""
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def unequal(self, other: RandomState) -> tuple[str, ...]:
        """Return the names of the generators whose states differ: ``torch``, ``numpy``, ``python``."""
        names = []
        mine, theirs = [self.torch, *self.cuda], [other.torch, *other.cuda]
        if len(mine) != len(theirs) or not all(map(torch.equal, mine, theirs)):
            names.append("torch")
        # The fields are name, keys, position, and a cached normal number for the next call.
        if self.numpy[2:] != other.numpy[2:] or not np.array_equal(self.numpy[1], other.numpy[1]):
            names.append("numpy")
        if self.python != other.python:
            names.append("python")
        return tuple(names)


class Settings:
    """A copy of torch's settings of the process that code may change and leave changed.

    As a context, it restores them at the end of the body, and with them the keys of torch's dispatcher, which
    torch 2.12 leaves changed if it fails to compile code under inference mode: nothing has gradients then.

    Attributes:
        values: by name, such as ``grad mode``.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {
            "grad mode": torch.is_grad_enabled(),
            "inference mode": torch.is_inference_mode_enabled(),
            "default dtype": torch.get_default_dtype(),
            "number of threads": torch.get_num_threads(),
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        }
        for device in ("cpu", "cuda") if _cuda_in_use() else ("cpu",):
            self.values[f"autocast on {device}"] = torch.is_autocast_enabled(device)
        self._warn_only = torch.is_deterministic_algorithms_warn_only_enabled()

    # Not `contextlib.contextmanager`: the search for state that eager keeps between calls would find its
    # generator.
    def __enter__(self) -> Settings:
        # At its end torch's own context restores inference mode, grad mode and the dispatcher's keys,
        # whatever the body has done to them.
        self._dispatch = torch.inference_mode(self.values["inference mode"])
        self._dispatch.__enter__()
        torch.set_grad_enabled(self.values["grad mode"])
        return self

    def __exit__(self, *error: object) -> None:
        self._dispatch.__exit__(None, None, None)
        self._restore()

    def _restore(self) -> None:
        """Set every other setting that has changed to its copied value."""
        now = Settings().values
        for name, value in self.values.items():
            if value != now[name]:
                self._set(name, value)

    def _set(self, name: str, value: Any) -> None:
        match name:
            case "default dtype":
                torch.set_default_dtype(value)
            case "number of threads":
                torch.set_num_threads(value)
            case "deterministic algorithms":
                torch.use_deterministic_algorithms(value, warn_only=self._warn_only)
            case _:
                torch.set_autocast_enabled(name.removeprefix("autocast on "), value)


def drop_frames(errors: Iterable[BaseException], handled: BaseException | None) -> None:
    """Drop what the frames of exceptions hold, also of their causes and contexts.

    Call this for exceptions of the compiler. If a torch before 2.13 fails to compile code under inference
    mode, a frame of dynamo's holds an object that changes the keys of torch's dispatcher when it is dropped.
    Python drops it when it next collects memory, in the middle of other code. Here it is dropped at once, and
    the keys are restored.

    Args:
        errors: the exceptions.
        handled: the exception that was being handled before the call; None if there was none. Its frames
            are the user's, and keep what they hold.
    """
    chain: list[BaseException | None] = [*errors]
    if not chain:
        return
    seen: set[int] = {id(handled)}
    with Settings():
        while chain:
            error = chain.pop()
            if error is not None and id(error) not in seen:
                seen.add(id(error))
                chain += error.__cause__, error.__context__
                # It leaves frames alone that are still running.
                traceback.clear_frames(error.__traceback__)
        gc.collect()


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), numpy and python."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # `torch.manual_seed` queues a call for each absent device, which takes 1 ms and is never freed.
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class Stream:
    """A stream of random numbers that continues from call to call, as in training."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._state: RandomState | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Run the body with the generators in the state at the end of the previous body."""
        if self._state is None:
            seed_everything(self._seed)
        else:
            self._state.restore()
        yield
        self._state = RandomState()


_validations: list[bool] = []
"""For each running check, whether the user's setting makes distributions validate their arguments."""


@contextlib.contextmanager
def users_validation() -> Iterator[None]:
    """Run the body, the user's factory, with the user's setting of distribution argument validation.

    If the factory changes the setting, the change remains after the check: Stable-Baselines3 and rsl_rl
    switch the validation off once, when they are imported or create their first policy.
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
    """Collect the warnings that `isolated` would emit at its end; yield a function that emits them.

    Under ``-W error`` that function raises, so the caller can save its result before.
    """
    kept: list[warnings.WarningMessage] = []
    _deferred.append(kept)
    try:
        yield lambda: _emit_again(kept)
    finally:
        _deferred.pop()


@contextlib.contextmanager
def isolated(threads: int | None = None) -> Iterator[None]:
    """Run the body with `threads` torch threads, if given, and restore the state of the process at its end.

    Warnings are recorded while the body runs, because under ``-W error`` dynamo's own warnings would be
    exceptions inside the compiler. Warnings that are not from torch are emitted again at the end.
    """
    before = RandomState()
    _validations.append(internals.argument_validation())
    caught: list[warnings.WarningMessage] = []
    try:
        with Settings(), internals.quiet_trace_log(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if threads is not None:
                torch.set_num_threads(threads)
            # Importing dynamo does this in every process that compiles; both sides run with it.
            internals.set_argument_validation(False)
            with _frozen_objects():
                yield
    finally:
        internals.set_argument_validation(_validations.pop())
        before.restore()
        if _deferred:
            _deferred[-1].extend(caught)
    if not _deferred:
        _emit_again(caught)


@contextlib.contextmanager
def compilers_warnings_recorded() -> Iterator[None]:
    """Run the body, a call that may compile, with warnings recorded as in `isolated`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    _emit_again(caught)


@contextlib.contextmanager
def _frozen_objects() -> Iterator[None]:
    """Exclude all existing objects from garbage collection in the body.

    Compiling triggers many collections. Each full one would visit everything that torch, dynamo and the user
    have imported, which takes a tenth of a check's time.
    """
    torch.compiler.list_backends()  # imports dynamo
    if gc.get_freeze_count() > FROZEN_AT_START:
        # Other code has frozen objects, and `gc.unfreeze` would unfreeze those too.
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _emit_again(caught: list[warnings.WarningMessage]) -> None:
    """Emit each distinct warning of the user's code under the caller's filters.

    Warnings of torch's and Hypothesis's code are left out: they are about calls that the check makes.
    """
    distinct = {
        (str(warning.message), warning.category, warning.filename, warning.lineno): warning
        for warning in caught
        if is_users_code(warning.filename)
    }
    for warning in distinct.values():
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Run the body without the output and log records of torch about exceptions in compiled code."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
