"""A module as a policy: the two sides of a check, their methods, and the state that calls change.

Nothing here compiles anything. The rule that the rest of the check leans on: the module that a user
made is never called if a copy can be had, and what a call changes is put back before the next.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals, isolation, spaces, strategies
from pytest_torchcompile.outputs import NamedValues, named_values
from pytest_torchcompile.results import UsageError

OBSERVATION = "observation"

# --- the two sides --------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Twins:
    """The two modules of a check, equal in every tensor.

    Args:
        eager: the reference.
        compiled: the candidate; the same object as `eager` where no second one could be had.
        deployed: whether the factory handed back something already compiled.
        notes: sentences for the report.
    """

    eager: nn.Module
    compiled: nn.Module
    deployed: bool
    notes: list[str]


def build_twins(factory: Callable[[], Any] | nn.Module, seed: int) -> Twins:
    """Two equal modules out of a factory, which runs twice under one seed.

    Args:
        factory: makes the module; a module in its place is deep-copied.
        seed: seeds torch, numpy and python before each run.

    Raises:
        UsageError: if the factory raises, needs arguments or returns something that is no module.
    """
    if isinstance(factory, nn.Module):
        return _copied(factory, [])
    if inspect.iscoroutinefunction(factory):
        raise UsageError("the factory is async; it must be a plain function that returns the module")
    _require_no_arguments(factory)
    first = _run(factory, seed)
    try:
        second = _run(factory, seed)
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
            f"seed ({unequal[0]} first); the second module was given the first one's"
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


def _run(factory: Callable[[], Any], seed: int) -> nn.Module:
    isolation.seed_everything(seed)
    try:
        made = factory()
    except (UsageError, MemoryError):
        raise
    except Exception as error:
        raise UsageError(f"the factory raised {type(error).__name__}: {error}") from error
    if isinstance(made, nn.Module):
        return made
    if inspect.iscoroutine(made):
        made.close()
        raise UsageError("the factory is async; it must be a plain function that returns the module")
    if isinstance(made, type):
        raise UsageError(
            f"the factory returned the class {made.__name__}; return an instance: {made.__name__}(...)"
        )
    what = "None (is a `return` missing?)" if made is None else f"a {type(made).__name__}: {made!r:.60}"
    raise UsageError(f"the factory returned {what}; it must return a torch.nn.Module")


def _copied(model: nn.Module, notes: list[str]) -> Twins:
    """Two copies of the user's own module; the module itself where it can't be copied.

    A copy of something compiled would still call the original's weights, so that is never copied.
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
    """Whether the module, a submodule or an attribute of one of them went through torch.compile."""
    return any(
        internals.is_compiled(module) or any(internals.is_compiled(v) for v in vars(module).values())
        for module in model.modules()
    )


def _share_tensors(first: nn.Module, second: nn.Module) -> bool:
    pointers = [
        {tensor.data_ptr() for _, tensor in named_tensors(model) if tensor.numel()}
        for model in (first, second)
    ]
    return bool(pointers[0] & pointers[1])


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, then buffers, under the names they have without torch.compile's wrapper."""
    yield from internals.uncompiled(model).named_parameters()
    yield from internals.uncompiled(model).named_buffers()


def _make_equal(first: nn.Module, second: nn.Module) -> list[str]:
    """Copy what differs from `first` into `second`; the names of what differed."""
    unequal = []
    theirs = dict(named_tensors(second))
    with torch.no_grad():
        for name, tensor in named_tensors(first):
            other = theirs.pop(name)
            if tensor.shape != other.shape:
                raise KeyError(name)
            if not torch.equal(tensor, other) and not _equal_with_nan(tensor, other):
                other.copy_(tensor)
                unequal.append(name)
    if theirs:
        raise KeyError(next(iter(theirs)))
    mine, yours = TensorAttributes(first), TensorAttributes(second)
    for place, value in mine.values.items():
        if place in yours.values and _differ(value, yours.values[place]):
            setattr(yours.owners[place[0]], place[1], map_tensors(copied, value))
            unequal.append(".".join(filter(None, place)))
    return unequal


def _equal_with_nan(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.is_floating_point() and torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0))


def _differ(first: Any, second: Any) -> bool:
    one, two = named_values(first).tensors, named_values(second).tensors
    return one.keys() != two.keys() or any(not torch.equal(one[path], two[path]) for path in one)


# --- state ----------------------------------------------------------------------------------------

_MODULE_FIELDS = frozenset(vars(nn.Module()))


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """A nest of dicts, lists and tuples with `function` applied to its tensors."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        mapped = {key: map_tensors(function, item) for key, item in value.items()}
        return type(value)(mapped)  # type: ignore[call-arg]
    if isinstance(value, (list, tuple)):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy outside any graph that asks for gradients as the original does."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _holds_tensors(value: Any) -> bool:
    """Whether `value` is a tensor or a nest of them; parameters, kept by RNNs in lists, are no state."""
    if isinstance(value, torch.Tensor):
        return not isinstance(value, nn.Parameter)
    items: Iterable[Any] = ()
    if type(value) in (list, tuple) or hasattr(value, "_fields"):
        items = value
    elif type(value) is dict:
        items = value.values()
    items = list(items)
    return any(map(_holds_tensors, items)) and not any(isinstance(item, nn.Parameter) for item in items)


class TensorAttributes:
    """The plain attributes of all submodules that hold tensors: hidden states, normalisers, caches."""

    def __init__(self, model: nn.Module) -> None:
        self.owners = dict(internals.uncompiled(model).named_modules())
        self.values: dict[tuple[str, str], Any] = {
            (owner, name): value
            for owner, module in self.owners.items()
            for name, value in vars(module).items()
            if name not in _MODULE_FIELDS and _holds_tensors(value)
        }


class ModuleState:
    """What calls change in a module, remembered so that it can be compared and put back.

    Parameters are not copied, which keeps a check of a large module within three times its size;
    the few that a call writes to are remembered by `protect`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        inner = internals.uncompiled(model)
        self._flags = [(module, module.training) for module in inner.modules()]
        self._parameters = dict(inner.named_parameters())
        self._versions = {name: p._version for name, p in self._parameters.items()}
        self._protected: dict[str, torch.Tensor] = {}
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in inner.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._originals = TensorAttributes(model).values
        self._attributes = {place: map_tensors(copied, value) for place, value in self._originals.items()}

    def values(self) -> NamedValues:
        """Buffers, tensor attributes and parameters that were written to, as they are now."""
        inner = internals.uncompiled(self.model)
        found = NamedValues()
        found.tensors = {f"buffer {name}": buffer for name, buffer in inner.named_buffers()}
        for name in self.written():
            found.tensors[f"parameter {name}"] = self._parameters[name].detach()
        for (owner, name), value in TensorAttributes(self.model).values.items():
            path = f"attribute {owner}.{name}" if owner else f"attribute {name}"
            nested = named_values(value, path)
            found.tensors.update(nested.tensors)
            found.kinds.update(nested.kinds)
        return found

    def written(self) -> list[str]:
        """The names of the parameters that some call has written to."""
        return [n for n, p in self._parameters.items() if p._version != self._versions[n]]

    def protect(self, names: Iterable[str], source: nn.Module) -> None:
        """Remember the named parameters by their values in `source`, a module not yet called."""
        originals = dict(internals.uncompiled(source).named_parameters())
        self._protected |= {name: originals[name].detach().clone() for name in names}

    @torch.no_grad()
    def reset(self) -> None:
        """Put buffers, attributes and protected parameters back, in place where that is possible."""
        for module, name, buffer, value in self._buffers:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
            buffer.copy_(value)
        for name, value in self._protected.items():
            self._parameters[name].copy_(value)
        current = TensorAttributes(self.model)
        for place in current.values.keys() | self._attributes.keys():
            owner, name = place
            if place in self._attributes:
                setattr(current.owners[owner], name, map_tensors(copied, self._attributes[place]))
            else:
                # A cache that was empty before the first call.
                setattr(current.owners[owner], name, None)

    def restore(self) -> None:
        """Leave the module as it was found: state, the very attribute objects, train and eval flags."""
        self.reset()
        owners = dict(internals.uncompiled(self.model).named_modules())
        with torch.no_grad():
            for (owner, name), value in self._originals.items():
                old = named_values(value).tensors
                for path, tensor in named_values(self._attributes[owner, name]).tensors.items():
                    old[path].detach().copy_(tensor)
                setattr(owners[owner], name, value)
        for module, training in self._flags:
            module.training = training


# --- methods --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Method:
    """What is compiled and called.

    Args:
        name: ``forward``, ``get_value``, ``actor.log_prob``; an adapter's own name.
        adapter: the function ``f(model, **inputs)``, if it is one.
    """

    name: str
    adapter: Callable[..., Any] | None = None

    def of(self, model: nn.Module) -> Callable[..., Any]:
        """The callable on one side's module; ``forward`` is the module itself, so that hooks count."""
        if self.adapter is not None:
            return self.adapter
        return model if self.name == "forward" else self._attribute(model)

    def _attribute(self, model: nn.Module) -> Callable[..., Any]:
        owner: Any = model
        for part in self.name.split("."):
            try:
                owner = getattr(owner, part)
            except AttributeError:
                raise UsageError(
                    f"{type(internals.uncompiled(model)).__name__} has no method {self.name!r}"
                    f"{_suggestion(owner, part)}"
                ) from None
        if not callable(owner):
            raise UsageError(f"{self.name!r} of {type(model).__name__} is a {type(owner).__name__}")
        return owner  # type: ignore[no-any-return]

    def signature(self, model: nn.Module) -> inspect.Signature | None:
        """The parameters that a caller gives, without ``self`` or the adapter's model."""
        inner = internals.uncompiled(model)
        function = self.adapter or (inner.forward if self.name == "forward" else self._attribute(inner))
        if isinstance(function, nn.Module):
            function = internals.uncompiled(function).forward
        try:
            signature = inspect.signature(function)
        except (ValueError, TypeError):
            return None
        if self.adapter is not None:
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        return signature


def _suggestion(owner: Any, name: str) -> str:
    import difflib

    public = [n for n in dir(owner) if not n.startswith("_") and n not in dir(nn.Module)]
    near = difflib.get_close_matches(name, public, n=3)
    shown = near or public[:12]
    return f"; it has: {', '.join(shown)}" if shown else ""


def as_methods(methods: Any) -> tuple[Method, ...]:
    """`methods`, a name, an adapter or several of them, as `Method` records.

    Raises:
        UsageError: if one is neither, or a name comes twice.
    """
    if isinstance(methods, str) or callable(methods):
        methods = [methods]
    if not isinstance(methods, Sequence) or not methods:
        raise UsageError(f"methods={methods!r}; accepted: method names and functions f(model, **inputs)")
    found = []
    for method in methods:
        if isinstance(method, str) and method:
            found.append(Method(method))
        elif callable(method) and not isinstance(method, (type, nn.Module)):
            name = getattr(method, "__name__", "adapter").replace("<lambda>", "adapter")
            found.append(Method(name, method))
        else:
            raise UsageError(
                f"methods contains {method!r}; accepted: method names and functions f(model, **inputs)"
            )
    names = [method.name for method in found]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise UsageError(f"methods names {repeated!r} twice; give each adapter a name of its own (def)")
    return tuple(found)


# --- inputs ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binding:
    """Which input goes to which parameter of a method.

    Args:
        tree: the specs of the inputs that the method takes, by input name.
        positional: names of those given by position.
        named: names of those given by keyword.
    """

    tree: dict[str, Any]
    positional: tuple[str, ...]
    named: tuple[str, ...]

    def arguments(self, recipe: strategies.Recipe) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """New tensors for one call, as ``(args, kwargs)``."""
        values = strategies.build(self.tree, recipe)
        return tuple(values[n] for n in self.positional), {n: values[n] for n in self.named}


def input_tree(observation: Any, inputs: Mapping[str, Any] | None, model: nn.Module) -> dict[str, Any]:
    """All declared inputs as specs; without `observation` the module's own space is taken.

    Raises:
        UsageError: if there is nothing to go by, with a declaration to paste, or a spec is wrong.
    """
    inner = internals.uncompiled(model)
    if inputs is not None and not isinstance(inputs, Mapping):
        raise UsageError(f"inputs={inputs!r}; accepted: a dict from parameter names to specs")
    if observation is None:
        observation = getattr(inner, "observation_space", None)
    if observation is None and not inputs:
        raise UsageError(
            f"nothing says what {type(inner).__name__} observes; declare it, batch left out: "
            f"observation=Box((8,))"
        )
    given = {} if observation is None else {OBSERVATION: observation}
    tree = {name: spaces.resolve(value, inner, name) for name, value in {**given, **(inputs or {})}.items()}
    strategies.check_tree(tree)
    return tree


def bind(method: Method, model: nn.Module, tree: Mapping[str, Any]) -> Binding:
    """Give each of the method's parameters its input: the observation to the first that has none.

    Raises:
        UsageError: if a required parameter has no spec.
    """
    signature = method.signature(model)
    others = [name for name in tree if name != OBSERVATION]
    if signature is None:
        return _selected(tree, [OBSERVATION] if OBSERVATION in tree else [], others)
    positional: list[str] = []
    named: list[str] = []
    waiting = OBSERVATION in tree
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named += [name for name in others if name not in named and name not in positional]
        elif parameter.name in others:
            by_position = parameter.kind is parameter.POSITIONAL_ONLY
            (positional if by_position else named).append(parameter.name)
        elif waiting and parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(OBSERVATION)
            waiting = False
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            raise UsageError(
                f"{method.name}{signature} needs {parameter.name!r}, which no spec describes; add it: "
                f"inputs={{{parameter.name!r}: Box((8,))}}"
            )
    if waiting and named and not positional:
        raise UsageError(
            f"{method.name}{signature} has no parameter left for the observation; name it in inputs instead"
        )
    if waiting:
        raise UsageError(f"{method.name}{signature} takes no observation; use an adapter f(model, x)")
    return _selected(tree, positional, named)


def _selected(tree: Mapping[str, Any], positional: list[str], named: list[str]) -> Binding:
    """The binding, with a mask kept in the tree that only a `LegalAction` refers to."""
    taken = {name: tree[name] for name in tree if name in positional or name in named}
    for _, spec in list(spaces.leaves(taken)):
        if isinstance(spec, spaces.LegalAction):
            mask = spaces.mask_of(tree, spec)[0]
            taken.setdefault(mask, tree[mask])
    return Binding(tree=taken, positional=tuple(positional), named=tuple(named))


def require_all_taken(bindings: Iterable[Binding], tree: Mapping[str, Any]) -> None:
    """Return if each declared input goes to some method.

    Raises:
        UsageError: naming the input that none takes.
    """
    taken = {name for binding in bindings for name in binding.tree}
    for name in tree:
        if name not in taken:
            raise UsageError(f"no method takes the input {name!r}; remove it, or correct its name")
