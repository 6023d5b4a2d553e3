"""Remarks: differences beyond what was declared are shown and counted, and fail only with ``beyond="fail"``."""

import pytest
from documents import differing, document, result

from pytest_torchcompile import Verdict
from pytest_torchcompile.beyond.remarks import Beyond, concluded
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.reports.document import case_of_record, cases_of, record_of, to_json
from pytest_torchcompile.reports.failure import failure_text
from pytest_torchcompile.reports.html import html as page
from pytest_torchcompile.reports.markdown import markdown
from pytest_torchcompile.reports.reading import read
from pytest_torchcompile.reports.terminal import write_summary
from pytest_torchcompile.texts import one_line

REMARK = "under autocast that nobody declared compiled raises"


class Lines:
    """A terminal reporter that keeps what is written."""

    def __init__(self):
        self.lines = []

    def write_line(self, line, **_):
        self.lines.append(line)

    def write_sep(self, *_):
        pass


# --- what becomes of a remark ---------------------------------------------------------------------


def test_a_remark_is_no_failure():
    found = concluded(result(remarks=("met on the way",)), Beyond(remarks=(REMARK,)), CheckOptions())
    assert found == result(remarks=("met on the way", REMARK))


def test_with_off_there_is_none():
    assert concluded(result(remarks=(REMARK,)), Beyond(), CheckOptions(beyond="off")) == result()


def test_a_remark_fails_for_who_asks_for_it():
    found = concluded(result(), Beyond(remarks=(REMARK,)), CheckOptions(beyond="fail"))
    assert found.verdict is Verdict.DIFFERS
    assert found.reason == f"beyond what was declared: {REMARK}"
    assert f" remark {REMARK} " in one_line(failure_text(found))


def test_without_a_remark_nothing_fails():
    assert concluded(result(), Beyond(), CheckOptions(beyond="fail")).verdict is Verdict.EQUAL


@pytest.mark.parametrize("verdict", ["compile failed", "eager failed", "not compiled"])
def test_another_verdict_stays(verdict):
    found = result(verdict, remarks=(REMARK,))
    assert concluded(found, Beyond(), CheckOptions(beyond="fail")) == found


# --- every view -----------------------------------------------------------------------------------


@pytest.fixture
def several():
    """Three remarks in two cases, of which two are one sentence."""
    return document(
        test_a=result(remarks=(REMARK, "an empty batch raises")),
        test_b=result(remarks=(REMARK,)),
        test_c=result(),
    )


def test_the_terminal_shows_and_counts_them(several):
    reporter = Lines()
    write_summary(reporter, several, 300)
    assert f"2 cases of 2 tests: remark: {REMARK}" in reporter.lines
    assert "test_policy.py::test_a[forward-rollout]: remark: an empty batch raises" in reporter.lines
    assert reporter.lines[-1] == "3 cases: 3 equal; 2 remarks"


def test_markdown_shows_and_counts_them(several):
    lines = markdown(several).splitlines()
    assert "**3 cases: 3 equal; 2 remarks**" in lines
    assert f"* 2 cases of 2 tests: remark: {REMARK}" in lines


def test_a_page_shows_and_counts_them(several):
    text = page(several)
    assert "<strong>3 cases: 3 equal; 2 remarks</strong>" in text
    assert text.count("Remarks: beyond what was declared") == 2
    assert f"<li>{REMARK}</li>" in text


def test_the_document_keeps_them(several, tmp_path):
    (tmp_path / "report.json").write_text(to_json(several))
    first, second, third = cases_of(read(tmp_path / "report.json"))
    assert first.result.remarks == (REMARK, "an empty batch raises")
    assert (second.result.remarks, third.result.remarks) == ((REMARK,), ())


def test_a_document_from_before_there_were_remarks_is_read():
    record = record_of(result(), "forward-rollout")
    del record["remarks"]
    assert case_of_record("test_policy.py::test_a[forward-rollout]", record).result.remarks == ()


def test_the_row_for_junit_shows_and_counts_them():
    row = result(remarks=(REMARK, "an empty batch raises")).row()
    assert (row["remarks"], row["remark_count"]) == (f"{REMARK} | an empty batch raises", 2)
    assert (result().row()["remarks"], result().row()["remark_count"]) == ("", 0)


def test_one_remark_is_counted_as_one():
    reporter = Lines()
    write_summary(reporter, document(test_a=differing(remarks=(REMARK,))), 300)
    assert reporter.lines[-1] == "1 case: 1 differs; 1 remark"
