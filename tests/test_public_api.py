"""The public API: its names, and that importing them costs nothing before they are used."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

import pytest_torchcompile
from pytest_torchcompile.options import OPTIONS

PUBLIC = [
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


def test_the_public_names() -> None:
    """A change here affects users and belongs in the CHANGELOG."""
    assert sorted(pytest_torchcompile.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    value = getattr(pytest_torchcompile, name)
    assert value.__name__ == name
    assert value.__module__.startswith("pytest_torchcompile.")
    assert inspect.getdoc(value)


def test_dir_lists_them() -> None:
    assert set(PUBLIC) <= set(dir(pytest_torchcompile))


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'pytest_torchcompile' has no attribute 'Boks'"):
        pytest_torchcompile.Boks  # noqa: B018


def test_the_version() -> None:
    from importlib.metadata import version

    assert pytest_torchcompile.__version__ == version("pytest-torchcompile")


def test_the_options() -> None:
    """Marker arguments, command line flags and ini settings are generated from these."""
    assert sorted(OPTIONS) == [
        "atol",
        "autocast",
        "backend",
        "batch",
        "benchmark_batch",
        "benchmark_seconds",
        "beyond",
        "copies",
        "dynamic",
        "examples",
        "explain_seconds",
        "fullgraph",
        "isolate",
        "layouts",
        "max_compile_seconds",
        "max_graph_breaks",
        "max_recompiles",
        "max_seconds",
        "min_coverage",
        "min_coverage_work",
        "min_speedup",
        "mode",
        "nonfinite",
        "options",
        "phases",
        "profile",
        "proof",
        "reference",
        "rtol",
        "samples",
        "seed",
        "sensitivity",
        "shrink_seconds",
        "steps",
        "strict",
        "threads",
    ]


def test_the_signatures() -> None:
    """Users write these parameter names in this order."""

    def parameters(name: str) -> list[str]:
        return list(inspect.signature(getattr(pytest_torchcompile, name)).parameters)

    assert parameters("check_equivalence") == [
        "factory",
        "observation",
        "inputs",
        "methods",
        "observe",
        "reset",
        "act",
        "learn",
        "loss",
        "options",
    ]
    assert parameters("compile_policy") == [
        "factory",
        "method",
        "observation",
        "inputs",
        "observe",
        "reset",
        "phase",
        "options",
    ]
    assert parameters("compile_checked") == [
        "policy",
        *parameters("check_equivalence")[1:-1],
        "enabled",
        "fallback",
        "warm_up",
        "options",
    ]
    assert parameters("observations") == ["spec", "batch", "layouts"]
    assert parameters("register_output") == ["type_", "unpack"]
    assert parameters("assert_equivalent") == [
        "eager",
        "compiled",
        "args",
        "phase",
        "atol",
        "rtol",
        "reference",
        "seed",
        "kwargs",
    ]
    assert parameters("measure_speedup") == [
        "eager",
        "compiled",
        "args",
        "phase",
        "seconds",
        "min_speedup",
        "kwargs",
    ]
    assert parameters("Box") == [
        *("shape", "low", "high", "dtype", "requires_grad", "per_step", "batch_dim"),
    ]
    assert parameters("State") == ["shape", "batch_dim", "dtype", "per_step"]


def test_the_verdicts() -> None:
    verdicts = {verdict.value: verdict.passed for verdict in pytest_torchcompile.Verdict}
    assert verdicts == {
        "equal": True,
        "within rounding": True,
        "differs": False,
        "not compiled": False,
        "compile failed": False,
        "eager failed": False,
        "skipped": False,
        "crashed": False,
    }


def test_the_errors_have_one_base() -> None:
    base = pytest_torchcompile.CompileCheckError
    for name in ("CompileFailed", "NotEquivalent", "NotTimed", "UsageError"):
        assert issubclass(getattr(pytest_torchcompile, name), base)
    assert issubclass(pytest_torchcompile.NotEquivalent, AssertionError)


def test_the_fields_of_a_result() -> None:
    """The schema of the records that reports, JUnit and pytest-xdist carry."""
    assert [field.name for field in dataclasses.fields(pytest_torchcompile.CheckResult)] == [
        "method",
        "phase",
        "verdict",
        "reason",
        "examples",
        "attempts",
        "rounding",
        "worst",
        "differences",
        "example",
        "capture",
        "notes",
        "remarks",
        "backend",
        "speedup",
        "untimed",
        "explanation",
        "exceeded",
        "settings",
        "sensitivity",
        "regressions",
        "baseline",
        "held",
        "deviations",
    ]


def test_a_result_is_plain_data() -> None:
    import json

    from pytest_torchcompile import Box, check_equivalence

    def factory() -> object:
        from torch import nn

        return nn.Linear(8, 4)

    (result,) = check_equivalence(
        factory, observation=Box((8,)), phases="rollout", backend="eager", examples=0, benchmark_seconds=0.1
    )
    assert json.loads(json.dumps(result.as_dict()))["verdict"] == "equal"
    assert all(isinstance(value, str | int | float) for value in result.row().values())
    assert result.case == "forward-rollout"


# --- what it costs --------------------------------------------------------------------------------


def run(script: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120)


def test_importing_the_package_imports_no_torch() -> None:
    run(
        "import sys, pytest_torchcompile\n"
        "assert pytest_torchcompile.__all__\n"
        "loaded = {'torch', 'numpy', 'hypothesis'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )


def test_specs_and_results_import_no_torch() -> None:
    """Test modules build specs during collection, which has to be fast."""
    run(
        "import sys\n"
        "from pytest_torchcompile import Box, Discrete, LegalMask, Verdict, CheckResult, UsageError\n"
        "Box((8,)), Box((8,), low=0, high=1), LegalMask(4)\n"
        "loaded = {'torch', 'hypothesis'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )


def test_what_needs_torch_loads_it_on_first_use() -> None:
    run(
        "import sys, warnings\n"
        "import pytest_torchcompile\n"
        "assert 'torch' not in sys.modules\n"
        "warnings.simplefilter('ignore')\n"
        "pytest_torchcompile.check_equivalence\n"
        "assert 'torch' in sys.modules\n"
        "assert 'check_equivalence' in vars(pytest_torchcompile), 'found at once the next time'\n"
    )


def test_star_import_gives_the_public_names() -> None:
    run(
        "import warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from pytest_torchcompile import *\n"
        f"missing = set({PUBLIC!r}) - set(globals())\n"
        "assert not missing, missing\n"
    )


def test_the_library_does_not_need_pytest() -> None:
    """A notebook has no pytest, and the library never imports it."""
    run(
        "import sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "sys.modules['pytest'] = sys.modules['_pytest'] = None\n"
        "from torch import nn\n"
        "from pytest_torchcompile import Box, check_equivalence, compile_policy, assert_equivalent\n"
        "results = check_equivalence(lambda: nn.Linear(8, 4), observation=Box((8,)), backend='eager', examples=2)\n"
        "assert all(result.verdict.passed for result in results)\n"
    )
