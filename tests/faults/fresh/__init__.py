"""Mutations of the policies of `faults.correct`, each right in eager and wrong when compiled."""

from __future__ import annotations

from .choices import CHOICES
from .gradients import GRADIENTS
from .inputs import INPUTS, UNSOUGHT
from .leaving import LEAVING
from .masks import MASKS
from .record import Fault
from .sensitive import SENSITIVE
from .sizes import SIZES
from .state import STATE
from .used import USED
from .whole_numbers import WHOLE_NUMBERS

FRESH: tuple[Fault, ...] = (
    *MASKS,
    *GRADIENTS,
    *WHOLE_NUMBERS,
    *CHOICES,
    *SENSITIVE,
    *STATE,
    *INPUTS,
    *SIZES,
    *LEAVING,
    *USED,
    *UNSOUGHT,
)

__all__ = ["FRESH", "Fault"]
