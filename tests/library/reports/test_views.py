"""The document as Markdown and on GitHub is complete, within its limits, and safe for any content."""

import json
import pathlib
import re

import pytest
from documents import HOSTILE, differing, document, everything, result, speedup, unchecked

from pytest_torchcompile import UsageError
from pytest_torchcompile.reports import github
from pytest_torchcompile.reports.document import merge
from pytest_torchcompile.reports.failure import failure_text
from pytest_torchcompile.reports.html import html as page
from pytest_torchcompile.reports.markdown import markdown
from pytest_torchcompile.reports.ratios import ratios
from pytest_torchcompile.reports.views import VIEWS, require_view

# --- Markdown -------------------------------------------------------------------------------------


def test_markdown_word_for_word():
    lines = markdown(
        document(
            {"host": "ci", "processor": "EPYC", "cpus": 2, "system": "Linux x86_64", "threads": 2}
            | {"python": "3.11.7", "torch": "2.13.0"},
            control=speedup(1.0),
            test_good=result(speedup=speedup()),
            test_wrong=differing(),
        )
    ).splitlines()
    good, wrong = (
        f"<code>test&#95;policy.py::test&#95;{n}&#91;forward-rollout&#93;</code>" for n in ("good", "wrong")
    )
    assert lines[:5] == [
        "## Compiled against eager",
        "",
        "**2 cases: 1 equal, 1 differs**",
        "",
        f"### ❌ {wrong}",
    ]
    assert lines[6:8] == ["```text", "compiled differs from eager: forward, rollout phase, backend inductor"]
    assert (
        f"| {good} | ✅ equal | 60 | 0 | 100% | 2 | 0 | 0 | 3.0 | 1.50 &#91;1.48, 1.52&#93; faster |" in lines
    )
    assert (
        f"| {wrong} | ❌ differs | 60 | 1e+05 output&#91;&#39;logits&#39;&#93;&#91;0, 3&#93; "
        "| 100% | 2 | 0 | 0 | 3.0 | - |" in lines
    )
    assert lines[-1] == (
        "* ci: 2 x EPYC, Linux x86&#95;64, torch 2.13.0, Python 3.11.7, 2 torch threads, "
        "eager timed against itself: 1.00 &#91;0.98, 1.02&#93;"
    )


def test_what_is_expected_to_fail_is_no_failure():
    text = markdown(document(outcome="xfailed", test_known=differing()))
    assert "###" not in text
    assert "❌ differs (expected)" in text


def test_nothing_checked_cannot_be_overlooked():
    text = markdown(document(test_a=result("compile failed", examples=0)))
    assert "**NOTHING WAS CHECKED: 1 compile failed of 1 case**" in text


def test_markdown_says_what_is_meant_whatever_it_is():
    text = markdown(everything(HOSTILE))
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script>" not in outside
    assert not re.search(r"[`\[\]@~]", outside)
    assert not re.search(r"(?<!&)#(?!#)\d", outside)
    tags = set(re.findall(r"</?\w+", outside))
    assert tags == {"<code", "</code"}
    for row in (line for line in outside.splitlines() if line.startswith("|")):
        assert row.count("|") == 11


@pytest.mark.parametrize("message", ["```\n# out", "````\nout\n```", "~~~", "a\r\nb"])
def test_a_code_block_is_not_ended_by_what_is_in_it(message):
    lines = markdown(document(unchecked=[unchecked(message=message)])).splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith("text") and line.startswith("```"))
    end = lines.index(lines[start].removesuffix("text"), start + 1)
    assert lines[start + 1 : end] == message.splitlines()


@pytest.mark.parametrize("most_bytes", [0, 50, 300, 1000, 5000, 20_000])
def test_markdown_is_cut_to_fit_and_says_so(most_bytes):
    found = document(**{f"test_{i}_é": differing() for i in range(100)})
    text = markdown(found, most_bytes=most_bytes)
    assert len(text.encode()) <= max(most_bytes, 80)
    assert text.endswith("*Cut here to fit: the rest is in the files of `--compile-report`.*\n")
    assert text.count("```") % 2 == 0
    whole = markdown(found)
    assert len(markdown(found, most_bytes=len(whole.encode()) + 200)) == len(whole)


# --- ratios ---------------------------------------------------------------------------------------


def test_ratios_are_what_github_action_benchmark_takes():
    entries = json.loads(ratios(document(test_good=result(speedup=speedup()), test_untimed=result())))
    assert [entry["name"] for entry in entries] == ["test_policy.py::test_good[forward-rollout]"]
    assert {name: type(value) for name, value in entries[0].items()} == {
        "name": str,
        "unit": str,
        "value": float,
        "range": str,
        "extra": str,
    }
    assert entries[0]["value"] == 1.5


# --- GitHub ---------------------------------------------------------------------------------------


def commands(found, **environment):
    return github.error_commands(found, pathlib.Path("/repo/sub"), environment)


def test_failures_are_annotations_at_the_tests_line():
    (line,) = commands(document(test_wrong=differing(), test_good=result()), GITHUB_WORKSPACE="/repo")
    head, _, message = line.removeprefix("::error ").partition("::")
    assert head == ("file=sub/test_policy.py,line=7,title=test_policy.py%3A%3Atest_wrong[forward-rollout]")
    assert message.startswith("compiled differs from eager: forward, rollout phase, backend inductor%0A%0A")
    assert "\n" not in line


def test_annotations_are_few_and_the_gravest_come_first():
    worse = result(regressions=("graphs 1 -> 2",))
    slow = {f"test_a{i}": worse for i in range(github.MOST_ANNOTATIONS)}
    eager = result("eager failed", reason="raises")
    lines = commands(document(unchecked=[unchecked()], **slow, test_x=eager, test_z=differing()))
    assert len(lines) == github.MOST_ANNOTATIONS
    assert "test_z" in lines[0]
    assert "test_x" in lines[1]
    assert lines[-1].endswith("%0A%0A3 more failed: see the job's summary")


def test_what_is_expected_or_skipped_is_no_annotation():
    assert commands(document(outcome="xfailed", test_known=differing())) == []
    assert commands(document(outcome="skipped", test_skip=result("compile failed", examples=0))) == []


def test_no_text_is_a_command():
    found = everything("x\n::error::y,%0A\r\n::stop-commands::t")
    assert all(
        line.startswith("::error file=") and "\n" not in line and "\r" not in line for line in commands(found)
    )


def test_a_summary_is_added_and_kept_within_its_limit(tmp_path):
    file = tmp_path / "summary.md"
    file.write_text("theirs\n")
    found = document(**{f"test_{i}": differing() for i in range(2000)})
    github.add_to_summary(found, {"GITHUB_STEP_SUMMARY": str(file)})
    text = file.read_text()
    assert text.startswith("theirs\n## Compiled against eager")
    assert len(text.encode()) <= github.MOST_SUMMARY_BYTES
    assert "Cut here" in text
    github.add_to_summary(found, {})


def test_github_is_known_by_its_environment():
    assert github.is_running({"GITHUB_ACTIONS": "true"})
    assert not github.is_running({})


# --- by suffix ------------------------------------------------------------------------------------


def test_the_longest_suffix_decides():
    assert require_view("a.ratios.json", "x").render is ratios
    assert require_view("dir.md/a.json", "x") is VIEWS[".json"]
    with pytest.raises(UsageError, match="--output got 'a.csv'"):
        require_view("a.csv", "--output")


def test_views_of_several_machines_name_them_all():
    merged = merge([document({"host": host}, test_a=result()) for host in ("one", "two")])
    for text in (markdown(merged), page(merged)):
        assert "one: " in text
        assert "two: " in text


def test_a_failure_is_said_once_though_its_message_is_wrapped():
    reason = "eager raises " + "a very long reason " * 12
    failed = result("eager failed", examples=0, reason=reason.strip())
    message = failure_text(failed, rerun="pytest --compile-check")
    found = document(message=message, test_long=failed)
    for text in (markdown(found), page(found)):
        assert " ".join(text.split()).count("a very long reason") == 12
