"""What may become of a NaN or an infinity in the input: what fails, and what is a remark.

Nobody declares such an input, and how far a NaN spreads depends on the order in which a kernel sums. That
compiled spreads it further is a remark. That compiled hides what eager shows would hide a run that
diverges; but eager is sometimes wrong itself (its ``gelu(inf)`` is NaN), so that the float64 reference has
to agree with eager for it to fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pytest_torchcompile.comparing.measure import Pattern
from pytest_torchcompile.policies.calls import Outcome

Reference = Callable[[], Outcome | None]
"""Makes the float64 reference of a call; None where that does not run."""


def hidden(path: str, reference: Reference, *, loosely: bool) -> Pattern:
    """The elements that eager and float64 have as NaN or infinity, and compiled as something else.

    Args:
        path: of the tensor, in the reference.
        reference: asked only if compiled lacks something that eager has.
        loosely: whether it is enough that both are not finite. The mean of an infinity is infinite or NaN,
            by the order of the sums.
    """

    def pattern(eager: torch.Tensor, compiled: torch.Tensor) -> torch.Tensor:
        lacking = _lacking(eager, compiled, loosely=loosely)
        if not bool(lacking.any()):
            return lacking
        outcome = reference()
        wide = None if outcome is None else (outcome.elementwise() | outcome.differentiated()).get(path)
        if wide is None or wide.shape != eager.shape:
            return torch.zeros_like(lacking)
        return lacking & ~_lacking(eager, wide.to(eager.device), loosely=loosely)

    return pattern


def beyond(eager: Outcome, compiled: Outcome) -> Iterator[tuple[str, str]]:
    """What the sides make of a NaN or an infinity otherwise, as kind and sentence.

    Args:
        eager: what eager left behind, on such an input.
        compiled: the same of compiled, in which nothing fails.
    """
    theirs = compiled.elementwise()
    for path, mine in eager.elementwise().items():
        other = theirs.get(path)
        if other is None or not mine.is_floating_point() or mine.shape != other.shape:
            continue
        # What an infinity is summed to, in running statistics, depends on the order.
        loosely = path in eager.state.tensors
        for kind, odd, where in (
            ("spreads", _lacking(other, mine, loosely=loosely), "compiled spreads it"),
            (
                "lacks",
                _lacking(mine, other, loosely=loosely),
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


def _lacking(one: torch.Tensor, other: torch.Tensor, *, loosely: bool) -> torch.Tensor:
    """Where `one` is NaN or infinite and `other` is not, or, unless `loosely`, is less or otherwise so."""
    if loosely:
        return ~torch.isfinite(one) & torch.isfinite(other)
    nan = one.isnan() & ~other.isnan()
    return nan | (one.isinf() & ~(other.isnan() | (other == one)))
