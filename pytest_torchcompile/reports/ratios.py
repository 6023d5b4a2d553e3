"""Writes the speedups in the format ``customBiggerIsBetter`` of github-action-benchmark.

github-action-benchmark also reads pytest-benchmark's files, but takes one over the mean of each side from
them. That value is noisy, depends on the machine and says nothing about compiling. The ratio of the two
sides can be compared between machines.
"""

from __future__ import annotations

import json

from pytest_torchcompile.reports import table
from pytest_torchcompile.reports.document import Plain, cases_of


def ratios(document: Plain) -> str:
    """Return a JSON list of ``{name, unit, value, range, extra}``, one for each case that was timed."""
    timed = [case for case in cases_of(document) if case.speedup]
    return (
        json.dumps(
            [
                {
                    "name": case.id,
                    "unit": "times eager's speed",
                    "value": case.speedup["speedup"],
                    "range": f"{case.speedup['speedup_low']} to {case.speedup['speedup_high']}",
                    "extra": (
                        f"{table.speedup_text(case.speedup)}\nverdict {case.result.verdict}, backend "
                        f"{case.result.backend}, torch {case.machine['torch']}, "
                        f"{case.speedup['threads']} threads"
                    ),
                }
                for case in timed
            ],
            indent=1,
        )
        + "\n"
    )
