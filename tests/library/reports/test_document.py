"""The document: its schema, what crosses processes, reading, merging."""

import dataclasses
import json
import math

import jsonschema
import pytest
from documents import differing, document, result, speedup, unchecked

from pytest_torchcompile import Box, Capture, Deviation, Difference, UsageError, Verdict, check_equivalence
from pytest_torchcompile.reports.document import (
    FORMAT,
    VERSION,
    cases_of,
    merge,
    record_of,
    to_json,
)
from pytest_torchcompile.reports.reading import read
from pytest_torchcompile.reports.schema import SCHEMA

SCHEMA_DATA = json.loads(SCHEMA.read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA_DATA, format_checker=jsonschema.FormatChecker())


def assert_valid(found):
    """`found` as JSON has it is what the schema says, and no field of it is unknown to the schema."""
    data = json.loads(to_json(found))
    VALIDATOR.validate(data)
    definitions = SCHEMA_DATA["$defs"]
    assert data.keys() == SCHEMA_DATA["properties"].keys()
    for case in data["cases"]:
        assert case.keys() == definitions["case"]["properties"].keys()
        assert case["capture"].keys() == definitions["capture"]["properties"].keys()
        for difference in case["differences"]:
            assert difference.keys() == definitions["difference"]["properties"].keys()
        for deviation in case["deviations"]:
            assert deviation.keys() == definitions["deviation"]["properties"].keys()
    for machine in data["machines"].values():
        assert machine.keys() == definitions["machine"]["properties"].keys()


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA_DATA)
    assert SCHEMA_DATA["properties"]["format"]["const"] == FORMAT
    assert SCHEMA_DATA["properties"]["version"]["const"] == VERSION


def test_the_schema_knows_every_verdict():
    assert SCHEMA_DATA["$defs"]["case"]["properties"]["verdict"]["enum"] == [v.value for v in Verdict]


def test_every_kind_of_case_is_valid():
    assert_valid(
        document(
            unchecked=[unchecked()],
            control=speedup(1.0, threads=2),
            test_good=result(speedup=speedup(batch=4, threads=2, break_even=7, least=1.0)),
            test_wrong=differing(),
            test_failed=result("compile failed", examples=0, capture=Capture(), deviations=()),
            test_worse=result(regressions=("graphs 1 -> 2",)),
        )
    )
    assert_valid(document())


def test_a_real_check_is_valid():
    from torch import nn

    (found,) = check_equivalence(
        lambda: nn.Linear(3, 2),
        observation=Box((3,)),
        phases="rollout",
        backend="aot_eager",
        examples=2,
        benchmark_seconds=0.05,
    )
    assert_valid(document(test_real=found))
    assert [deviation.example for deviation in found.deviations] == list(range(1, found.examples + 1))


@pytest.mark.parametrize(
    ("field", "value"), [("verdict", "fine"), ("outcome", "ok"), ("examples", -1), ("capture", {}), ("id", 3)]
)
def test_the_schema_rejects(field, value):
    data = json.loads(to_json(document(test_good=result())))
    data["cases"][0][field] = value
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(data)


def test_what_is_not_finite_is_null():
    odd = Difference(path="output", problem="values", difference=math.inf, ulps=math.nan)
    found = document(test_odd=result("differs", worst=odd, differences=(odd,)))
    assert_valid(found)
    assert found["cases"][0]["worst"]["difference"] is None
    assert found["cases"][0]["worst"]["ulps"] is None


def test_a_record_is_made_of_pythons_own_types():
    """execnet sends it between pytest-xdist's processes, and accepts no subclasses of plain types."""

    def types(value):
        if type(value) is dict:
            return {str}.union(*(types(item) for item in value.values()), {type(name) for name in value})
        return set().union(*map(types, value)) if type(value) is list else {type(value)}

    found = types(record_of(differing(speedup=speedup()), "forward-rollout", speedup(1.0)))
    assert found <= {str, int, float, bool, type(None)}


def test_source_lines_of_breaks_are_kept(tmp_path):
    file = tmp_path / "policy.py"
    file.write_text("import torch\n    print('here')  # the cause\n")
    capture = Capture(breaks=(f"call to print (at {file}:2)", "no place"), recompiles=(f"x # {file}:9",))
    (case,) = document(test_breaks=result(capture=capture))["cases"]
    assert case["sources"] == {f"{file}:2": "print('here')  # the cause"}


# --- reading --------------------------------------------------------------------------------------


def test_what_is_written_is_read_as_it_was(tmp_path):
    found = document(test_good=result(speedup=speedup()), test_wrong=differing())
    (tmp_path / "report.json").write_text(to_json(found))
    again = read(tmp_path / "report.json")
    assert again == json.loads(to_json(found))
    good, wrong = cases_of(again)
    assert good.speedup["speedup"] == 1.5
    assert wrong.result == differing()
    assert (wrong.id, wrong.failed) == ("test_policy.py::test_wrong[forward-rollout]", True)


def test_fields_of_a_newer_plugin_are_left_alone():
    found = document(test_good=result())
    found["cases"][0] |= {"stage": "inductor"}
    found["cases"][0]["capture"] |= {"stages": 3}
    assert cases_of(found)[0].result == result()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "can't be read as a report"),
        ("{", "can't be read as a report"),
        ("[]", "is not a report; accepted: a .json that --compile-report wrote"),
        ('{"results": []}', "is not a report"),
        (json.dumps({"format": FORMAT, "version": 99}), "of version 99, this plugin reads version 1"),
    ],
)
def test_what_is_no_report(tmp_path, text, sentence):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=sentence) as caught:
        read(path)
    assert str(path) in str(caught.value)


# --- merging --------------------------------------------------------------------------------------


def at(found, created):
    return {**found, "created": created}


def test_cases_of_several_machines_are_all_there():
    one = document({"host": "one"}, test_a=result(), test_b=result())
    two = document({"host": "two"}, test_a=result())
    merged = merge([one, two])
    assert_valid(merged)
    assert [(case["nodeid"].partition("::")[2][:7], case["machine"]) for case in merged["cases"]] == [
        ("test_a[", "one"),
        ("test_a[", "two"),
        ("test_b[", "one"),
    ]
    assert merge([two, one])["cases"] == merged["cases"]


def test_two_machines_of_one_name_are_two():
    merged = merge([document({"host": "ci", "torch": t}, test_a=result()) for t in ("2.13.0", "2.14.0")])
    assert sorted(merged["machines"]) == ["ci", "ci#2"]
    assert {case.machine["torch"] for case in cases_of(merged)} == {"2.13.0", "2.14.0"}


def test_of_a_case_that_ran_twice_the_later_is_kept():
    first = at(document(test_a=result()), "2026-01-01T00:00:00+00:00")
    again = at(document(test_a=differing()), "2026-01-02T00:00:00+00:00")
    for merged in (merge([first, again]), merge([again, first])):
        assert [case["verdict"] for case in merged["cases"]] == ["differs"]
        assert merged["created"] == again["created"]


def test_what_was_unchecked_and_then_checked_is_checked():
    test = unchecked("test_policy.py::test_a[forward-rollout]")
    crashed = at(document(unchecked=[test, unchecked()]), "2026-01-01T00:00:00+00:00")
    merged = merge([crashed, at(document(test_a=result()), "2026-01-02T00:00:00+00:00")])
    assert [test["nodeid"] for test in merged["unchecked"]] == [unchecked()["nodeid"]]


def test_a_test_that_crashed_and_was_checked_on_another_worker_is_checked():
    found = document(unchecked=[unchecked("test_policy.py::test_a[forward-rollout]")], test_a=result())
    assert found["unchecked"] == []


def test_one_report_merged_is_itself():
    found = document(control=speedup(1.0), unchecked=[unchecked()], test_a=result(), test_wrong=differing())
    assert merge([found]) == found


def test_the_control_of_a_process_that_timed_later_is_not_lost():
    records = [document(test_a=result()), document(control=speedup(1.0), test_b=result())]
    (machine,) = merge(records)["machines"].values()
    assert machine["control"]["speedup"] == 1.0


# --- single examples ------------------------------------------------------------------------------


def test_what_examples_show_is_bounded_and_the_worst_are_kept():
    from pytest_torchcompile.checking.evidence import KEPT, Evidence

    evidence = Evidence()
    for number in range(3 * KEPT):
        evidence.keep(
            Deviation(example=number, batch=1, verdict=Verdict.EQUAL, difference=number % 7, allowed=10.0)
        )
    kept = evidence.deviations()
    assert len(kept) == KEPT
    assert min(deviation.difference for deviation in kept) >= 4
    numbers = [deviation.example for deviation in kept]
    assert numbers == sorted(numbers)


def test_the_share_of_a_deviation():
    one = Deviation(example=1, batch=1, verdict=Verdict.EQUAL, difference=2.0, allowed=8.0)
    assert one.share == 0.25
    assert dataclasses.replace(one, allowed=0.0).share == 0.0
    assert dataclasses.replace(one, allowed=0.0, verdict=Verdict.DIFFERS).share is None


def test_examples_that_differ_show_both_sides_distance_to_float64():
    import torch
    from torch import nn

    def shifted(gm, example_inputs):
        return lambda *args: tuple(out + 1 for out in gm(*args))

    def factory():
        torch.manual_seed(0)
        return nn.Linear(3, 2)

    (found,) = check_equivalence(
        factory, observation=Box((3,)), phases="rollout", backend=shifted, examples=0, shrink_seconds=1
    )
    first = found.deviations[0]
    assert first.verdict is Verdict.DIFFERS
    assert first.difference == pytest.approx(1.0, abs=1e-5)
    assert first.eager_error < 1e-5
    assert first.compiled_error == pytest.approx(1.0, abs=1e-5)
    assert first.share > 1000
