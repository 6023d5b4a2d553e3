"""Why a case differs, and how much of a policy its examples reached."""

from __future__ import annotations

import dataclasses
from typing import Any

from pytest_torchcompile.texts import share, some


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a case differs, as far as its time allowed to find out.

    Args:
        stage: the first stage of the compiler that differs: ``dynamo``, ``AOTAutograd``,
            ``decompositions and partitioner``, ``inductor``; empty if it is not known.
        agreed: the stages before it that agree with eager.
        causes: what that stage can't do without if it is to differ: a decomposition, a pass, a lowering, a
            setting.
        remedy: torch.compile's options under which the example agrees; None if none is known.
        place: the innermost submodule that differs when it is compiled alone on eager's inputs.
        lines: ``file:line`` of the user's code in the graph that differs.
        proof: the folder with a script that shows the difference; empty if none was written.
        confirmed: whether that script, run once, showed it.
        remarks: sentences on what could not be told, and why.
        seconds: how long explaining took.
    """

    stage: str = ""
    agreed: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    remedy: dict[str, Any] | None = None
    place: str = ""
    lines: tuple[str, ...] = ()
    proof: str = ""
    confirmed: bool = False
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0

    def row(self) -> dict[str, str | int | float]:
        """What of it goes into the row of its case."""
        return {"stage": self.stage, "place": self.place, "proof": self.proof}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How much of a policy the examples of a case reached.

    Args:
        parameters: elements of parameters that had a gradient other than zero on some example.
        of_parameters: elements of all parameters that require one; 0 where nothing was differentiated.
        outputs: elements of an output's row that were not the same in all rows of all examples.
        of_outputs: elements of a row of all outputs.
        unreached: modules of whose parameters none had such a gradient; single parameters of others.
        constant: outputs of which no element varied.
    """

    parameters: int = 0
    of_parameters: int = 0
    outputs: int = 0
    of_outputs: int = 0
    unreached: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = []
        if self.of_parameters:
            names = f", never {some(self.unreached)}" if self.unreached else ""
            parts.append(
                f"gradients reached {share(self.parameters, self.of_parameters)} of the parameters{names}"
            )
        if self.of_outputs:
            names = f", never {some(self.constant)}" if self.constant else ""
            parts.append(f"{share(self.outputs, self.of_outputs)} of the outputs varied{names}")
        return "; ".join(parts)
