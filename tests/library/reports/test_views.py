"""The document as Markdown, as a page, on GitHub: complete, within its limits, and harmless whatever it says."""

import dataclasses
import html
import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import pytest
from documents import differing, document, result, shares, speedup, unchecked

from pytest_torchcompile import Capture, UsageError
from pytest_torchcompile.reports import github
from pytest_torchcompile.reports.document import merge
from pytest_torchcompile.reports.html import html as page
from pytest_torchcompile.reports.markdown import markdown
from pytest_torchcompile.reports.ratios import ratios
from pytest_torchcompile.reports.views import VIEWS, require_view

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
        f"| {wrong} | ❌ differs | 60 | 1.0e+00 output&#91;&#39;logits&#39;&#93;&#91;0, 3&#93; "
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


# --- HTML -----------------------------------------------------------------------------------------


VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
    """What a browser would take a page for: elements, attributes, texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text, self.anchors, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_page_has_a_part_for_each_case_and_its_links_lead_there():
    found = Page(page(everything()))
    assert found.open == []
    parts = {a["id"] for a in found.named("section") if "id" in a}
    links = {a["href"] for a in found.named("a")}
    assert len(parts) == 4
    assert links == {f"#{part}" for part in parts}
    text = " ".join(" ".join(found.text).split())
    for expected in (
        "4 cases: 2 equal, 1 differs, 1 compile failed",
        "eager timed against itself: 1.00",
        "output['logits'][0, 3]: values",
        "no result",
        "1.50 [1.48, 1.52] faster",
        "the time saved exceeds the compile time after 1,000 calls",
        "plain (at policy.py:3)",
    ):
        assert expected in text
    # Speedups, compile times, and what the examples of three cases showed.
    assert len(found.named("svg")) == 5


def test_a_page_needs_nothing_beside_it():
    """No request leaves it: no scripts, and addresses of its own parts only."""
    text = page(everything())
    found = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base"} & {
        tag for tag, _ in found.elements
    }
    for _, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"@import|url\((?!#)", text)


def test_a_page_says_what_is_meant_whatever_it_is():
    plain, hostile = Page(page(everything())), Page(page(everything(HOSTILE)))
    # SVG draws a line or a letter more or less for a longer name, but nothing else may appear.
    assert {tag for tag, _ in hostile.elements} == {tag for tag, _ in plain.elements}
    assert {n for _, a in hostile.elements for n in a} == {n for _, a in plain.elements for n in a}
    assert hostile.open == []
    text = "".join(hostile.text)
    assert HOSTILE in text
    assert "{{ 7*7 }}" in text
    # In a plot too: names of cases are no mathematics.
    assert any(re.search(r"\$\\frac\{1\}\{0\}\$", piece) for piece in hostile.text)


def test_the_colours_of_plots_are_those_of_the_page():
    text = page(everything())
    style = text[: text.index("</style>")]
    used = set(re.findall(r"var\(--(\w+)\)", text[text.index("</style>") :]))
    assert used == {"text", "grid", "good", "bad", "accent"}
    assert all(f"--{name}:" in style for name in used)
    assert not re.search(r"#(0\d)\1\1\b", text)


def test_plots_are_the_same_from_run_to_run():
    found = everything()
    assert page(found) == page(found)


def test_an_empty_page():
    found = Page(page(document()))
    assert "0 cases" in " ".join(found.text)
    assert found.named("svg") == found.named("table") == []


def test_where_a_difference_lies_is_an_image():
    differs = differing()
    (place,) = differs.differences
    grid = ((0.0, 4.0, 0.0), (0.0, 1.0, 0.001))
    wide = dataclasses.replace(differs, differences=(dataclasses.replace(place, path=HOSTILE, grid=grid),))
    without, shown = (page(document(test_wrong=found)) for found in (differs, wide))
    assert "over its last two dimensions" not in without
    assert (
        f"Where <code>{html.escape(HOSTILE).replace('&#x27;', '&#39;').replace('&quot;', '&#34;')}</code>"
        in shown
    )
    assert len(Page(shown).named("svg")) == len(Page(without).named("svg")) + 1
    picture = shown[: shown.index("over its last two dimensions")].rpartition("<svg")[2]
    opacities = [float(found) for found in re.findall(r"fill: var\(--bad\); opacity: ([0-9.]+)", picture)]
    assert sorted(opacities + [1.0] * (3 - len(opacities))) == [0.15, 0.25, 1.0]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_shows_the_page_light_and_dark_and_asks_nobody(tmp_path):
    """In light and dark its corner has the colour that the style says; hostile text ran no script."""
    matplotlib_image = pytest.importorskip("matplotlib.image")
    text = page(everything(HOSTILE.replace("alert(1)", "document.title='owned'")))
    (tmp_path / "page.html").write_text(text, encoding="utf-8")

    def browser(*arguments):
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}/profile",
        ]
        address = (tmp_path / "page.html").as_uri()
        return subprocess.run(
            [*command, *arguments, address], capture_output=True, text=True, check=True, timeout=120
        )

    dom = browser("--dump-dom").stdout
    assert "<title>Compiled against eager: 4 cases" in dom
    colors = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{scheme}.png"
        browser(
            f"--blink-settings=preferredColorScheme={number}",
            f"--screenshot={shot}",
            "--window-size=1200,2000",
            "--hide-scrollbars",
        )
        colors[scheme] = tuple(round(255 * c) for c in matplotlib_image.imread(shot)[3, 3][:3])
    assert colors == {"light": (0xFF, 0xFF, 0xFF), "dark": (0x14, 0x17, 0x1B)}


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
