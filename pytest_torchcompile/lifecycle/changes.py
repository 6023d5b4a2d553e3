"""Changes a policy between two calls: its weights, buffers, attributes, and which layers are trained.

Each change is small, so that the policy still computes finite numbers, and so large that a result from before
the change can't pass as rounding. The next story of a lifecycle begins without the changes.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pytest_torchcompile import internals
from pytest_torchcompile.lifecycle.stories import Change
from pytest_torchcompile.policies.counters import CounterValues
from pytest_torchcompile.policies.ordinary import is_ordinary
from pytest_torchcompile.policies.reachable import Place, Reachable, path_of
from pytest_torchcompile.policies.snapshots import write
from pytest_torchcompile.policies.state import ModuleState

ANNEALED = 0.9
"""Factor for float attributes. The product stays in any range that includes the value and 0."""

Tensors = dict[str, torch.Tensor]


class Changes:
    """Makes the changes of one side.

    Args:
        model: the side's policy.
        other: the other side's policy. What both hold, such as one object of settings, is left alone.
        state: the state of the policy, with its parameters.
    """

    def __init__(self, model: nn.Module, other: nn.Module, state: ModuleState) -> None:
        self._inner = internals.uncompiled(model)
        self._state = state
        mine, theirs = Reachable(self._inner), Reachable(internals.uncompiled(other))
        self._shared = set() if model is other else mine.shared_with(theirs)
        # An attribute that is 0 turns something off.
        self._floats: dict[Place, float] = {
            place: value
            for place, value in state.counters.floats().items()
            if value and place not in self._shared
        }
        self._annealed: dict[Place, float] = {}
        # Not copies: these share memory with the parameters.
        self._data = {name: p.data for name, p in state.parameters().items() if _can_be_moved(p)}

    # --- what there is ---

    def possible(self) -> Iterator[Change]:
        """Yield the changes that this policy allows, except freezing, see `layer`."""
        if self._buffers():
            yield Change.BUFFERS_COPIED
            if self._buffers().keys() & self._inner.state_dict().keys():
                yield Change.BUFFERS_LOADED
            yield Change.BUFFERS_ASSIGNED
        if self._integers():
            yield Change.INTEGERS_COPIED
        if self._data:
            yield from (Change.WEIGHTS_COPIED, Change.WEIGHTS_DATA, Change.WEIGHTS_REPLACED)
        if self._floats:
            yield Change.ANNEALED

    def names(self, change: Change) -> list[str]:
        """Return the names of the buffers or attributes of a change; empty for other changes."""
        if change is Change.BUFFERS_LOADED:
            return [name for name in self._buffers() if name in self._inner.state_dict()]
        if change.what in ("buffers", "integers"):
            return list(self._changed_by(change))
        return [path_of(place) for place in self._floats] if change is Change.ANNEALED else []

    def layer(self, learnt: Sequence[Collection[str]]) -> str:
        """Return a submodule that can be frozen while others still learn; empty if there is none.

        It is one with a learnt layer before it in the same module, if there is such a one: gradients go
        through it to that layer.

        Args:
            learnt: for each method, the names of the parameters that it learns.
        """
        owned = collections.defaultdict(set)
        for name, parameter in self._inner.named_parameters():
            if parameter.requires_grad:
                owned[name.rpartition(".")[0]].add(name)
        found = [
            owner
            for owner, names in owned.items()
            if owner
            and any(not names.isdisjoint(each) for each in learnt)
            and all(set(each) - names for each in learnt)
        ]
        behind = (owner for number, owner in enumerate(found) if _follows(owner, found[:number]))
        return next(behind, found[0] if found else "")

    def attributes(self) -> dict[str, float]:
        """Return the current values of the attributes that can be annealed, by path."""
        now = self._state.counters.floats()
        return {path_of(place): now[place] for place in self._floats if place in now}

    def tensors(self) -> Tensors:
        """Return copies of the buffers and attributes that can be changed."""
        found = self._buffers() | self._integers()
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    # --- making them ---

    def make(self, change: Change, name: str, seed: int) -> None:
        """Make a change, to everything of its kind or, if `name` is not empty, to what has that name."""
        match change.what:
            case "buffers" | "integers":
                found = self._changed_by(change)
                self._write_buffers(change, _moved({name: found[name]} if name else found, seed))
            case "weights":
                self._write_weights(change, self._weights(seed))
            case "attributes":
                self._anneal(name)
            case "layers":
                for parameter in self._inner.get_submodule(name).parameters(recurse=False):
                    parameter.requires_grad_(change is Change.THAWED)

    def load(self, seed: int) -> None:
        """Load other weights, which are near the first ones."""
        self._load(self._weights(seed))
        self._state.accept()

    def _write_buffers(self, change: Change, new: Tensors) -> None:
        if change is Change.BUFFERS_LOADED:
            self._load(new)
            return
        reachable = Reachable(self._inner)
        places = _attributes(reachable)
        old = self._changed_by(change)
        for name, tensor in new.items():
            if change is not Change.BUFFERS_ASSIGNED:
                with torch.no_grad():
                    old[name].copy_(tensor)
            elif name in places:
                reachable.put(places[name], tensor)
            else:
                owner, _, attribute = name.rpartition(".")
                setattr(self._inner.get_submodule(owner), attribute, tensor)

    def _write_weights(self, change: Change, new: Tensors) -> None:
        parameters = self._state.parameters()
        for name, tensor in new.items():
            if change is Change.WEIGHTS_DATA:
                parameters[name].data.copy_(tensor)
            elif change is Change.WEIGHTS_REPLACED:
                parameters[name].data = tensor
            else:
                with torch.no_grad():
                    parameters[name].copy_(tensor)
        # Otherwise the next call would report these changes as its side effects.
        self._state.accept()

    def _load(self, new: Mapping[str, torch.Tensor]) -> None:
        """Load `new`, under every name of each tensor, and the current values of all other tensors."""
        loaded = self._inner.state_dict()
        # The other values are not taken from `state_dict()`: the move `checkpoint` checks that.
        values = {id(tensor): new.get(name, tensor) for name, tensor in self._named()}
        loaded |= {name: values[id(tensor)] for name, tensor in self._named(twice=True) if name in loaded}
        self._inner.load_state_dict(loaded)

    def _anneal(self, name: str) -> None:
        """Multiply float attributes by `ANNEALED`, except those that the policy itself has changed."""
        now = self._state.counters.floats()
        for place, found in self._floats.items():
            last = self._annealed.get(place, found)
            if name in ("", path_of(place)) and now.get(place) in (found, last):
                self._annealed[place] = ANNEALED * now[place]
                self._state.counters.assign({place: self._annealed[place]})

    # --- undoing them ---

    def restore_memory(self) -> None:
        """Give the parameters their first memory again. Their values are restored with the state."""
        parameters = self._state.parameters()
        for name, data in self._data.items():
            if parameters[name].data_ptr() != data.data_ptr():
                parameters[name].data = data

    def with_first_attributes(self, counters: CounterValues) -> CounterValues:
        """Return `counters` with the first values of the annealed attributes."""
        return counters | {place: self._floats[place] for place in self._annealed}

    def snapshot(self) -> Callable[[str], None]:
        """Copy weights, buffers and attributes. Return a function that restores one kind of them."""
        parameters = self._state.parameters() | self._state.leaves()
        weights = {name: p.detach().clone() for name, p in parameters.items()}
        buffers = self.tensors()
        floats = self._state.counters.floats()

        def restore(what: str) -> None:
            if what == "attributes":
                self._state.counters.assign(floats)
            elif what == "weights":
                for name, tensor in weights.items():
                    write(parameters[name], tensor)
            else:
                now = self._buffers() | self._integers()
                for name in buffers.keys() & now.keys():
                    write(now[name], buffers[name])

        return restore

    # --- new values ---

    def _named(self, *, twice: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._inner.named_parameters(remove_duplicate=not twice)
        yield from self._inner.named_buffers(remove_duplicate=not twice)

    def _changed_by(self, change: Change) -> Tensors:
        return self._integers() if change is Change.INTEGERS_COPIED else self._buffers()

    def _buffers(self) -> Tensors:
        """Return the buffers of floats, and then such tensors among the attributes, by name."""
        return {name: tensor for name, tensor in self._own_tensors() if tensor.is_floating_point()}

    def _integers(self) -> Tensors:
        """Return the buffers and attributes of integers or booleans, by name; none on an accelerator.

        There an index out of range ends the process.
        """
        found = {name: tensor for name, tensor in self._own_tensors() if not tensor.is_floating_point()}
        return {} if any(tensor.device.type != "cpu" for tensor in found.values()) else found

    def _own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the buffers that can be changed, then such tensors among the attributes, with their names."""
        reachable = Reachable(self._inner)
        yield from ((n, b) for n, b in self._inner.named_buffers() if _can_be_changed(b))
        for name, place in _attributes(reachable).items():
            if place not in self._shared and _can_be_changed(reachable.values[place]):
                yield name, reachable.values[place]

    def _weights(self, seed: int) -> Tensors:
        """Return new weights near the first ones."""
        generator = torch.Generator().manual_seed(seed)
        found = {}
        first = self._state.remembered()
        for name in self._data:
            noise = torch.randn(first[name].shape, generator=generator, dtype=torch.float32)
            spread = 0.1 * float(first[name].abs().mean()) + 0.01
            found[name] = first[name] + spread * noise.to(first[name])
        return found


def _can_be_moved(tensor: torch.Tensor) -> bool:
    """Return whether noise can be added to the elements of a tensor."""
    return _can_be_written(tensor) and tensor.is_floating_point()


def _follows(owner: str, earlier: Sequence[str]) -> bool:
    """Return whether one of the earlier layers lies in the same module as a layer."""
    inside = owner.rpartition(".")[0]
    return any(not inside or other.startswith(f"{inside}.") for other in earlier)


def _attributes(reachable: Reachable) -> dict[str, Place]:
    """Return the places of the tensors, no buffers, among the attributes of modules and objects, by name.

    Tensors that require grad are left out: they are weights, or results of a call.
    """
    others = reachable.containers | reachable.frozen()
    return {
        path_of(place): place
        for place, value in reachable.values.items()
        if isinstance(value, torch.Tensor) and not value.requires_grad and place[0] not in others
    }


def _can_be_changed(tensor: torch.Tensor) -> bool:
    """Return whether a buffer or an attribute can be given other values."""
    return _can_be_written(tensor) and bool(tensor.numel()) and not tensor.is_complex()


def _can_be_written(tensor: torch.Tensor) -> bool:
    """Return whether other values can be copied to a tensor, each element to memory of its own."""
    if is_lazy(tensor) or not is_ordinary(tensor) or tensor.is_inference():
        return False
    return 0 not in tensor.stride()


def _moved(tensors: Mapping[str, torch.Tensor], seed: int) -> Tensors:
    """Return other values for these tensors, of a kind that they may have.

    Each finite element of a float becomes a little larger, so that a variance stays positive. The rows of an
    index or a mask change places, so that they stay in range. A single integer is increased by 1, which eager
    may reject.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in tensors.items():
        old = tensor.detach()
        if not old.is_floating_point():
            counts = not old.dim() and old.dtype != torch.bool
            found[name] = old + 1 if counts else old.roll(1, 0) if old.dim() else old.clone()
            continue
        noise = torch.randn(old.shape, generator=generator, dtype=torch.float32).abs().to(old)
        larger = old + (0.05 * old.abs() + 0.05) * noise
        # Infinities stay as they are: an attention mask has some.
        found[name] = torch.where(old.isfinite(), larger, old)
    return found
