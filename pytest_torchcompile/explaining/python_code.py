"""Finds what in a policy's Python code makes compiled a different program, if dynamo is the stage at fault.

A cause is told only if it was shown: by compiling without it, or by what each side drew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Iterable, Iterator, Sequence

from pytest_torchcompile import internals
from pytest_torchcompile.checking.executed import drawing_lines, functions_run
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.explaining.subjects import Subject
from pytest_torchcompile.generation.recipes import Recipe
from pytest_torchcompile.options import GUARD_FILTER, CheckOptions
from pytest_torchcompile.results import Difference
from pytest_torchcompile.texts import line_of, some


@dataclasses.dataclass(frozen=True, kw_only=True)
class PythonCause:
    """What makes compiled a different program.

    Args:
        place: the lines, and what is on them.
        lines: ``file:line`` of each.
        advice: what to write instead.
    """

    place: str
    lines: tuple[str, ...]
    advice: str


def constant_results(case: Subject, options: CheckOptions, pair: Pair, recipe: Recipe) -> PythonCause | None:
    """Return the functions under ``assume_constant_result``, if the case agrees without that.

    Args:
        case: the case that differs.
        options: options under which it differs.
        pair: its two sides.
        recipe: an example.
    """
    marked = internals.constant_results(functions_run(pair, recipe))
    if not marked:
        return None

    @contextlib.contextmanager
    def unmarked() -> Iterator[None]:
        with internals.without_constant_results(marked):
            yield

    if case.differences(options, unmarked):
        return None
    lines, names = _lines_and_names(marked)
    left = pair.capture.left_eager
    reads = f", and no graph takes {some(left)}" if left else ""
    return PythonCause(
        place=f"{some(lines)}, where torch._dynamo.assume_constant_result makes compiled keep the first "
        f"value of {names}{reads}",
        lines=lines,
        advice=f"drop assume_constant_result from {names} ({some(lines)}): tried, this example then agrees",
    )


def dropped_guards(case: Subject, options: CheckOptions) -> PythonCause | None:
    """Return the user's guard filter, if the case agrees with all guards."""
    own = dict(options.options or {})
    filter_ = own.pop(GUARD_FILTER, None)
    if filter_ is None or case.differences(dataclasses.replace(options, options=own or None)):
        return None
    name = getattr(filter_, "__name__", repr(filter_))
    return PythonCause(
        place=f"the guards that options={{{GUARD_FILTER!r}: {name}}} drops: compiled keeps values that have "
        f"changed since it was compiled",
        lines=(),
        advice=f"keep the guards on what changes, or drop {GUARD_FILTER}: tried, this example then agrees",
    )


def functions_in_graph(
    case: Subject, options: CheckOptions, pair: Pair, recipe: Recipe
) -> PythonCause | None:
    """Return the functions under ``allow_in_graph`` or ``nonstrict_trace``, if the case agrees without that.

    Dynamo does not look into them, so nothing guards what they read besides their arguments.

    Args:
        case: the case that differs.
        options: options under which it differs.
        pair: its two sides.
        recipe: an example.
    """
    allowed = internals.functions_in_graph(functions_run(pair, recipe))
    if not allowed:
        return None
    if case.differences(options, lambda: internals.without_functions_in_graph(allowed)):
        return None
    lines, names = _lines_and_names(allowed)
    return PythonCause(
        place=f"{some(lines)}: {names} runs only while torch traces (torch.compiler.allow_in_graph or "
        f"nonstrict_trace), and compiled keeps what it read then besides its arguments",
        lines=lines,
        advice=f"pass what changes to {names} as an argument, as a tensor if it is a number: with dynamo "
        f"looking into {names}, this example agrees",
    )


def _lines_and_names(functions: Sequence[types.FunctionType]) -> tuple[tuple[str, ...], str]:
    """Return ``file:line`` of each function, and the names of the first few."""
    codes = [internals.code_of(function) for function in functions]
    lines = tuple(line_of(code.co_filename, code.co_firstlineno) for code in codes)
    return lines, some(function.__name__ for function in functions)


def foreign_numbers(pair: Pair, recipe: Recipe, differences: Iterable[Difference]) -> PythonCause | None:
    """Return the lines that draw from Python's or NumPy's generator, if only one side drew from it."""
    for generator, module in (("numpy", "numpy.random"), ("python", "random")):
        if any(d.path == f"random state of {generator}" for d in differences):
            lines = drawing_lines(pair, recipe, generator)
            if lines:
                where = some(lines)
                return PythonCause(
                    place=f"{where}, where eager draws from {module} and compiled does not draw the same",
                    lines=lines,
                    advice=f"draw these numbers from torch's generator (torch.rand, torch.randn), or pass "
                    f"them in as an input ({where})",
                )
    return None
