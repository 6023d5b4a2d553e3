"""Collects models that have no test file: those of ``--compile-model`` and of tables in ``pyproject.toml``.

Nothing is imported before an item runs. The models of the tables run when pytest collects the project's root
or ``pyproject.toml`` is named, not when only other files are named.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest

from pytest_torchcompile.backports import tomllib
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.options import OPTIONS, unknown_name
from pytest_torchcompile.plugin import cases, start
from pytest_torchcompile.plugin.options import MARKER, Marked, enabled, session_option
from pytest_torchcompile.texts import raised_text, some, suggestion

FILE = "pyproject.toml"
TABLE = "tool.pytest-torchcompile.models"
ARGUMENTS = ("factory", "observation", "inputs", "methods", "act", "learn")
"""Settings that a table accepts besides the options. Arguments that take a function need a test file."""


class ModelItem(pytest.Item):
    """One case of a model that has no test function."""

    def __init__(self, *, case: cases.Case, factory: str, line: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.case = case
        self.fixturenames: list[str] = []
        self._factory = factory
        self._line = line
        self.add_marker(MARKER)

    def runtest(self) -> None:
        """Check the case."""
        with _importable(self.config):
            cases.run(self, self.case, _named_factory(self._factory))

    def reportinfo(self) -> tuple[Any, int, str]:
        """Return the file, the line of the table, and the item's name."""
        return self.path, self._line, self.name


class ModelsFile(pytest.File):
    """The tables of models in a ``pyproject.toml``."""

    def collect(self) -> Iterable[ModelItem]:
        """Yield an item for each case of each model."""
        lines = [line.strip() for line in self.path.read_text(encoding="utf-8").splitlines()]
        for name, table in _tables(self.config).items():
            heading = f"[{TABLE}.{name}]"
            line = lines.index(heading) if heading in lines else 0
            yield from _items(self, name, f"{heading} in {FILE}", table, line=line)


def collector(file: Any, parent: pytest.Collector) -> ModelsFile | None:
    """Return a collector for the file if it is the project's ``pyproject.toml`` and has tables of models."""
    if file != parent.config.rootpath / FILE or not _tables(parent.config):
        return None
    return ModelsFile.from_parent(parent, path=file)


def named_on_the_command_line(session: pytest.Session) -> list[ModelItem]:
    """Return the items of each ``--compile-model``."""
    observations = [text for text, _ in session_option(session.config, "observation")]
    observation = {"observation": observations[-1]} if observations else {}
    items: list[ModelItem] = []
    for factory, source in session_option(session.config, "model"):
        settings = {"factory": factory, **observation}
        items += _items(session, factory, f"{source} {factory}", settings, has_file=False)
    return items


def add_tables_to_testpaths(config: pytest.Config) -> None:
    """Add ``pyproject.toml`` to a run of the whole project if `testpaths` leaves out the root."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or not _tables(config):
        return
    file = config.rootpath / FILE
    if not any(file.is_relative_to(config.invocation_params.dir / path) for path in config.args):
        config.args.append(str(file))


_TABLES = pytest.StashKey[dict[str, Any]]()


def _tables(config: pytest.Config) -> dict[str, Any]:
    if _TABLES not in config.stash:
        path = config.rootpath / FILE
        whole: Any = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found = functools.reduce(lambda table, key: table.get(key, {}), TABLE.split("."), whole)
        config.stash[_TABLES] = found
    return config.stash[_TABLES]


def _items(
    parent: pytest.Collector, name: str, source: str, settings: Any, *, line: int = 0, has_file: bool = True
) -> Iterator[ModelItem]:
    """Yield the items of one model. Without a file, the name of an item is its whole id."""
    config = parent.config
    found = cases.cases_from(lambda: _marked(source, settings, config), config, markers=1)
    factory = settings.get("factory", "") if isinstance(settings, Mapping) else ""
    for case in found:
        item = f"{name}[{case.id}]"
        nodeid = {} if has_file else {"nodeid": item}
        yield ModelItem.from_parent(parent, name=item, case=case, factory=factory, line=line, **nodeid)


def _marked(source: str, settings: Any, config: pytest.Config) -> Marked:
    from pytest_torchcompile.specs.notation import read_spec

    if not isinstance(settings, Mapping):
        raise UsageError(
            f"{source} is {settings!r}; accepted: a table with factory = 'package.module:function'"
        )
    for name in settings:
        if name not in (*ARGUMENTS, *OPTIONS):
            raise UsageError(unknown_name(source, "setting", name, [*ARGUMENTS, *OPTIONS]))
    factory = settings.get("factory")
    if not isinstance(factory, str) or not all(factory.partition(":")):
        raise UsageError(f"{source} got factory={factory!r}; accepted: 'package.module:function'")
    values = {name: value for name, value in settings.items() if name != "factory"}
    try:
        if enabled(config):
            start.require_found(factory, _places(config))
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None
    try:
        if "observation" in settings:
            values["observation"] = read_spec(settings["observation"], "observation")
        if "inputs" in settings:
            values["inputs"] = read_spec(settings["inputs"], "inputs")
    except UsageError as error:
        raise UsageError(f"{source} got {error}") from None
    return Marked.from_values(source, values, config)


# --- importing ------------------------------------------------------------------------------------


def _places(config: pytest.Config) -> list[str]:
    return [str(path) for path in (config.rootpath / "src", config.rootpath) if path.is_dir()]


@contextlib.contextmanager
def _importable(config: pytest.Config) -> Iterator[None]:
    """In the body, put the project's root and its ``src`` folder on `sys.path`."""
    added = _places(config)
    sys.path[:0] = added
    try:
        yield
    finally:
        for path in added:
            with contextlib.suppress(ValueError):
                sys.path.remove(path)


def _named_factory(name: str) -> Callable[[], Any]:
    """Return a factory with the name of the user's, which imports the user's when it is called."""

    def factory() -> Any:
        return _build(name)

    factory.__module__, _, factory.__qualname__ = name.partition(":")
    return factory


def _build(factory: str) -> Any:
    """Return what the factory of that name returns. If it is a module, return it; the check copies it.

    Raises:
        UsageError: if it can't be imported, does not exist or can't be called.
    """
    from torch import nn

    module, _, path = factory.partition(":")
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise UsageError(f"factory={factory!r}: importing {module} raised {raised_text(error)}") from error
    for name in path.split("."):
        owner = found
        try:
            found = getattr(owner, name)
        except AttributeError:
            own = [
                n
                for n, value in getattr(owner, "__dict__", {}).items()
                if getattr(value, "__module__", None) == module
            ]
            hint = suggestion(name, dir(owner)) or (f"; it has {some(own)}" if own else "")
            raise UsageError(f"factory={factory!r}: {module} has no {name!r}{hint}") from None
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise UsageError(f"factory={factory!r} is a {type(found).__name__}, which can't be called")
    return found()
