"""The two sides of a lifecycle, from a declaration to what plays its stories."""

from __future__ import annotations

import copy
import functools

from pytest_torchcompile.calls import Side
from pytest_torchcompile.capture import Progress, silent
from pytest_torchcompile.declaration import Declaration
from pytest_torchcompile.life import Life
from pytest_torchcompile.loss import Methods, users_loss
from pytest_torchcompile.options import LIFECYCLE, CheckOptions
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.policy import as_methods
from pytest_torchcompile.results import Capture
from pytest_torchcompile.twins import Factory


class Lives:
    """The two lives of a policy: its methods, all compiled on the same two modules.

    Args:
        factory: see `check_equivalence`.
        declaration: what was said of the policy.
        options: how to compile.
        progress: told when a compile begins and ends.

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
        loss = declaration.loss
        # A loss may call any of the methods.
        methods = [
            *as_methods(declaration.methods if loss else declaration.living),
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
        self.eager = self._life("eager")
        self.compiled = self._life("compiled")

    def _life(self, name: str) -> Life:
        sides: dict[str, Side] = {method: getattr(pair, name) for method, pair in self.by_name.items()}
        if self._has_loss:
            *methods, loss = sides
            functions = {m: functools.partial(sides[m].function, *sides[m].leading) for m in methods}
            adapter = self.by_name[loss].method.of(self.first.twins.eager)
            policy = Methods(sides[loss].leading[0], functions)
            sides[loss] = sides[loss].replaced(adapter, sides[loss].around, leading=(policy,))
        return Life(self.by_name, sides, getattr(self.first.twins, name), has_loss=self._has_loss)

    def compiled_anew(self, options: CheckOptions) -> Lives:
        """The same two modules, the compiled side under other options and on code of its own."""
        other = copy.copy(self)
        other.by_name = {name: pair.compiled_anew(options) for name, pair in self.by_name.items()}
        other.first = next(iter(other.by_name.values()))
        other.compiled = other._life("compiled")
        return other

    @property
    def capture(self) -> Capture:
        """What has been compiled so far for all methods."""
        return Capture.of_all(pair.capture for pair in self.by_name.values())

    def end(self) -> None:
        """Leave both modules as they were found."""
        self.eager.end()
        self.compiled.end()
