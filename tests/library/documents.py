"""Documents made by hand, for the tests of what is made of them."""

from pytest_torchcompile import Capture, CheckResult, Deviation, Difference, Speedup, Verdict
from pytest_torchcompile.reports.document import document_of, record_of


def result(verdict="equal", **fields):
    """A result of 60 examples, each a tenth of the tolerance off."""
    fields = {"method": "forward", "phase": "rollout", "backend": "inductor", "examples": 60, **fields}
    fields.setdefault("capture", Capture(graphs=2, parameters=("weight",), compile_s=3.0))
    fields.setdefault("deviations", shares(0.1))
    return CheckResult(verdict=Verdict(verdict), **fields)


def shares(*values):
    """What 60 examples showed, these shares of the tolerance by turns."""
    return tuple(
        Deviation(
            example=number,
            batch=4,
            verdict=Verdict.EQUAL,
            path="output",
            difference=1e-5 * values[number % len(values)],
            allowed=1e-5,
        )
        for number in range(1, 61)
    )


def speedup(ratio=1.5, width=0.02, quiet=None, **fields):
    """A speedup whose interval reaches as far on either side."""
    return Speedup(
        ratio=ratio,
        interval=(ratio - width, ratio + width),
        quiet=ratio if quiet is None else quiet,
        eager_s=(1e-3 * ratio,) * 5,
        compiled_s=(1e-3,) * 5,
        **fields,
    )


def differing(**fields):
    """A result that differs in one place."""
    place = Difference(
        path="output['logits']",
        problem="values",
        eager="1",
        compiled="2",
        float64="1",
        closer="eager",
        index=(0, 3),
        difference=1.0,
        allowed=1e-5,
        unequal=1,
        elements=8,
    )
    return result("differs", worst=place, differences=(place,), example="batch 1; x: zeros", **fields)


def document(machine=None, outcome="passed", message="", unchecked=(), control=None, **results):
    """A document of the given results, by the names of their tests."""
    items = []
    for test, found in results.items():
        record = record_of(found, found.case, control)
        record["machine"] |= machine or {}
        failed = not found.verdict.passed or found.regressions
        items.append(
            {
                **record,
                "nodeid": f"test_policy.py::{test}[{found.case}]",
                "file": "test_policy.py",
                "line": 7,
                "outcome": "failed" if failed and outcome == "passed" else outcome,
                "message": message,
            }
        )
    return document_of(items, unchecked)


def unchecked(nodeid="test_policy.py::test_raises[forward-rollout]", message="the factory raised"):
    """A test without a result."""
    return {"nodeid": nodeid, "file": "test_policy.py", "line": 9, "outcome": "failed", "message": message}
