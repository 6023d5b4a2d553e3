"""What a check found, as plain data.

Everything here survives JSON and a process boundary: no tensors, no modules and no import of
torch, because the terminal report, JUnit and pytest-xdist all read these records. Others import
this package; its modules are its own.
"""

from pytest_torchcompile.results.capture import Capture
from pytest_torchcompile.results.case import NOTE_SEPARATOR, CheckResult, versions
from pytest_torchcompile.results.difference import Deviation, Difference
from pytest_torchcompile.results.explanation import Explanation, Sensitivity
from pytest_torchcompile.results.speedup import MARGIN, Speedup
from pytest_torchcompile.results.verdict import Verdict

__all__ = [
    "MARGIN",
    "NOTE_SEPARATOR",
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
