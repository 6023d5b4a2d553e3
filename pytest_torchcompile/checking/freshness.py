"""Check that a sampling policy still draws new samples once it is compiled.

The main check gives compiled the random numbers of eager, so that it can compare draw for draw. A deployed
policy draws its own, and the main check cannot see compiled code that returns one draw forever.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.compiling.capture import Recorder, failure_text
from pytest_torchcompile.errors import CompileFailed
from pytest_torchcompile.generation.recipes import random_recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Around, Outcome, Side
from pytest_torchcompile.policies.ordinary import equal_values
from pytest_torchcompile.results import Difference
from pytest_torchcompile.runtime.isolation import Stream
from pytest_torchcompile.texts import first_line

PAIRS = 16
"""The number of pairs of calls on one observation."""

FALSE_ALARMS = 1e-4
"""The largest probability that a sampler with eager's distribution is reported as frozen."""

FROZEN = "as deployed, without eager's random numbers, it returns the same draw again and again"


def frozen(pair: Pair, options: CheckOptions) -> Difference | None:
    """Return an output that differs from call to call in eager and never in compiled; None if there is none.

    If both sides have one distribution, each pair of calls that differs is eager's or compiled's with equal
    probability. For n pairs on each side, the probability that all k of them are eager's is
    C(n, k) / C(2n, k) (Fisher's exact test; Fisher 1935, "The Design of Experiments").

    Args:
        pair: the two sides, equal draw for draw, still isolated. If the policy came compiled, all compiled
            code of the process is dropped, so that it is compiled again.
        options: `batch` and `seed` are used.

    Raises:
        CompileFailed: if the policy cannot be compiled without eager's random numbers.
    """
    recipe = random_recipe(pair.tree, options.batch[0], options.seed)
    deployed = pair.as_deployed() or pair.reset_as_deployed()
    recorder = Recorder(pair.twins.compiled)
    streams = [Stream(options.seed + 1), Stream(options.seed + 2)]

    @contextlib.contextmanager
    def watched() -> Iterator[None]:
        with recorder.watching(), streams[1]():
            yield

    def call_twice(side: Side, under: Around) -> list[Outcome]:
        return [pair.run(side, recipe, under=under, phase="rollout") for _ in range(2)]

    differ: list[dict[str, int]] = [{}, {}]
    for _ in range(PAIRS):
        both = call_twice(pair.eager, streams[0]), call_twice(deployed, watched)
        for count, calls in zip(differ, both, strict=True):
            raised = next((call.error for call in calls if call.error is not None), None)
            if raised is not None and count is differ[0]:
                return None
            if raised is not None:
                return _raised(raised, recorder)
            for path, first in calls[0].outputs.tensors.items():
                other = calls[1].outputs.tensors.get(path)
                same = other is not None and equal_values(first, other)
                count[path] = count.get(path, 0) + (not same)
    for path, number in differ[0].items():
        chance = math.comb(PAIRS, number) / math.comb(2 * PAIRS, number)
        if chance <= FALSE_ALARMS and differ[1].get(path) == 0:
            return Difference(
                path=path,
                problem="frozen",
                eager=f"{number} of {PAIRS} pairs of calls differ",
                compiled=f"none of {PAIRS} does",
                chance=chance,
                allowed=FALSE_ALARMS,
            )
    return None


def _raised(error: BaseException, recorder: Recorder) -> Difference:
    if recorder.is_compile_failure(error):
        raise CompileFailed(f"{failure_text(error)}, without eager's random numbers") from error
    return Difference(
        path="output", problem="exception", eager="returns", compiled=f"raises {first_line(error)}"
    )
