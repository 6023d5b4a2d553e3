"""The table of reported miscompiles: the data file, the page and the policies agree."""

import collections
import pathlib
import sys

import pytest
import torch

from pytest_torchcompile.specs.conversion import as_spec

# Last, so that the tests are of the package that is installed.
sys.path.append(str(pathlib.Path(__file__).parent.parent))

from benchmarks.miscompiles import data, plain, table
from benchmarks.miscompiles.__main__ import chosen
from benchmarks.miscompiles.measuring import word
from benchmarks.miscompiles.reports import REPORTS

COLUMNS = data.load()
NUMBERS = [one.number for one in REPORTS]


def test_there_are_many_and_each_is_there_once():
    assert len(NUMBERS) >= 25
    assert [number for number, count in collections.Counter(NUMBERS).items() if count > 1] == []


def test_each_report_has_a_cell_in_each_column():
    assert COLUMNS
    for version, column in COLUMNS.items():
        assert set(column["cells"]) == set(map(str, NUMBERS)), version
        assert {cell["word"] for cell in column["cells"].values()} <= set(table.WORDS), version


def test_a_cell_says_what_was_measured():
    for column in COLUMNS.values():
        for one in REPORTS:
            cell = table.cell_of(column, one)
            if cell["check"] and cell["word"] not in ("crashed", "timed out"):
                assert cell["word"] == word(one, cell)


def test_most_reports_show_on_a_torch_of_the_table():
    shown = {
        number
        for column in COLUMNS.values()
        for number, cell in column["cells"].items()
        if cell["plain"] == "differs" or cell["word"] == "finds"
    }
    assert len(shown) >= 25


def test_each_miss_has_its_reason():
    for column in COLUMNS.values():
        for one in REPORTS:
            if table.cell_of(column, one)["word"] == "misses":
                assert one.blind, one.number


def test_the_page_is_rendered_from_the_data():
    assert data.PAGE.read_text() == table.page(COLUMNS, REPORTS), (
        "run: python -m benchmarks.miscompiles table"
    )


@pytest.mark.parametrize("report", REPORTS, ids=NUMBERS)
def test_each_policy_runs_and_its_specs_can_be_read(report):
    as_spec(report.observation)
    for spec in report.inputs.values():
        as_spec(spec)
    for mode in plain.MODES:
        first, again = (plain.left_by(report, mode, None) for _ in range(2))
        assert plain.compare(first, again) == ""
        assert first


def wrong_forward(graph, inputs):
    return lambda *args: [out + 1 if out.is_floating_point() else out for out in graph(*args)]


def raising(graph, inputs):
    raise NotImplementedError("no code for this")


@pytest.mark.parametrize(
    ("backend", "outcome"),
    [("eager", "equal"), (wrong_forward, "differs"), (raising, "compile failed")],
)
def test_a_plain_reproduction_says_what_the_compiler_did(backend, outcome):
    (report,) = chosen(["198119"])
    assert plain.reproduce(report, backend=backend)["outcome"] == outcome


@pytest.mark.parametrize(
    ("said_plainly", "verdict", "expected"),
    [
        ("differs", "differs", "finds"),
        ("differs", "equal", "misses"),
        ("differs", "within rounding", "misses"),
        ("differs", "not compiled", "not compiled"),
        ("equal", "equal", "equal"),
        ("equal", "differs", "differs"),
        ("equal", "eager failed", "eager failed"),
        ("compile failed", "compile failed", "compile failed"),
    ],
)
def test_the_word_of_a_cell(said_plainly, verdict, expected):
    cell = {"plain": said_plainly, "check": [{"verdict": verdict}]}
    assert word(REPORTS[0], cell) == expected


def test_a_remark_that_names_the_fault_is_no_miss_and_another_remark_is():
    (report,) = [one for one in REPORTS if one.remark]
    for remark, expected in ((f"torch: {report.remark}!", "remarks"), ("something else", "misses")):
        cell = {"plain": "differs", "check": [{"verdict": "equal", "remarks": [remark]}]}
        assert word(report, cell) == expected


def test_plain_code_sees_a_wrong_value_and_a_wrong_dtype():
    expected = {"output": torch.ones(3)}
    assert plain.compare(expected, {"output": torch.ones(3)}) == ""
    assert "output" in plain.compare(expected, {"output": torch.full((3,), 1.01)})
    assert "dtype" in plain.compare(expected, {"output": torch.ones(3, dtype=torch.float64)})


def test_a_report_is_chosen_by_number_or_by_kind():
    assert [one.number for one in chosen(["198119"])] == [198119]
    assert {one.kind for one in chosen(["gradients"])} >= {"gradients"}
    assert len(chosen([])) == len(REPORTS)
