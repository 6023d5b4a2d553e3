"""The folders of the package: which may import which, and no torch in a pytest run without checks.

The rule is in docs/architecture.md: pytest only under ``plugin/``; nothing heavy at module level of what
the plugin imports at start-up; imports go down the folders, and only to the modules that a folder's
``__init__.py`` names as those that others use.
"""

import ast
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

import pytest_torchcompile

PACKAGE = "pytest_torchcompile"
ROOT = pathlib.Path(pytest_torchcompile.__file__).parent
# The tests may run against an installed package.
REPOSITORY = pathlib.Path(__file__).parent.parent
ENTRY_POINT = f"{PACKAGE}.plugin.hooks"
HEAVY = ("hypothesis", "numpy", "torch")
# What only gathers names for users and is imported by nobody.
FRONT = PACKAGE
# From the bottom: each folder, and each module beside them, imports what stands before it.
ORDER = (
    *("backports", "errors", "texts", "values", "options", "results"),
    *("internals", "specs", "runtime", "generation", "policies", "comparing", "compiling"),
    *("checking", "lifecycle", "beyond", "explaining", "reports"),
    *("direct", "timing", "check", "deploy", "__main__", "plugin"),
)


class Imports(ast.NodeVisitor):
    """The modules that a source file imports: when it is imported itself, and later, inside functions."""

    def __init__(self, name, is_package):
        self._base = name if is_package else name.rpartition(".")[0]
        self._depth = 0
        self.at_once, self.later = set(), set()

    def _add(self, module):
        (self.later if self._depth else self.at_once).add(module)

    def visit_Import(self, node):
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node):
        parts = self._base.split(".")
        base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
        module = ".".join(filter(None, (base, node.module)))
        for alias in node.names:
            self._add(f"{module}.{alias.name}")

    def visit_If(self, node):
        """What only type checkers read is no import."""
        for child in node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else [node]:
            self.generic_visit(child) if child is node else self.visit(child)

    def visit_FunctionDef(self, node):
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef


class Package:
    """The import graph of a package on disk."""

    def __init__(self, root, name=PACKAGE):
        self.name = name
        self.modules = {}
        self.docs = {}
        for path in sorted(root.rglob("*.py")):
            parts = [name, *path.relative_to(root).with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            self.modules[module] = Imports(module, is_package)
            tree = ast.parse(path.read_text())
            self.modules[module].visit(tree)
            if is_package:
                self.docs[module] = ast.get_docstring(tree) or ""

    def _module_of(self, imported):
        """The module of this package that an imported name belongs to; None for others'."""
        while imported:
            if imported in self.modules:
                return imported
            imported = imported.rpartition(".")[0]
        return None

    def below(self, module, *, later=True):
        """The modules of this package that `module` imports, its parent packages aside."""
        imports = self.modules[module].at_once | (self.modules[module].later if later else set())
        found = {self._module_of(name) for name in imports if name.partition(".")[0] == self.name}
        return {other for other in found - {None, module} if not module.startswith(f"{other}.")}

    def others(self, module, *, later=True):
        """The top-level names that `module` imports from outside this package."""
        imports = self.modules[module].at_once | (self.modules[module].later if later else set())
        return {name.partition(".")[0] for name in imports} - {self.name}

    def at_start(self, module):
        """Every module of this package that importing `module` imports, parent packages included."""
        found, waiting = set(), {module}
        while waiting:
            current = waiting.pop()
            found.add(current)
            parents = {current.rpartition(".")[0]} & self.modules.keys()
            waiting |= (self.below(current, later=False) | parents) - found
        return found

    def circle(self):
        """Modules that import each other in a circle, at once or later; empty if there is none."""
        done = set()

        def walk(module, path):
            if module in path:
                return [*path[path.index(module) :], module]
            if module in done:
                return []
            for other in sorted(self.below(module)):
                found = walk(other, [*path, module])
                if found:
                    return found
            done.add(module)
            return []

        return next(filter(None, (walk(module, []) for module in self.modules)), [])

    def _room(self, module):
        """The folder, or the module beside the folders, that a module belongs to."""
        return module.removeprefix(self.name).lstrip(".").partition(".")[0]

    def _door(self, room):
        """The modules of a folder that others may import: the folder itself, unless its docstring names them."""
        named = self.docs[f"{self.name}.{room}"].partition("Other folders use")[2]
        modules = re.findall(r"`(\w+)`", named.partition(".")[0])
        return {f"{self.name}.{room}.{module}" for module in modules} or {f"{self.name}.{room}"}

    def wrong_ways(self):
        """Imports up the folders, or past a folder's door, a sentence each."""
        found = []
        for module in self.modules:
            room = self._room(module)
            if not room:
                continue
            if room not in ORDER:
                found.append(f"{module} has no place in ORDER of tests/test_layers.py")
                continue
            for other in sorted(self.below(module)):
                target = self._room(other)
                if target == room or not target:
                    continue
                if ORDER.index(target) > ORDER.index(room):
                    found.append(f"{module} imports {other}: {target} may import {room}, not the other way")
                elif f"{self.name}.{target}" in self.docs and other not in self._door(target):
                    found.append(
                        f"{module} imports {other}, which {target}/__init__.py does not name among the modules "
                        f"that other folders use"
                    )
        return found

    def unused_doors(self):
        """Modules that a folder names for others, and that none of them imports."""
        used = {other for m in self.modules for other in self.below(m) if self._room(m) != self._room(other)}
        rooms = [name.rpartition(".")[2] for name in self.docs if name != self.name]
        return sorted(set().union(*(self._door(room) for room in rooms if room != "plugin")) - used)

    def room_graph(self):
        """Which folder imports which, in both cases without what it also reaches by way of another."""
        above = {room: set() for room in ORDER}
        for module in self.modules:
            if self._room(module):
                above[self._room(module)] |= {self._room(other) for other in self.below(module)}
        above = {room: found - {room, ""} for room, found in above.items()}
        reached = {}
        for room in ORDER:
            reached[room] = above[room].union(*(reached[other] for other in above[room]))
        return {
            (room, other)
            for room in ORDER
            for other in above[room]
            if not any(other in reached[between] for between in above[room] - {other})
        }

    def violations(self):
        """Every break of the rule, a sentence each."""
        found = []
        for module in self.modules:
            in_plugin = module.startswith(f"{self.name}.plugin")
            if not in_plugin:
                for other in sorted(self.others(module) & {"pytest", "_pytest", "pluggy"}):
                    found.append(f"{module} imports {other}, which belongs under plugin/")
                for other in sorted(o for o in self.below(module) if o.startswith(f"{self.name}.plugin")):
                    found.append(f"{module} imports {other}, which lies above it")
        for module in sorted(self.at_start(f"{self.name}.plugin.hooks")):
            for other in sorted(self.others(module, later=False) & set(HEAVY)):
                found.append(f"{module} imports {other} when the plugin starts")
        found += self.wrong_ways()
        if self.circle():
            found.append(f"a circle: {' -> '.join(self.circle())}")
        return found


def test_the_rule_holds():
    assert Package(ROOT).violations() == []


def test_what_a_folder_names_for_others_they_use():
    assert Package(ROOT).unused_doors() == []


def test_the_map_in_the_documentation_is_true():
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", text, re.MULTILINE))
    everybody = {"backports", "errors", "texts", "values", "options", "results", "__main__"}
    assert drawn == {edge for edge in Package(ROOT).room_graph() if not everybody & set(edge)}


def test_the_package_is_read_completely():
    """A rule that reads no module would always hold."""
    package = Package(ROOT)
    assert {FRONT, ENTRY_POINT, f"{PACKAGE}.check", f"{PACKAGE}.results"} <= package.modules.keys()
    assert f"{PACKAGE}.errors" in package.below(ENTRY_POINT)
    assert f"{PACKAGE}.check" in package.below(f"{PACKAGE}.plugin.cases")
    assert f"{PACKAGE}.check" not in package.at_start(ENTRY_POINT)
    assert "torch" in package.others(f"{PACKAGE}.policies.calls")
    assert "pytest" in package.others(ENTRY_POINT)


def test_private_names_of_torch_stay_in_one_folder():
    """``torch._x`` and names from such modules appear only where a test checks them."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        if path.parent.name != "internals":
            imports = Imports("x", is_package=False)
            imports.visit(ast.parse(path.read_text()))
            private = [n for n in imports.at_once | imports.later if n.startswith("torch.") and "._" in n]
            found += [f"{path.name}: {name}" for name in private]
            found += [
                f"{path.name}: {ast.unparse(node)}"
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
                and ast.unparse(node.value).partition(".")[0] == "torch"
            ]
    assert found == []


def test_what_the_benchmarks_import_is_there():
    """No test runs them, and the scripts inside them are text."""
    lines = {
        line.strip()
        for path in (REPOSITORY / "benchmarks").rglob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith(f"from {PACKAGE}")
    }
    assert lines
    for line in sorted(lines):
        exec(line, {})


# --- the test of that test ------------------------------------------------------------------------

SOUND = {
    "__init__.py": "",
    "results.py": "import dataclasses\n",
    "check.py": "import torch\nfrom pytest_torchcompile import results\n",
    "plugin/__init__.py": "",
    "plugin/hooks.py": """
        import pytest
        from typing import TYPE_CHECKING
        from pytest_torchcompile.results import Verdict
        if TYPE_CHECKING:
            import torch
        def run():
            import torch
            from pytest_torchcompile import check
    """,
}
BREACHES = {
    "pytest below": (
        {"check.py": "import torch\ndef skip():\n    import pytest\n"},
        "pytest_torchcompile.check imports pytest, which belongs under plugin/",
    ),
    "pytest's insides below": (
        {"check.py": "from _pytest.config import Config\n"},
        "pytest_torchcompile.check imports _pytest, which belongs under plugin/",
    ),
    "torch in the plugin": (
        {"plugin/hooks.py": "import torch.nn\n"},
        "pytest_torchcompile.plugin.hooks imports torch when the plugin starts",
    ),
    "torch in what the plugin imports": (
        {"results.py": "from torch import nn\n"},
        "pytest_torchcompile.results imports torch when the plugin starts",
    ),
    "hypothesis in the package itself": (
        {"__init__.py": "try:\n    import hypothesis\nexcept ImportError:\n    pass\n"},
        "pytest_torchcompile imports hypothesis when the plugin starts",
    ),
    "torch in a class body": (
        {"results.py": "class A:\n    import torch\n"},
        "pytest_torchcompile.results imports torch when the plugin starts",
    ),
    "the library on the plugin": (
        {"check.py": "def f():\n    from pytest_torchcompile.plugin import hooks\n"},
        "pytest_torchcompile.check imports pytest_torchcompile.plugin.hooks, which lies above it",
    ),
    "the library on the plugin, relatively": (
        {"check.py": "from .plugin.hooks import run\n"},
        "pytest_torchcompile.check imports pytest_torchcompile.plugin.hooks, which lies above it",
    ),
    "up the folders": (
        {"specs/__init__.py": "", "specs/spaces.py": "from pytest_torchcompile import check\n"},
        "pytest_torchcompile.specs.spaces imports pytest_torchcompile.check: "
        "check may import specs, not the other way",
    ),
    "past a door": (
        {
            "specs/__init__.py": '"""Specs.\n\nOther folders use `trees`.\n"""\n',
            "specs/spaces.py": "",
            "check.py": "from pytest_torchcompile.specs import spaces\n",
        },
        "pytest_torchcompile.check imports pytest_torchcompile.specs.spaces, which specs/__init__.py "
        "does not name among the modules that other folders use",
    ),
    "a folder without a place": (
        {"things/__init__.py": ""},
        "pytest_torchcompile.things has no place in ORDER of tests/test_layers.py",
    ),
    "a circle": (
        {"results.py": "def f():\n    from pytest_torchcompile.check import g\n"},
        "a circle: pytest_torchcompile.check -> pytest_torchcompile.results -> pytest_torchcompile.check",
    ),
}


def package_of(files, path):
    for name, source in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))
    return Package(path)


def test_a_sound_package_has_no_violations(tmp_path):
    assert package_of(SOUND, tmp_path).violations() == []


@pytest.mark.parametrize("breach", BREACHES)
def test_each_breach_is_found(tmp_path, breach):
    files, sentence = BREACHES[breach]
    assert sentence in package_of(SOUND | files, tmp_path).violations()


# --- an idle pytest run ---------------------------------------------------------------------------

SPY = """
    import sys

    def pytest_unconfigure():
        heavy = ("hypothesis", "torch", "pytest_torchcompile.check", "pytest_torchcompile.generation.strategies")
        print("HEAVY:", *(name for name in heavy if name in sys.modules))
        print("PLUGIN:", "pytest_torchcompile.plugin.hooks" in sys.modules)
        rooms = ("pytest_torchcompile.results", "pytest_torchcompile.reports", "pytest_torchcompile.specs.spaces")
        print("ROOMS:", *(name for name in rooms if name in sys.modules))
"""
MARKED_TEST = """
    import pytest
    from pytest_torchcompile import Box, Discrete

    @pytest.mark.compiled_equivalence(observation=Box((8,)), inputs={"action": Discrete(4)})
    def test_policy():
        import torch
"""


def idle_run(path, *arguments, **files):
    """What a pytest run in its own process has imported by its end."""
    for name, source in {"conftest": SPY, **files}.items():
        (path / f"{name}.py").write_text(textwrap.dedent(source))
    # Both import hypothesis themselves: its own plugin in the terminal summary, pytest-randomly to seed it.
    others = ["-p", "no:hypothesispytest", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *others, *arguments]
    output = subprocess.run(command, cwd=path, capture_output=True, text=True, check=False).stdout
    lines = [line for line in output.splitlines() if line.startswith(("HEAVY:", "PLUGIN:", "ROOMS:"))]
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        ((), {}),
        (("--markers",), {}),
        ((), {"test_ordinary": "def test_ordinary(): pass"}),
        ((), {"test_policy": MARKED_TEST}),
        (("--compile-check", "--collect-only"), {"test_policy": MARKED_TEST}),
    ],
    ids=[
        "nothing",
        "markers",
        "an ordinary test",
        "a marked test, not asked for",
        "a marked test, collected",
    ],
)
def test_a_run_that_checks_nothing_imports_no_torch(tmp_path, arguments, files):
    found = idle_run(tmp_path, *arguments, **files)
    assert (found["HEAVY"], found["PLUGIN"]) == ("", "True")


def test_a_run_without_a_policy_imports_no_results_and_no_specs(tmp_path):
    """Making their dataclasses took half of the seconds that the plugin needs to start."""
    found = idle_run(tmp_path, test_ordinary="def test_ordinary(): pass\ndef test_wrong(): assert False")
    assert found == {"HEAVY": "", "PLUGIN": "True", "ROOMS": ""}


def test_the_spy_sees_torch(tmp_path):
    found = idle_run(tmp_path, test_torch="import torch\ndef test_ordinary(): pass")
    assert found["HEAVY"].split() == ["torch"]


def test_the_spy_sees_the_library(tmp_path):
    found = idle_run(tmp_path, test_strategies="from pytest_torchcompile import observations")
    assert found["HEAVY"].split() == ["hypothesis", "torch", "pytest_torchcompile.generation.strategies"]
    assert found["ROOMS"] == "pytest_torchcompile.specs.spaces"


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, pytest_torchcompile; dir(pytest_torchcompile); pytest_torchcompile.Box((2,)); "
        f"print([name for name in {(*HEAVY, 'pytest')!r} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
