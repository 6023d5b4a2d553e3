"""Compare what eager and compiled return for a NaN or an infinity in the input.

Such an input is never declared, and how far a NaN spreads depends on the order in which a kernel sums. If
compiled has more elements that are not finite than eager, that is a remark. If compiled has fewer, it hides
that training diverges, and the check fails. Eager itself is sometimes wrong (its ``gelu(inf)`` is NaN), so
the check fails only if the float64 reference agrees with eager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pytest_torchcompile.comparing.measure import NonfiniteMask
from pytest_torchcompile.policies.outcome import Outcome

Reference = Callable[[], Outcome | None]
"""Returns the float64 reference of a call; None if it does not run."""


def hidden_nonfinite(path: str, reference: Reference, *, loosely: bool) -> NonfiniteMask:
    """Return a function that finds the elements that are NaN or infinite in eager and float64 only.

    Args:
        path: path of the tensor in the reference.
        reference: called only if a NaN or an infinity of eager's is absent in compiled.
        loosely: whether NaN and the infinities count as equal. The mean of an infinity is infinite or NaN,
            depending on the order of the sums.
    """

    def mask(eager: torch.Tensor, compiled: torch.Tensor) -> torch.Tensor:
        lost = _lost_nonfinite(eager, compiled, loosely=loosely)
        if not bool(lost.any()):
            return lost
        outcome = reference()
        wide = None if outcome is None else (outcome.elementwise() | outcome.differentiated()).get(path)
        if wide is None or wide.shape != eager.shape:
            return torch.zeros_like(lost)
        return lost & ~_lost_nonfinite(eager, wide.to(eager.device), loosely=loosely)

    return mask


def nonfinite_remarks(eager: Outcome, compiled: Outcome) -> Iterator[tuple[str, str]]:
    """Yield a kind and a sentence for each output in which the sides treat a NaN or an infinity differently.

    Args:
        eager: eager's outcome on an input with a NaN or an infinity.
        compiled: compiled's outcome on the same input; it has passed the comparison.
    """
    theirs = compiled.elementwise()
    for path, mine in eager.elementwise().items():
        other = theirs.get(path)
        if other is None or not mine.is_floating_point() or mine.shape != other.shape:
            continue
        # Running statistics with an infinity become infinite or NaN, depending on the order of the sums.
        loosely = path in eager.state.tensors
        for kind, odd, where in (
            ("spreads", _lost_nonfinite(other, mine, loosely=loosely), "compiled spreads it"),
            (
                "lacks",
                _lost_nonfinite(mine, other, loosely=loosely),
                "eager spreads it, unlike its float64 reference",
            ),
        ):
            if bool(odd.any()):
                place = tuple(torch.nonzero(odd)[0].tolist())
                at = f"{path}[{', '.join(map(str, place))}]" if place else path
                yield (
                    f"{kind} {path}",
                    f"on inputs with a NaN or an infinity {where}: {at} is {float(mine[place]):g} in eager, "
                    f"{float(other[place]):g} in compiled",
                )
                break


def _lost_nonfinite(one: torch.Tensor, other: torch.Tensor, *, loosely: bool) -> torch.Tensor:
    """Return a mask of the elements where `one` is NaN or infinite and `other` does not show it.

    Unless `loosely`, `other` has to be NaN where `one` is NaN, and NaN or the same infinity where `one` is
    infinite.
    """
    if loosely:
        return ~torch.isfinite(one) & torch.isfinite(other)
    nan = one.isnan() & ~other.isnan()
    return nan | (one.isinf() & ~(other.isnan() | (other == one)))
