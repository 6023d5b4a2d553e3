"""The examples in the documentation run and print what is shown, and its lists are complete."""

from __future__ import annotations

import doctest
import functools
import importlib
import importlib.util
import os
import pathlib
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

import pytest_torchcompile
from pytest_torchcompile import Capture, CheckResult, UsageError, Verdict, __main__
from pytest_torchcompile.backports import tomllib
from pytest_torchcompile.comparing.measure import Measured, Tolerance
from pytest_torchcompile.options import OPTIONS
from pytest_torchcompile.reports.document import document_of, to_json
from pytest_torchcompile.reports.metrics import METRICS
from pytest_torchcompile.reports.views import VIEWS
from pytest_torchcompile.texts import VERDICTS_PAGE, meaning_of

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
LIBRARIES = (ROOT / "docs" / "libraries.md").read_text()
REPORTS = (ROOT / "docs" / "reports.md").read_text()
VERDICTS = (ROOT / "docs" / "verdicts.md").read_text()
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
WORKFLOW = (ROOT / "examples" / "ci" / "github-actions.yml").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()

SNIPPETS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", README + GUIDE + RECIPES, re.DOTALL))
MODULES = sorted(m.name for m in pkgutil.walk_packages(pytest_torchcompile.__path__, "pytest_torchcompile."))


@pytest.fixture
def readme_project(tmp_path):
    """A project made of the files that README, guide and recipes show, and of their configuration."""
    for name, text in SNIPPETS.items():
        (tmp_path / name).write_text(text)
    settings = next(t for t in re.findall(r"```toml\n(.*?)```", README, re.DOTALL) if "ini_options" in t)
    (tmp_path / "pyproject.toml").write_text(settings)
    return tmp_path


def run_pytest(directory: pathlib.Path, *arguments: str) -> str:
    """What pytest prints, in a process of its own: each file is a user's, met for the first time."""
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": "", "COLUMNS": "80"}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    ).stdout


def test_each_python_block_is_a_named_file():
    assert (README + GUIDE + RECIPES).count("```python") == len(SNIPPETS)


def test_readme_snippets_pass_where_nothing_is_miscompiled(readme_project):
    # AOTAutograd is at fault in the policy that the README shows.
    options = ("-v", "--compile-profile=quick", "--compile-backend=eager", "--compile-batch=4")
    output = run_pytest(readme_project, *options, "--compile-benchmark-seconds=0")
    assert re.search(r"^=+ \d+ passed in", output, re.MULTILINE), output
    assert all(f"{name}::" in output for name in SNIPPETS if name.startswith("test_")), output


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the report is of torch 2.13")
def test_readme_prints_the_report_that_pytest_prints(readme_project, monkeypatch):
    shown = generate().TRANSCRIPT.search(README)
    # A busy machine has not looked for everything within the minute that is the default.
    monkeypatch.setenv("PYTEST_ADDOPTS", "--compile-explain-seconds=600 --compile-shrink-seconds=600")
    # Nothing is timed in a worker of pytest-xdist, which this process may be.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    output = run_pytest(readme_project, *shown["arguments"].split())
    printed = generate().transcript_of(output)
    assert _comparable(shown["printed"]) == _comparable(printed), "run: python docs/generate.py transcript"


def _comparable(text: str) -> list[str]:
    """The lines of `text` without what varies between machines: figures, and how certain a timing is."""
    text = re.sub(r"\b(faster|slower|no clear difference)$", "CONCLUSION", text, flags=re.MULTILINE)
    text = text.replace("; this machine is too noisy for the speedups above", "")
    # A line is broken where its figures leave no room.
    text = re.sub(r"\n {12,}", " ", text)
    return [_without_numbers(line) for line in text.splitlines()]


def _without_numbers(line: str) -> str:
    """`line` with figures, places and the width of columns taken out: they vary between machines."""
    line = re.sub(r"\[[\d, ]+\]", "[N]", line)
    line = re.sub(r"-?\b\d+(\.\d+)?(e[+-]\d+)?\b", "N", line)
    line = re.sub(r"\bN (\w+?)s?\b", r"N \1", line)
    return re.sub(r"\s+", " ", line).replace("Ns", "N").strip()


@functools.cache
def generate():
    """The module that writes the pages."""
    location = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["reference.md", "libraries.md"])
def test_the_pages_are_what_the_code_says(page):
    text = (ROOT / "docs" / page).read_text()
    assert generate().generated(text) == text, "run: python docs/generate.py"


def test_each_example_of_a_library_has_its_section():
    shown = re.findall(r"^# examples/(zoo/\S+)$", LIBRARIES, re.MULTILINE)
    files = [f"zoo/{path.name}" for path in (ROOT / "examples" / "zoo").glob("*.py")]
    assert sorted(shown) == sorted(files)


@pytest.mark.parametrize("document", ["README", "REFERENCE"])
def test_all_verdicts_are_listed(document):
    listed = re.findall(r"^\| `([a-z ]+)` \| (?:passes|fails|skips)", globals()[document], re.MULTILINE)
    assert listed == [verdict.value for verdict in Verdict]


FINDINGS = [
    "remark",
    "too slow",
    "over budget",
    "worse than the baseline",
    "nothing was checked",
    "no result",
]


def anchors(text: str) -> list[str]:
    """The anchors that GitHub and the site give the headings of a page."""
    headings = re.findall(
        r"^#{1,4} (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.M
    )
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("finding", [*Verdict, *FINDINGS])
def test_each_verdict_and_finding_has_its_section(finding):
    """Messages and reports link to it; it says what to do."""
    page, _, anchor = meaning_of(finding).partition("#")
    assert page == VERDICTS_PAGE
    assert anchors(VERDICTS).count(anchor) == 1
    section = re.split(rf"^## {finding}$", VERDICTS, flags=re.MULTILINE)[1].partition("\n## ")[0]
    assert "**What to do**" in section or "what to do |" in section


def test_the_page_of_verdicts_is_in_the_project_that_the_package_names():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    path = VERDICTS_PAGE.removeprefix(f"{urls['Source']}/blob/main/")
    assert (ROOT / path).read_text() == VERDICTS


def test_all_findings_that_messages_name_are_listed():
    source = (ROOT / "pytest_torchcompile" / "reports" / "failure.py").read_text()
    named = re.findall(r'_context_lines\(result, rerun, "([^"]+)"\)', source)
    assert named
    assert set(named) <= set(FINDINGS)


def test_anchors_in_the_pages_exist():
    folder = ROOT / "docs"
    for page in folder.glob("*.md"):
        for target, anchor in re.findall(r"\]\(([\w./]*)#([^)]+)\)", page.read_text()):
            named = (folder / target) if target else page
            assert anchor in anchors(named.read_text()), f"{page.name}: {target}#{anchor}"


def test_the_allowed_difference_is_the_one_that_the_pages_state():
    def allowed(size, **options):
        eager = torch.full((3,), size, dtype=torch.float64)
        return size / Measured("x", eager, eager + size, Tolerance(**options), small=True).ratio

    assert [allowed(size) for size in (2.0, 0.5, 1.1e-3)] == pytest.approx([2e-5, 1e-5, 1e-5])
    assert [allowed(size) for size in (0.9e-3, 1e-6)] == pytest.approx([0.9e-5, 1e-8])
    assert allowed(1e-6, atol=1e-4) == pytest.approx(1e-4)
    for page in (README, VERDICTS.replace("\n", " ")):
        assert "a tensor whose largest element is below `1e-3` may differ by 1 % of that element" in page
    assert "1 % of its largest element" in OPTIONS["atol"].metadata["help"]


def test_all_fields_of_a_row_are_listed():
    result = CheckResult(method="forward", phase="rollout", verdict=Verdict.EQUAL, capture=Capture())
    assert all(f"`{field}`" in REFERENCE for field in result.row())


def test_all_public_names_are_listed():
    assert [name for name in pytest_torchcompile.__all__ if f"`{name}" not in REFERENCE] == []


def test_the_architecture_names_every_module():
    """Each is named in the section of its folder, and modules beside the folders before the first section."""
    top, *sections = re.split(r"^### `(\w+)/`", ARCHITECTURE, flags=re.MULTILINE)
    texts = {"pytest_torchcompile": top, **dict(zip(sections[::2], sections[1::2], strict=True))}
    modules = (ROOT / "pytest_torchcompile").rglob("[!_]*.py")
    assert [str(path) for path in modules if f"`{path.name}`" not in texts[path.parent.name]] == []


def test_all_metrics_and_forms_of_a_report_are_listed():
    assert [name for name in METRICS if f"`{name}`" not in REPORTS] == []
    assert re.findall(r"^\| `(\.[a-z.]+)` \|", REPORTS, re.MULTILINE) == [
        ".json",
        ".md",
        ".html",
        ".ratios.json",
    ]
    assert {".json", ".md", ".html", ".ratios.json"} == set(VIEWS)


@pytest.mark.parametrize(
    "text",
    [README, GUIDE, REPORTS, RECIPES, WORKFLOW, VERDICTS],
    ids=["README", "guide", "reports", "recipes", "workflow", "verdicts"],
)
def test_the_flags_that_are_shown_exist(text):
    shown = set(re.findall(r"--(?:no-)?compile-[a-z-]+", text))
    printed = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert sorted(flag for flag in shown if flag not in printed) == []


def test_the_commands_that_are_shown_are_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = re.findall(
        r"python -m pytest_torchcompile (\w+ [^`\n]+)", "\n".join([README, GUIDE, REPORTS, RECIPES, WORKFLOW])
    )
    assert len(shown) >= 7
    for command in shown:
        with pytest.raises(UsageError, match="can't be read as a report"):
            arguments = __main__._parser().parse_args(command.split())
            arguments.run(arguments)


@pytest.mark.parametrize("command", re.findall(r"^\$ pytest (.*)$", RECIPES, re.MULTILINE))
def test_the_recipes_choose_tests(pytester, command):
    for name, text in SNIPPETS.items():
        pytester.path.joinpath(name).write_text(text)
    pytester.path.joinpath("before.json").write_text(to_json(document_of([], ())))
    arguments = shlex.split(command, comments=True)
    collected = pytester.inline_run("--collect-only", "-p", "no:randomly", *arguments)
    assert collected.ret == (
        pytest.ExitCode.NO_TESTS_COLLECTED if "--lfnf=none" in arguments else pytest.ExitCode.OK
    )


SCHEMAS = {
    ".github/workflows/": ["vendor.github-workflows"],
    ".github/ISSUE_TEMPLATE/config.yml": ["vendor.github-issue-config"],
    ".github/ISSUE_TEMPLATE/": ["vendor.github-issue-forms"],
    ".gitlab-ci.yml": ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"],
    "examples/ci/": ["vendor.github-workflows"],
    "CITATION.cff": ["vendor.citation-file-format"],
}
SERVED = dict(re.findall(r"```yaml\n# (\.git\S+)\n(.*?)```", RECIPES, re.DOTALL)) | {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for pattern in (".github/**/*.yml", "examples/ci/*.yml", "CITATION.cff")
    for path in sorted(ROOT.glob(pattern))
}


@pytest.mark.parametrize("name", SERVED)
def test_files_for_services_fit_their_schemas(tmp_path, name):
    pytest.importorskip("check_jsonschema", reason="`tox -e tests` has it")
    schema = next(schema for start, schema in SCHEMAS.items() if name.startswith(start))
    file = tmp_path / "file.yml"
    file.write_text(SERVED[name])
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *schema, str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_links_lead_somewhere():
    pages = {"README.md": README, "docs/reference.md": REFERENCE, "docs/libraries.md": LIBRARIES}
    pages |= {"docs/reports.md": REPORTS, "docs/guide.md": GUIDE, "docs/architecture.md": ARCHITECTURE}
    pages |= {"docs/recipes.md": RECIPES, "docs/verdicts.md": VERDICTS}
    for document, text in ((ROOT / name, text) for name, text in pages.items()):
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    torch.compiler.reset()
    names = {name: getattr(pytest_torchcompile, name) for name in pytest_torchcompile.__all__}
    assert doctest.testmod(importlib.import_module(module), extraglobs=names).failed == 0
