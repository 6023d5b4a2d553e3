"""Reading reports: any file is read, or refused in one sentence with the right exit status."""

import contextlib
import copy
import functools
import json
import random

import pytest
from documents import differing, document, result, speedup, unchecked

from pytest_torchcompile import CheckResult, Explanation, Sensitivity, UsageError
from pytest_torchcompile.__main__ import main
from pytest_torchcompile.reports.baseline import compare, rules_of
from pytest_torchcompile.reports.comparison import comparison_markdown
from pytest_torchcompile.reports.document import merge, to_json
from pytest_torchcompile.reports.html import html
from pytest_torchcompile.reports.markdown import markdown
from pytest_torchcompile.reports.ratios import ratios
from pytest_torchcompile.reports.reading import read

REMOVED = object()
OBEYED = f"{chr(0xD800)}\x1b[2J\u202e"
"""A surrogate, a terminal's command to clear the screen, a mark that reverses what follows."""


@functools.cache
def _whole():
    explained = differing(
        explanation=Explanation(
            stage="inductor", agreed=("dynamo",), remedy={"a": {"b": 1}}, lines=("a.py:1",)
        ),
        sensitivity=Sensitivity(parameters=1, of_parameters=2, outputs=1, of_outputs=2, constant=("output",)),
        notes=("a note",),
        remarks=("a remark",),
    )
    timed = result(
        speedup=speedup(batch=4, least=1.0, break_even=3, memory=(1, 2), memory_kind="peak allocated")
    )
    machine = {"host": "ci", "processor": "x", "torch": "2", "python": "3"}
    found = document(machine, control=speedup(1.0), unchecked=[unchecked()], test_a=timed, test_b=explained)
    (wrong,) = (case for case in found["cases"] if case["verdict"] == "differs")
    wrong["differences"][0]["grid"] = [[0.0, 1.0], [0.5, 0.0]]
    for case in found["cases"]:
        case["deviations"] = case["deviations"][:1]
    return json.loads(to_json(found))


def whole():
    """A document that holds something in every field."""
    return copy.deepcopy(_whole())


def places(value, path=()):
    """The path of everything in nested data."""
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def changed(found, path, value):
    """A copy of `found` with something else at a path."""
    if not path:
        return value
    found = copy.deepcopy(found)
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    if value is REMOVED:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return found


def use(found):
    """Everything that is made of documents that were read."""
    base = _whole()
    for one, other in ((base, found), (found, base), (found, found)):
        comparison_markdown(compare(one, other), rules_of(["speedup,difference,compile-time"], "x")).encode()
    merged = merge([base, found])
    for view in (markdown, html, ratios, to_json):
        view(merged).encode()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "report.json"


HOSTILE = {
    "empty": "",
    "null": "null",
    "a list": "[]",
    "a number": "1e999",
    "a string": '"pytest-torchcompile report"',
    "an empty object": "{}",
    "cut off": json.dumps({"format": "pytest-torchcompile report"})[:-3],
    "no UTF-8": b"\xff\xfe\x00",
    "nested": "[" * 10_000 + "]" * 10_000,
    "nested in objects": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "digits": f'{{"benchmarks": {"9" * 5000}}}',
    "benchmarks of nothing": '{"benchmarks": {}}',
    "another schema": '{"format": "pytest-torchcompile report", "version": 1}',
    "another version": '{"format": "pytest-torchcompile report", "version": 2}',
    "a version of another kind": '{"format": "pytest-torchcompile report", "version": [[]]}',
    "an entry of nothing": json.dumps(
        {"benchmarks": [{"fullname": "t[compiled]", "extra_info": {"verdict": "equal"}}]}
    ),
}
ENTRY = {
    "verdict": "equal",
    "threads": 1,
    "torch": "2",
    "backend": "x",
    "graphs": 1,
    "compile_s": 1.0,
    "from_cache": 0,
    "breaks": 0,
    "recompiles": 0,
    "speedup": 1.0,
    "speedup_low": 0.9,
    "speedup_high": 1.1,
    "speedup_quiet": 1.0,
    "conclusion": "no clear difference",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_report_is_one_sentence_and_status_2(file, capsys, kind):
    text = HOSTILE[kind]
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    good = file.with_name("good.json")
    good.write_text(to_json(document(test_a=result())))
    for arguments in (
        ["compare", str(file), str(good)],
        ["compare", str(good), str(file)],
        ["merge", str(good), str(file), f"--output={file.with_name('all.json')}"],
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"python -m pytest_torchcompile: {file}")
        assert len(line) < 600


@pytest.mark.parametrize(
    "value", [0, -1.0, "NaN", "Infinity", "1e999", "1e-300", "1" + "0" * 400, True, "x", None]
)
@pytest.mark.parametrize("field", ["speedup", "speedup_low", "speedup_high", "speedup_quiet"])
def test_a_speedup_that_can_be_none_is_refused(file, field, value):
    found = changed(whole(), ("cases", 0, "speedup", field), "HERE")
    as_text = value if isinstance(value, str) and value != "x" else json.dumps(value)
    file.write_text(json.dumps(found).replace('"HERE"', as_text))
    with pytest.raises(UsageError) as caught:
        read(file)
    assert f"cases[0].speedup.{field} is" in str(caught.value)


@pytest.mark.parametrize("name", ENTRY)
@pytest.mark.parametrize("value", [REMOVED, None, [], -1, "x", 10**9])
def test_entries_of_pytest_benchmark_are_read_or_refused(file, name, value):
    extra = changed(ENTRY, (name,), value)
    entry = {"fullname": "t[compiled]", "params": 3, "extra_info": extra}
    file.write_text(json.dumps({"benchmarks": [entry, 1, None], "machine_info": []}))
    try:
        found = read(file)
    except UsageError as error:
        assert str(error).startswith(str(file))
        return
    comparison_markdown(compare(found, found), rules_of(["speedup", "compile-time"], "x"))


def test_an_entry_as_it_should_be_is_read(file):
    """The control of the test above."""
    entry = {"fullname": "t[compiled]", "params": None, "extra_info": ENTRY}
    file.write_text(json.dumps({"benchmarks": [entry]}))
    (case,) = read(file)["cases"]
    assert (case["id"], case["verdict"]) == ("t", "equal")


def test_a_report_is_read_as_it_was_written(file):
    file.write_text(to_json(whole()))
    assert read(file) == whole()
    use(read(file))


WRONG = [REMOVED, None, [], {}, "", OBEYED, -1, 0, 1e300, True, [[]], [{}], {"a": {}}, 2**70]


def test_whatever_stands_in_a_field_is_refused_in_a_sentence_or_can_be_used(file):
    """Every field of a report with every kind of wrong value: no other exception, here or later."""
    found = whole()
    draws, refused, used = random.Random(0), 0, 0
    for path in places(found):
        if path:
            for value in draws.sample(WRONG, 3):
                file.write_text(json.dumps(changed(found, path, value)))
                try:
                    taken = read(file)
                except UsageError as error:
                    refused += 1
                    assert "\n" not in str(error)
                    assert str(error).startswith(str(file))
                else:
                    used += 1
                    use(taken)
    assert refused > 200
    assert used > 50


def test_a_timing_that_lacks_a_figure_is_refused_or_shown(file):
    found = whole()
    timed = next(index for index, case in enumerate(found["cases"]) if case["speedup"])
    shown = []
    for name in found["cases"][timed]["speedup"]:
        file.write_text(json.dumps(changed(found, ("cases", timed, "speedup", name), REMOVED)))
        with contextlib.suppress(UsageError):
            use(read(file))
            shown.append(name)
    assert {"eager_median_s", "compiled_median_s", "break_even_calls"} <= set(shown)


def test_an_older_report_may_lack_what_has_a_default(file):
    found = whole()
    for case in found["cases"]:
        for name in ("remarks", "deviations", "sensitivity", "explanation", "notes", "capture"):
            del case[name]
    del found["unchecked"]
    file.write_text(json.dumps(found))
    use(read(file))


def test_an_infinite_difference_is_read_as_one(file):
    wrong = differing()
    found = json.loads(to_json(document(test_a=wrong)))
    for difference in (found["cases"][0]["worst"], *found["cases"][0]["differences"]):
        difference["difference"] = None
    for deviation in found["cases"][0]["deviations"]:
        deviation["difference"] = None
    file.write_text(json.dumps(found))
    assert "inf" in markdown(read(file))
    use(read(file))


def test_a_page_of_a_hostile_report_obeys_nothing_in_it(file):
    found = whole()
    for case in found["cases"]:
        case |= dict.fromkeys(("id", "reason", "message", "backend"), f"{OBEYED}<script>")
        case["notes"] = ["\x1b]0;title\x07"]
    file.write_text(json.dumps(found))
    taken = read(file)
    for view in (markdown, html):
        text = view(taken)
        text.encode()
        assert not {"\x1b", "\u202e", "\x07"} & set(text)
        assert "\\x1b" in text
        assert "\\u202e" in text
    assert html(taken).count("<script>") == 1  # its own


def test_a_field_of_the_timing_does_not_replace_one_of_the_case(file):
    found = whole()
    found["cases"][0]["speedup"] |= {"verdict": "equal", "notes": 5, "worst_difference": "x"}
    file.write_text(json.dumps(found))
    use(read(file))


def test_a_comment_that_cannot_be_written_is_status_2(file, capsys):
    file.write_text(to_json(document(test_a=result())))
    assert main(["compare", str(file), str(file), f"--output={file.parent}"]) == 2
    assert "--output can't write" in capsys.readouterr().err


def test_an_exception_of_our_own_does_not_say_that_something_got_worse(file, capsys, monkeypatch):
    file.write_text(to_json(document(test_a=result())))
    monkeypatch.setattr("pytest_torchcompile.__main__.compare", lambda base, head: 1 / 0)
    assert main(["compare", str(file), str(file)]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_record_needs_no_more_than_reading_asks_for():
    """A report must have the fields that a record needs."""
    import dataclasses

    from pytest_torchcompile import Deviation, Difference
    from pytest_torchcompile.reports.schema import NEEDED

    for kind, name in ((CheckResult, "case"), (Difference, "difference"), (Deviation, "deviation")):
        fields = dataclasses.fields(kind)
        required = {
            field.name
            for field in fields
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        assert required <= set(NEEDED[name])
