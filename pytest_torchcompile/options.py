"""Defines all options in one table.

Marker arguments, command line flags, ini settings and the reference in ``docs/`` are all generated from the
fields of `CheckOptions`, so that they can't disagree. The module `values` converts single values. Callers
pass a *source*, which names the origin of a value in messages.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pytest_torchcompile import values
from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.texts import REFERENCE_PAGE, suggestion

PHASES = ("rollout", "update")
LIFECYCLE = "lifecycle"
"""The case in which one compiled policy acts, learns and loads weights in turn."""
REFERENCES = ("float64", "eager")
BEYOND = ("remark", "fail", "off")
AUTOCAST = ("bfloat16", "float16")

PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"examples": 10, "layouts": False, "beyond": "off", "steps": 1},
    "default": {},
    "thorough": {"examples": 500, "steps": 20, "samples": 10_000, "sensitivity": True, "max_seconds": 1800.0},
}
"""Options that `profile` sets together; an option that is given by itself wins over them."""

GUARD_FILTER = "guard_filter_fn"
"""An option of torch.compile itself: it takes it out of `options` before the backend sees them."""


def _option(default: Any, accepts: Callable[[Any], Any], expected: str, help: str) -> Any:
    """Return a field of the table; `accepts` normalises a value, or raises ValueError or TypeError."""
    return dataclasses.field(
        default=default, metadata={"accepts": accepts, "expected": expected, "help": help}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How a case is compiled, drawn, compared and limited; the fields' metadata document each option.

    Example:
        >>> CheckOptions.merge(("the marker", {"atol": 1e-4})).atol
        0.0001

    Raises:
        UsageError: from `merge`; the message names the source, the value and what is accepted.
    """

    profile: str = _option(
        "default",
        values.choices(tuple(PROFILES)),
        f"one of {', '.join(map(repr, PROFILES))}",
        "how much to try: quick answers while you edit, thorough is for the night; it sets other options "
        "together, and one that is given by itself wins",
    )
    backend: Any = _option(
        "inductor",
        values.backend,
        "the name of a torch.compile backend or a backend function",
        "torch.compile's backend",
    )
    mode: str | None = _option(
        None,
        values.optional(values.text),
        "a torch.compile mode such as 'max-autotune'",
        "torch.compile's mode",
    )
    dynamic: bool | None = _option(
        None, values.optional(values.boolean), "true, false or none", "torch.compile's dynamic"
    )
    fullgraph: bool = _option(
        False, values.boolean, "true or false", "torch.compile's fullgraph: a graph break fails to compile"
    )
    options: dict[str, Any] | None = _option(
        None,
        values.optional(values.mapping),
        "a dict, or 'name=value name=value'",
        "torch.compile's options for inductor, and guard_filter_fn for any backend",
    )
    phases: tuple[str, ...] = _option(
        (*PHASES, LIFECYCLE),
        values.several(values.choices((*PHASES, LIFECYCLE))),
        "some of 'rollout' (eval, no grad), 'update' (train, gradients) and 'lifecycle' (one compiled policy "
        "that acts, learns and loads weights in turn)",
        "the phases to check",
    )
    batch: tuple[int, ...] = _option(
        (4, 7, 1, 33),
        values.several(values.integer(1)),
        "positive integers",
        "batch sizes of the fixed examples; drawn ones lie between the smallest and the largest. Sizes at "
        "which compilers generate other code, and sizes of the policy's parameters, are tried once each: in "
        "the same range, or up to 1024 if batch is not given",
    )
    examples: int | None = _option(
        None,
        values.optional(values.integer(0)),
        "an integer >= 0",
        "examples drawn by Hypothesis after the fixed ones (50, or max_examples of the loaded Hypothesis "
        "profile)",
    )
    autocast: str | None = _option(
        None,
        values.optional(values.choices(AUTOCAST)),
        "'bfloat16', 'float16' or none",
        "the policy acts and learns under torch.autocast to this dtype, on both sides and in all phases",
    )
    layouts: bool = _option(
        True,
        values.boolean,
        "true or false",
        "also try inputs in other memory layouts (strided, transposed, channels last) and inputs that share "
        "memory; each layout may add a graph",
    )
    nonfinite: bool = _option(
        True, values.boolean, "true or false", "include an example with a NaN and one with an infinity"
    )
    steps: int = _option(
        3,
        values.integer(0),
        "an integer >= 0",
        "consecutive optimizer steps of the lifecycle, on both sides, to compare the result of training",
    )
    seed: int = _option(
        0, values.integer(0), "an integer >= 0", "seed of the weights, the fixed examples and the samplers"
    )
    atol: float = _option(
        1e-5,
        values.number(0.0),
        "a number >= 0",
        "allowed absolute difference where |eager| is small; if it is at most 1e-5, a tensor may differ by "
        "no more than 1 % of its largest element on the fixed examples",
    )
    rtol: float = _option(
        1e-5, values.number(0.0), "a number >= 0", "allowed difference relative to |eager| where it is large"
    )
    reference: str = _option(
        "float64",
        values.choices(REFERENCES),
        "'float64' or 'eager'",
        "float64: accept differences no larger than eager's own rounding, and show the float64 value; "
        "eager: compare with eager alone",
    )
    beyond: str = _option(
        "remark",
        values.choices(BEYOND),
        "'remark', 'fail' or 'off'",
        "how to report a difference found beyond what was declared, such as on inputs outside the specs or "
        "under autocast: as a remark or as a failure; off skips these checks",
    )
    copies: bool = _option(
        False,
        values.boolean,
        "true or false",
        "the policy is deep-copied after it is compiled, as for a target network: a copy that would still "
        "use the original's weights fails the lifecycle",
    )
    samples: int = _option(
        0,
        values.samples,
        f"0 or an integer >= {values.LEAST_SAMPLES}",
        "number of draws for comparing the distributions of a method that samples, compiled as for "
        "deployment, without eager's random numbers; 0 for no comparison",
    )
    sensitivity: bool = _option(
        False,
        values.boolean,
        "true or false",
        "report which share of the parameters had a gradient, and which share of the outputs varied, over "
        "the examples",
    )
    min_coverage: float = _option(
        0.0,
        values.number(0.0, 1.0),
        "a number from 0 to 1",
        "least share of the parameters used by eager, by number of elements, that graphs must contain",
    )
    min_coverage_work: float = _option(
        0.0,
        values.number(0.0, 1.0),
        "a number from 0 to 1",
        "least share of eager's products, convolutions, attention and recurrent kernels, by floating-point "
        "operations, that must run in compiled graphs",
    )
    strict: bool = _option(
        False, values.boolean, "true or false", "a compile failure fails the test instead of skipping it"
    )
    isolate: bool = _option(
        False,
        values.boolean,
        "true or false",
        "check each case of a marked test in its own process, so that a crash fails only that case "
        "(pytest-xdist's workers already are such processes)",
    )
    shrink_seconds: float = _option(
        60.0,
        values.number(0.0),
        "a number of seconds",
        "how long to shrink a failing example",
    )
    max_seconds: float = _option(
        300.0,
        values.number(0.0),
        "a number of seconds",
        "how long a case may take, compiling included, before it stops trying more examples, sizes, layouts "
        "and stories; a single compile that takes longer is stopped and counts as failed",
    )
    max_graph_breaks: int | None = _option(
        None,
        values.optional(values.integer(0)),
        "an integer >= 0",
        "fail a case that has more graph breaks, but no lifecycle, whose moves compile again by design",
    )
    max_recompiles: int | None = _option(
        None,
        values.optional(values.integer(0)),
        "an integer >= 0",
        "fail a case, but no lifecycle, that recompiles more often after its first call with a batch of at "
        "least 2; a batch that varies, a batch of 1 and each memory layout (3 to 6) cost one recompile each",
    )
    max_compile_seconds: float | None = _option(
        None,
        values.optional(values.number(0.0)),
        "a number of seconds",
        "fail a case, but no lifecycle, that spends more time on compiling",
    )
    explain_seconds: float = _option(
        60.0,
        values.number(0.0),
        "a number of seconds",
        "how long to search for the compiler stage and the submodule of a difference; 0 for no search",
    )
    proof: str | None = _option(
        None,
        values.optional(values.text),
        "a folder",
        "folder for scripts that show a difference without pytest, with a subfolder for each case "
        "(.compile-failures in pytest's root; none for the functions); none writes no script",
    )
    benchmark_seconds: float | None = _option(
        None,
        values.optional(values.number(0.0)),
        "a number of seconds",
        "how long to time eager and compiled, 0 for no timing (5 s for a marked test; the functions time "
        "only if this or min_speedup is given)",
    )
    benchmark_batch: int | None = _option(
        None,
        values.optional(values.integer(1)),
        "an integer >= 1",
        "batch size for timing (the first of batch)",
    )
    min_speedup: float | None = _option(
        None,
        values.optional(values.number(0.0)),
        "a number",
        "fail if the whole interval of the speedup lies below this",
    )
    threads: int | None = _option(
        None,
        values.optional(values.integer(1)),
        "an integer >= 1",
        "torch threads during a check, on both sides (the process's own number, as in training: inductor "
        "generates other code for one thread than for several)",
    )
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    """Where each option that the user gave comes from; no option itself."""

    @classmethod
    def merge(cls, *layers: tuple[str, Mapping[str, Any]]) -> CheckOptions:
        """Return options in which later layers win, and what the profile sets lies below all of them.

        Args:
            layers: each is its source, for messages, and its values.

        Raises:
            UsageError: for a name or a value that is not accepted, or values that contradict each other.
        """
        given: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for source, values_of_layer in layers:
            for name, value in values_of_layer.items():
                given[name] = validated(name, value, source)
                sources[name] = source
        profile = given.get("profile", OPTIONS["profile"].default)
        result = cls(**(PROFILES[profile] | given), sources=sources)
        result._reject_contradictions()
        return result

    def source(self, name: str) -> str:
        """Return the source of the value of an option: the user's, the profile, or ``default``."""
        by_profile = f"the profile {self.profile}" if name in PROFILES[self.profile] else "default"
        return self.sources.get(name, by_profile)

    def is_set(self, name: str) -> bool:
        """Return whether the user gave an option, be it its default; what a profile sets does not count."""
        return name in self.sources

    def _reject_contradictions(self) -> None:
        def shown(name: str) -> str:
            value = self.backend_name if name == "backend" else getattr(self, name)
            return f"{name}={value!r} ({self.source(name)})"

        if self.mode is not None and self.options is not None:
            raise UsageError(
                f"{shown('mode')} and {shown('options')} contradict each other: torch.compile takes one of "
                f"them; drop one, or put what the mode sets into options"
            )
        if self.samples and importlib.util.find_spec("scipy") is None:
            raise UsageError(
                f"{shown('samples')} needs scipy, which is not installed: "
                f'pip install "pytest-torchcompile[sampling]"'
            )
        for_inductor = {"mode": self.mode, "options": {*(self.options or ())} - {GUARD_FILTER}}
        for name, value in for_inductor.items():
            if value and self.backend != "inductor":
                raise UsageError(
                    f"{shown(name)} is for the inductor backend, but {shown('backend')}; drop one of them"
                )

    @property
    def backend_name(self) -> str:
        """The name of the backend, as shown in the report."""
        return self.backend if isinstance(self.backend, str) else _name_of(self.backend)

    def settings(self) -> dict[str, str | int | float | None]:
        """Return the options that affect what is compiled and what is allowed, as plain data for a result."""
        return {name: getattr(self, name) for name in _SETTINGS}


_SETTINGS = (
    "profile",
    "mode",
    "dynamic",
    "fullgraph",
    "autocast",
    "atol",
    "rtol",
    "reference",
    "beyond",
    "seed",
)


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


OPTIONS: dict[str, dataclasses.Field[Any]] = {
    field.name: field for field in dataclasses.fields(CheckOptions) if field.name != "sources"
}
"""The fields of `CheckOptions` that are options, by name."""


def boolean(value: Any, source: str) -> bool:
    """Return `value` as a boolean.

    Raises:
        UsageError: if it is no boolean; the message names `source`.
    """
    try:
        return values.boolean(value)
    except ValueError:
        raise UsageError(f"{source} is {value!r}; accepted: true or false") from None


def validated(name: str, value: Any, source: str) -> Any:
    """Return `value` normalised for option `name`.

    Raises:
        UsageError: if there is no such option or the value is not accepted; the message names `source`.
    """
    if name not in OPTIONS:
        raise UsageError(unknown_name(source, "option", name, OPTIONS))
    metadata = OPTIONS[name].metadata
    try:
        return metadata["accepts"](value)
    except (ValueError, TypeError, OverflowError):
        raise UsageError(f"{source} got {name}={value!r}; accepted: {metadata['expected']}") from None


_MOST_NAMES = 12
"""The most accepted names that a message lists; of more it shows the nearest and the page that lists all."""


def unknown_name(source: str, kind: str, name: str, accepted: Iterable[str]) -> str:
    """Return the message for a name that is not among `accepted`; it suggests the nearest one."""
    accepted = sorted(accepted)
    listed = ", ".join(accepted) or "none"
    if len(accepted) > _MOST_NAMES:
        near = difflib.get_close_matches(name, accepted)
        listed = f"{', '.join(near)}{', and the others in ' if near else 'those in '}{REFERENCE_PAGE}"
    return f"{source} got unknown {kind} {name!r}{suggestion(name, accepted)}; accepted: {listed}"
