"""Options as pytest users give them: marker arguments over command line over ini.

Everything is read off `pytest_torchcompile.options.OPTIONS`; an option is added there and nowhere else.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.options import OPTIONS, PROFILES, CheckOptions, boolean, unknown_name, validated
from pytest_torchcompile.policies.declaration import ARGUMENTS, Declaration

PROOFS = ".compile-failures"
"""The folder of the scripts that show failures, in pytest's root."""

MARKER = "compiled_equivalence"
MARKER_HELP = (
    f"{MARKER}(*, {', '.join((*ARGUMENTS, *OPTIONS))}): the function returns a policy; "
    f"check that it computes the same once compiled. Runs with --compile-check."
)


SESSION_OPTIONS = {
    "model": (
        "MODULE:FACTORY",
        "check what this function (or class) makes, without a test file; may be given several times",
    ),
    "observation": (
        "SPEC",
        "what these models observe, such as 46,9,9 or 'Box((8,), low=0)' (default: their own spaces)",
    ),
    "cache": (
        "DIR",
        "where inductor keeps what it has compiled, for this process and its pytest-xdist workers",
    ),
    "report": (
        "PATH",
        "write a report: .json, .md, .html or .ratios.json, by the suffix; may be given several times",
    ),
    "baseline": (
        "FILE",
        "compare with an earlier report (.json), a file of pytest-benchmark's, or latest, the last that "
        "pytest-benchmark saved",
    ),
    "fail_on": (
        "METRIC:THRESHOLD",
        "fail a case that is surely worse than the baseline, such as speedup:10%%; also difference, "
        "graphs, breaks, recompiles, compile-time, memory; may be given several times",
    ),
}
"""Options of a whole session, which no marker takes: metavar and meaning."""


def add_options(parser: pytest.Parser) -> None:
    """Declare ``--compile-check``, a flag and an ini setting for each option."""
    group = parser.getgroup("compile-check", "compiled against eager (pytest-torchcompile)")
    group.addoption(
        "--compile-check",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"run the tests marked {MARKER}; without it they are skipped",
    )
    parser.addini("compile_check", "as --compile-check", type="string", default=None)
    methods = "the methods to check where no marker says it, separated by commas (default: forward)"
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
    """Whether a command line flag of ours is followed by its value."""
    valued = (_flag(name) for name, field in OPTIONS.items() if not _is_boolean(field))
    return flag in (*valued, *map(_flag, SESSION_OPTIONS), "--compile-methods")


def session_option(config: pytest.Config, name: str) -> list[tuple[str, str]]:
    """The values of one of `SESSION_OPTIONS`, each with who gave it; the command line's over the file's."""
    given = config.getoption(f"compile_{name}")
    if given is not None:
        return [(value, _flag(name)) for value in given]
    value = _ini_value(config, f"compile_{name}")
    values = value.split() if isinstance(value, str) else value or []
    return [(str(value), f"compile_{name} in {_file(config)}") for value in values]


CACHE = "TORCHINDUCTOR_CACHE_DIR"


def set_compile_cache(config: pytest.Config) -> None:
    """Set inductor's cache to ``--compile-cache`` for this session; processes that it starts inherit it."""
    given = session_option(config, "cache")
    if not given:
        return
    before = os.environ.get(CACHE)
    os.environ[CACHE] = str(config.invocation_params.dir / given[-1][0])

    def restore() -> None:
        if before is None:
            os.environ.pop(CACHE, None)
        else:
            os.environ[CACHE] = before

    config.add_cleanup(restore)


def _action(field: dataclasses.Field[Any]) -> dict[str, Any]:
    if _is_boolean(field):
        return {"action": argparse.BooleanOptionalAction}
    return {"metavar": field.name.upper()}


def _help(field: dataclasses.Field[Any]) -> str:
    default = field.default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{field.metadata['help']}; {field.metadata['expected']} (default: {shown})".replace("%", "%%")


def enabled(config: pytest.Config) -> bool:
    """Whether marked tests are to be checked.

    Raises:
        UsageError: if the ini file's value is no boolean.
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
    """The project's options, ini then command line, each with its source; only those that were set.

    Below them lies what pytest's own defaults are.

    Raises:
        UsageError: naming the file or flag, the value and what is accepted.
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
    """A setting as written; None if there is none.

    A TOML file may hold numbers, booleans and lists, which pytest takes for some declared types only
    and differently by table, so that they are read from the file.
    """
    overridden = any(str(o).startswith(f"{name}=") for o in config.getoption("override_ini") or ())
    native = None if overridden else _toml_table(config).get(name)
    return config.getini(name) if native is None or isinstance(native, str) else native


def _toml_table(config: pytest.Config) -> dict[str, Any]:
    """pytest's table of the project's TOML file; empty for other files."""
    if config.inipath is None or config.inipath.suffix != ".toml":
        return {}
    if _TABLE not in config.stash:
        whole = tomllib.loads(config.inipath.read_text(encoding="utf-8"))
        table = whole.get("tool", whole).get("pytest", {})
        config.stash[_TABLE] = table | table.get("ini_options", {})
    return config.stash[_TABLE]


def project_methods(config: pytest.Config) -> Any:
    """The methods to check where the test names none: command line, ini, ``forward``."""
    given = config.getoption("compile_methods") or _ini_value(config, "compile_methods") or "forward"
    return given.replace(",", " ").split() if isinstance(given, str) else given


def merged(config: pytest.Config, source: str, values: Mapping[str, Any]) -> CheckOptions:
    """All layers with `values`, from `source`, on top.

    Raises:
        UsageError: if a value, or the combination, is not accepted.
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
    """What the markers on one test say, `pytestmark`, class and function merged.

    Args:
        source: names marker and test in messages.
        declaration: what they say of the policy.
        options: the options.
    """

    source: str
    declaration: Declaration
    options: CheckOptions

    @classmethod
    def of(cls, node: pytest.Item | Any, config: pytest.Config) -> Marked:
        """What is said on a test that has the marker.

        Raises:
            UsageError: for positional arguments, unknown names and values that are not accepted.
        """
        source = f"@pytest.mark.{MARKER} on {node.nodeid}"
        values: dict[str, Any] = {}
        for marker in reversed(list(node.iter_markers(MARKER))):
            if marker.args:
                raise UsageError(
                    f"{source} got positional arguments {marker.args!r}; it takes names only, "
                    f"such as observation=Box((8,))"
                )
            values |= marker.kwargs
        return cls.said(source, values, config)

    @classmethod
    def said(cls, source: str, values: Mapping[str, Any], config: pytest.Config) -> Marked:
        """What `values`, the arguments of a marker or a table, say.

        Raises:
            UsageError: for unknown names and values that are not accepted.
        """
        for name in values:
            if name not in (*ARGUMENTS, *OPTIONS):
                raise UsageError(unknown_name(source, "argument", name, [*ARGUMENTS, *OPTIONS]))
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
