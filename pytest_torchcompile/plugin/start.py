"""Finds names that torch or Python does not know before the first case runs: one error instead of one a case.

Nothing is imported for it that the run would not import: torch's own lists are read only if an option asks
for something else than the usual, and the module of a factory is looked up on the path, not imported.
"""

from __future__ import annotations

import ast
import importlib.machinery
import pathlib
import re
import sys
import warnings
from collections.abc import Sequence

import pytest

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.plugin.options import enabled, merged
from pytest_torchcompile.texts import some, suggestion

_USUAL = ("inductor", "eager", "aot_eager")
"""Backends that need no look into torch's list."""
_MADE_LATER = re.compile(r"import \*|\b(__getattr__|globals|setattr|exec)\b")
"""What a module may contain whose names can't be read from its text."""


def require_known_settings(config: pytest.Config) -> None:
    """Return if torch knows the mode and inductor's options of the command line and the ini file.

    Raises:
        UsageError: otherwise.
    """
    if enabled(config):
        _require_settings(merged(config, "", {}))


def require_known_backend(config: pytest.Config) -> None:
    """Return if torch knows the backend of the command line and the ini file, or it may be registered later.

    Raises:
        UsageError: otherwise.
    """
    if enabled(config):
        _require_backend(merged(config, "", {}))


def require_known_in(source: str, options: CheckOptions, config: pytest.Config) -> None:
    """Return if torch knows what the options of one test name. Does nothing before torch is imported.

    Raises:
        UsageError: otherwise; it names `source`.
    """
    if not enabled(config) or "torch" not in sys.modules:
        return
    # What the whole session says is reported once, at the start.
    given = [name for name in ("mode", "options", "backend") if options.source(name) == source]
    try:
        if "mode" in given or "options" in given:
            _require_settings(options)
        if "backend" in given:
            _require_backend(options)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None


def _require_settings(options: CheckOptions) -> None:
    if options.mode is None and options.options is None:
        return
    # With -W error, a warning from torch's own imports would end the session.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytest_torchcompile.compiling.compilation import require_known_settings

        require_known_settings(options)


def _require_backend(options: CheckOptions) -> None:
    if not isinstance(options.backend, str) or options.backend in _USUAL:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytest_torchcompile.compiling.compilation import is_misspelt_backend, require_known_backend

        if is_misspelt_backend(options.backend):
            require_known_backend(options)


def require_found(factory: str, path: Sequence[str]) -> None:
    """Return if a module on the path has the name that ``package.module:name`` asks for, or may have it.

    Args:
        factory: the text ``package.module:name``.
        path: where to look before `sys.path`.

    Raises:
        UsageError: if there is no such module, or its text does not contain the name.
    """
    module, _, name = factory.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        parts = pathlib.PurePath(module.removesuffix(".py")).parts
        dotted = ".".join(part for part in parts if part.isidentifier())
        hint = f"; write {dotted}:{name}" if dotted else ""
        raise UsageError(f"factory={factory!r}: {module!r} is no module's name, such as package.module{hint}")
    if module in sys.modules:
        loaded = sys.modules[module]
        if not hasattr(loaded, name.partition(".")[0]):
            raise UsageError(f"factory={factory!r}: {module} has no {name!r}{suggestion(name, dir(loaded))}")
        return
    spec: importlib.machinery.ModuleSpec | None = None
    places: Sequence[str] | None = [*path, *sys.path]
    whole = ""
    for part in module.split("."):
        whole = f"{whole}.{part}" if whole else part
        spec = importlib.machinery.PathFinder.find_spec(whole, places) if places is not None else None
        if spec is None:
            if whole in sys.builtin_module_names or whole in sys.modules:
                return
            hint = suggestion(part, _modules_in(places or ()))
            raise UsageError(f"factory={factory!r}: there is no module {whole!r}{hint}")
        places = spec.submodule_search_locations
    if spec is not None and spec.origin and spec.origin.endswith(".py"):
        _require_name(factory, name.partition(".")[0], pathlib.Path(spec.origin))


def _modules_in(places: Sequence[str]) -> list[str]:
    found = [path for place in places for path in pathlib.Path(place or ".").glob("*") if place is not None]
    return [path.stem for path in found if path.suffix == ".py" or (path / "__init__.py").is_file()]


def _require_name(factory: str, name: str, file: pathlib.Path) -> None:
    try:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError):
        return  # importing it will tell more
    if re.search(rf"\b{re.escape(name)}\b", text) or _MADE_LATER.search(text):
        return
    names = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    module = factory.partition(":")[0]
    hint = suggestion(name, names) or (f"; it has {some(names)}" if names else "")
    raise UsageError(f"factory={factory!r}: {module} has no {name!r}{hint}")
