"""Builds the two modules of a check from one factory, equal in every tensor.

A module that the user passes is called only if it can't be copied.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import itertools
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pytest_torchcompile import internals
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.policies.holders import Holder, is_holder
from pytest_torchcompile.policies.ordinary import is_ordinary, same_values
from pytest_torchcompile.policies.outputs import named_values
from pytest_torchcompile.policies.reachable import Reachable, path_of
from pytest_torchcompile.policies.snapshots import copied, map_tensors
from pytest_torchcompile.policies.state import ModuleState
from pytest_torchcompile.runtime import isolation
from pytest_torchcompile.texts import raised_text

Factory = Callable[[], Any] | nn.Module
"""A function without arguments that makes the module, or a module, which is copied."""


@dataclasses.dataclass(kw_only=True)
class Twins:
    """The two modules of a check, equal in every tensor.

    Args:
        eager: the reference.
        compiled: the candidate; the same object as `eager` if no second one could be made.
        deployed: whether the factory returned something already compiled.
        notes: sentences for the report.
    """

    eager: nn.Module
    compiled: nn.Module
    deployed: bool
    notes: list[str]


FirstCall = Callable[[nn.Module], Any]
"""Makes the first call of a module that has lazily initialised parameters."""


def build_twins(factory: Factory, seed: int, first_call: FirstCall = lambda model: None) -> Twins:
    """Return two equal modules made by a factory, which runs twice under one seed.

    Args:
        factory: makes the module; if it is a module, it is deep-copied instead.
        seed: seeds torch, numpy and Python before each run.
        first_call: called if the module has lazily initialised parameters.

    Raises:
        UsageError: if the factory raises, needs arguments or returns something that neither is a module
            nor holds one.
    """
    if isinstance(factory, nn.Module):
        if _is_lazy(factory):
            raise UsageError(
                "torch can't copy a module with lazily initialised parameters; give a function that makes "
                "it, or call it once before"
            )
        return _copied(factory, [])
    if inspect.iscoroutinefunction(factory):
        raise UsageError("the factory is async; it must be a plain function that returns the module")
    _require_no_arguments(factory)
    first = _run(factory, seed, first_call)
    try:
        second = _run(factory, seed, first_call)
    except UsageError as error:
        return _copied(first, [f"the factory can't run twice ({error}); the module was copied"])
    if second is first or _share_tensors(first, second):
        return _copied(first, [])
    notes = []
    try:
        unequal = _make_equal(first, second)
    except (KeyError, RuntimeError):
        return _copied(first, ["factory is not deterministic: its modules differ in structure"])
    if unequal:
        notes.append(
            f"factory is not deterministic: {len(unequal)} tensors differ between two runs under one "
            f"seed ({unequal[0]} first); they were copied from the first module to the second"
        )
    return Twins(eager=first, compiled=second, deployed=comes_compiled(first), notes=notes)


def _require_no_arguments(factory: Callable[[], Any]) -> None:
    with contextlib.suppress(ValueError, TypeError):
        needed = [
            parameter.name
            for parameter in inspect.signature(factory).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if needed:
            raise UsageError(
                f"the factory needs arguments ({', '.join(needed)}); give one that needs none, such as "
                f"lambda: {getattr(factory, '__name__', 'make')}(...)"
            )


def _run(factory: Callable[[], Any], seed: int, first_call: FirstCall) -> nn.Module:
    isolation.seed_everything(seed)
    try:
        with isolation.users_validation():
            made = factory()
    except (UsageError, MemoryError):
        raise
    except Exception as error:
        raise UsageError(f"the factory raised {raised_text(error)}") from error
    if is_holder(made):
        made = Holder(made)
    if isinstance(made, nn.Module):
        _initialise(made, first_call)
        return made
    if inspect.iscoroutine(made):
        made.close()
        raise UsageError("the factory is async; it must be a plain function that returns the module")
    if isinstance(made, type):
        raise UsageError(
            f"the factory returned the class {made.__name__}; return an instance: {made.__name__}(...)"
        )
    what = (
        "None (is a `return` missing?)" if made is None else f"a {type(made).__name__}: {reprlib.repr(made)}"
    )
    raise UsageError(
        f"the factory returned {what}; it must return a torch.nn.Module, or an object that holds some"
    )


def _is_lazy(model: nn.Module) -> bool:
    return any(is_lazy(tensor) for tensor in itertools.chain(model.parameters(), model.buffers()))


def _initialise(model: nn.Module, first_call: FirstCall) -> None:
    """Initialise the lazily initialised parameters, if there are any, by a first call."""
    if not _is_lazy(model):
        return
    before = ModuleState(model)
    try:
        first_call(model)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the module has lazily initialised parameters, and its first call raised {raised_text(error)}; "
            f"call it once inside the factory, before returning it"
        ) from error
    if _is_lazy(model):
        raise UsageError(
            "the module has lazily initialised parameters that no declared method initialises; "
            "call it once inside the factory, before returning it"
        )
    before.restore()


def _copied(model: nn.Module, notes: list[str]) -> Twins:
    """Return two copies of the user's own module; the module itself if it can't be copied.

    A compiled module is not copied, because the copy would still use the original's weights.
    """
    if comes_compiled(model):
        return Twins(eager=model, compiled=model, deployed=True, notes=notes)
    try:
        eager, compiled = copy.deepcopy(model), copy.deepcopy(model)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        notes = [*notes, f"the module can't be copied ({reason:.120}); both sides share it"]
        return Twins(eager=model, compiled=model, deployed=False, notes=notes)
    return Twins(eager=eager, compiled=compiled, deployed=False, notes=notes)


def comes_compiled(model: nn.Module) -> bool:
    """Return whether the module, a submodule or an attribute of one of them is compiled."""
    if internals.is_compiled(model):
        return True
    found = Reachable(model)
    held = (value for space in found.spaces.values() for value in space.values())
    return any(map(internals.is_compiled, (*found.modules.values(), *held)))


def _share_tensors(first: nn.Module, second: nn.Module) -> bool:
    pointers = [
        {tensor.data_ptr() for _, tensor in named_tensors(model) if is_ordinary(tensor) and tensor.numel()}
        for model in (first, second)
    ]
    return bool(pointers[0] & pointers[1])


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters, then buffers, with their names without the prefix of torch.compile's wrapper."""
    found = Reachable(model)
    yield from found.parameters.items()
    yield from found.buffers.items()


def _make_equal(first: nn.Module, second: nn.Module) -> list[str]:
    """Copy the tensors that differ from `first` to `second`; return their names."""
    unequal = []
    theirs = dict(named_tensors(second))
    with torch.no_grad():
        for name, tensor in named_tensors(first):
            other = theirs.pop(name)
            if tensor.is_nested != other.is_nested or (not tensor.is_nested and tensor.shape != other.shape):
                raise KeyError(name)
            if not same_values(tensor, other):
                other.copy_(tensor)
                unequal.append(name)
    if theirs:
        raise KeyError(next(iter(theirs)))
    mine, yours = Reachable(first), Reachable(second)
    for place, value in mine.tensors().items():
        if place in yours.values and _differ(value, yours.values[place]):
            yours.put(place, map_tensors(copied, value))
            unequal.append(path_of(place))
    return unequal


def _differ(first: Any, second: Any) -> bool:
    one, two = named_values(first).tensors, named_values(second).tensors
    return one.keys() != two.keys() or any(not same_values(one[path], two[path]) for path in one)
