"""Reads the options: marker arguments override the command line, which overrides the ini file.

Flags and settings are generated from `pytest_torchcompile.options.OPTIONS`. To add an option, add it there.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from pytest_torchcompile.backports import tomllib
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.options import OPTIONS, PROFILES, CheckOptions, boolean, unknown_name, validated
from pytest_torchcompile.policies.declaration import ARGUMENTS, Declaration
from pytest_torchcompile.runtime.code_cache import remove_broken
from pytest_torchcompile.texts import REFERENCE_PAGE

PROOFS = ".compile-failures"
"""The folder of the scripts that show failures, in pytest's root."""

MARKER = "compiled_equivalence"
MARKER_HELP = (
    f"{MARKER}(*, {', '.join((*ARGUMENTS, *OPTIONS))}): the function returns a policy; "
    f"check that it computes the same once compiled. Runs with --compile-check. {REFERENCE_PAGE}"
)

SESSION_OPTIONS = {
    "model": (
        "MODULE:FACTORY",
        "check the model that this function or class makes, without a test file; may be given several times",
    ),
    "observation": (
        "SPEC",
        "the observation of these models, such as 46,9,9 or 'Box((8,), low=0)' (default: their own spaces)",
    ),
    "cache": (
        "DIR",
        "the folder of inductor's cache, for this process and its pytest-xdist workers",
    ),
    "report": (
        "PATH",
        "write a report; its suffix sets the form: .json, .md, .html or .ratios.json; may be given several "
        "times",
    ),
    "baseline": (
        "FILE",
        "compare with an earlier report (.json) or a file of pytest-benchmark; latest is the file that "
        "pytest-benchmark saved last",
    ),
    "fail_on": (
        "METRIC:THRESHOLD",
        "fail a case that is worse than the baseline by more than chance, such as speedup:10%%; also "
        "verdict, difference, graphs, breaks, recompiles, compile-time, memory; may be given several times",
    ),
}
"""Options of a whole session, which the marker does not accept: metavar and help text."""


def add_options(parser: pytest.Parser) -> None:
    """Declare ``--compile-check``, and a flag and an ini setting for each option."""
    title = f"compiled against eager (pytest-torchcompile), {REFERENCE_PAGE}"
    group = parser.getgroup("compile-check", title)
    group.addoption(
        "--compile-check",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"run the tests marked {MARKER}; without it they are skipped",
    )
    parser.addini("compile_check", "as --compile-check", type="string", default=None)
    methods = "the methods to check if the marker names none, separated by commas (default: forward)"
    parser.addini("compile_methods", methods, type="string", default=None)
    group.addoption(
        "--compile-methods", dest="compile_methods", default=None, metavar="METHODS", help=methods
    )
    for name, (metavar, meaning) in SESSION_OPTIONS.items():
        parser.addini(f"compile_{name}", meaning, type="string", default=None)
        group.addoption(
            _flag(name), dest=f"compile_{name}", action="append", default=None, metavar=metavar, help=meaning
        )
    for name, field in OPTIONS.items():
        parser.addini(f"compile_{name}", field.metadata["help"], type="string", default=None)
        group.addoption(
            _flag(name), dest=f"compile_{name}", default=None, help=_help(field), **_action(field)
        )


def _flag(name: str) -> str:
    return f"--compile-{name.replace('_', '-')}"


def _is_boolean(field: dataclasses.Field[Any]) -> bool:
    return isinstance(field.default, bool)


def takes_value(flag: str) -> bool:
    """Return whether a command line flag of this plugin takes a value."""
    valued = (_flag(name) for name, field in OPTIONS.items() if not _is_boolean(field))
    return flag in (*valued, *map(_flag, SESSION_OPTIONS), "--compile-methods")


def session_option(config: pytest.Config, name: str) -> list[tuple[str, str]]:
    """Return the values of one of `SESSION_OPTIONS`, each with its source. Flags override the ini file."""
    given = config.getoption(f"compile_{name}")
    if given is not None:
        return [(value, _flag(name)) for value in given]
    value = _ini_value(config, f"compile_{name}")
    values = value.split() if isinstance(value, str) else value or []
    return [(str(value), f"compile_{name} in {_file(config)}") for value in values]


CACHE = "TORCHINDUCTOR_CACHE_DIR"
_CACHE_NAME = "torchcompile"


def set_compile_cache(config: pytest.Config) -> None:
    """Set inductor's cache for this session and the processes that it starts.

    It is the folder of ``--compile-cache``. Without that option and without the environment's own setting it
    lies in pytest's cache, where the next run finds it.
    """
    before = os.environ.get(CACHE)
    given = session_option(config, "cache")
    cache = getattr(config, "cache", None)
    if given:
        os.environ[CACHE] = str(config.invocation_params.dir / given[-1][0])
    elif enabled(config) and before is None and cache is not None:
        os.environ[CACHE] = str(cache.mkdir(_CACHE_NAME))
    else:
        return

    def restore() -> None:
        if before is None:
            os.environ.pop(CACHE, None)
        else:
            os.environ[CACHE] = before

    config.add_cleanup(restore)


REMOVED = pytest.StashKey[tuple[str, ...]]()
"""The broken files that were removed from inductor's cache at the start."""


def prepare_cache(config: pytest.Config) -> None:
    """Make inductor's cache, remove broken files from it, and return if files can be written to it.

    Raises:
        UsageError: otherwise; every case would fail on it.
    """
    folder = os.environ.get(CACHE)
    if not folder or not enabled(config):
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            config.stash[REMOVED] = remove_broken(folder)
    except OSError as error:
        source = "--compile-cache" if session_option(config, "cache") else CACHE
        raise UsageError(
            f"{source}={folder} can't be written ({error.strerror or error}); set {CACHE}, or "
            f"--compile-cache, to a folder that can be"
        ) from None


def _action(field: dataclasses.Field[Any]) -> dict[str, Any]:
    if _is_boolean(field):
        return {"action": argparse.BooleanOptionalAction}
    return {"metavar": field.name.upper()}


def _help(field: dataclasses.Field[Any]) -> str:
    default = field.default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{field.metadata['help']}; {field.metadata['expected']} (default: {shown})".replace("%", "%%")


def enabled(config: pytest.Config) -> bool:
    """Return whether marked tests are to be checked.

    Raises:
        UsageError: if the value in the ini file is not a boolean.
    """
    flag = config.getoption("compile_check")
    if flag is not None:
        return bool(flag)
    value = _ini_value(config, "compile_check")
    return value is not None and boolean(value, f"compile_check in {_file(config)}")


Layers = list[tuple[str, dict[str, Any]]]
_LAYERS = pytest.StashKey[Layers]()
_TABLE = pytest.StashKey[dict[str, Any]]()


def project_layers(config: pytest.Config) -> Layers:
    """Return the options that were set, in layers of increasing priority, each with its source.

    The layers are the plugin's default folder for `proof`, the ini file and the command line.

    Raises:
        UsageError: if a value is not accepted; the message names the file or flag and what is accepted.
    """
    if _LAYERS not in config.stash:
        config.stash[_LAYERS] = _read_layers(config)
    return config.stash[_LAYERS]


def _read_layers(config: pytest.Config) -> Layers:
    file = _file(config)
    ini: dict[str, Any] = {}
    flags: dict[str, Any] = {}
    for name in OPTIONS:
        setting = _ini_value(config, f"compile_{name}")
        if setting is not None:
            ini[name] = validated(name, setting, f"compile_{name} in {file}")
        flag = config.getoption(f"compile_{name}")
        if flag is not None:
            flags[name] = validated(name, flag, _flag(name))
    proof = {"proof": str(config.rootpath / PROOFS)}
    return [("pytest's root", proof), (file, ini), ("the command line", flags)]


def _file(config: pytest.Config) -> str:
    return config.inipath.name if config.inipath else "the ini file"


def _ini_value(config: pytest.Config, name: str) -> Any:
    """Return a setting as written; None if there is none.

    A TOML file may hold numbers, booleans and lists. Which of them pytest accepts depends on the declared
    type and on the table, so this reads them from the file itself.
    """
    overridden = any(str(o).startswith(f"{name}=") for o in config.getoption("override_ini") or ())
    native = None if overridden else _toml_table(config).get(name)
    return config.getini(name) if native is None or isinstance(native, str) else native


def _toml_table(config: pytest.Config) -> dict[str, Any]:
    """Return pytest's table in the project's TOML file; empty for other files."""
    if config.inipath is None or config.inipath.suffix != ".toml":
        return {}
    if _TABLE not in config.stash:
        whole = tomllib.loads(config.inipath.read_text(encoding="utf-8"))
        table = whole.get("tool", whole).get("pytest", {})
        config.stash[_TABLE] = table | table.get("ini_options", {})
    return config.stash[_TABLE]


def project_methods(config: pytest.Config) -> Any:
    """Return the methods to check if the test names none: of the command line or the ini file, or None."""
    given = config.getoption("compile_methods") or _ini_value(config, "compile_methods") or None
    return given.replace(",", " ").split() if isinstance(given, str) else given


def merged(config: pytest.Config, source: str, values: Mapping[str, Any]) -> CheckOptions:
    """Return the options of all layers, overridden by `values`, whose source is `source`.

    Raises:
        UsageError: if a value, or a combination of values, is not accepted.
    """
    return CheckOptions.merge(*project_layers(config), (source, values))


def profile_text(said: CheckOptions) -> Iterator[str]:
    """Yield ``profile quick (examples=10)``, the options that the profile sets; nothing for the default."""
    chosen = PROFILES[said.profile]
    if chosen:
        values = (f"{name}={str(value).lower()}" for name, value in chosen.items() if not said.is_set(name))
        yield f"profile {said.profile} ({', '.join(values)})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marked:
    """The merged arguments of the markers on one test: those of the module, the class and the function.

    Args:
        source: the marker and the test, for messages.
        declaration: the arguments that describe the policy.
        options: the options.
    """

    source: str
    declaration: Declaration
    options: CheckOptions

    @classmethod
    def of(cls, node: pytest.Item | Any, config: pytest.Config) -> Marked:
        """Merge the markers on a test.

        Raises:
            UsageError: for positional arguments, unknown names and values that are not accepted.
        """
        source = f"@pytest.mark.{MARKER} on {node.nodeid}"
        values: dict[str, Any] = {}
        for marker in reversed(list(node.iter_markers(MARKER))):
            if marker.args:
                raise UsageError(
                    f"{source} got positional arguments {marker.args!r}; accepted: keyword arguments, "
                    f"such as observation=Box((8,))"
                )
            values |= marker.kwargs
        return cls.from_values(source, values, config)

    @classmethod
    def from_values(cls, source: str, values: Mapping[str, Any], config: pytest.Config) -> Marked:
        """Read the arguments of a marker, a fixture or a table.

        Raises:
            UsageError: for unknown names and values that are not accepted.
        """
        from pytest_torchcompile.specs.spaces import require_made

        for name in values:
            if name not in (*ARGUMENTS, *OPTIONS):
                raise UsageError(unknown_name(source, "argument", name, [*ARGUMENTS, *OPTIONS]))
        for name in ("observation", "inputs"):
            try:
                require_made(values.get(name))
            except UsageError as error:
                raise UsageError(f"{source}: {error}") from None
        declared = {"methods": project_methods(config)}
        declared |= {name: value for name, value in values.items() if name in ARGUMENTS}
        try:
            declaration = Declaration(**declared)
        except UsageError as error:
            raise UsageError(f"{source} got {error}") from None
        options = {name: value for name, value in values.items() if name in OPTIONS}
        return cls(
            source=source,
            declaration=declaration,
            options=merged(config, source, options),
        )
