"""Correct policies, as people who train agents write them; tests, faults and benchmarks use them.

Each is written for this suite and small. A check that reports a difference in one is wrong.
"""

from __future__ import annotations

from .arithmetic import NUMBERS
from .attention import ATTENTION
from .choices import CHOICES
from .continuous import CONTINUOUS
from .critics import CRITICS
from .extremes import EXTREMES
from .layers import LAYERS
from .leaving import LEAVING
from .lengths import LENGTHS
from .memory import MEMORY
from .pixels import PIXELS
from .precision import PRECISION
from .record import Correct
from .relations import RELATIONS
from .used import USED

FAMILIES: dict[str, tuple[Correct, ...]] = {
    "attention": ATTENTION,
    "graphs, sets, experts": RELATIONS,
    "pixels and boards": PIXELS,
    "critics and returns": CRITICS,
    "continuous actions": CONTINUOUS,
    "choices": CHOICES,
    "extremes": EXTREMES,
    "memory": MEMORY,
    "layers": LAYERS,
    "numbers": NUMBERS,
    "precision": PRECISION,
    "lengths": LENGTHS,
    "what a call leaves": LEAVING,
    "changed between calls": USED,
}

CORRECT: dict[str, Correct] = {one.name: one for family in FAMILIES.values() for one in family}

__all__ = ["CORRECT", "FAMILIES", "Correct"]
