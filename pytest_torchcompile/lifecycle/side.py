"""Plays the moves of a story on one side of a lifecycle: the policy acts, learns, is loaded and changed.

Nothing is restored between moves. A move has an `Outcome` like that of a single call, and is compared in the
same way.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.lifecycle.changes import Changes
from pytest_torchcompile.lifecycle.stories import Kind, Manner, Move
from pytest_torchcompile.policies import loss
from pytest_torchcompile.policies.backward import Gradients
from pytest_torchcompile.policies.binding import Arguments
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.counters import CounterValues
from pytest_torchcompile.policies.ordinary import equal_values, is_ordinary, ordinary
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.outputs import named_values
from pytest_torchcompile.policies.reachable import Reachable
from pytest_torchcompile.runtime.autocast import autocasting

KEPT = 4
"""The number of calls whose outputs are kept, to find out whether a later call writes to them."""

WRAPPER = "_orig_mod."
"""The prefix that torch.compile adds to the names of a module's tensors in its ``state_dict()``."""

Kept = tuple[torch.Tensor, torch.Tensor]
"""An output, and a copy that was made when it was returned."""


class LifecycleSide:
    """One side's policy and its optimizer.

    Args:
        pairs: the methods by name, all of the same two modules.
        sides: this side of each method.
        model: this side's policy as it is deployed. Checkpoints are made of it.
        changes: makes the changes between calls.
        has_loss: whether a method that learns returns the user's loss. If not, PPO's loss of its outputs is
            used.
    """

    def __init__(
        self,
        pairs: Mapping[str, Pair],
        sides: Mapping[str, Side],
        model: nn.Module,
        changes: Changes,
        *,
        has_loss: bool,
    ) -> None:
        self._pairs = pairs
        self._sides = sides
        self._model = model
        self._inner = internals.uncompiled(model)
        self._has_loss = has_loss
        self.side = next(iter(sides.values()))
        self.changes = changes
        self._inputs: dict[str, Arguments] = {}
        self._trained: dict[str, torch.Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._kept: collections.deque[tuple[int, dict[str, Kept]]] = collections.deque(maxlen=KEPT)
        self._moves = 0

    def begin(self, counters: CounterValues) -> None:
        """Start a story: from the first weights, these counters and a new optimizer."""
        assert self.side.state is not None  # a pair's sides have modules
        self.changes.restore_memory()
        self.side.reset(training=False)
        self.side.state.counters.assign(self.changes.with_first_attributes(counters))
        # Before a story can freeze a layer, which it may thaw later.
        self._trained = self._parameters()
        self._optimizer = None
        self._inputs.clear()
        self._kept.clear()
        self._moves = 0
        for parameter in self._trained.values():
            parameter.grad = None

    def end(self) -> None:
        """Restore the module as it was before the check."""
        self.changes.restore_memory()
        self.side.restore()

    def play(self, move: Move, *, wide: bool = False, among: Collection[str] | None = None) -> Outcome:
        """Make one move and return its outcome.

        Args:
            move: the move.
            wide: whether its inputs are float64.
            among: the paths that a loss may be computed from; None means all that require grad. In eager a
                loss of a frozen layer requires none; torch 2.9's AOTAutograd lets it require grad.
        """
        self._moves += 1
        match move.kind:
            case Kind.ACT:
                return self._act(move, wide)
            case Kind.LEARN:
                return self._learn(move, wide, among)
            case Kind.LOAD:
                return self._change(functools.partial(self.changes.load, move.seed))
            case Kind.CHECKPOINT:
                return self._change(self._save_and_load)
            case Kind.CHANGE:
                return self._change(functools.partial(self.changes.make, move.change, move.name, move.seed))

    def learnt(self) -> dict[str, torch.Tensor]:
        """Return the weights and the optimizer's state. They are large, so they are not copied."""
        found: dict[str, torch.Tensor] = {}
        state = {} if self._optimizer is None else self._optimizer.state
        for name, parameter in self._weights().items():
            found |= ordinary(parameter.detach(), f"parameter {name}")
            for key, value in state.get(parameter, {}).items():
                found |= ordinary(value, f"optimizer's {key} of {name}")
        return found

    def weights(self) -> dict[str, torch.Tensor]:
        """Return copies of the weights."""
        return {name: p.detach().clone() for name, p in self._weights().items()}

    def overwritten(self) -> set[tuple[int, str]]:
        """Return the outputs of earlier moves that have changed since, by number of the move and path."""
        return {
            (number, path)
            for number, outputs in self._kept
            for path, (live, copy) in outputs.items()
            if not equal_values(live, copy)
        }

    def _act(self, move: Move, wide: bool) -> Outcome:
        pair = self._pairs[move.method]
        bound = pair.arguments(move.recipe(pair.tree), wide=wide)
        if move.manner is Manner.REFILLED:
            bound = self._refilled(move.method, bound)
        self._inputs[move.method] = bound
        self._inner.train(move.manner is Manner.TRAINING)
        with self._acting(move.manner):
            return self._keep_outputs(self._sides[move.method]).step(
                bound.args, bound.kwargs, seed=move.seed, drawn=bound.drawn
            )

    def _learn(self, move: Move, wide: bool, among: Collection[str] | None) -> Outcome:
        pair = self._pairs[move.method]
        bound = pair.arguments(move.recipe(pair.tree), wide=wide)
        self._inner.train(True)
        if move.manner is Manner.SETTLED:
            for name in layers_with_modes(self._inner):
                self._inner.get_submodule(name).eval()
        return self._keep_outputs(self._sides[move.method]).step(
            bound.args,
            bound.kwargs,
            seed=move.seed,
            drawn=bound.drawn,
            differentiate=functools.partial(self._optimize, move, among),
        )

    def _refilled(self, method: str, new: Arguments) -> Arguments:
        """Return the inputs of the last call, with the new values if they fit; else the new inputs."""
        kept = self._inputs.get(method)
        if kept is None:
            return new
        theirs = self._sides[method].named_inputs(kept.args, kept.kwargs, kept.drawn).tensors
        ours = self._sides[method].named_inputs(new.args, new.kwargs, new.drawn).tensors
        alike = {path: (t.shape, t.dtype) for path, t in theirs.items()}
        if alike != {path: (t.shape, t.dtype) for path, t in ours.items()}:
            return new
        if not all(is_ordinary(tensor) and 0 not in tensor.stride() for tensor in theirs.values()):
            return new
        with torch.no_grad():
            for path, tensor in theirs.items():
                tensor.copy_(ours[path])
        return kept

    def _acting(self, manner: Manner) -> contextlib.AbstractContextManager[Any]:
        if manner is Manner.AUTOCAST:
            return autocasting("bfloat16", self._inner)()
        return torch.inference_mode() if manner is Manner.INFERENCE else contextlib.nullcontext()

    def _keep_outputs(self, side: Side) -> Side:
        """Return a side that keeps its outputs, as a user may, and copies of them."""

        def kept(*args: Any, **kwargs: Any) -> Any:
            returned = side.function(*args, **kwargs)
            live = named_values(returned).tensors
            self._kept.append((self._moves, {p: (t.detach(), t.detach().clone()) for p, t in live.items()}))
            return returned

        return side.replaced(kept, side.around)

    def _optimize(self, move: Move, among: Collection[str] | None, outcome: Outcome) -> Gradients:
        """Make a step of the optimizer, if an output requires grad; return the gradients before clipping."""
        parameters = self._parameters()
        for parameter in parameters.values():
            parameter.grad = None
        with self.side.cast():
            value = self._loss_of(outcome, move, among)
        if value is None:
            return {}
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients: Gradients = {
            name: None if p.grad is None else p.grad.detach().clone() for name, p in parameters.items()
        }
        for parameter in parameters.values():
            # AOTAutograd may give zeros where eager gives None, for which an optimizer makes state.
            if parameter.grad is not None and _is_zero(parameter.grad):
                parameter.grad = None
            elif parameter.grad is not None and parameter.grad.is_sparse:
                # Neither clipping nor Adam takes sparse gradients.
                parameter.grad = parameter.grad.to_dense()
        nn.utils.clip_grad_norm_(parameters.values(), loss.LARGEST_NORM)
        if self._optimizer is None:
            self._optimizer = loss.optimizer_of((self._trained | parameters).values())
        self._optimizer.step()
        for parameter in parameters.values():
            parameter.grad = None
        self._accept()
        outcome.outputs.tensors["loss"] = value
        return gradients

    def _loss_of(self, outcome: Outcome, move: Move, among: Collection[str] | None) -> torch.Tensor | None:
        """Return the loss of what a call returned; None if nothing of it requires grad."""
        sources = outcome.outputs.tensors
        if not self._has_loss:
            sources = self._sides[move.method].sources(outcome)
        roots = self._pairs[move.method].learning.roots(sources)
        live = {path: tensor for path, tensor in roots.items() if tensor.is_floating_point()}
        if among is not None:
            live = {path: tensor for path, tensor in live.items() if path in among}
        outcome.learnt_from = tuple(live)
        if not live:
            return None
        return live["output"] if self._has_loss else loss.ppo_loss(live, move.seed)

    def _change(self, change: Callable[[], dict[str, torch.Tensor] | None]) -> Outcome:
        """Make a change that calls no method, and return its outcome."""
        try:
            outputs = change() or {}
        except Exception as error:
            return Outcome(error=error)
        assert self.side.state is not None  # a pair's sides have modules
        # Without the user's `observe`: what it reads may not exist before the first call.
        outcome = Outcome(state=self.side.state.values())
        outcome.outputs.tensors = {name: tensor.detach().clone() for name, tensor in outputs.items()}
        outcome.state.tensors = {p: t.detach().clone() for p, t in outcome.state.tensors.items()}
        return outcome

    def _save_and_load(self) -> dict[str, torch.Tensor]:
        """Save a checkpoint and load it again. Return its tensors by the names that a plain module has."""
        saved = self._model.state_dict()
        self._model.load_state_dict(saved)
        self._accept()
        found: dict[str, torch.Tensor] = {}
        for name, value in saved.items():
            if isinstance(value, torch.Tensor):
                found |= ordinary(value, f"checkpoint[{name.replace(WRAPPER, '')!r}]")
        return found

    def _weights(self) -> dict[str, torch.Tensor]:
        """Return all parameters and other leaves, including frozen ones."""
        found = Reachable(self._inner)
        return found.parameters | found.leaves

    def _parameters(self) -> dict[str, torch.Tensor]:
        """Return the parameters and other leaves that require grad, for the optimizer."""
        return {name: leaf for name, leaf in self._weights().items() if leaf.requires_grad}

    def _accept(self) -> None:
        """Accept the current weights, so that the next call does not report them as its side effect."""
        assert self.side.state is not None  # a pair's sides have modules
        self.side.state.accept()


def _is_zero(gradient: torch.Tensor) -> bool:
    return gradient.layout is torch.strided and not bool(gradient.any())


def layers_with_modes(model: nn.Module) -> list[str]:
    """Return the names of the innermost modules that compute differently in ``train()`` and ``eval()``."""
    return [name for name, module in model.named_modules() if name and _has_modes(module)]


def _has_modes(module: nn.Module) -> bool:
    if any(module.children()):
        return False
    if type(module).__module__.startswith("torch."):
        drops = "Dropout" in type(module).__name__ or bool(getattr(module, "dropout", 0))
        return drops or getattr(module, "running_mean", None) is not None
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names
