"""Wrap every private name of torch that this project uses in a function with a public meaning.

Torch has no public way to see which tensors a captured graph takes, why a graph broke, or whether an
exception comes from the compiler. If a torch release changes one of these names, ``tests/test_internals.py``
fails and only this folder has to change.

Written for torch 2.9 to 2.15. Other folders import this package and not its modules.
"""

from pytest_torchcompile.internals.compiled import (
    COMPILED_MARKS,
    compiled_owner,
    eager_call,
    is_compiled,
    module_of,
    owner_of,
    set_compiled_call,
    uncompiled,
)
from pytest_torchcompile.internals.events import (
    CompileEvent,
    cached_graph_count,
    compile_events,
    compile_seconds,
    graph_break_count,
    graph_breaks,
    recompile_reasons,
)
from pytest_torchcompile.internals.failures import (
    compiler_stack,
    inner_error,
    is_compilers_code,
    is_configuration_error,
    is_users_code,
    running_users_line,
)
from pytest_torchcompile.internals.graphs import GraphCall, compiled_code_run, graphs_run, user_line
from pytest_torchcompile.internals.isolated import end_isolation, isolated_compile
from pytest_torchcompile.internals.operators import (
    aliased_arguments,
    argument,
    decomposition,
    draws_random_numbers,
    is_pointwise,
    returns_view,
    written_arguments,
)
from pytest_torchcompile.internals.settings import (
    allowed_rnns,
    argument_validation,
    backend_function,
    eager_random_numbers,
    fresh_compile_cache,
    ignores_late_hooks,
    inductor_settings,
    kernels_for_one_thread,
    known_inductor_options,
    known_modes,
    quiet_trace_log,
    raised_recompile_limit,
    recompile_limit,
    set_argument_validation,
    why_disabled,
)
from pytest_torchcompile.internals.steps import CompilerStep, compiler_steps
from pytest_torchcompile.internals.tensors import (
    DispatchMode,
    fake_tensors,
    has_history,
    hides_elements,
    in_backward,
    inner_tensors,
    inverted_transform,
    storage_key,
)

__all__ = [
    "COMPILED_MARKS",
    "CompileEvent",
    "CompilerStep",
    "DispatchMode",
    "GraphCall",
    "aliased_arguments",
    "allowed_rnns",
    "argument",
    "argument_validation",
    "backend_function",
    "cached_graph_count",
    "compile_events",
    "compile_seconds",
    "compiled_code_run",
    "compiled_owner",
    "compiler_stack",
    "compiler_steps",
    "decomposition",
    "draws_random_numbers",
    "eager_call",
    "eager_random_numbers",
    "end_isolation",
    "fake_tensors",
    "fresh_compile_cache",
    "graph_break_count",
    "graph_breaks",
    "graphs_run",
    "has_history",
    "hides_elements",
    "ignores_late_hooks",
    "in_backward",
    "inductor_settings",
    "inner_error",
    "inner_tensors",
    "inverted_transform",
    "is_compiled",
    "is_compilers_code",
    "is_configuration_error",
    "is_pointwise",
    "is_users_code",
    "isolated_compile",
    "kernels_for_one_thread",
    "known_inductor_options",
    "known_modes",
    "module_of",
    "owner_of",
    "quiet_trace_log",
    "raised_recompile_limit",
    "recompile_limit",
    "recompile_reasons",
    "returns_view",
    "running_users_line",
    "set_argument_validation",
    "set_compiled_call",
    "storage_key",
    "uncompiled",
    "user_line",
    "why_disabled",
    "written_arguments",
]
