"""The document as a page: complete, said once, accessible, harmless whatever it says, and right in a browser."""

import dataclasses
import html.parser
import itertools
import pathlib
import re

import pytest
from browser import CHROMIUM, Browser
from documents import HOSTILE, differing, document, everything, result, shares, speedup

import pytest_torchcompile.reports
from pytest_torchcompile import Capture, Explanation
from pytest_torchcompile.reports.html import html as page
from pytest_torchcompile.texts import VERDICTS_PAGE, meaning_of

STYLE = pathlib.Path(pytest_torchcompile.reports.__file__).with_name("page") / "report.css"
VOID = {"meta", "br", "wbr", "link", "img", "hr", "input"}
GRID = tuple(tuple(float(row == column) * (1 + row) for column in range(8)) for row in range(4))


class Page(html.parser.HTMLParser):
    """What a browser would take a page for: elements, attributes, texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
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
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self):
        return " ".join(" ".join(self.text).split())


def pictured(path="output['logits']", grid=GRID):
    """A result whose worst difference has a picture."""
    differs = differing()
    (place,) = differs.differences
    return dataclasses.replace(differs, differences=(dataclasses.replace(place, path=path, grid=grid),))


# --- what it says ---------------------------------------------------------------------------------


def test_a_page_has_a_part_for_each_case_and_its_links_lead_there():
    found = Page(page(everything()))
    assert found.open == []
    parts = {f"#{a['id']}" for a in found.named("section") if "id" in a}
    links = {a["href"] for a in found.named("a")}
    assert len(parts) == 4
    assert links >= parts | {"#cases", "#speedups", "#compile-times", "#no-result", "#details"}
    assert links >= {part.replace("case", "row") for part in parts}
    explained = {meaning_of(v) for v in ("equal", "differs", "compile failed", "remark")}
    assert links >= explained
    assert links - explained <= {f"#{a['id']}" for _, a in found.elements if "id" in a}
    text = found.words()
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


def test_what_failed_comes_first():
    found = document(
        test_a=result(), test_b=result(regressions=("worse",)), test_c=result("skipped"), test_d=differing()
    )
    names = re.findall(r'<h3 id="name-\d+">test_policy.py::(test_.)', page(found))
    assert names == ["test_d", "test_c", "test_b", "test_a"]
    assert "✓</span> equal, worse (test failed)" in page(found)
    assert "(expected)" in page(document(outcome="xfailed", test_known=differing()))


def test_a_failure_is_told_once():
    """What its text says in a terminal is text, rows, lists and a picture here; nothing stands twice."""
    explanation = Explanation(stage="inductor", agreed=("dynamo",), place="actor.1")
    capture = Capture(graphs=7, parameters=("w",), breaks=("a break",), compile_s=1.0)
    failed = dataclasses.replace(pictured(), capture=capture, notes=("a note",), explanation=explanation)
    section = page(document(test_wrong=failed)).partition("<section")[2]
    text = Page(f"<section{section.partition('</section>')[0]}</section>").words()
    for once in (
        "60 compared",
        "7 graphs",
        "batch 1; x: zeros",
        "a note",
        "a break",
        "inductor; dynamo",
        "actor.1",
    ):
        assert text.count(once) == 1, once
    assert "@@" not in text
    assert section.count('class="picture"') == 1


def test_a_picture_where_it_says_more_than_the_numbers():
    assert "over its last two dimensions" in page(document(test_wrong=pictured()))
    few = ((0.0, 4.0, 0.0), (0.0, 1.0, 0.001))
    one = tuple(tuple(float(row == column == 2) for column in range(8)) for row in range(4))
    for grid in ((), few, one):
        assert "over its last two dimensions" not in page(document(test_wrong=pictured(grid=grid)))


def test_an_empty_page():
    found = Page(page(document()))
    assert "0 cases" in " ".join(found.text)
    assert found.named("table") == found.named("section") == []


def test_a_page_is_the_same_from_run_to_run():
    found = everything()
    assert page(found) == page(found)


# --- what it is made of ---------------------------------------------------------------------------


def test_a_page_needs_nothing_beside_it():
    """No request leaves it: its own script and style only, and addresses of its own parts.

    A reader who follows a link to the meaning of a verdict leaves the page.
    """
    text = page(everything())
    found = Page(text)
    assert found.named("script") == found.named("style") == [{}]
    assert not {"link", "iframe", "object", "embed", "img", "base"} & {tag for tag, _ in found.elements}
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "data", "action"):
            address = attributes.get(name) or "#"
            assert address.startswith("#") or (tag == "a" and address.startswith(VERDICTS_PAGE))
        assert not {"style", "onclick", "onload"} & set(attributes)
    assert not re.search(
        r"@import|url\(|https?://",
        text.replace(f'<a href="{VERDICTS_PAGE}#', "").replace(f'<a class="back" href="{VERDICTS_PAGE}#', ""),
    )


def test_a_page_says_what_is_meant_whatever_it_is():
    plain, hostile = Page(page(everything())), Page(page(everything(HOSTILE)))
    assert {tag for tag, _ in hostile.elements} == {tag for tag, _ in plain.elements}
    assert {n for _, a in hostile.elements for n in a} == {n for _, a in plain.elements for n in a}
    assert hostile.open == []
    text = "".join(hostile.text)
    assert HOSTILE in text
    assert "{{ 7*7 }}" in text


def test_a_picture_names_what_it_shows_whatever_it_is():
    text = page(document(test_wrong=pictured(path=HOSTILE)))
    escaped = html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")
    assert f"Where <code>{escaped}</code>" in text
    assert f"Where {escaped} differs: in 4 of 32 cells</title>" in text


# --- for whom it is -------------------------------------------------------------------------------


def test_a_page_can_be_read_by_a_screen_reader():
    found = Page(page(everything()))
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in found.elements:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)
    tags = [tag for tag, _ in found.elements]
    assert [tags.count(tag) for tag in ("header", "nav", "main", "h1")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
    assert {a.get("scope") for a in found.named("th")} == {"col", "row"}
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in found.named("svg"))


def test_each_plot_has_a_title():
    text = page(everything())
    plots = re.findall(r'<svg[^>]*role="img"[^>]*>\s*(.{7})', text)
    assert plots
    assert set(plots) == {"<title>", "<title "}


def luminance(color):
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def contrast(*colors):
    """Contrast ratio, https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""
    darker, lighter = sorted(map(luminance, colors))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_what_it_should_be():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_all_text_has_contrast_in_light_and_dark_and_on_paper():
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    light, dark, paper = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks)
    assert light.keys() == dark.keys() >= paper.keys()
    for name, colors in (("light", light), ("dark", dark), ("paper", light | paper)):
        for ground in ("page", "panel"):
            for ink in ("text", "muted", "good", "warn", "bad"):
                assert contrast(colors[ink], colors[ground]) >= 4.5, (name, ink, ground)
            # https://www.w3.org/TR/WCAG22/#non-text-contrast: bars, marks and the ring of focus.
            assert contrast(colors["accent"], colors[ground]) >= 3, (name, ground)


# --- in a browser ---------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page with hostile texts, long names, a picture and plots, with many cases."""
    found = everything(HOSTILE.replace("alert(1)", "document.title='owned'"))
    more = {f"test_{'long_' * 30}策略_é": result(speedup=speedup(3.0))}
    more |= {f"test_{i}": result(speedup=speedup(0.5 + i)) for i in range(3)}
    wide = dataclasses.replace(pictured(grid=((0.0, 1.0) * 24,) * 10), deviations=shares(0.0, 0.3, 40.0))
    found["cases"] += document(test_picture=wide, **more)["cases"]
    for case in found["cases"]:
        case["machine"] = next(iter(found["machines"]))
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page(found), encoding="utf-8")
    return file


@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_the_window(browser, file, width, scheme):
    browser.open(file, width=width, scheme=scheme)
    assert browser.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    # Also the one thing that scrolls by itself shows the case, verdict, worst difference and speedup at once.
    assert (
        browser.evaluate("document.querySelector('tbody tr').cells[3].getBoundingClientRect().right") <= width
    )
    assert browser.evaluate("document.querySelector('thead').innerText.split('\\t').slice(0, 4)") == [
        "case",
        "verdict",
        "worst / allowed",
        "speedup",
    ]
    color = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert color == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]


@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_text_in_plots_has_the_size_of_text(browser, file, width):
    browser.open(file, width=width)
    heights = browser.evaluate(
        "[...document.querySelectorAll('svg text')].map((text) => text.getBoundingClientRect().height)"
    )
    assert len(heights) > 10
    assert min(heights) >= 11
    ends = browser.evaluate(
        "[...document.querySelectorAll('svg text')].flatMap((text) => "
        "{ const box = text.getBoundingClientRect(); return [box.left, box.right]; })"
    )
    assert 0 <= min(ends) <= max(ends) <= width


@needs_browser
def test_a_page_asks_nobody_and_obeys_nothing_in_it(browser, file):
    browser.requests.clear()
    browser.open(file, width=1280)
    assert browser.requests == [file.as_uri()]
    assert browser.evaluate("document.title").startswith("Compiled against eager: 9 cases")


SHOWN = "[...document.querySelectorAll('{}')].filter((element) => element.checkVisibility()).length"


@needs_browser
def test_cases_are_filtered_by_verdict(browser, file):
    browser.open(file, width=1280)
    rows, parts = SHOWN.format("tbody tr"), SHOWN.format("section")
    assert [browser.evaluate(rows), browser.evaluate(parts)] == [9, 10]
    browser.evaluate("document.querySelector('input[value=equal]').click()")
    assert [browser.evaluate(rows), browser.evaluate(parts)] == [3, 4]
    assert browser.evaluate("document.querySelector('[role=status]').textContent") == "4 of 10 shown"
    assert browser.evaluate(SHOWN.format(".rows [data-verdict=equal]")) == 0
    browser.evaluate("document.querySelector('input[value=equal]').click()")
    assert browser.evaluate(rows) == 9


@needs_browser
def test_the_table_is_sorted_by_its_headings(browser, file):
    browser.open(file, width=1280)
    column = "[...document.querySelectorAll('tbody tr')].map((row) => row.cells[{}].textContent)"
    state = "[...document.querySelectorAll('thead th')].map((heading) => heading.ariaSort)"
    click = "document.querySelectorAll('thead button')[{}].click()"
    browser.evaluate(click.format(3))
    rising = [float(text.split()[0].replace("-", "0")) for text in browser.evaluate(column.format(3))]
    assert rising == sorted(rising)
    assert len(set(rising)) > 3
    assert browser.evaluate(state)[2:5] == [None, "ascending", None]
    browser.evaluate(click.format(3))
    falling = [float(text.split()[0].replace("-", "0")) for text in browser.evaluate(column.format(3))]
    assert falling == rising[::-1]
    assert browser.evaluate(state)[3] == "descending"
    browser.evaluate(click.format(0))
    names = browser.evaluate(column.format(0))
    assert browser.evaluate(state)[:4] == ["ascending", None, None, None]
    assert names.index("test_policy.py::test_0[forward-rollout]") < names.index(
        "test_policy.py::test_1[forward-rollout]"
    )


@needs_browser
def test_without_scripts_nothing_is_missing_and_no_control_is_dead(browser, file):
    browser.open(file, width=1280, script=False)
    assert browser.evaluate(SHOWN.format("tbody tr")) == 9
    assert browser.evaluate(SHOWN.format("button, input")) == 0


@needs_browser
def test_a_browser_names_every_image_and_control(browser, file):
    browser.open(file, width=1280)
    browser.call("Accessibility.enable")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = {"image", "button", "checkbox", "link", "region", "navigation", "heading"}
    found = [node for node in nodes if node.get("role", {}).get("value") in named and not node["ignored"]]
    assert {node["role"]["value"] for node in found} == named
    assert [node["role"] for node in found if not node.get("name", {}).get("value")] == []


@needs_browser
def test_a_page_can_be_printed(browser, file):
    browser.open(file, width=1280, scheme="dark")
    assert browser.pdf().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("document.documentElement.scrollWidth") == 1280
    browser.call("Emulation.setEmulatedMedia", media="")
