"""Accumulate what the examples of a case show, and derive the verdict and the notes from it."""

from __future__ import annotations

import collections
import heapq
import operator

from pytest_torchcompile.comparing.tolerance import Judgement
from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.results import Deviation, Difference, Verdict
from pytest_torchcompile.texts import some

KEPT = 200
"""The number of examples whose deviations are kept, at most; bounds the size of the record."""


_NUMBERS = ("float", "float32", "float64")
"""Kinds of the outputs that are Python or numpy numbers but are compared as tensors."""


class Evidence:
    """Accumulates the judgements of a case."""

    def __init__(self) -> None:
        self.examples = 0
        """The examples that were compared up to the first failure."""
        self.attempts = 0
        """The examples that were compared after it, to make it smaller."""
        self.failed = False
        """Whether an example has differed."""
        self.rounding = 0
        self._closest: Difference | None = None
        self._largest_rounding: Difference | None = None
        self._deviations: list[tuple[float, int, Deviation]] = []
        self._degenerate = 0
        self._rejected: collections.Counter[str] = collections.Counter()
        self._ill_conditioned: collections.Counter[str] = collections.Counter()
        self._undecided: collections.Counter[str] = collections.Counter()
        self._decided = 0
        self._paths: set[str] = set()
        self._remarks: dict[str, str] = {}
        self._finite: set[str] = set()
        self._nonzero: set[str] = set()
        self._learns = False
        self._changed = False
        self._tensors = False
        self._rounded = 0
        self._returned: set[str] = set()

    @property
    def compared(self) -> int:
        """All examples that were compared."""
        return self.examples + self.attempts

    @property
    def learns(self) -> bool:
        """Whether a backward pass was run on some example."""
        return self._learns

    @property
    def rejected(self) -> bool:
        """Whether eager itself raised on some example."""
        return bool(self._rejected)

    @property
    def worst(self) -> Difference | None:
        """The difference closest to its tolerance; if all are 0, the largest that passed as rounding."""
        has_figure = self._closest is not None and (self._closest.difference or self._closest.problem)
        return self._closest if has_figure else self._largest_rounding or self._closest

    def reject(self, error: BaseException) -> None:
        """Count an example on which eager raised, so that nothing was compared."""
        self._rejected[f"{type(error).__name__}: {str(error).strip():.100}"] += 1

    def add(self, eager: Outcome, judgement: Judgement, *, degenerate: bool, changed: bool = False) -> None:
        """Count an example that was compared.

        Args:
            eager: eager's outcome.
            judgement: the result of the comparison.
            degenerate: whether its inputs are degenerate: near-constant, or with one huge element.
            changed: whether the call changed tensors of the policy.
        """
        self.attempts += self.failed
        self.examples += not self.failed
        self.failed |= bool(judgement.differences)
        self._degenerate += judgement.rounding and degenerate
        self._changed |= changed
        if len(self._returned) < 2 and eager.outputs.kinds and not _returns_tensors(eager):
            self._returned.add(repr((eager.outputs.plain, eager.outputs.tensors)))
        self.add_learning(eager, judgement, again=False)

    def add_learning(self, eager: Outcome, judgement: Judgement, *, again: bool = True) -> None:
        """Add the judgement of one way to learn from an example; `again` if the example is counted."""
        self.rounding += judgement.rounding and (not again or self._rounded != self.compared)
        if judgement.rounding:
            self._rounded = self.compared
        self.failed |= bool(judgement.differences)
        self._learns |= bool(eager.learnt_from)
        self._tensors |= _returns_tensors(eager)
        self._ill_conditioned.update(judgement.ill_conditioned)
        self._undecided.update(judgement.undecided)
        self._decided += not judgement.undecided
        if judgement.finite:
            self._paths |= eager.elementwise().keys() | eager.differentiated().keys()
        self._finite |= judgement.finite
        self._nonzero |= judgement.nonzero
        worst = judgement.worst
        if worst is not None and (self._closest is None or _severity(worst) >= _severity(self._closest)):
            self._closest = worst
        most = judgement.largest if judgement.rounding else None
        if most is not None and (
            self._largest_rounding is None or _severity(most) >= _severity(self._largest_rounding)
        ):
            self._largest_rounding = most

    def keep(self, deviation: Deviation) -> None:
        """Keep the deviation of one example; if there are more than `KEPT`, drop the smallest."""
        share = float("inf") if deviation.share is None else deviation.share
        heapq.heappush(self._deviations, (share, deviation.example, deviation))
        if len(self._deviations) > KEPT:
            heapq.heappop(self._deviations)

    def deviations(self) -> tuple[Deviation, ...]:
        """The kept deviations in the order of the examples."""
        kept = (deviation for _, _, deviation in self._deviations)
        return tuple(sorted(kept, key=operator.attrgetter("example")))

    def verdict(self) -> tuple[Verdict, str]:
        """Return the verdict of a case in which no example differs, with the sentence that explains it."""
        nothing = self._why_nothing_compared()
        if nothing:
            return Verdict.EAGER_FAILED, nothing
        if not self._decided:
            return Verdict.EAGER_FAILED, (
                f"nothing was decided: on every example {some(sorted(self._undecided))} differs by more than "
                f"the tolerance, and eager with other rounding returns no finite number and does not run in "
                f"float64"
            )
        if not self.rounding:
            return Verdict.EQUAL, ""
        kind = "with inputs that are nearly constant or hold one huge number"
        which = f" ({self._degenerate} of them {kind})" if self._degenerate else ""
        return Verdict.WITHIN_ROUNDING, (
            f"{self.rounding} of {self.examples} examples differ by more than the tolerance, but by no more "
            f"than rounding moves eager itself{which}; there is nothing to do"
        )

    def remark(self, sentence: str, kind: str = "") -> None:
        """Keep a remark, the first of each kind."""
        self._remarks.setdefault(kind or sentence, sentence)

    def remarks(self) -> tuple[str, ...]:
        """The kept remarks, a sentence each."""
        return tuple(self._remarks.values())

    def _why_nothing_compared(self) -> str:
        """Return why no output, state or gradient was compared that could differ; empty if one was."""
        if self.examples == 0:
            return "eager raised on every example, so that nothing was compared"
        returned = any(path.startswith("output") for path in self._finite)
        if self._tensors and not returned and not self._changed:
            return "no output was ever finite, so that nothing was compared"
        if not self._tensors and len(self._returned) < 2 and not self._changed:
            return (
                "it returned no tensor and changed no state, so that nothing was compared; end it with "
                "`return ...`, or name what it changes: observe=lambda policy: policy.what_it_changes"
            )
        gradients = {path for path in self._nonzero & self._finite if path.startswith("gradient of")}
        if self._learns and not gradients:
            return (
                "outputs require grad, but no gradient of any example was finite and not zero, so that no "
                "learning was compared; return the tensor that the loss uses as a separate output, keep the "
                'trained modules in attributes of the policy, or check phases="rollout" only'
            )
        return ""

    def notes(self) -> list[str]:
        """Return a sentence on each circumstance that weakens the check."""
        found = [
            f"eager itself raised on {count} example{'s' if count > 1 else ''}: {text}"
            for text, count in self._rejected.items()
        ]
        never = sorted(self._paths - self._finite)
        if never:
            found.append(f"never finite, so nothing was compared: {some(never)}")
        gradients = {path for path in self._paths if path.startswith("gradient of")}
        zero = sorted((gradients & self._finite) - self._nonzero)
        if zero:
            found.append(f"zero on every example: {some(zero)}")
        undecided = [f"{path} ({count})" for path, count in self._undecided.most_common()]
        if undecided:
            found.append(
                f"not judged on some of {self.examples} examples, because eager with other rounding "
                f"returns no finite number, and does not run in float64: {some(undecided)}"
            )
        ill = [f"{path} ({count})" for path, count in self._ill_conditioned.most_common()]
        if ill:
            found.append(
                f"on some of {self.examples} examples rounding alone moves eager by more than 0.1 % of the "
                f"largest element, and smaller faults can't be seen there: {some(ill)}"
            )
        return found


def _returns_tensors(eager: Outcome) -> bool:
    """Whether an output is a tensor and not a plain Python value."""
    tensors = (path for path in eager.outputs.tensors if path.startswith("output"))
    return any(eager.outputs.kinds.get(path) not in _NUMBERS for path in tensors)


def _severity(difference: Difference) -> float:
    return difference.difference / difference.allowed if difference.allowed else 0.0
