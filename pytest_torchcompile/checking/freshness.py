"""Check a sampling policy as it is deployed: it draws new samples, which follow the seed.

What it does not draw has to be right too.

The main check gives compiled the random numbers of eager, so that it can compare draw for draw. A deployed
policy draws its own, by other code. The main check cannot see code that returns one draw forever, or that
computes another value beside the draw.
"""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.comparing.measure import Tolerance
from pytest_torchcompile.comparing.references import references
from pytest_torchcompile.comparing.tolerance import judge
from pytest_torchcompile.compiling.capture import Recorder
from pytest_torchcompile.compiling.failures import failure_text
from pytest_torchcompile.errors import CompileFailed
from pytest_torchcompile.generation.recipes import Recipe, random_recipe
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import Around, Side
from pytest_torchcompile.policies.ordinary import equal_values
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.policies.outputs import NamedValues
from pytest_torchcompile.results import Difference
from pytest_torchcompile.runtime.isolation import Stream
from pytest_torchcompile.texts import first_line

PAIRS = 16
"""The number of pairs of calls on one observation."""

FALSE_ALARMS = 1e-4
"""The largest probability that a sampler with eager's distribution is reported as frozen."""

AS_DEPLOYED = "as deployed, without eager's random numbers, it returns"


class Unlike(NamedTuple):
    """A difference of a policy as it is deployed.

    Args:
        reason: one sentence for the user.
        difference: the output that differs.
    """

    reason: str
    difference: Difference


def unlike_as_deployed(pair: Pair, options: CheckOptions) -> Unlike | None:
    """Return an output that is drawn and never varies or ignores the seed, or is not drawn and is wrong.

    Return None if there is none.

    If both sides have one distribution, each pair of calls that differs is eager's or compiled's with equal
    probability. For n pairs on each side, the probability that all k of them are eager's is
    C(n, k) / C(2n, k) (Fisher's exact test; Fisher 1935, "The Design of Experiments").

    Args:
        pair: the two sides, equal draw for draw, still isolated. If the policy came compiled, all compiled
            code of the process is dropped, so that it is compiled again.
        options: `batch`, `seed` and the tolerance are used.

    Raises:
        CompileFailed: if the policy cannot be compiled without eager's random numbers.
    """
    recipe = random_recipe(pair.tree, options.batch[0], options.seed)
    deployed = pair.as_deployed() or pair.reset_as_deployed()
    recorder = Recorder(pair.twins.compiled)
    streams = [Stream(options.seed + 1), Stream(options.seed + 2)]
    tally = _Tally()

    @contextlib.contextmanager
    def watched() -> Iterator[None]:
        with recorder.watching(), streams[1]():
            yield

    def call_twice(side: Side, under: Around) -> list[Outcome]:
        return [pair.run(side, recipe, under=under, phase="rollout") for _ in range(2)]

    for _ in range(PAIRS):
        eager, compiled = call_twice(pair.eager, streams[0]), call_twice(deployed, watched)
        if any(call.error is not None for call in eager):
            return None
        raised = next((call.error for call in compiled if call.error is not None), None)
        if raised is not None:
            return Unlike(f"{AS_DEPLOYED} nothing", _raised(raised, recorder))
        tally.add(eager, compiled)
    wrong = _wrong_among(tally.always_unequal(), eager[0], compiled[0], pair, recipe, options)
    if wrong is not None:
        return Unlike(f"{AS_DEPLOYED} another result where nothing is drawn", wrong)
    still = tally.frozen()
    if still is not None:
        return Unlike(f"{AS_DEPLOYED} the same draw again and again", still)
    # Without the streams each call begins from the same seed.
    eager = _twice_from_one_state(pair, pair.eager, recipe, contextlib.nullcontext)
    compiled = _twice_from_one_state(pair, deployed, recipe, recorder.watching)
    unlike = _unlike_under_one_seed(eager, compiled, tally.drawn(), options)
    return None if unlike is None else Unlike(f"{AS_DEPLOYED} other draws under the same seed", unlike)


def _twice_from_one_state(pair: Pair, side: Side, recipe: Recipe, under: Around) -> list[Outcome]:
    """Call a side twice under one seed, from the same counters: noise may depend on the number of a call."""
    counters = {} if side.state is None else side.state.counters.now()
    found = []
    for _ in range(2):
        if side.state is not None:
            side.state.counters.assign(counters)
        found.append(pair.run(side, recipe, under=under, phase="rollout"))
    return found


def _unlike_under_one_seed(
    eager: list[Outcome], compiled: list[Outcome], drawn: set[str], options: CheckOptions
) -> Difference | None:
    """Return the worst of the outputs that two calls of eager repeat and two of compiled do not.

    Args:
        eager: two calls of eager under one seed.
        compiled: two calls of compiled under the same one.
        drawn: the outputs that are drawn.
        options: the tolerance is used.
    """
    if any(call.error is not None for call in (*eager, *compiled)):
        return None
    tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
    repeated = drawn - set(_unequal(*eager))
    one, other = (_only(call, repeated) for call in compiled)
    worst = next(iter(judge(one, other, tolerance, None).differences), None)
    return worst and Difference(
        path=worst.path, problem="seed", eager="repeats under one seed", compiled="does not repeat under it"
    )


class _Tally:
    """Counts, for each output, the pairs of calls that differ."""

    def __init__(self) -> None:
        self._eager: collections.Counter[str] = collections.Counter()
        self._compiled: collections.Counter[str] = collections.Counter()
        self._between: collections.Counter[str] = collections.Counter()

    def add(self, eager: list[Outcome], compiled: list[Outcome]) -> None:
        """Add two calls of each side."""
        self._eager.update(_unequal(*eager))
        self._compiled.update(_unequal(*compiled))
        self._between.update(_unequal(eager[0], compiled[0]))

    def always_unequal(self) -> set[str]:
        """Return the outputs that never varied in eager, and of which compiled's is another in each call.

        What is hardly ever drawn otherwise may not vary either; but compiled then mostly returns the same.
        """
        return {path for path, number in self._between.items() if number == PAIRS and not self._eager[path]}

    def drawn(self) -> set[str]:
        """Return the outputs that varied in eager."""
        return {path for path, number in self._eager.items() if number}

    def frozen(self) -> Difference | None:
        """Return an output that varies in eager and not in compiled, by more than chance allows."""
        for path, number in self._eager.items():
            chance = math.comb(PAIRS, number) / math.comb(2 * PAIRS, number)
            if chance <= FALSE_ALARMS and not self._compiled[path]:
                return Difference(
                    path=path,
                    problem="frozen",
                    eager=f"{number} of {PAIRS} pairs of calls differ",
                    compiled=f"none of {PAIRS} does",
                    chance=chance,
                    allowed=FALSE_ALARMS,
                )
        return None


def _unequal(one: Outcome, other: Outcome) -> list[str]:
    """Return the paths of the outputs whose values are not equal; those that only one call has are."""
    found = other.outputs.tensors
    return [
        path
        for path, tensor in one.outputs.tensors.items()
        if path not in found or not equal_values(tensor, found[path])
    ]


def _wrong_among(
    paths: set[str], eager: Outcome, deployed: Outcome, pair: Pair, recipe: Recipe, options: CheckOptions
) -> Difference | None:
    """Return the worst difference among these outputs, by the rules of a case; None if they agree."""

    def rerun(under: Around = contextlib.nullcontext, wide: bool = False) -> Outcome:
        return _only(pair.run(pair.eager, recipe, under=under, wide=wide, phase="rollout"), paths)

    tolerance = Tolerance(atol=options.atol, rtol=options.rtol)
    mine = _only(eager, paths)
    asked = None if options.reference == "eager" else references(mine, pair.eager, rerun)
    return next(iter(judge(mine, _only(deployed, paths), tolerance, asked).differences), None)


def _only(outcome: Outcome, paths: set[str]) -> Outcome:
    """Return an outcome with these outputs alone."""
    tensors = {path: tensor for path, tensor in outcome.outputs.tensors.items() if path in paths}
    return Outcome(outputs=NamedValues(tensors=tensors), seed=outcome.seed)


def _raised(error: BaseException, recorder: Recorder) -> Difference:
    if recorder.is_compile_failure(error):
        raise CompileFailed(f"{failure_text(error)}, without eager's random numbers") from error
    return Difference(
        path="output", problem="exception", eager="returns", compiled=f"raises {first_line(error)}"
    )
