"""The records of why a case differs, and of how much of a policy its examples reached."""

from __future__ import annotations

import dataclasses
from typing import Any

from pytest_torchcompile.texts import share, some


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a case differs, as far as this was found within ``explain_seconds``.

    Args:
        stage: the first stage of the compiler that differs: ``dynamo``, ``AOTAutograd``,
            ``decompositions and partitioner``, ``inductor``; empty if it is not known.
        agreed: the stages before it that agree with eager.
        causes: the parts of that stage without which the difference disappears: a decomposition, a pass, a
            lowering, a setting.
        remedy: torch.compile's options under which the example agrees; None if none is known.
        advice: a change of the policy's code with which the example agrees, as was tried; empty if unknown.
        place: the innermost submodule that differs when it is compiled alone on eager's inputs.
        lines: ``file:line`` of the user's code in the graph that differs.
        proof: the folder with a script that shows the difference; empty if none was written.
        confirmed: whether that script was run once and showed the difference.
        remarks: sentences on what could not be determined, and why.
        seconds: how long explaining took.
    """

    stage: str = ""
    agreed: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    remedy: dict[str, Any] | None = None
    advice: str = ""
    place: str = ""
    lines: tuple[str, ...] = ()
    proof: str = ""
    confirmed: bool = False
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0

    def row(self) -> dict[str, str | int | float]:
        """Return the fields that the row of the case contains."""
        return {"stage": self.stage, "place": self.place, "proof": self.proof}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How much of a policy the examples of a case reached.

    Args:
        parameters: how many elements of parameters had a nonzero gradient on some example.
        of_parameters: how many elements all parameters that require grad have; 0 if none was differentiated.
        outputs: how many elements of an output row were not the same in all rows of all examples.
        of_outputs: how many elements a row of all outputs has.
        unreached: modules without any nonzero gradient; single parameters of other modules.
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
