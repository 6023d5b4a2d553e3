"""Runs pytest inside pytest, in projects with one test file and a few policies."""

import pathlib
import re
import sys
import textwrap
import warnings

import pytest

HEADER = "import pytest; from agents import *; from pytest_torchcompile import *"
CHEAP = ("--compile-check", "--compile-backend=eager", "--compile-examples=2", "--compile-batch=4")
AGENTS = pathlib.Path(__file__).with_name("agents.py").read_text()

since_pytest_9 = pytest.mark.skipif(pytest.version_tuple < (9,), reason="pytest 9 reads it first")


class Lasting:
    """Modules that pytester would drop, and that can't or needn't be imported a second time.

    An inner plugin, which sees what the inner run has imported.
    """

    _PACKAGES = ("hypothesis", "numpy", "pytest_torchcompile", "sympy", "torch")

    def __init__(self):
        self._modules = {}

    def pytest_unconfigure(self):
        self._modules = {n: m for n, m in sys.modules.items() if n.partition(".")[0] in self._PACKAGES}

    def keep(self):
        """Put them back."""
        sys.modules.update(self._modules)


class Project:
    """A directory with test files, and pytest runs in it."""

    def __init__(self, pytester, lasting):
        self.pytester = pytester
        self._lasting = lasting
        self.path = pytester.path
        pytester.makepyfile(agents=AGENTS)

    def write(self, source, name="test_policy"):
        """Write a test file whose first line imports `agents`, pytest and this package."""
        self.pytester.makepyfile(**{name: f"{HEADER}\n{textwrap.dedent(source).strip()}\n"})

    def pytest(self, *args, plugins=(), **options):
        """Run pytest in this process, with python's own warning filters instead of this project's."""
        plugins = [*plugins, self._lasting]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                return self.pytester.runpytest_inprocess(
                    "-p", "no:randomly", *args, plugins=plugins, **options
                )
        finally:
            self._lasting.keep()

    def check(self, *args, **options):
        """Run pytest with a check that is as cheap as can be."""
        return self.pytest(*CHEAP, *args, **options)

    def subprocess(self, *args):
        """Run the same check in a process of its own."""
        return self.pytester.runpytest_subprocess("-p", "no:randomly", *CHEAP, *args)

    def lines(self, file):
        """What was noted in `file`, a line each; nothing if there is no such file."""
        path = self.path / file
        return path.read_text().splitlines() if path.exists() else []


def table(result):
    """The rows of the report, by case: a dict from heading to cell."""
    lines = result.outlines
    start = next((i for i, line in enumerate(lines) if "compiled against eager ==" in line), None)
    if start is None or lines[start + 1].startswith("0 cases"):
        return {}
    headings = re.split(r"  +", lines[start + 1])
    starts = [lines[start + 1].index(heading) for heading in headings]
    rows = {}
    for line in lines[start + 2 :]:
        cells = re.split(r"  +", line)
        if len(cells) != len(starts):
            break
        rows[cells[0]] = dict(zip(headings, cells, strict=True))
    return rows


def verdicts(result):
    """The verdicts of the report, by case."""
    return {case: row["verdict"] for case, row in table(result).items()}


def failures(result):
    """The texts of the failures and errors in the output, by title."""
    texts = {}
    title = None
    for line in result.outlines:
        headline = re.fullmatch(r"_+ (?:ERROR at (?:setup|teardown) of )?(.+?) _+", line)
        if headline:
            title = headline[1]
            texts[title] = []
        elif re.match(r"(={3,}|-{3,}) ", line):
            title = None
        elif title is not None:
            texts[title].append(line)
    return {title: "\n".join(lines) for title, lines in texts.items()}


def failure(result):
    """The text of the only failure."""
    (text,) = failures(result).values()
    return text


def flat(text):
    """`text` on one line, with single spaces: prose is wrapped to the width of the terminal."""
    return " ".join(text.split())
