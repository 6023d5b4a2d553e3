"""Passes each declared input to the parameter of a method that takes it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.generation import tensors
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.holders import policy_of
from pytest_torchcompile.policies.methods import Method, as_methods
from pytest_torchcompile.specs import conventions, conversion, spaces, trees
from pytest_torchcompile.texts import suggestion

OBSERVATION = "observation"


class Arguments(NamedTuple):
    """The inputs of one call.

    Args:
        args: positional inputs.
        kwargs: keyword inputs.
        drawn: the tensors that these are made from, by path; the object that a `Wrapped` makes may hide them.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    drawn: dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binding:
    """Which input goes to which parameter of a method.

    Args:
        tree: the specs of the inputs that the method takes, by input name.
        positional: names of those given by position.
        named: names of those given by keyword.
        accepts: names of all parameters of the method.
    """

    tree: dict[str, Any]
    positional: tuple[str, ...]
    named: tuple[str, ...]
    accepts: tuple[str, ...] = ()

    def arguments(
        self, recipe: Recipe, of: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    ) -> Arguments:
        """Return new tensors for one call, with `of` applied to each."""
        leaves = tensors.leaves(self.tree, recipe, of)
        values = trees.rebuild(self.tree, leaves.__getitem__)
        return Arguments(
            args=tuple(values[n] for n in self.positional),
            kwargs={n: values[n] for n in self.named},
            drawn={trees.dotted(p): v for p, v in leaves.items() if isinstance(v, torch.Tensor)},
        )


def input_tree(declaration: Declaration, model: nn.Module) -> dict[str, Any]:
    """Return all declared inputs as specs; without a declaration, those of the policy's own spaces.

    Raises:
        UsageError: if neither exists (the message has a declaration to copy), or a spec is wrong.
    """
    inner = policy_of(internals.uncompiled(model))
    observation, inputs = declaration.observation, declaration.inputs
    if inputs is not None and not isinstance(inputs, Mapping):
        raise UsageError(f"inputs={inputs!r}; accepted: a dict from parameter names to specs")
    signatures = [method.signature(model) for method in as_methods(declaration.checked)]
    if observation is None and not _is_named_in(inputs or {}, signatures):
        observation = conventions.own_observation(inner)
    if observation is None and not inputs:
        raise UsageError(
            f"{type(inner).__name__} has no observation spec; declare one without the batch dimension: "
            f"observation={conventions.proposed_observation(inner)}"
        )
    given = {} if observation is None else {OBSERVATION: observation}
    tree = {
        name: conversion.resolve(value, inner, name) for name, value in {**given, **(inputs or {})}.items()
    }
    if OBSERVATION in tree:
        _require_drawn(tree[OBSERVATION], OBSERVATION, inner)
    for name, space in conventions.own_actions(inner, signatures).items():
        tree.setdefault(name, conversion.as_spec(space, name))
    tensors.require_drawable(tree)
    for name, value in tree.items():
        if not any(map(_varies, tree.values())) and _constant_tensors(value):
            _require_drawn(value, name, inner)
    return tree


def _require_drawn(tree: Any, name: str, policy: Any) -> None:
    """Return if some part of an input is drawn, so that the input differs between examples.

    Raises:
        UsageError: if every example would have the same input; the message has the line to write instead.
    """
    if _varies(tree):
        return
    held = _constant_tensors(tree)
    if held:
        raise UsageError(
            f"{name} is a tensor of shape {tuple(held[0].shape)}, but must be a spec: every example would "
            f"use this one tensor; declare a spec without the batch dimension: "
            f"{name}={conventions.spec_like(held[0], policy)}"
        )
    value = tree.value if isinstance(tree, spaces.Constant) else tree
    raise UsageError(
        f"{name} is {value!r}, which is no spec; declare what {type(policy).__name__} "
        f"observes, without the batch dimension: {name}={conventions.proposed_observation(policy)}"
    )


def _varies(tree: Any) -> bool:
    """Return whether an input has a part that is drawn."""
    drawn = any(not isinstance(spec, spaces.Constant) for _, spec in trees.leaves(tree))
    return drawn or isinstance(tree, spaces.Wrapped)


def _constant_tensors(tree: Any) -> list[Any]:
    """Return the tensors and arrays among the constants of an input."""
    values = trees.constants(tree)
    return [value for value in values if hasattr(value, "shape") and hasattr(value, "dtype")]


def _is_named_in(inputs: Mapping[str, Any], signatures: list[inspect.Signature | None]) -> bool:
    """Return whether `inputs` declares the first parameter of some method by its name."""
    return any(signature and next(iter(signature.parameters), "") in inputs for signature in signatures)


def bind(method: Method, model: nn.Module, tree: Mapping[str, Any]) -> Binding:
    """Return which input goes to which parameter of the method.

    Inputs go to the parameters of the same name. The observation goes to the first parameter that no input
    names.

    Raises:
        UsageError: if a required parameter has no spec, or no parameter takes the observation.
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
            proposed = conventions.proposed_input(parameter.name, policy_of(model), signature.parameters)
            hints = {name: suggestion(name, [parameter.name]) for name in others}
            also = next((f"; inputs has {name!r}{hint}" for name, hint in hints.items() if hint), "")
            raise UsageError(
                f"{method.name}{signature} needs {parameter.name!r}, which has no spec; add one: "
                f"inputs={{{parameter.name!r}: {proposed}}}{also}"
            )
    if waiting and named and not positional:
        raise UsageError(
            f"{method.name}{signature} has no parameter left for the observation; name it in inputs instead"
        )
    if waiting:
        raise UsageError(f"{method.name}{signature} takes no observation; use an adapter f(model, x)")
    return _selected(tree, positional, named, tuple(signature.parameters))


def without_defaults(method: Method, model: nn.Module, binding: Binding) -> Binding | None:
    """Return what the method is called with if the inputs whose default is None are left out.

    Args:
        method: the method.
        model: the policy.
        binding: what it is called with if all declared inputs are given.

    Returns:
        None if no input has such a default, or nothing that is drawn would be left.
    """
    signature = method.signature(model)
    parameters = {} if signature is None else signature.parameters
    needed = {name for name in binding.tree if name not in parameters or parameters[name].default is not None}
    for _, spec in trees.leaves({name: binding.tree[name] for name in needed}):
        if isinstance(spec, spaces.LegalAction):
            needed.add(trees.mask_of(binding.tree, spec)[0])
    kept = {name: spec for name, spec in binding.tree.items() if name in needed}
    if kept.keys() == binding.tree.keys() or not any(map(_varies, kept.values())):
        return None
    return bind(method, model, kept)


def _selected(
    tree: Mapping[str, Any], positional: list[str], named: list[str], accepts: tuple[str, ...] = ()
) -> Binding:
    """Return the binding of these inputs; its tree includes the masks that their `LegalAction` specs name."""
    taken = {name: tree[name] for name in tree if name in positional or name in named}
    for _, spec in list(trees.leaves(taken)):
        if isinstance(spec, spaces.LegalAction):
            mask = trees.mask_of(tree, spec)[0]
            taken.setdefault(mask, tree[mask])
    return Binding(tree=taken, positional=tuple(positional), named=tuple(named), accepts=accepts)


def require_all_taken(bindings: Mapping[str, Binding], tree: Mapping[str, Any]) -> None:
    """Return if every declared input is taken by some method.

    Args:
        bindings: by method name.
        tree: the declared inputs.

    Raises:
        UsageError: if no method takes an input; the message names it and the methods' parameters.
    """
    taken = {name for binding in bindings.values() for name in binding.tree}
    accepted = {name for binding in bindings.values() for name in binding.accepts}
    methods = ", ".join(f"{name}({', '.join(each.accepts)})" for name, each in bindings.items())
    for name in tree:
        if name not in taken:
            hint = suggestion(name, accepted)
            raise UsageError(f"no method takes the input {name!r}{hint}; the methods are {methods}")


def bind_all(methods: Sequence[Method], declaration: Declaration, model: nn.Module) -> dict[str, Binding]:
    """Return what each of `methods` is called with, by name.

    Raises:
        UsageError: if a method needs an input that is not declared, or no method takes a declared one.
    """
    tree = input_tree(declaration, model)
    bindings = {method.name: bind(method, model, tree) for method in methods}
    require_all_taken(bindings, tree)
    return bindings
