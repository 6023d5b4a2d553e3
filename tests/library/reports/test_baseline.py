"""Comparing reports: a figure got worse only if both the size and the certainty of the change say so."""

import json
import platform
import random
import subprocess
import sys

import pytest
from documents import differing, document, result, shares, speedup

from pytest_torchcompile import Capture, UsageError
from pytest_torchcompile.__main__ import main
from pytest_torchcompile.reports.baseline import DEFAULT_RULES, Change, compare, rules_of
from pytest_torchcompile.reports.comparison import MOST_CHARACTERS, comparison_markdown
from pytest_torchcompile.reports.document import to_json
from pytest_torchcompile.reports.metrics import METRICS, Estimate
from pytest_torchcompile.reports.reading import read

CASE = "test_policy.py::test_a[forward-rollout]"


def compared(base, head, base_machine=None, head_machine=None):
    """Two results of one case held against each other."""
    (comparison,) = compare(
        document(base_machine, test_a=base), document(head_machine, test_a=head)
    ).comparisons
    return comparison


def worse(base, head, rules=DEFAULT_RULES, **machines):
    """The metrics that got worse beyond doubt."""
    return list(compared(base, head, **machines).regressions(rules))


def captured(**fields):
    return result(capture=Capture(**{"graphs": 2, "parameters": ("weight",), "compile_s": 3.0, **fields}))


# --- speedup --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "is_worse"),
    [
        (speedup(1.5), speedup(1.5), False),
        (speedup(1.5), speedup(1.2), True),
        (speedup(1.2), speedup(1.5), False),
        pytest.param(speedup(1.5), speedup(1.38), False, id="small: 9 %"),
        pytest.param(speedup(1.5, 0.3), speedup(1.2), False, id="the baseline is uncertain"),
        pytest.param(speedup(1.5), speedup(1.2, 0.3), False, id="it is uncertain now"),
        pytest.param(speedup(1.5), speedup(1.2, quiet=1.5), False, id="the quiet calls say otherwise"),
        pytest.param(speedup(0.5, 0.01), speedup(0.4, 0.01), True, id="slower than eager, and slower still"),
    ],
)
def test_a_speedup_is_worse_if_size_and_evidence_say_so(then, now, is_worse):
    assert worse(result(speedup=then), result(speedup=now)) == (["speedup"] if is_worse else [])


def test_the_interval_of_a_change_holds_what_both_intervals_allow():
    change = compared(result(speedup=speedup(2.0, 0.2)), result(speedup=speedup(1.0, 0.1))).changes["speedup"]
    assert change.worse == pytest.approx(2.0)
    assert 2.0 * 0.9 / 1.1 < change.at_least < 2.0 * 0.9


def test_noise_of_the_size_of_the_intervals_is_seldom_called_worse():
    """Ratios drawn with the standard error of their intervals; about one in several thousand exceeds the rule."""
    draws = random.Random(0)

    def drawn(ratio):
        return result(speedup=speedup(draws.gauss(ratio, 0.05), 0.098))

    same = sum("speedup" in worse(drawn(1.5), drawn(1.5), {"speedup": 0.0}) for _ in range(400))
    half = sum("speedup" in worse(drawn(1.5), drawn(0.75)) for _ in range(100))
    assert same <= 400 * 0.06
    assert half >= 95


def test_a_sentence_says_what_changed_by_how_much_and_what_was_allowed():
    regressions = compared(result(speedup=speedup(1.5)), result(speedup=speedup(1.0))).regressions(
        DEFAULT_RULES
    )
    assert regressions == {"speedup": "speedup 1.50 -> 1.00, 50% worse, allowed 10%"}


# --- the other figures ----------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["breaks", "recompiles"])
def test_more_of_what_is_counted_is_worse(field):
    base, one, two = (captured(**{field: ("x",) * number}) for number in range(3))
    assert worse(base, one) == [field]
    assert worse(one, base) == []
    assert worse(base, one, {field: 1}) == []
    assert compared(base, two).regressions({field: 1}) == {field: f"{field} 0 -> 2, allowed 1 more"}


def test_more_graphs_are_worse():
    assert worse(captured(graphs=2), captured(graphs=3)) == ["graphs"]
    assert worse(captured(graphs=3), captured(graphs=2)) == []


@pytest.mark.parametrize(
    ("then", "now", "is_worse"),
    [
        (3.0, 9.0, True),
        (9.0, 3.0, False),
        (3.0, 4.2, False),
        pytest.param(0.2, 0.9, False, id="less than a second"),
    ],
)
def test_compile_time(then, now, is_worse):
    assert worse(captured(compile_s=then), captured(compile_s=now)) == (["compile-time"] if is_worse else [])


def test_compile_times_with_and_without_a_cache_are_not_compared():
    comparison = compared(captured(from_cache=2, compile_s=1.0), captured(compile_s=9.0))
    assert comparison.reasons["compile-time"] == "one of them took graphs from inductor's cache"
    assert worse(captured(from_cache=2, compile_s=1.0), captured(from_cache=1, compile_s=9.0)) == [
        "compile-time"
    ]


@pytest.mark.parametrize(
    ("then", "now", "is_worse"),
    [
        ((0.1,), (0.1,), False),
        ((0.1,), (0.5,), True),
        ((0.5,), (0.1,), False),
        ((0.1,), (0.15,), False),
        pytest.param((1e-5,), (5e-3,), False, id="five hundred times as much of nothing"),
        pytest.param((0.1,), (0.1,) * 19 + (0.9,), False, id="one example in twenty"),
        pytest.param((0.1, 0.1, 0.3), (0.2, 0.1, 0.7), True, id="scattered"),
    ],
)
def test_differences(then, now, is_worse):
    base, head = (result(deviations=shares(*values)) for values in (then, now))
    assert worse(base, head) == (["difference"] if is_worse else [])


def test_memory_of_an_accelerator_is_compared_and_a_processs_growth_is_not():
    def needing(size, kind):
        return result(speedup=speedup(memory=(10_000, size), memory_kind=kind))

    assert worse(needing(10_000, "peak allocated"), needing(12_000, "peak allocated")) == ["memory"]
    assert worse(needing(10_000, "peak allocated"), needing(10_500, "peak allocated")) == []
    comparison = compared(needing(1, "resident growth"), needing(10**9, "resident growth"))
    assert "measured only on an accelerator" in comparison.reasons["memory"]


def test_what_is_not_there_is_not_compared():
    comparison = compared(result(), result(speedup=speedup()))
    assert comparison.reasons["speedup"] == "in the baseline it was not timed"
    assert compared(result(speedup=speedup()), result()).reasons["speedup"] == "it was not timed"
    assert comparison.changes.keys() == {"difference", "graphs", "breaks", "recompiles", "compile-time"}


# --- circumstances --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["processor", "cpus", "accelerator", "system", "threads"])
def test_times_of_another_machine_are_named_and_not_compared(name):
    then, now = result(speedup=speedup(1.5, threads=2)), result(speedup=speedup(0.5, threads=2))
    if name == "threads":
        now = result(speedup=speedup(0.5, threads=4))
    comparison = compared(then, now, {name: 2}, {name: 4})
    assert comparison.circumstances == (f"{name} 2 -> 4",)
    assert comparison.reasons["speedup"] == f"{name} 2 -> 4"
    assert comparison.reasons["compile-time"] == f"{name} 2 -> 4"
    assert {"graphs", "difference"} <= comparison.changes.keys()


@pytest.mark.parametrize("name", ["torch", "python"])
def test_another_version_is_named_and_compared(name):
    then, now = result(speedup=speedup(1.5)), result(speedup=speedup(0.5))
    comparison = compared(then, now, {name: "2.13"}, {name: "2.14"})
    assert comparison.changed == comparison.versions == (f"{name} 2.13 -> 2.14",)
    assert comparison.regressions({"speedup": 0.1}) == {
        "speedup": f"speedup 1.50 -> 0.50, 200% worse, allowed 10%; also changed: {name} 2.13 -> 2.14"
    }


def test_another_backend_is_named_and_nothing_is_compared():
    comparison = compared(result(backend="eager"), result())
    assert comparison.circumstances == ("backend eager -> inductor",)
    assert comparison.changes == {}


def test_another_host_alone_is_no_circumstance():
    """Runners are renamed for each job."""
    assert compared(result(), result(), {"host": "a"}, {"host": "b"}).changed == ()


def test_of_several_machines_the_like_one_is_the_baseline():
    from pytest_torchcompile.reports.document import merge

    fast, slow = ({"host": name, "processor": name} for name in ("fast", "slow"))
    base = merge(
        [document(m, test_a=result(speedup=speedup(r, 0.01))) for m, r in ((fast, 3.0), (slow, 1.5))]
    )
    for machine, expected in ((fast, ["speedup"]), (slow, [])):
        head = document({**machine, "host": "new"}, test_a=result(speedup=speedup(1.5, 0.01)))
        (comparison,) = compare(base, head).comparisons
        assert list(comparison.regressions(DEFAULT_RULES)) == expected


def test_cases_without_a_counterpart_are_named():
    reports = compare(document(test_a=result(), test_b=result()), document(test_b=result(), test_c=result()))
    assert reports.added == ("test_policy.py::test_c[forward-rollout]",)
    assert reports.gone == (CASE,)
    assert len(reports.comparisons) == 1


# --- rules ----------------------------------------------------------------------------------------


def test_rules():
    assert rules_of(["speedup:10%", "graphs:2, breaks"], "--fail-on") == {
        "speedup": 0.1,
        "graphs": 2,
        "breaks": 0,
    }
    assert rules_of(["speedup:10%", "speedup:2.5%"], "--fail-on") == {"speedup": 0.025}
    assert rules_of(list(METRICS), "--fail-on") == DEFAULT_RULES
    assert rules_of([], "--fail-on") == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("speed:10%", "--fail-on got unknown metric 'speed' (did you mean 'speedup'?); accepted: breaks, "),
        ("speedup:10", "--fail-on got speedup:10; accepted: such as speedup:10%"),
        ("speedup:-1%", "--fail-on got speedup:-1%; accepted: such as speedup:10%"),
        ("speedup:", "--fail-on got speedup:; accepted: such as speedup:10%"),
        ("graphs:10%", "--fail-on got graphs:10%; accepted: such as graphs:2 (two more are allowed)"),
    ],
)
def test_what_is_no_rule(text, sentence):
    with pytest.raises(UsageError) as caught:
        rules_of([text], "--fail-on")
    assert str(caught.value).startswith(sentence)


# --- pytest-benchmark's files ---------------------------------------------------------------------


def benchmarks(ratio, **extra):
    """What pytest-benchmark saves of a case, as far as it is read."""
    found = result(speedup=speedup(ratio, 0.01))
    entries = [
        {
            "fullname": f"{CASE}[{side}]",
            "params": {"method": "forward", "phase": "rollout", "side": side},
            "extra_info": {**found.row(), "torch": "2.13.0", **extra},
        }
        for side in ("eager", "compiled")
    ]
    others = [{"fullname": "test_x.py::test_theirs", "params": None, "extra_info": {}}]
    info = {"node": "ci", "system": "Linux", "machine": "x86_64", "python_version": "3.11.7"}
    cpu = {"brand_raw": "AMD EPYC", "count": 2}
    return {
        "machine_info": {**info, "cpu": cpu},
        "benchmarks": entries + others,
        "datetime": "2026-01-01T00:00:00",
    }


def test_a_file_of_pytest_benchmarks_is_a_baseline(tmp_path):
    (tmp_path / "0001.json").write_text(json.dumps(benchmarks(2.0)))
    machine = {"processor": "AMD EPYC", "cpus": 2, "system": "Linux x86_64", "threads": 1}
    head = document({**machine, "accelerator": ""}, test_a=result(speedup=speedup(1.5, 0.01)))
    (comparison,) = compare(read(tmp_path / "0001.json"), head).comparisons
    assert list(comparison.regressions(DEFAULT_RULES)) == ["speedup"]
    assert comparison.changes.keys() == {"speedup", "graphs", "breaks", "recompiles", "compile-time"}
    assert comparison.reasons["difference"] == "in the baseline it has no record of its examples"


# --- as Markdown ----------------------------------------------------------------------------------


def test_the_comment_word_for_word():
    base = document(
        {"torch": "2.13.0"}, test_a=result(speedup=speedup(1.5)), test_b=result(), test_gone=result()
    )
    head = document(
        {"torch": "2.14.0"}, test_a=result(speedup=speedup(1.0)), test_b=differing(), test_new=result()
    )
    case = "<code>test&#95;policy.py::test&#95;{}&#91;forward-rollout&#93;</code>"
    lines = comparison_markdown(compare(base, head), {}).splitlines()
    assert lines[0] == "## Compiled against eager, compared with the baseline"
    assert lines[2] == f"torch 2.13.0 -&#62; 2.14.0, python {platform.python_version()}"
    assert lines[4] == "**2 compared, 1 worse, 1 worse in a figure that no rule names (--fail-on)**"
    changed = "also changed: torch 2.13.0 -&#62; 2.14.0"
    assert f"* ❌ {case.format('b')}: verdict equal -&#62; differs; {changed}" in lines
    slower = f"{case.format('a')}: speedup 1.50 -&#62; 1.00, 50% worse, allowed 10%; {changed}"
    assert f"* {slower}; no rule names this figure" in lines
    named = comparison_markdown(compare(base, head), {"speedup": 0.1}).splitlines()
    assert named[4] == "**2 compared, 2 worse**"
    assert f"* ❌ {slower}" in named
    assert "* not compared: speedup, because in the baseline it was not timed (1 case)" in named
    assert "changed: torch" not in "".join(
        line for line in named if "❌" not in line and "also" not in line
    ), "it stands at the top"
    assert "* Only here: test&#95;policy.py::test&#95;new&#91;forward-rollout&#93;" in lines
    assert "* Only in the baseline: test&#95;policy.py::test&#95;gone&#91;forward-rollout&#93;" in lines
    assert (
        f"| {case.format('a')} | ✅ equal | 1.50 &#91;1.48, 1.52&#93; -&#62; 1.00 &#91;0.98, 1.02&#93; | 0.1 of the tolerance | 2 | 0 | 0 | 3.0 s |"
    ) in lines


def test_the_comment_of_what_is_the_same():
    found = document(test_a=result(speedup=speedup()))
    lines = comparison_markdown(compare(found, found), {}).splitlines()
    assert lines[2].startswith("torch ")
    assert "->" not in lines[2]
    assert lines[4] == "**1 compared, 0 worse**"
    assert "❌" not in "".join(lines)


def test_breaks_and_recompiles_that_only_one_report_has_are_told():
    then = captured(breaks=("print (at a.py:3)", "item (at a.py:9)"), recompiles=("x.size() == 4",))
    now = captured(breaks=("item (at a.py:9)",), recompiles=("x.size() == 4", "mode == 1"))
    lines = comparison_markdown(compare(document(test_a=then), document(test_a=now)), {}).splitlines()
    told = [line.partition("</code>: ")[2] for line in lines if "gained" in line or "lost" in line]
    assert told == ["graph breaks lost: print (at a.py:3)", "recompiles gained: mode == 1"]


def test_versions_of_merged_reports_are_all_told():
    base, head = (
        document({"torch": "2.13.0"}, test_a=result(), test_b=result()),
        document({"torch": "2.15.0"}, test_a=result(), test_b=result()),
    )
    other = next(iter(base["machines"].values())) | {"torch": "2.12.1"}
    base["machines"]["other"] = other
    base["cases"][1]["machine"] = "other"
    lines = comparison_markdown(compare(base, head), {}).splitlines()
    assert lines[2].startswith("torch 2.13.0 and 2.12.1 -&#62; 2.15.0, ")


def test_a_comment_is_no_longer_than_github_takes():
    base, head = (
        document(**{f"test_{i}": found for i in range(900)}) for found in (result(deviations=()), differing())
    )
    text = comparison_markdown(compare(base, head), {})
    assert len(text.encode()) <= MOST_CHARACTERS
    assert "Cut here" in text


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """``base.json``, and ``head.json`` that is worse."""
    monkeypatch.chdir(tmp_path)
    for name, ratio in (("base", 1.5), ("head", 1.0)):
        (tmp_path / f"{name}.json").write_text(to_json(document(test_a=result(speedup=speedup(ratio)))))
    return tmp_path


def test_compare_prints_and_fails_only_if_asked_to(files, capsys):
    assert main(["compare", "base.json", "head.json"]) == 0
    printed = capsys.readouterr().out
    assert "1 compared, 0 worse, 1 worse in a figure that no rule names (--fail-on)" in printed
    assert "❌" not in printed
    assert main(["compare", "base.json", "head.json", "--fail-on=speedup:10%", "--output=c.md"]) == 1
    assert "1 compared, 1 worse**" in (files / "c.md").read_text()
    assert capsys.readouterr().out == ""
    assert main(["compare", "base.json", "head.json", "--fail-on=speedup:60%"]) == 0
    assert main(["compare", "head.json", "base.json", "--fail-on=speedup"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare", "base.json", "no.json"], "no.json can't be read as a report"),
        (["compare", "base.json", "head.json", "--fail-on=sped"], "--fail-on got unknown metric 'sped'"),
        (["merge", "base.json", "--output=x.txt"], "--output got 'x.txt'; accepted: a file that ends in"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(files, capsys, arguments, sentence):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m pytest_torchcompile: {sentence}")


def test_merge_writes_every_form(files):
    outputs = ["--output=all.json", "--output=all.md", "--output=all.ratios.json"]
    assert main(["merge", "base.json", "head.json", *outputs]) == 0
    assert len(read("all.json")["cases"]) == 1
    (entry,) = json.loads((files / "all.ratios.json").read_text())
    assert entry.keys() == {"name", "unit", "value", "range", "extra"}
    assert (entry["name"], entry["value"], entry["range"]) == (CASE, 1.0, "0.98 to 1.02")
    assert "1 case: 1 equal" in (files / "all.md").read_text()


def test_the_command_needs_neither_torch_nor_pytest(files):
    code = (
        "import runpy, sys; sys.modules['pytest'] = sys.modules['torch'] = None; "
        "sys.argv = ['x', 'compare', 'base.json', 'head.json', '--fail-on=speedup:10%']; "
        "runpy.run_module('pytest_torchcompile', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "1 compared, 1 worse" in done.stdout


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "is_worse"),
    [
        ("equal", "within rounding", False),
        ("within rounding", "equal", False),
        ("equal", "skipped", True),
        ("equal", "compile failed", True),
        ("skipped", "compile failed", False),
        ("compile failed", "skipped", False),
        ("compile failed", "differs", True),
        ("skipped", "crashed", True),
        ("differs", "crashed", False),
        ("eager failed", "not compiled", False),
        ("differs", "equal", False),
        *(("equal", verdict, True) for verdict in ("differs", "not compiled", "eager failed", "crashed")),
    ],
)
def test_a_verdict_is_worse_a_step_to_the_right(then, now, is_worse):
    comparison = compared(result(then), result(now))
    assert comparison.regressions({}) == ({"verdict": f"verdict {then} -> {now}"} if is_worse else {})


def test_a_verdict_is_compared_whatever_the_backend():
    assert worse(result(backend="eager"), differing(), {}) == ["verdict"]


def test_the_command_fails_on_a_worse_verdict_without_being_asked(files, capsys):
    (files / "head.json").write_text(to_json(document(test_a=differing(speedup=speedup(1.5)))))
    assert main(["compare", "base.json", "head.json"]) == 1
    assert "1 compared, 1 worse" in capsys.readouterr().out
    assert main(["compare", "base.json", "head.json", "--fail-on=verdict"]) == 1
    assert main(["compare", "head.json", "base.json"]) == 0
    assert main(["compare", "head.json", "head.json"]) == 0, "it was as bad before"


def test_the_command_fails_on_a_newer_report_without_a_case(files, capsys):
    (files / "empty.json").write_text(to_json(document()))
    assert main(["compare", "base.json", "empty.json"]) == 1
    assert "**0 cases: nothing was checked**" in capsys.readouterr().out
    assert main(["compare", "empty.json", "base.json"]) == 0


def test_what_a_terminal_cannot_show_is_no_failure(files, monkeypatch):
    import io

    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", narrow)
    assert main(["compare", "base.json", "head.json"]) == 0
    narrow.flush()
    assert b"\\u2705 equal" in narrow.buffer.getvalue()


def test_a_difference_that_grew_a_thousandfold_is_not_told_in_percent():
    small, large = Estimate(0.01, 0.01, 0.01), Estimate(300.0, 200.0, 400.0)
    change = Change(metric="difference", base=small, head=large, worse=30_000.0, at_least=20_000.0)
    assert (
        str(change) == "difference 0.01 of the tolerance -> 3e+02 of the tolerance, more than 10 times worse"
    )
    change = Change(metric="difference", base=small, head=small, worse=1.5, at_least=1.2)
    assert str(change).endswith(", 50% worse")
