"""The one table of options.

Marker arguments, command line flags, ini settings and the reference in ``docs/`` are all read off
the fields of `CheckOptions`, so that they can't disagree. Validation of a single value lives here;
where a value came from is known to the caller, who names it as the *source* in the message.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pytest_torchcompile.errors import UsageError

PHASES = ("rollout", "update")
LIFECYCLE = "lifecycle"
"""The case in which one compiled object goes through both phases, and what lies between."""
REFERENCES = ("float64", "eager")


def _option(default: Any, accepts: Callable[[Any], Any], expected: str, help: str) -> Any:
    """A field of the table; `accepts` returns the normalised value or raises ValueError or TypeError."""
    return dataclasses.field(
        default=default, metadata={"accepts": accepts, "expected": expected, "help": help}
    )


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(value)


LARGEST_SEED = 2**63 - 1
"""The largest that torch.manual_seed takes as such."""


def _integer(at_least: int, at_most: int = LARGEST_SEED) -> Callable[[Any], int]:
    def accept(value: Any) -> int:
        if isinstance(value, bool) or (not isinstance(value, str) and int(value) != value):
            raise ValueError(value)
        if not at_least <= int(value) <= at_most:
            raise ValueError(value)
        return int(value)

    return accept


def _number(at_least: float, at_most: float = float("inf")) -> Callable[[Any], float]:
    def accept(value: Any) -> float:
        if isinstance(value, bool) or not at_least <= float(value) <= at_most:
            raise ValueError(value)
        return float(value)

    return accept


LEAST_SAMPLES = 100
"""Fewer draws could hardly ever show a difference."""


def _samples(value: Any) -> int:
    count = _integer(0)(value)
    if 0 < count < LEAST_SAMPLES:
        raise ValueError(value)
    return count


def _optional(accept: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def accept_or_none(value: Any) -> Any:
        unset = value is None or (isinstance(value, str) and value.lower() in ("", "none"))
        return None if unset else accept(value)

    return accept_or_none


def _choices(names: tuple[str, ...]) -> Callable[[Any], str]:
    def accept(value: Any) -> str:
        if value not in names:
            raise ValueError(value)
        return str(value)

    return accept


def _several(accept: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def accept_all(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = value.replace(",", " ").split()
        elif not isinstance(value, Iterable):
            value = (value,)
        items = tuple(accept(item) for item in value)
        if not items:
            raise ValueError(value)
        return tuple(dict.fromkeys(items))

    return accept_all


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def _backend(value: Any) -> Any:
    return value if callable(value) else _text(value)


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        pairs = (pair.partition("=") for pair in value.replace(",", " ").split())
        parsed = {name: _literal(text) for name, equals, text in pairs if equals}
        if len(parsed) != len(value.replace(",", " ").split()):
            raise ValueError(value)
        return parsed
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(value)
    return dict(value)


def _literal(text: str) -> Any:
    import ast

    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How a case is compiled, drawn, compared and bounded; the fields' metadata are the documentation.

    Example:
        >>> CheckOptions.merge(("the marker", {"atol": 1e-4})).atol
        0.0001

    Raises:
        UsageError: from `merge`, naming the source, the value and what is accepted.
    """

    backend: Any = _option(
        "inductor",
        _backend,
        "the name of a torch.compile backend or a backend function",
        "torch.compile's backend",
    )
    mode: str | None = _option(
        None, _optional(_text), "a torch.compile mode such as 'max-autotune'", "torch.compile's mode"
    )
    dynamic: bool | None = _option(
        None, _optional(_boolean), "true, false or none", "torch.compile's dynamic"
    )
    fullgraph: bool = _option(
        False, _boolean, "true or false", "torch.compile's fullgraph: a graph break fails to compile"
    )
    options: dict[str, Any] | None = _option(
        None,
        _optional(_mapping),
        "a dict, or 'name=value name=value'",
        "torch.compile's options for inductor",
    )
    phases: tuple[str, ...] = _option(
        (*PHASES, LIFECYCLE),
        _several(_choices((*PHASES, LIFECYCLE))),
        "some of 'rollout' (eval, no grad), 'update' (train, gradients) and 'lifecycle' (one compiled object "
        "through acting, learning, loading)",
        "the phases to check",
    )
    batch: tuple[int, ...] = _option(
        (4, 7, 1, 33),
        _several(_integer(1)),
        "positive integers",
        "batch sizes of the fixed examples; drawn ones lie between the smallest and the largest",
    )
    examples: int | None = _option(
        None,
        _optional(_integer(0)),
        "an integer >= 0",
        "examples drawn by Hypothesis after the fixed ones (50, or what the loaded Hypothesis profile says)",
    )
    nonfinite: bool = _option(
        True, _boolean, "true or false", "include an example with a NaN and one with an infinity"
    )
    steps: int = _option(
        3,
        _integer(0),
        "an integer >= 0",
        "optimizer steps in a row that the lifecycle takes on both sides, to compare where training leads",
    )
    seed: int = _option(
        0, _integer(0), "an integer >= 0", "seed of the weights, the fixed examples and the samplers"
    )
    atol: float = _option(
        1e-5, _number(0.0), "a number >= 0", "allowed absolute difference where |eager| is small"
    )
    rtol: float = _option(
        1e-5, _number(0.0), "a number >= 0", "allowed difference relative to |eager| where it is large"
    )
    reference: str = _option(
        "float64",
        _choices(REFERENCES),
        "'float64' or 'eager'",
        "float64: excuse differences no larger than eager's own rounding, and show the float64 value; "
        "eager: compare with eager alone",
    )
    samples: int = _option(
        0,
        _samples,
        f"0 or an integer >= {LEAST_SAMPLES}",
        "draws by which to compare the distributions of a method that samples, compiled as it is deployed, "
        "without eager's random numbers; 0 for not at all",
    )
    sensitivity: bool = _option(
        False,
        _boolean,
        "true or false",
        "report which share of the parameters had a gradient, and of the outputs varied, over the examples",
    )
    min_coverage: float = _option(
        0.0,
        _number(0.0, 1.0),
        "a number from 0 to 1",
        "least share of the parameters used by eager that the compiled graphs must take",
    )
    strict: bool = _option(
        False, _boolean, "true or false", "a compile failure fails the test instead of skipping it"
    )
    isolate: bool = _option(
        False,
        _boolean,
        "true or false",
        "check each case of a marked test in a process of its own, so that a crash fails that case alone "
        "(pytest-xdist's workers are such processes already)",
    )
    shrink_seconds: float = _option(
        60.0, _number(0.0), "a number of seconds", "how long to spend on making a failing example smaller"
    )
    max_seconds: float = _option(
        300.0,
        _number(0.0),
        "a number of seconds",
        "how long a case may compile before no new example is drawn; a single compile that takes longer is "
        "stopped, and counts as failed",
    )
    max_graph_breaks: int | None = _option(
        None, _optional(_integer(0)), "an integer >= 0", "fail a case that has more graph breaks"
    )
    max_recompiles: int | None = _option(
        None,
        _optional(_integer(0)),
        "an integer >= 0",
        "fail a case that recompiles more often, once it was called with a batch of at least 2; a batch "
        "that varies, a batch of 1 and each memory layout cost one",
    )
    max_compile_seconds: float | None = _option(
        None, _optional(_number(0.0)), "a number of seconds", "fail a case that spends more on compiling"
    )
    explain_seconds: float = _option(
        60.0,
        _number(0.0),
        "a number of seconds",
        "how long to look for the compiler stage and the submodule of a difference; 0 for not at all",
    )
    proof: str | None = _option(
        None,
        _optional(_text),
        "a folder",
        "where to put a script that shows a difference without pytest, in a folder for each case "
        "(.compile-failures in pytest's root; none for the functions); none for nowhere",
    )
    benchmark_seconds: float | None = _option(
        None,
        _optional(_number(0.0)),
        "a number of seconds",
        "how long to time eager against compiled, 0 for not at all (5 s for a marked test; the functions "
        "time if this or min_speedup is given)",
    )
    benchmark_batch: int | None = _option(
        None, _optional(_integer(1)), "an integer >= 1", "batch size to time (the first of batch)"
    )
    min_speedup: float | None = _option(
        None,
        _optional(_number(0.0)),
        "a number",
        "fail if the whole interval of the speedup lies below this",
    )
    threads: int | None = _option(
        None,
        _optional(_integer(1)),
        "an integer >= 1",
        "torch threads while a check runs, on both sides (the process's own number, as it would train: "
        "inductor writes other code for one thread than for several)",
    )

    @classmethod
    def merge(cls, *layers: tuple[str, Mapping[str, Any]]) -> CheckOptions:
        """Options in which later layers win; each layer is its source, for messages, and its values."""
        merged: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for source, values in layers:
            for name, value in values.items():
                merged[name] = validated(name, value, source)
                sources[name] = source
        result = cls(**merged)
        object.__setattr__(result, "_sources", sources)
        result._reject_contradictions()
        return result

    def source(self, name: str) -> str:
        """Where the value of an option came from."""
        sources: dict[str, str] = getattr(self, "_sources", {})
        return sources.get(name, "default")

    def _reject_contradictions(self) -> None:
        def said(name: str) -> str:
            value = self.backend_name if name == "backend" else getattr(self, name)
            return f"{name}={value!r} ({self.source(name)})"

        if self.mode is not None and self.options is not None:
            raise UsageError(
                f"{said('mode')} and {said('options')} contradict each other: torch.compile takes one of "
                f"them; drop one, or put what the mode sets into options"
            )
        if self.samples and importlib.util.find_spec("scipy") is None:
            raise UsageError(
                f"{said('samples')} needs scipy, which is not installed: "
                f'pip install "pytest-torchcompile[sampling]"'
            )
        for name in ("mode", "options"):
            if getattr(self, name) is not None and self.backend != "inductor":
                raise UsageError(
                    f"{said(name)} is for the inductor backend, but {said('backend')}; drop one of them"
                )

    @property
    def backend_name(self) -> str:
        """The backend as the report shows it."""
        return self.backend if isinstance(self.backend, str) else _name_of(self.backend)

    def settings(self) -> dict[str, str | int | float | None]:
        """The options that shape what is compiled and what is allowed, as plain data for a result."""
        return {name: getattr(self, name) for name in _SETTINGS}


_SETTINGS = ("mode", "dynamic", "fullgraph", "atol", "rtol", "reference", "seed")


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


OPTIONS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(CheckOptions)}


def boolean(value: Any, source: str) -> bool:
    """`value` as a boolean.

    Raises:
        UsageError: if it is none, naming `source`.
    """
    try:
        return _boolean(value)
    except ValueError:
        raise UsageError(f"{source} is {value!r}; accepted: true or false") from None


def validated(name: str, value: Any, source: str) -> Any:
    """`value` normalised for option `name`.

    Raises:
        UsageError: if there is no such option or the value is not accepted, naming `source`.
    """
    if name not in OPTIONS:
        raise UsageError(unknown_name(source, "option", name, OPTIONS))
    metadata = OPTIONS[name].metadata
    try:
        return metadata["accepts"](value)
    except (ValueError, TypeError, OverflowError):
        raise UsageError(f"{source} got {name}={value!r}; accepted: {metadata['expected']}") from None


def unknown_name(source: str, kind: str, name: str, accepted: Iterable[str]) -> str:
    """The sentence for a name that is not among `accepted`, with the nearest one suggested."""
    accepted = sorted(accepted)
    near = difflib.get_close_matches(name, accepted, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{source} got unknown {kind} {name!r}{hint}; accepted: {', '.join(accepted) or 'none'}"
