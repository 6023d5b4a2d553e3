"""A difference as a folder that can be handed over: a script, its tensors, the environment.

The script needs torch and nothing else: it is the one graph that differs, as dynamo captured it, with
the tensors that it was called with. It is run once, in a process of its own, before it is offered.
"""

from __future__ import annotations

import dataclasses
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from typing import Any

import torch
from torch import fx

from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.place import Graph
from pytest_torchcompile.results import Difference

SCRIPT, TENSORS, ENVIRONMENT, CASE = "repro.py", "tensors.pt", "environment.txt", "case.txt"
DIFFERS = 1
"""The exit status of a script whose compiled graph differs."""


class CantWrite(Exception):
    """A graph can't be written as a script; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proof:
    """What was written.

    Args:
        folder: where to.
        confirmed: whether the script, run once, showed the difference.
        said: the last line of what it said, where it did not.
    """

    folder: pathlib.Path
    confirmed: bool
    said: str = ""


def write_proof(
    parent: pathlib.Path,
    case: str,
    graph: Graph,
    differences: tuple[Difference, ...],
    options: CheckOptions,
    *,
    limit_s: float,
) -> Proof:
    """Write the folder of a case and run its script once.

    Args:
        parent: folder of all proofs; made if there is none.
        case: names the case; a folder of the same case is replaced, any other one is left alone.
        graph: the graph that differs.
        differences: what of it.
        options: how it was compiled.
        limit_s: seconds that the script may take.

    Raises:
        CantWrite: if the graph refers to what can't be saved, or the backend has no name.
    """
    if not isinstance(options.backend, str):
        raise CantWrite(f"the backend {options.backend_name} has no name by which a script could find it")
    source = _script(case, graph, differences, options)
    folder = _folder(parent, case)
    (folder / SCRIPT).write_text(source, encoding="utf-8")
    (folder / ENVIRONMENT).write_text(_environment(), encoding="utf-8")
    (folder / CASE).write_text(f"{case}\n", encoding="utf-8")
    torch.save(_tensors(graph), folder / TENSORS)
    return _run(folder, limit_s)


def _folder(parent: pathlib.Path, case: str) -> pathlib.Path:
    """A new folder for a case; an earlier one of the same case is deleted."""
    name = re.sub(r"[^\w.]+", "-", case).strip("-.")[-100:]
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            break
        if (folder / CASE).is_file() and (folder / CASE).read_text(encoding="utf-8") == f"{case}\n":
            shutil.rmtree(folder)
            break
        number += 1
    if not parent.exists():
        parent.mkdir(parents=True, exist_ok=True)
        (parent / ".gitignore").write_text("*\n", encoding="utf-8")
    folder.mkdir()
    return folder


def _tensors(graph: Graph) -> dict[str, Any]:
    """What the graph is called with, and the constants inside it."""
    state = {
        node.target: _attribute(graph.module, str(node.target))
        for node in graph.module.graph.nodes
        if node.op == "get_attr"
    }
    args = [value.detach() if isinstance(value, torch.Tensor) else value for value in graph.part.args]
    return {"args": args, "constants": state}


def _attribute(module: fx.GraphModule, target: str) -> torch.Tensor:
    value = getattr(module, target, None)
    if not isinstance(value, torch.Tensor):
        raise CantWrite(f"the graph contains {target}, a {type(value).__name__}")
    return value.detach()


def _script(case: str, graph: Graph, differences: tuple[Difference, ...], options: CheckOptions) -> str:
    """The source of the script.

    Raises:
        CantWrite: if the graph's code uses objects that a script can't import.
    """
    for value in graph.part.args:
        if not isinstance(value, (torch.Tensor, int, float, bool, type(None))):
            raise CantWrite(f"the graph takes a {type(value).__name__}")
    _tensors(graph)
    code = graph.module.graph.python_code("self", verbose=True)
    imports = "\n".join(_import(name, value) for name, value in sorted(code.globals.items()))
    own = options.options
    if graph.part.pair.draws and options.backend == "inductor" and options.mode is None:
        # As in the check: inductor draws other numbers than eager unless it is told not to.
        own = {**(own or {}), "fallback_random": True}
    compile_ = {"backend": options.backend, "mode": options.mode, "dynamic": options.dynamic, "options": own}
    said = {name: value for name, value in compile_.items() if value is not None}
    return _TEMPLATE.format(
        case=case,
        lines="\n".join(f"    {line}" for line in graph.lines) or "    unknown",
        imports=imports,
        code=textwrap.indent(code.src.strip(), "    "),
        compile=", ".join(f"{name}={value!r}" for name, value in said.items()),
        allowed={d.path: d.allowed for d in differences},
        phase=graph.part.pair.phase,
        grads=[bool(getattr(value, "requires_grad", False)) for value in graph.part.args],
        names=list(graph.part.names),
        seed=graph.part.seed,
        threads=torch.get_num_threads(),
    )


def _import(name: str, value: Any) -> str:
    """The line that gives a name of the graph's code its value."""
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


def _environment() -> str:
    """What a reader of the proof may want to know of the machine."""
    return "\n".join(
        [
            f"torch {torch.__version__}, python {platform.python_version()}, {platform.platform()}",
            f"processor {platform.processor() or platform.machine()}, "
            f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
            "",
            torch.__config__.show(),
            torch.__config__.parallel_info(),
        ]
    )


def _run(folder: pathlib.Path, limit_s: float) -> Proof:
    """Run the script of a folder once."""
    command = [sys.executable, SCRIPT]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Proof(folder=folder, confirmed=False, said=f"it took more than {limit_s:.0f} s")
    if done.returncode == DIFFERS and done.stdout.rstrip().endswith("compiled differs from eager"):
        return Proof(folder=folder, confirmed=True)
    last = (done.stdout + done.stderr).strip().splitlines() or [f"it exits {done.returncode}"]
    return Proof(folder=folder, confirmed=False, said=last[-1][:200])


_TEMPLATE = '''"""Compiled differs from eager: {case}

Run it: python repro.py. It exits 1 if compiled differs, 0 if it agrees; it needs torch only.
tensors.pt holds what the graph was called with; environment.txt the versions.
The graph is of these lines:
{lines}
"""

import copy
import pathlib
import sys

import torch
{imports}

ALLOWED = {allowed!r}
REQUIRES_GRAD = {grads!r}
NAMES = {names!r}


class Graph(torch.nn.Module):
    def __init__(self, constants):
        super().__init__()
        for name, value in constants.items():
            self.register_buffer(name, value)

{code}


def call(function, args):
    """What a call leaves behind: outputs, arguments, gradients under seeded grad_outputs."""
    args = [
        copy.deepcopy(arg).requires_grad_(grad) if isinstance(arg, torch.Tensor) else arg
        for arg, grad in zip(args, REQUIRES_GRAD)
    ]
    torch.manual_seed({seed})
    with torch.set_grad_enabled({phase!r} == "update"):
        outputs = {{f"output[{{i}}]": value for i, value in enumerate(function(*args))}}
    found = {{path: value for path, value in outputs.items() if isinstance(value, torch.Tensor)}}
    roots = [value for _, value in sorted(found.items()) if value.requires_grad and value.is_floating_point()]
    leaves = {{n: a for n, a in zip(NAMES, args) if isinstance(a, torch.Tensor) and a.requires_grad}}
    if {phase!r} == "update" and roots and leaves:
        generator = torch.Generator().manual_seed({seed})
        directions = [torch.randn(root.shape, generator=generator).to(root) for root in roots]
        gradients = torch.autograd.grad(roots, list(leaves.values()), directions, allow_unused=True)
        found |= {{f"gradient of input {{n}}": g for n, g in zip(leaves, gradients) if g is not None}}
    found |= {{f"input {{n}}": a for n, a in zip(NAMES, args) if isinstance(a, torch.Tensor)}}
    return {{path: value.detach().clone() for path, value in found.items()}}


def differs(eager, compiled, allowed):
    """Whether a tensor differs by more than was allowed to it."""
    if compiled is None or eager.shape != compiled.shape or eager.dtype != compiled.dtype:
        return True
    if eager.is_complex():
        eager, compiled = torch.view_as_real(eager), torch.view_as_real(compiled)
    mine, theirs = eager.to(torch.float64), compiled.to(torch.float64)
    both = torch.isfinite(mine) & torch.isfinite(theirs)
    odd = ~both & ~((mine == theirs) | (mine.isnan() & theirs.isnan()))
    distance = torch.where(both, (mine - theirs).abs(), 0.0)
    return bool(odd.any()) or bool((distance > allowed).any())


def main():
    print("torch", torch.__version__)
    torch.set_num_threads({threads})
    saved = torch.load(pathlib.Path(__file__).with_name("tensors.pt"), weights_only=True)
    graph = Graph(saved["constants"])
    eager = call(graph, saved["args"])
    try:
        compiled = call(torch.compile(graph, {compile}), saved["args"])
    except Exception as error:
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
