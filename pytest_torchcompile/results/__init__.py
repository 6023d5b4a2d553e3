"""The results of a check as plain data.

The records contain no tensors and no modules, and this package does not import torch, because the terminal
report, JUnit and pytest-xdist all read them: each record can be sent to another process and written as JSON.
Other folders import this package, not its modules.
"""

from pytest_torchcompile.results.capture import Capture
from pytest_torchcompile.results.case import NOTE_SEPARATOR, CheckResult, versions
from pytest_torchcompile.results.difference import Deviation, Difference
from pytest_torchcompile.results.explanation import Explanation, Sensitivity
from pytest_torchcompile.results.speedup import MARGIN, TOO_FEW, Speedup
from pytest_torchcompile.results.verdict import Verdict

__all__ = [
    "MARGIN",
    "NOTE_SEPARATOR",
    "TOO_FEW",
    "Capture",
    "CheckResult",
    "Deviation",
    "Difference",
    "Explanation",
    "Sensitivity",
    "Speedup",
    "Verdict",
    "versions",
]
