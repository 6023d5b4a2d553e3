"""A pytest plugin that proves a compiled policy computes what the eager one computes.

The public names below are loaded on first use (PEP 562), so that a pytest run without checks does not import
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_torchcompile.check import check_equivalence
    from pytest_torchcompile.deploy import Compilation, compilation_of, compile_checked
    from pytest_torchcompile.direct import CompiledPolicy, assert_equivalent, compile_policy
    from pytest_torchcompile.errors import CompileCheckError, CompileFailed, NotEquivalent, UsageError
    from pytest_torchcompile.generation.strategies import observations
    from pytest_torchcompile.policies.outputs import register_output
    from pytest_torchcompile.results import (
        Capture,
        CheckResult,
        Deviation,
        Difference,
        Explanation,
        Sensitivity,
        Speedup,
        Verdict,
    )
    from pytest_torchcompile.specs.spaces import (
        Box,
        Constant,
        Discrete,
        Flag,
        Image,
        LegalAction,
        LegalMask,
        MultiBinary,
        MultiDiscrete,
        OneHot,
        State,
        Tokens,
        Wrapped,
    )
    from pytest_torchcompile.timing.speed import NotTimed, measure_speedup

__version__ = "0.1.0"

_HOMES = {
    "check": ("check_equivalence",),
    "deploy": ("Compilation", "compilation_of", "compile_checked"),
    "direct": ("CompiledPolicy", "assert_equivalent", "compile_policy"),
    "errors": ("CompileCheckError", "CompileFailed", "NotEquivalent", "UsageError"),
    "policies.outputs": ("register_output",),
    "results": (
        "Capture",
        "CheckResult",
        "Deviation",
        "Difference",
        "Explanation",
        "Sensitivity",
        "Speedup",
        "Verdict",
    ),
    "specs.spaces": (
        "Box",
        "Constant",
        "Discrete",
        "Flag",
        "Image",
        "LegalAction",
        "LegalMask",
        "MultiBinary",
        "MultiDiscrete",
        "OneHot",
        "State",
        "Tokens",
        "Wrapped",
    ),
    "timing.speed": ("NotTimed", "measure_speedup"),
    "generation.strategies": ("observations",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Box",
    "Capture",
    "CheckResult",
    "Compilation",
    "CompileCheckError",
    "CompileFailed",
    "CompiledPolicy",
    "Constant",
    "Deviation",
    "Difference",
    "Discrete",
    "Explanation",
    "Flag",
    "Image",
    "LegalAction",
    "LegalMask",
    "MultiBinary",
    "MultiDiscrete",
    "NotEquivalent",
    "NotTimed",
    "OneHot",
    "Sensitivity",
    "Speedup",
    "State",
    "Tokens",
    "UsageError",
    "Verdict",
    "Wrapped",
    "assert_equivalent",
    "check_equivalence",
    "compilation_of",
    "compile_checked",
    "compile_policy",
    "measure_speedup",
    "observations",
    "register_output",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
