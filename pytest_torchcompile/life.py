"""One side of a lifecycle: a policy that acts, learns and is loaded, move by move.

Nothing is put back between moves. What a move leaves behind is an `Outcome` like that of a single
call, so that it is judged the same way.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals, loss
from pytest_torchcompile.calls import Gradients, Outcome, Side
from pytest_torchcompile.outputs import named_values
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.state import Counters
from pytest_torchcompile.story import Kind, Manner, Move
from pytest_torchcompile.twins import equal_with_nan

KEPT = 4
"""Calls whose outputs are held on to, to see whether a later call writes to them."""

WRAPPER = "_orig_mod."
"""What torch.compile puts before the names of a module's tensors in its ``state_dict()``."""

Kept = tuple[torch.Tensor, torch.Tensor]
"""An output as its user has it, and a copy of what it was."""


class Life:
    """One side's policy and its optimizer.

    Args:
        pairs: the methods, by name, all of the same two modules.
        sides: this side of each.
        model: this side's policy as it is deployed, which checkpoints are made of.
        has_loss: whether what a method returns to learn from is the user's loss already; otherwise PPO's is
            taken of it.
    """

    def __init__(
        self, pairs: Mapping[str, Pair], sides: Mapping[str, Side], model: nn.Module, *, has_loss: bool
    ) -> None:
        self._pairs = pairs
        self._sides = sides
        self._model = model
        self._inner = internals.uncompiled(model)
        self._has_loss = has_loss
        self.side = next(iter(sides.values()))
        self._optimizer: torch.optim.Optimizer | None = None
        self._kept: collections.deque[tuple[int, dict[str, Kept]]] = collections.deque(maxlen=KEPT)
        self._moves = 0
        self._found = [(parameter, parameter.grad) for parameter in self._parameters().values()]

    def begin(self, counters: Counters) -> None:
        """Start from the first weights, these counters and an optimizer that has seen nothing."""
        assert self.side.state is not None  # a pair's sides have modules
        self.side.reset("rollout")
        self.side.state.set_counters(counters)
        self._optimizer = None
        self._kept.clear()
        self._moves = 0
        for parameter in self._parameters().values():
            parameter.grad = None

    def end(self) -> None:
        """Leave the module as it was found."""
        self.side.restore()
        for parameter, gradient in self._found:
            parameter.grad = gradient

    def play(self, move: Move, *, wide: bool = False) -> Outcome:
        """Make one move and return what it leaves behind; `wide` gives it float64 inputs."""
        self._moves += 1
        match move.kind:
            case Kind.ACT:
                return self._act(move, wide)
            case Kind.LEARN:
                return self._learn(move, wide)
            case Kind.LOAD:
                return self._outside(functools.partial(self._load, move.seed))
            case Kind.CHECKPOINT:
                return self._outside(self._save_and_load)

    def learnt(self) -> dict[str, torch.Tensor]:
        """What learning writes to, as it is now, not copied: it is three times as large as the module."""
        parameters = {f"parameter {name}": p.detach() for name, p in self._inner.named_parameters()}
        state = {} if self._optimizer is None else self._optimizer.state
        return parameters | {
            f"optimizer's {key} of {name}": value
            for name, parameter in self._parameters().items()
            for key, value in state.get(parameter, {}).items()
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the weights as they are now."""
        return {name: p.detach().clone() for name, p in self._inner.named_parameters()}

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Write these weights over those there are."""
        parameters = dict(self._inner.named_parameters())
        for name, weight in weights.items():
            parameters[name].copy_(weight)

    def overwritten(self) -> set[tuple[int, str]]:
        """The outputs of earlier moves, by number and path, that are no longer what they were."""
        return {
            (number, path)
            for number, outputs in self._kept
            for path, (live, copy) in outputs.items()
            if not (torch.equal(live, copy) or equal_with_nan(live, copy))
        }

    def _act(self, move: Move, wide: bool) -> Outcome:
        pair = self._pairs[move.method]
        bound = pair.arguments(move.recipe(pair.tree), wide=wide)
        self._inner.train(move.manner is Manner.TRAINING)
        with self._acting(move.manner):
            return self._keeping(self._sides[move.method]).step(
                bound.args, bound.kwargs, seed=move.seed, drawn=bound.drawn
            )

    def _learn(self, move: Move, wide: bool) -> Outcome:
        pair = self._pairs[move.method]
        bound = pair.arguments(move.recipe(pair.tree), wide=wide)
        self._inner.train(True)
        return self._keeping(self._sides[move.method]).step(
            bound.args,
            bound.kwargs,
            seed=move.seed,
            drawn=bound.drawn,
            differentiate=functools.partial(self._optimize, move),
        )

    def _acting(self, manner: Manner) -> contextlib.AbstractContextManager[Any]:
        if manner is Manner.AUTOCAST:
            device = next((p.device.type for p in self._inner.parameters()), "cpu")
            return torch.autocast(device, dtype=torch.bfloat16)
        return torch.inference_mode() if manner is Manner.INFERENCE else contextlib.nullcontext()

    def _keeping(self, side: Side) -> Side:
        """The side, whose outputs are held on to as its user would."""

        def kept(*args: Any, **kwargs: Any) -> Any:
            returned = side.function(*args, **kwargs)
            live = named_values(returned).tensors
            self._kept.append((self._moves, {p: (t.detach(), t.detach().clone()) for p, t in live.items()}))
            return returned

        return side.replaced(kept, side.around)

    def _optimize(self, move: Move, outcome: Outcome) -> Gradients:
        """A step of the optimizer; the gradients before they are clipped."""
        parameters = self._parameters()
        for parameter in parameters.values():
            parameter.grad = None
        value = self._loss_of(outcome, move)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients: Gradients = {
            name: None if p.grad is None else p.grad.detach().clone() for name, p in parameters.items()
        }
        nn.utils.clip_grad_norm_(parameters.values(), loss.LARGEST_NORM)
        if self._optimizer is None:
            self._optimizer = loss.optimizer_of(parameters.values())
        self._optimizer.step()
        for parameter in parameters.values():
            parameter.grad = None
        self._accept()
        outcome.outputs.tensors["loss"] = value
        return gradients

    def _loss_of(self, outcome: Outcome, move: Move) -> torch.Tensor:
        live = {p: t for p, t in outcome.outputs.tensors.items() if t.requires_grad and t.is_floating_point()}
        return live["output"] if self._has_loss else loss.ppo_loss(live, move.seed)

    def _outside(self, change: Callable[[], dict[str, torch.Tensor]]) -> Outcome:
        """What a change that calls no method leaves behind."""
        try:
            outputs = change()
        except Exception as error:
            return Outcome(error=error)
        assert self.side.state is not None  # a pair's sides have modules
        # Not what the user observes, which may be there only once the policy has been called.
        outcome = Outcome(state=self.side.state.values())
        outcome.outputs.tensors = {name: tensor.detach().clone() for name, tensor in outputs.items()}
        outcome.state.tensors = {p: t.detach().clone() for p, t in outcome.state.tensors.items()}
        return outcome

    def _load(self, seed: int) -> dict[str, torch.Tensor]:
        """Load weights that are near the first ones, as those of another training run would be."""
        assert self.side.state is not None  # a pair's sides have modules
        generator = torch.Generator().manual_seed(seed)
        others: dict[int, torch.Tensor] = {}
        loaded = self._inner.state_dict()
        first = self.side.state.remembered()
        for name, parameter in self._inner.named_parameters(remove_duplicate=False):
            if id(parameter) not in others and name in first and parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                spread = 0.1 * float(first[name].abs().mean()) + 0.01
                others[id(parameter)] = first[name] + spread * noise.to(first[name])
            if name in loaded and id(parameter) in others:
                loaded[name] = others[id(parameter)]
        self._inner.load_state_dict(loaded)
        self._accept()
        return {}

    def _save_and_load(self) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint that has been loaded again, by the names that a plain module has."""
        saved = self._model.state_dict()
        self._model.load_state_dict(saved)
        self._accept()
        return {
            f"checkpoint[{name.replace(WRAPPER, '')!r}]": value
            for name, value in saved.items()
            if isinstance(value, torch.Tensor)
        }

    def _parameters(self) -> dict[str, nn.Parameter]:
        named = self._inner.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def _accept(self) -> None:
        """What was written to the weights is no side effect of the next call."""
        assert self.side.state is not None  # a pair's sides have modules
        self.side.state.accept()
