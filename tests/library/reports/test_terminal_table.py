"""The terminal's table: the columns that fit a width, and names that are too long."""

import dataclasses
import re

import pytest
from documents import differing, document, result, speedup

from pytest_torchcompile import Capture
from pytest_torchcompile.reports import table
from pytest_torchcompile.reports.document import cases_of
from pytest_torchcompile.reports.terminal import lines

LONG = "get_action_and_value_of_every_agent_in_the_team"


def table_of(width, **results):
    return [text for text, _ in lines(cases_of(document(**results)), width)]


def three(timed=True):
    timing = {"speedup": speedup()} if timed else {}
    return {
        "test_agent": differing(**timing),
        "test_other": result(method=LONG),
        "test_more": result("within rounding", phase="lifecycle"),
    }


def test_with_room_for_all_a_case_is_one_line_with_its_full_name():
    headings, *rows = table_of(230, **three())
    columns = "case verdict examples worst/allowed compiled graphs breaks recompiles seconds speedup"
    assert re.sub(r" / ", "/", headings).split() == columns.split()
    assert len(rows) == 3
    assert rows[0].startswith("test_policy.py::test_agent[forward-rollout]  ")
    assert rows[0].endswith("1.50 [1.48, 1.52] faster")


@pytest.mark.parametrize("width", range(70, 190, 5))
@pytest.mark.parametrize("timed", [True, False])
def test_no_line_is_wider_than_the_terminal(width, timed):
    assert max(map(len, table_of(width, **three(timed)))) <= width


def test_at_80_columns():
    headings, *rows = table_of(80, **three())
    assert headings.split("  ")[0] == "case"
    assert re.split("  +", headings) == ["case", "verdict", "worst / allowed", "speedup"]
    assert [re.split("  +", row.strip()) for row in rows] == [
        ["test_policy.py::test_agent"],
        ["forward-rollout", "differs", "1e+05", "1.50 faster"],
        ["test_policy.py::test_more"],
        ["forward-lifecycle", "within rounding", "0", "-"],
        ["test_policy.py::test_other"],
        ["get_actio...in_the_team-rollout", "equal", "0", "-"],
    ]


@pytest.mark.parametrize("width", [60, 70, 80])
def test_a_shortened_name_keeps_its_phase(width):
    """Rows of one method differ only in it."""
    phases = ("rollout", "update", "lifecycle")
    results = {
        f"test_{phase}": result(method="get_action_and_value_of_each", phase=phase) for phase in phases
    }
    texts = table_of(width, **results, test_other=result("within rounding", speedup=speedup()))
    names = [text.split()[0] for text in texts if "..." in text]
    assert [name.rpartition("-")[2] for name in names] == sorted(phases)
    assert all(text.startswith("  g") for text in texts if "..." in text)


@pytest.mark.parametrize(
    ("found", "worst", "compiled"),
    [
        (result("eager failed", examples=0, capture=Capture()), "-", "-"),
        (result("crashed", examples=0, capture=Capture()), "-", "-"),
        (
            result("compile failed", examples=0, capture=Capture(left_eager=("weight",), elements=(8,))),
            "-",
            "0%",
        ),
        (result("not compiled", capture=Capture(left_eager=("weight",), elements=(8,))), "0", "0%"),
        (result("eager failed", capture=Capture(graphs=1, parameters=("weight",))), "0", "100%"),
        (result(), "0", "100%"),
    ],
)
def test_what_was_not_measured_is_a_hyphen(found, worst, compiled):
    cells = table.cells("name", found.row(), timed=False)
    assert (cells[3], cells[4]) == (worst, compiled)
    assert table.short_worst_text(found.row()) == worst


def test_the_cases_of_a_test_stand_below_its_name():
    _, *rows = table_of(80, test_agent=differing())
    assert rows[0] == "test_policy.py::test_agent"
    assert rows[1].startswith("  forward-rollout  ")


def test_columns_are_aligned_at_every_width():
    for width in range(80, 200, 10):
        headings, *rows = table_of(width, **three())
        column = headings.index("verdict")
        assert all(
            row[column - 2 : column] == "  " and row[column] != " " for row in rows if "  " in row.strip()
        )


def test_a_parametrized_test_keeps_its_parameters():
    (case,) = cases_of(document(test_agent=result()))
    case = dataclasses.replace(case, id="test_policy.py::test_agent[large-forward-rollout]")
    texts = [text.split("  ")[0] or text for text, _ in lines([case], 60)]
    assert "test_policy.py::test_agent[large]" in texts


def test_a_fixtures_case_is_split_from_its_test():
    (case,) = cases_of(document(test_agent=result()))
    case = dataclasses.replace(case, id="test_policy.py::test_by_hand (forward-rollout)")
    texts = [text for text, _ in lines([case], 60)]
    assert texts[1] == "test_policy.py::test_by_hand"
    assert texts[2].startswith("  forward-rollout ")


# --- a case that passed and whose test fails --------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (result(), "equal"),
        (result(regressions=("graphs 1 -> 2",)), "equal, worse"),
        (result(exceeded=("1 graph breaks",)), "equal, over budget"),
        (result(speedup=speedup(1.5, least=2.0)), "equal, too slow"),
        (result(speedup=speedup(1.5, least=1.4)), "equal"),
        (
            result("within rounding", regressions=("a",), exceeded=("b",)),
            "within rounding, worse, over budget",
        ),
        (result("differs", regressions=("verdict equal -> differs",)), "differs"),
    ],
)
def test_the_verdict_says_why_a_test_fails_that_passed_the_check(found, text):
    values = {**found.row()}
    assert table.verdict_text(values) == text
    assert table.is_passing(values) is (text in ("equal", "within rounding"))


def test_what_a_gate_found_is_counted():
    found = ["kept", "kept", "worse", "undecided", "new"]
    rows = [result(baseline="main.json", held=held).row() for held in found]
    assert table.held_text(rows) == "held against main.json: 2 kept, 1 undecided, 1 worse, 1 not in it"
    assert table.held_text([result().row()]) == ""
