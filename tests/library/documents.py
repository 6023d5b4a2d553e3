"""Documents made by hand, for the tests of reports."""

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


HOSTILE = "<script>alert(1)</script> `x` | *b* [a](http://evil) $\\frac{1}{0}$ &amp; \"q\" 'q' {{ 7*7 }} @all #1 ~~s~~"


def everything(text="plain", name="test_a"):
    """A document with each kind of content, in which everything that can be said is `text`."""
    capture = Capture(
        graphs=2, parameters=("w",), breaks=(f"{text} (at policy.py:3)",), recompiles=(text,), compile_s=1.0
    )
    more = {
        "capture": capture,
        "notes": (text,),
        "remarks": (text,),
        "reason": text,
        "backend": text,
        "method": f"m{text}",
    }
    found = document(
        unchecked=[unchecked(nodeid=f"t.py::test_u[{text}]", message=text)],
        control=speedup(1.0),
        machine={"processor": text},
        message=text,
        **{
            name: result(speedup=speedup(break_even=1000), **more),
            "test_wrong": differing(**more | {"deviations": shares(0.1, 1e6)}),
            "test_worse": result(regressions=(text,), **more),
            "test_failed": result("compile failed", examples=0, **more | {"deviations": ()}),
        },
    )
    for case in found["cases"]:
        case["sources"] = {"policy.py:3": text}
    return found
