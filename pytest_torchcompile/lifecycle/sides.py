"""Builds the two sides of a lifecycle from a declaration."""

from __future__ import annotations

import copy
import functools

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.lifecycle.changes import Changes
from pytest_torchcompile.lifecycle.side import LifecycleSide
from pytest_torchcompile.options import LIFECYCLE, CheckOptions
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.loss import Methods, users_loss
from pytest_torchcompile.policies.methods import as_methods
from pytest_torchcompile.policies.twins import Factory
from pytest_torchcompile.results import Capture
from pytest_torchcompile.runtime.progress import Progress, silent


class LifecycleSides:
    """The two sides of a lifecycle: the policy's methods, all compiled on the same two modules.

    Args:
        factory: see `check_equivalence`.
        declaration: the user's declaration of the policy.
        options: how to compile.
        progress: receives the steps of the check.

    Raises:
        UsageError: if the declaration and the module don't fit.
    """

    def __init__(
        self,
        factory: Factory,
        declaration: Declaration,
        options: CheckOptions,
        progress: Progress = silent,
    ) -> None:
        self.by_name: dict[str, Pair] = {}
        self.progress = progress
        loss = declaration.loss
        # A loss may call any of the methods.
        methods = [
            *as_methods(declaration.checked if loss else declaration.living),
            *([users_loss(loss)] if loss else []),
        ]
        for method in methods:
            self.by_name[method.name] = Pair(
                factory,
                method,
                LIFECYCLE,
                declaration=declaration,
                options=options,
                progress=progress,
                beside=next(iter(self.by_name.values()), None),
                remember_parameters=True,
            )
        self.first = next(iter(self.by_name.values()))
        self.acting = [method.name for method in as_methods(declaration.acting)]
        self.learning = [methods[-1].name] if loss else [m.name for m in as_methods(declaration.learning)]
        self.must_learn = declaration.loss is not None or declaration.learn is not None
        self._has_loss = loss is not None
        self._changes = {name: self._changes_of(name) for name in ("eager", "compiled")}
        self.eager = self._side("eager")
        self.compiled = self._side("compiled")

    def _changes_of(self, name: str) -> Changes:
        state = getattr(self.first, name).state
        assert state is not None  # a pair's sides have modules
        twins = self.first.twins
        other = twins.eager if name == "compiled" else twins.compiled
        return Changes(getattr(twins, name), other, state)

    def _side(self, name: str) -> LifecycleSide:
        sides: dict[str, Side] = {method: getattr(pair, name) for method, pair in self.by_name.items()}
        if self._has_loss:
            *methods, loss = sides
            functions = {m: functools.partial(sides[m].function, *sides[m].leading) for m in methods}
            adapter = self.by_name[loss].method.of(self.first.twins.eager)
            policy = Methods(sides[loss].leading[0], functions)
            sides[loss] = sides[loss].replaced(adapter, sides[loss].around, leading=(policy,))
        model = getattr(self.first.twins, name)
        return LifecycleSide(self.by_name, sides, model, self._changes[name], has_loss=self._has_loss)

    def compiled_anew(self, options: CheckOptions) -> LifecycleSides:
        """Return sides of the same two modules, the compiled side compiled again with other options."""
        other = copy.copy(self)
        other.progress = silent
        other.by_name = {name: pair.compiled_anew(options) for name, pair in self.by_name.items()}
        other.first = next(iter(other.by_name.values()))
        other.compiled = other._side("compiled")
        return other

    @property
    def capture(self) -> Capture:
        """The capture of all methods so far."""
        return Capture.of_all(pair.capture for pair in self.by_name.values())

    def end(self) -> None:
        """Restore both modules as they were before the check."""
        self.eager.end()
        self.compiled.end()
