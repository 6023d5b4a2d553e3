"""Writes a script of the one graph that differs, as dynamo captured it. The script needs torch only."""

from __future__ import annotations

import textwrap
from typing import Any

import torch
from torch import fx

from pytest_torchcompile.explaining.place import Graph
from pytest_torchcompile.explaining.proof import COMMON, CantWrite, Script, compile_arguments
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.results import Difference
from pytest_torchcompile.runtime.autocast import device_type


def graph_script(
    case: str, graph: Graph, differences: tuple[Difference, ...], options: CheckOptions
) -> Script:
    """Return the script of a graph.

    Args:
        case: the name of the case.
        graph: the graph that differs.
        differences: its differences.
        options: how it was compiled.

    Raises:
        CantWrite: if the graph uses something that can't be saved or imported, or the backend has no name.
    """
    arguments = compile_arguments(options, draws=graph.part.pair.draws)
    for value in graph.arguments.values():
        if not isinstance(value, (torch.Tensor, int, float, bool, type(None))):
            raise CantWrite(f"the graph takes a {type(value).__name__}")
    code = graph.module.graph.python_code("self", verbose=True)
    imports = "\n".join(_import(name, value) for name, value in sorted(code.globals.items()))
    source = _TEMPLATE.format(
        case=case,
        common=COMMON.strip(),
        lines="\n".join(f"    {line}" for line in graph.lines) or "    unknown",
        imports=imports,
        code=textwrap.indent(code.src.strip(), "    "),
        compile=", ".join(f"{name}={value!r}" for name, value in arguments.items()),
        allowed={d.path: d.allowed for d in differences},
        backend=options.backend,
        raises=any(d.problem == "exception" for d in differences),
        phase=graph.part.pair.phase,
        autocast=_autocast(graph, options),
        grads=[bool(getattr(value, "requires_grad", False)) for value in graph.arguments.values()],
        names=[n if n in graph.parameters else f"input {n}" for n in graph.arguments],
        seed=graph.part.seed,
        threads=torch.get_num_threads(),
    )
    return Script(source=source, tensors=_tensors(graph))


def _autocast(graph: Graph, options: CheckOptions) -> str:
    """Return the code of the autocast context, to follow another context in a ``with`` statement."""
    if options.autocast is None:
        return ""
    device = device_type(graph.part.pair.twins.eager)
    return f", torch.autocast({device!r}, dtype=torch.{options.autocast})"


def _import(name: str, value: Any) -> str:
    """Return the line of code that defines a name of the graph's code."""
    if name == "torch":
        return ""
    if isinstance(value, float):
        return f"{name} = float({str(value)!r})"
    if value is type(None):
        return f"{name} = type(None)"
    module, qualname = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    if isinstance(value, type(torch)) and value.__name__.partition(".")[0] == "torch":
        return f"import {value.__name__} as {name}"
    if module.partition(".")[0] in ("torch", "builtins", "math", "operator", "_operator") and qualname:
        return f"from {module} import {qualname} as {name}"
    raise CantWrite(f"the graph uses {name}, which a script can't import")


def _tensors(graph: Graph) -> dict[str, Any]:
    """Return the arguments of the graph and the constants in it."""
    state = {
        node.target: _attribute(graph.module, str(node.target))
        for node in graph.module.graph.nodes
        if node.op == "get_attr"
    }
    args = [
        value.detach() if isinstance(value, torch.Tensor) else value for value in graph.arguments.values()
    ]
    return {"args": args, "constants": state}


def _attribute(module: fx.GraphModule, target: str) -> torch.Tensor:
    value = getattr(module, target, None)
    if not isinstance(value, torch.Tensor):
        raise CantWrite(f"the graph contains {target}, a {type(value).__name__}")
    return value.detach()


_TEMPLATE = '''"""Compiled differs from eager: {case}

Run it: python repro.py. It exits 1 if compiled differs, 0 if it agrees; it needs torch only.
tensors.pt holds the arguments of the graph, environment.txt the versions.
The graph was captured from these lines:
{lines}
"""

import copy
import pathlib
import sys

import torch
{imports}

ALLOWED = {allowed!r}
RAISES = {raises!r}  # whether the difference is an exception
REQUIRES_GRAD = {grads!r}
NAMES = {names!r}


class Graph(torch.nn.Module):
    def __init__(self, constants):
        super().__init__()
        for name, value in constants.items():
            self.register_buffer(name, value)

{code}


def call(function, args):
    """Call the function. Return outputs, arguments and gradients for seeded grad_outputs, by name."""
    args = [
        copy.deepcopy(arg).requires_grad_(grad) if isinstance(arg, torch.Tensor) else arg
        for arg, grad in zip(args, REQUIRES_GRAD)
    ]
    torch.manual_seed({seed})
    with torch.set_grad_enabled({phase!r} == "update"){autocast}:
        outputs = {{f"output[{{i}}]": value for i, value in enumerate(function(*args))}}
    found = {{path: value for path, value in outputs.items() if isinstance(value, torch.Tensor)}}
    roots = [value for _, value in sorted(found.items()) if value.requires_grad and value.is_floating_point()]
    leaves = {{n: a for n, a in zip(NAMES, args) if isinstance(a, torch.Tensor) and a.requires_grad}}
    if {phase!r} == "update" and roots and leaves:
        generator = torch.Generator().manual_seed({seed})
        directions = [torch.randn(root.shape, generator=generator).to(root) for root in roots]
        gradients = torch.autograd.grad(roots, list(leaves.values()), directions, allow_unused=True)
        found |= {{f"gradient of {{n}}": g for n, g in zip(leaves, gradients) if g is not None}}
    found |= {{n: a for n, a in zip(NAMES, args) if isinstance(a, torch.Tensor)}}
    return {{path: value.detach().clone() for path, value in found.items()}}


{common}


def main():
    print("torch", torch.__version__)
    require_known({backend!r})
    torch.set_num_threads({threads})
    saved = torch.load(pathlib.Path(__file__).with_name("tensors.pt"), weights_only=True)
    graph = Graph(saved["constants"])
    eager = call(graph, saved["args"])
    try:
        compiled = call(torch.compile(graph, {compile}), saved["args"])
    except (Exception, SystemExit, GeneratorExit) as error:
        if not RAISES:
            raise
        print(f"compiled raises {{type(error).__name__}}: {{error}}")
        compiled = {{}}
    wrong = [p for p in eager if p in ALLOWED and differs(eager[p], compiled.get(p), ALLOWED[p])]
    if not compiled:
        wrong = list(eager)
    for path in wrong:
        print(path, "eager", eager[path], "compiled", compiled.get(path), sep="\\n")
    print("compiled differs from eager" if wrong else "compiled agrees with eager")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
'''
