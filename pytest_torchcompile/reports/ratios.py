"""The speedups as github-action-benchmark's ``customBiggerIsBetter`` takes them.

Its reader of pytest-benchmark's files takes one over the mean of a side, which noise moves most and which
says nothing about compiling; the ratio of the two sides is what survives another runner.
"""

from __future__ import annotations

import json

from pytest_torchcompile.reports import table
from pytest_torchcompile.reports.document import Plain, cases_of


def ratios(document: Plain) -> str:
    """A JSON list of ``{name, unit, value, range, extra}``, one for each case that was timed."""
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
