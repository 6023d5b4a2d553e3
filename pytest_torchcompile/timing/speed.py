"""Measures how much faster compiled is than eager, for a case of a check or for any two callables."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import internals
from pytest_torchcompile.checking.callables import require_inputs, side_of
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.compiling.capture import Recorder
from pytest_torchcompile.direct import CompiledPolicy
from pytest_torchcompile.errors import CompileCheckError, UsageError
from pytest_torchcompile.generation.recipes import random_recipe
from pytest_torchcompile.options import PHASES, CheckOptions
from pytest_torchcompile.policies.backward import Backward
from pytest_torchcompile.policies.calls import Side
from pytest_torchcompile.policies.outputs import named_values
from pytest_torchcompile.policies.snapshots import copied, map_tensors
from pytest_torchcompile.results import Speedup
from pytest_torchcompile.runtime.devices import Device, device_of
from pytest_torchcompile.runtime.isolation import isolated, seed_everything
from pytest_torchcompile.timing.blocks import Timed, interleaved

SECONDS = 5.0
"""Seconds for which the case of a marked test is timed."""
WARM = 3
"""A side is warm after this many calls in a row that compile nothing."""
MOST_WARM_UPS = 50

Timer = Callable[[], float]
Arguments = Callable[[], tuple[tuple[Any, ...], Mapping[str, Any]]]


class NotTimed(CompileCheckError):
    """Timing is off, or would not measure what is deployed; the message says why."""


def seconds_to_time(options: CheckOptions, *, default: float) -> float:
    """Return `benchmark_seconds` if it is set, `SECONDS` if only `min_speedup` is set, else `default`."""
    if options.benchmark_seconds is not None:
        return options.benchmark_seconds
    return default if options.min_speedup is None else SECONDS


def timing_if_asked(options: CheckOptions) -> Callable[[Pair], Speedup] | None:
    """Return a function that times a pair; None if the options do not ask for timing."""
    seconds = seconds_to_time(options, default=0.0)
    return functools.partial(time_pair, options=options, seconds=seconds) if seconds else None


def time_pair(
    pair: Pair,
    options: CheckOptions,
    *,
    seconds: float = SECONDS,
    min_rounds: int = 1,
    timer: Timer = time.perf_counter,
    control: bool = False,
) -> Speedup:
    """Time the two sides of a checked case. The compiled side is compiled as it is deployed.

    Args:
        pair: the two sides, checked and still isolated.
        options: `benchmark_batch`, `batch`, `seed` and `min_speedup` are used.
        seconds: the budget.
        min_rounds: the least number of timed calls of each side.
        timer: the clock, in seconds.
        control: time eager against itself instead.

    Raises:
        NotTimed: if compiled is not what is deployed, or still compiles after `MOST_WARM_UPS` calls.
    """
    batch = options.benchmark_batch or options.batch[0]
    recipe = random_recipe(pair.tree, batch, options.seed)
    compiled = pair.eager if control else _deployed(pair.as_deployed())
    speedup = _time_sides(
        pair.eager,
        compiled,
        lambda: pair.binding.arguments(recipe)[:2],
        phase=pair.phase,
        seed=options.seed,
        seconds=seconds,
        min_rounds=min_rounds,
        timer=timer,
    )
    return dataclasses.replace(
        speedup,
        batch=batch,
        least=None if control else options.min_speedup,
        break_even=None if control else _break_even(speedup, pair.capture.compile_s),
    )


def _deployed(compiled: Side | None) -> Side:
    if compiled is None:
        raise NotTimed(
            "the policy samples and its factory compiles it: for the check inductor draws eager's random "
            "numbers, so this is not the code that is deployed. Return the plain module to time it"
        )
    return compiled


def measure_speedup(
    eager: Callable[..., Any],
    compiled: Callable[..., Any],
    *args: Any,
    phase: str = "rollout",
    seconds: float = SECONDS,
    min_speedup: float | None = None,
    **kwargs: Any,
) -> Speedup:
    """Time a compiled callable against the eager one, on the same inputs.

    Args:
        eager: a module, a bound method, a function, or the ``.eager`` of a `CompiledPolicy`.
        compiled: the compiled callable.
        args: positional inputs. Every call gets copies.
        phase: ``rollout`` times the call, in eval mode without gradients. ``update`` times forward and
            backward, in train mode.
        seconds: the budget.
        min_speedup: `Speedup.too_slow` is true if the whole interval is below this.
        kwargs: keyword inputs. Every call gets copies.

    Returns:
        The speedup with its interval and its conclusion.

    Raises:
        UsageError: if a side can't be called, the inputs do not fit its parameters, or the phase is unknown.
        NotTimed: if compiled still compiles after 50 calls.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> policy = compile_policy(lambda: nn.Linear(8, 2), observation=Box((8,)), backend="eager")
        >>> speedup = measure_speedup(policy.eager, policy, torch.zeros(5, 8), seconds=0.5)
        >>> speedup.conclusion in ("faster", "slower", "no clear difference", "too few rounds")
        True
    """
    if phase not in PHASES:
        raise UsageError(f"phase={phase!r}; accepted: {', '.join(PHASES)}")
    one = side_of(eager, lambda: torch.compiler.set_stance("force_eager"))
    if isinstance(compiled, CompiledPolicy):
        other = _deployed(compiled.as_deployed())
    else:
        other = side_of(compiled, internals.raised_recompile_limit)
    with isolated():
        try:
            speedup = _time_sides(
                one,
                other,
                lambda: (map_tensors(copied, args), map_tensors(copied, kwargs)),
                phase=phase,
                seed=0,
                seconds=seconds,
            )
        except TypeError:
            require_inputs("measure_speedup", eager, args, kwargs)
            raise
        finally:
            for side in (one, other):
                side.restore()
    return dataclasses.replace(speedup, least=min_speedup)


def _time_sides(
    eager: Side,
    compiled: Side,
    arguments: Arguments,
    *,
    phase: str,
    seed: int,
    seconds: float,
    min_rounds: int = 1,
    timer: Timer = time.perf_counter,
) -> Speedup:
    args, kwargs = arguments()
    tensors = eager.named_inputs(args, kwargs).tensors.values()
    models = [side.model for side in (eager, compiled) if side.model is not None]
    device = device_of(itertools.chain(tensors, *(model.parameters() for model in models)))
    watches = [
        _Stopwatch(side, arguments, phase=phase, seed=seed, device=device, timer=timer)
        for side in (eager, compiled)
    ]
    memory = [watch.warm_up() for watch in watches]
    blocks = interleaved(*(watch.timed() for watch in watches), seconds=seconds, min_rounds=min_rounds)
    (low, high), quiet = blocks.interval(), blocks.quiet_ratio()
    return Speedup(
        ratio=blocks.ratio(),
        # With the quiet ratio inside, interval and conclusion agree.
        interval=(min(low, quiet), max(high, quiet)),
        quiet=quiet,
        eager_s=tuple(itertools.chain(*blocks.first)),
        compiled_s=tuple(itertools.chain(*blocks.second)),
        pairs=len(blocks.first),
        threads=torch.get_num_threads(),
        memory=None if memory[0] is None or memory[1] is None else (memory[0], memory[1]),
        memory_kind=device.memory_kind,
    )


class _Stopwatch:
    """Calls one side with new inputs and a reset state, and times only the call."""

    def __init__(
        self, side: Side, arguments: Arguments, *, phase: str, seed: int, device: Device, timer: Timer
    ) -> None:
        self._side = side
        self._arguments = arguments
        self._phase = phase
        self._seed = seed
        self._device = device
        self._timer = timer

    def timed(self) -> Timed:
        """Return the warm side for `interleaved`."""
        return Timed(self.call, self._around)

    @contextlib.contextmanager
    def _around(self) -> Iterator[None]:
        seed_everything(self._seed)
        with self._side.around(), torch.set_grad_enabled(self._phase == "update"):
            yield

    def call(self) -> float:
        """Return the seconds of one call, in ``update`` with its backward."""
        side, update = self._side, self._phase == "update"
        side.reset(training=update)
        args, kwargs = self._arguments()
        seconds, returned = self._time(lambda: side.invoke(args, kwargs))
        if update:
            # Not timed: finding the tensors to differentiate, which a training loop need not do.
            backward = side.backward(named_values(returned), side.named_inputs(args, kwargs), self._seed)
            if backward is not None:
                seconds += self._time(backward)[0]
        return seconds

    def _time(self, function: Callable[[], Any] | Backward) -> tuple[float, Any]:
        self._device.synchronize()
        begin = self._timer()
        returned = function()
        self._device.synchronize()
        return self._timer() - begin, returned

    def warm_up(self) -> int | None:
        """Call the side until it compiles nothing more.

        Returns:
            The memory that the calls used, in bytes; None if the device does not report it.

        Raises:
            NotTimed: if it still compiles after `MOST_WARM_UPS` calls.
        """
        recorder = Recorder(self._side.model or nn.Module())
        used = self._device.watch_memory()
        quiet = 0
        for _ in range(MOST_WARM_UPS):
            with self._around(), recorder.watching():
                self.call()
            quiet = 0 if recorder.compiled_in_last_call else quiet + 1
            if quiet == WARM:
                return used()
        raise NotTimed(f"it was still compiling after {MOST_WARM_UPS} calls on inputs of one shape")


def _break_even(speedup: Speedup, compile_s: float) -> int | None:
    """Return after how many calls the time saved exceeds the compile time; None if calls are not faster."""
    saved = statistics.median(speedup.eager_s) - statistics.median(speedup.compiled_s)
    return math.ceil(compile_s / saved) if saved > 0 else None
