"""What the examples of a case have shown so far, and what of it a user should be told."""

from __future__ import annotations

import collections
import heapq
import operator

from pytest_torchcompile.calls import Outcome
from pytest_torchcompile.results import Deviation, Difference, Verdict
from pytest_torchcompile.texts import some
from pytest_torchcompile.tolerance import Judgement

KEPT = 200
"""Single examples that are kept, so that a record stays small however many there were."""


class Evidence:
    """The sum of the judgements of a case."""

    def __init__(self) -> None:
        self.examples = 0
        self.rounding = 0
        self.worst: Difference | None = None
        self._deviations: list[tuple[float, int, Deviation]] = []
        self._degenerate = 0
        self._rejected: collections.Counter[str] = collections.Counter()
        self._ill_conditioned: collections.Counter[str] = collections.Counter()
        self._paths: set[str] = set()
        self._finite: set[str] = set()
        self._nonzero: set[str] = set()

    @property
    def rejected(self) -> bool:
        """Whether eager itself raised on some example."""
        return bool(self._rejected)

    def reject(self, error: Exception) -> None:
        """Count an example on which eager itself raised, so that there was nothing to compare."""
        self._rejected[f"{type(error).__name__}: {str(error).strip():.100}"] += 1

    def add(self, eager: Outcome, judgement: Judgement, *, degenerate: bool) -> None:
        """Count an example that was compared."""
        self.examples += 1
        self.rounding += judgement.rounding
        self._degenerate += judgement.rounding and degenerate
        self._ill_conditioned.update(judgement.ill_conditioned)
        if judgement.finite:
            self._paths |= eager.elementwise().keys() | eager.differentiated().keys()
        self._finite |= judgement.finite
        self._nonzero |= judgement.nonzero
        worst = judgement.worst
        if worst is not None and (self.worst is None or _severity(worst) >= _severity(self.worst)):
            self.worst = worst

    def keep(self, deviation: Deviation) -> None:
        """Keep what one example showed; of more than `KEPT` the one closest to eager is dropped."""
        share = float("inf") if deviation.share is None else deviation.share
        heapq.heappush(self._deviations, (share, deviation.example, deviation))
        if len(self._deviations) > KEPT:
            heapq.heappop(self._deviations)

    def deviations(self) -> tuple[Deviation, ...]:
        """What single examples showed, in their order."""
        kept = (deviation for _, _, deviation in self._deviations)
        return tuple(sorted(kept, key=operator.attrgetter("example")))

    def verdict(self) -> tuple[Verdict, str]:
        """The verdict if no example differs, with the sentence that explains it."""
        outputs = {path for path in self._paths if path.startswith("output")}
        if self.examples == 0:
            return Verdict.EAGER_FAILED, "eager raised on every example, so that nothing was compared"
        if outputs and not self._finite & outputs:
            return Verdict.EAGER_FAILED, "no output was ever finite, so that nothing was compared"
        if not self.rounding:
            return Verdict.EQUAL, ""
        return Verdict.WITHIN_ROUNDING, (
            f"{self.rounding} of {self.examples} examples exceeded the tolerance, by no more than rounding "
            f"moves eager itself ({self._degenerate} of them degenerate: near-constant inputs, or one huge "
            f"element)"
        )

    def notes(self) -> list[str]:
        """Sentences on what weakens the check, or is worth knowing."""
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
            found.append(f"zero throughout: {some(zero)}")
        ill = [f"{path} ({count})" for path, count in self._ill_conditioned.most_common()]
        if ill:
            found.append(f"ill-conditioned on some of {self.examples} examples: {some(ill)}")
        return found


def _severity(difference: Difference) -> float:
    return difference.difference / difference.allowed if difference.allowed else 0.0
