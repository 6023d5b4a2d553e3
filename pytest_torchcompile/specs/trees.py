"""Walks and rebuilds nests of specs, in which users declare inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.specs.spaces import Constant, LegalAction, LegalMask, Spec, Wrapped
from pytest_torchcompile.texts import suggestion


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Spec]]:
    """Yield the specs of a tree with their paths, in the order of the tree."""
    if isinstance(tree, Spec):
        yield path, tree
    elif isinstance(tree, Wrapped):
        yield from leaves(tree.spec, path)
    else:
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, item in items:
            yield from leaves(item, (*path, key))


def rebuild(tree: Any, value_of: Callable[[tuple[Any, ...]], Any], path: tuple[Any, ...] = ()) -> Any:
    """Return the tree with each spec replaced by ``value_of(path)``, in new containers.

    Raises:
        UsageError: if the function of a `Wrapped` raises.
    """
    if isinstance(tree, Spec):
        return value_of(path)
    if isinstance(tree, Wrapped):
        return tree(rebuild(tree.spec, value_of, path))
    if isinstance(tree, Mapping):
        return {key: rebuild(item, value_of, (*path, key)) for key, item in tree.items()}
    items = [rebuild(item, value_of, (*path, i)) for i, item in enumerate(tree)]
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def with_leaf(tree: Any, path: tuple[Any, ...], spec: Any) -> Any:
    """Return the tree with the spec at `path` replaced by `spec`, a spec or a nest, in new containers."""
    if isinstance(tree, Wrapped):
        return Wrapped(with_leaf(tree.spec, path, spec), tree.wrap)
    if not path:
        return spec
    key, rest = path[0], path[1:]
    if isinstance(tree, Mapping):
        return {**tree, key: with_leaf(tree[key], rest, spec)}
    items = [with_leaf(item, rest, spec) if i == key else item for i, item in enumerate(tree)]
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def dotted(path: tuple[Any, ...]) -> str:
    """Return a path as written in messages and in `LegalAction`: ``observation.board.0``."""
    return ".".join(map(str, path))


def declared(tree: Mapping[str, Any]) -> str:
    """Return declared inputs as keyword arguments: ``observation=Box((8,)), action=Discrete(4)``."""
    return ", ".join(f"{name}={spec!r}" for name, spec in tree.items())


def constants(tree: Any) -> list[Any]:
    """Return the values that every example of a tree of specs has.

    Example:
        >>> from pytest_torchcompile.specs import spaces
        >>> constants({"x": spaces.Discrete(2), "deterministic": spaces.Constant(True)})
        [True]
    """
    return [spec.value for _, spec in leaves(tree) if isinstance(spec, Constant)]


def redeclared(tree: Mapping[str, Any], changes: Mapping[tuple[Any, ...], Any]) -> str:
    """Return the inputs in which something changes, with the changes, as `declared` writes them.

    Args:
        tree: the declared inputs.
        changes: by path, what replaces a spec: a spec, or a nest of specs.

    Example:
        >>> redeclared({"x": Discrete(2), "done": Discrete(3)}, {("done",): Discrete(2)})
        'done=Discrete(2)'
    """
    new: dict[str, Any] = dict(tree)
    for path, spec in changes.items():
        new = with_leaf(new, path, spec)
    return declared({name: new[name] for name in tree if any(path[0] == name for path in changes)})


def mask_of(tree: Any, action: LegalAction) -> tuple[Any, ...]:
    """Return the path of the mask that `action` names.

    Raises:
        UsageError: if no input, or more than one, has that name.
    """
    found = [
        path
        for path, spec in leaves(tree)
        if not isinstance(spec, LegalAction) and (dotted(path) == action.mask or path[-1:] == (action.mask,))
    ]
    if len(found) != 1:
        names = [dotted(path) for path, spec in leaves(tree) if spec is not action]
        masks = [dotted(path) for path, spec in leaves(tree) if isinstance(spec, LegalMask)]
        meant = suggestion(action.mask, names)
        if not meant and len(masks) == 1:
            meant = f" (did you mean {masks[0]!r}?)"
        raise UsageError(
            f"{action!r} names {len(found) or 'no'} input{'s' if len(found) > 1 else ''}"
            f"{'' if found else meant}; the inputs are: {', '.join(names) or 'none'}"
        )
    return found[0]
