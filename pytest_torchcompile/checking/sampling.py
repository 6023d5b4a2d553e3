"""Compare the distributions that eager and the deployed compiled policy sample from.

The main check compares draw for draw, with inductor set to use eager's random numbers. In training inductor
generates its own, with different code, so only a statistical test can compare the sides. Both sides are
called many times on one example, each with its own stream of random numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.compiling.capture import Recorder
from pytest_torchcompile.compiling.failures import failure_text
from pytest_torchcompile.errors import CompileFailed
from pytest_torchcompile.generation.recipes import Recipe, random_recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.results import Difference
from pytest_torchcompile.runtime.isolation import Stream
from pytest_torchcompile.texts import first_line, raised_text

if TYPE_CHECKING:
    from pytest_torchcompile.comparing.distributions import Array, Series, Watched

FALSE_ALARMS = 1e-4
"""The largest probability that a case whose sides have one distribution is reported as different."""

MOST_ELEMENTS = 64
"""The number of elements of one tensor that are recorded, at most."""
MOST_IN_ALL = 2048
"""The number of elements of all tensors that are recorded, at most. Each takes about 100 bytes per draw."""

GROSS = 1e-2
"""Constants that differ by more than this, relative to their tensor's largest, differ not by rounding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """The result of sampling.

    Args:
        note: a sentence on what was sampled, if nothing differs.
        reason: a sentence on what differs; empty if nothing does.
        differences: the differences, the most certain first.
        recipe: the example on which the sides differ.
    """

    note: str = ""
    reason: str = ""
    differences: tuple[Difference, ...] = ()
    recipe: Recipe | None = None


class _EagerRaised(Exception):
    """Eager raised on a draw, so there is nothing to compare with."""


def compare_samples(pair: Pair, options: CheckOptions) -> Sampled:
    """Draw from both sides and test whether the draws follow one distribution.

    Args:
        pair: the two sides, equal draw for draw, still isolated. If the policy came compiled, all compiled
            code of the process is dropped, so that it is compiled again.
        options: `samples`, `batch`, `seed`, `atol` and `rtol` are used.

    Raises:
        CompileFailed: if the policy cannot be compiled without eager's random numbers.
    """
    count = options.samples
    if not pair.draws:
        return Sampled(note=f"samples={count}: eager draws no random numbers, so there is nothing to sample")
    sizes = tuple(dict.fromkeys((options.batch[0], max(options.batch))))
    recipes = [random_recipe(pair.tree, size, options.seed + number) for number, size in enumerate(sizes)]
    deployed = pair.as_deployed() or pair.reset_as_deployed()
    tests = 0
    for number, recipe in enumerate(recipes):
        streams = np.random.SeedSequence([options.seed, number]).generate_state(2, np.uint32)
        draws = _Draws(pair, deployed, recipe, [int(seed) for seed in streams])
        try:
            error = draws.draw(count)
        except _EagerRaised as raised:
            return Sampled(note=f"samples={count}: nothing was concluded, {raised}")
        if error is None:
            differences, tested = _tested(draws, options, FALSE_ALARMS / len(recipes))
            tests += tested
        else:
            differences = [error]
        if differences:
            return Sampled(reason=_REASON, differences=tuple(differences), recipe=recipe)
    examples = "an example" if len(recipes) == 1 else f"each of {len(recipes)} examples"
    if not tests:
        return Sampled(
            note=f"samples={count}: eager draws random numbers, but no output, state or gradient depends on "
            f"them"
        )
    return Sampled(
        note=f"as deployed, {count} draws on {examples} follow eager's distribution "
        f"(false alarm: 1 in {1 / FALSE_ALARMS:,.0f})"
    )


_REASON = "as deployed, without eager's random numbers, it does not draw from eager's distribution"


class _Draws:
    """The draws of both sides on one example, by tensor, as arrays ``(draws, columns)``.

    A draw in which the tensor is absent, or has another shape than in eager's first draw, is NaN.
    """

    def __init__(self, pair: Pair, deployed: Side, recipe: Recipe, seeds: list[int]) -> None:
        self._pair = pair
        self._recipe = recipe
        self._recorder = Recorder(pair.twins.compiled)
        self._streams = [Stream(seed) for seed in seeds]
        self._deployed = deployed
        self._sizes: dict[str, int] = {}
        self._columns: dict[str, torch.Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.watched: dict[str, Watched] = {}
        self.eager: dict[str, Array] = {}
        self.compiled: dict[str, Array] = {}

    def draw(self, count: int) -> Difference | None:
        """Call both sides `count` times in turn; return a difference if compiled raises, else None."""
        for number in range(count):
            # In turn, so that a counter in the policy has the same value on both sides.
            self._pair.begin(self._recipe)
            outcome = self._pair.run(self._pair.eager, self._recipe, under=self._streams[0])
            if outcome.error is not None:
                raise _EagerRaised(f"eager raises {raised_text(outcome.error)} on draw {number + 1}")
            if number == 0:
                self._allocate(_tensors(outcome), count)
            self._store(self.eager, outcome, number)
            outcome = self._pair.run(self._deployed, self._recipe, under=self._watched_stream)
            if outcome.error is not None:
                return self._raised(outcome.error, number + 1)
            self._store(self.compiled, outcome, number)
        return None

    @contextlib.contextmanager
    def _watched_stream(self) -> Iterator[None]:
        with self._recorder.watching(), self._streams[1]():
            yield

    def _raised(self, error: BaseException, draw: int) -> Difference:
        if self._recorder.is_compile_failure(error):
            raise CompileFailed(f"{failure_text(error)}, without eager's random numbers") from error
        return Difference(
            path="output",
            problem="exception",
            eager="returns",
            compiled=f"raises {first_line(error)} on draw {draw}",
        )

    def _allocate(self, tensors: dict[str, torch.Tensor], count: int) -> None:
        from pytest_torchcompile.comparing.distributions import Watched

        most = max(1, min(MOST_ELEMENTS, MOST_IN_ALL // max(1, len(tensors))))
        for path, tensor in tensors.items():
            if tensor.numel():
                watched = Watched.of(tuple(tensor.shape), most)
                self.shapes[path], self.watched[path] = tuple(tensor.shape), watched
                self._columns[path] = torch.from_numpy(watched.columns).to(tensor.device)
                for side in (self.eager, self.compiled):
                    side[path] = np.full((count, len(watched.columns)), np.nan)

    def _store(self, side: dict[str, Array], outcome: Outcome, number: int) -> None:
        tensors = _tensors(outcome)
        for path, columns in self._columns.items():
            tensor = tensors.get(path)
            if tensor is not None and tuple(tensor.shape) == self.shapes[path]:
                side[path][number] = tensor.reshape(-1)[columns].double().cpu().numpy()


def _tensors(outcome: Outcome) -> dict[str, torch.Tensor]:
    """Return the outputs (numbers as tensors), state and gradients of a call, complex ones as two tensors."""
    numbers = {p: torch.tensor(v) for p, v in outcome.outputs.plain.items() if isinstance(v, (bool, int))}
    tensors = numbers | outcome.outputs.tensors | outcome.state.tensors | outcome.differentiated()
    parts: dict[str, torch.Tensor] = {}
    for path, tensor in tensors.items():
        if tensor.is_complex():
            parts |= {f"{path}.real": tensor.real, f"{path}.imag": tensor.imag}
        else:
            parts[path] = tensor.to_dense() if tensor.is_sparse else tensor
    return parts


def _tested(draws: _Draws, options: CheckOptions, level: float) -> tuple[list[Difference], int]:
    """Return the differences and the number of tests; `level` bounds the probability of any false alarm."""
    from pytest_torchcompile.comparing import distributions

    found: list[tuple[float, str, Series]] = []
    constants: list[Difference] = []
    moving_draws: list[list[Array]] = [[], []]
    tests = 0
    for path, watched in draws.watched.items():
        eager, compiled = draws.eager[path], draws.compiled[path]
        both_still = distributions.still(eager, options.atol, options.rtol)
        both_still &= distributions.still(compiled, options.atol, options.rtol)
        constants += _unequal_constant(path, draws, both_still)
        for kept, side in zip(moving_draws, (eager, compiled), strict=True):
            kept.append(side[:, ~both_still])
        for series in distributions.series_of(eager, compiled, watched, ~both_still):
            tests += 1
            chance = series.chance()
            if chance < level:
                found.append((chance, path, series))
    cycle = []
    if tests:
        tests += 1
        mine, theirs, chance = distributions.repeats(*(np.concatenate(kept, axis=1) for kept in moving_draws))
        if chance < level / tests:
            cycle = [_cycle(mine, theirs, options.samples, chance, level / tests)]
    certain = [(chance, path, series) for chance, path, series in found if chance < level / tests]
    by_path = [
        _difference(path, draws, [(c, s) for c, p, s in certain if p == path], level / tests)
        for path in dict.fromkeys(path for _, path, _ in certain)
    ]
    by_path.sort(key=lambda difference: difference.chance or 0.0)
    return [*constants, *by_path, *cycle], tests


def _unequal_constant(path: str, draws: _Draws, both_still: Any) -> list[Difference]:
    """Return the first element that is constant on both sides but not equal, as a list of at most one."""
    mine, theirs = draws.eager[path][0], draws.compiled[path][0]
    finite = np.abs(mine[np.isfinite(mine)])
    with np.errstate(invalid="ignore"):
        near = np.abs(mine - theirs) <= GROSS * max(1.0, float(finite.max(initial=0.0)))
    near |= (mine == theirs) | (np.isnan(mine) & np.isnan(theirs))
    wrong = np.flatnonzero(both_still & ~near)
    if not len(wrong):
        return []
    return [
        Difference(
            path=path,
            problem="distribution",
            index=_index(path, draws, int(wrong[0])),
            eager=f"{mine[wrong[0]]:.6g} in every draw",
            compiled=f"{theirs[wrong[0]]:.6g} in every draw",
        )
    ]


def _difference(path: str, draws: _Draws, certain: list[tuple[float, Series]], level: float) -> Difference:
    """Return the difference of one tensor: the most certain one of its simplest statistic."""
    simplest = certain[0][1].what
    chance, series = min((one for one in certain if one[1].what == simplest), key=lambda one: one[0])
    eager, compiled = series.figures()
    alike = [one for one in certain if one[1].what == simplest]
    whole = series.column is None
    return Difference(
        path=path,
        problem="distribution",
        eager=eager,
        compiled=compiled,
        index=None if series.column is None else _index(path, draws, series.column),
        chance=chance,
        allowed=level,
        unequal=0 if whole else len(alike),
        elements=0 if whole else len(draws.watched[path].elements),
    )


def _index(path: str, draws: _Draws, column: int) -> tuple[int, ...] | None:
    flat = draws.watched[path].columns[column]
    return tuple(int(i) for i in np.unravel_index(flat, draws.shapes[path])) or None


def _cycle(mine: int, theirs: int, count: int, chance: float, level: float) -> Difference:
    came = f"of the outcomes came more than once in {count} draws"
    texts = [f"{number or 'none'} {came}" for number in (mine, theirs)]
    return Difference(
        path="output",
        problem="distribution",
        eager=texts[0],
        compiled=texts[1],
        chance=chance,
        allowed=level,
    )
