"""All reports, in the order of the table."""

from __future__ import annotations

from . import (
    reports_gradients,
    reports_memory,
    reports_numbers,
    reports_python,
    reports_types,
    reports_values,
)
from .record import Report

REPORTS: tuple[Report, ...] = (
    *reports_memory.REPORTS,
    *reports_gradients.REPORTS,
    *reports_numbers.REPORTS,
    *reports_types.REPORTS,
    *reports_values.REPORTS,
    *reports_python.REPORTS,
)

BY_NUMBER = {one.number: one for one in REPORTS}
