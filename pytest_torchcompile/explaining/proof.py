"""Writes a proof: a folder with a script that reproduces a difference, its tensors and the environment.

The script does not import this package, nor pytest unless the user's own file does. It is run once, in a
process of its own, to confirm that it reproduces the difference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from typing import Any

import torch

from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.runtime.folders import make_ignored

SCRIPT, TENSORS, ENVIRONMENT, CASE = "repro.py", "tensors.pt", "environment.txt", "case.txt"
DIFFERS = 1
"""The exit status of a script if compiled differs."""


class CantWrite(Exception):
    """Something can't be written as a script; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """A script that reproduces a difference.

    Args:
        source: its source. It exits with `DIFFERS` if compiled differs.
        tensors: the data that it loads: plain containers of tensors and numbers.
    """

    source: str
    tensors: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proof:
    """The folder of a script that was written and run.

    Args:
        folder: the path of the folder.
        confirmed: whether the script reproduced the difference when it was run.
        output: the last line of its output if it did not.
    """

    folder: pathlib.Path
    confirmed: bool
    output: str = ""


def write_proof(parent: pathlib.Path, case: str, script: Script, *, limit_s: float) -> Proof:
    """Write the folder of a case and run its script once.

    Args:
        parent: the folder of all proofs; created if there is none.
        case: the name of the case. An earlier folder of the same case is replaced; other folders are kept.
        script: the script.
        limit_s: seconds after which the script is stopped.
    """
    folder = _folder(parent, case)
    (folder / SCRIPT).write_text(script.source, encoding="utf-8")
    (folder / ENVIRONMENT).write_text(_environment(), encoding="utf-8")
    (folder / CASE).write_text(f"{case}\n", encoding="utf-8")
    torch.save(script.tensors, folder / TENSORS)
    return _run(folder, limit_s)


def _folder(parent: pathlib.Path, case: str) -> pathlib.Path:
    """Create a folder for a case. An earlier one of the same case is deleted."""
    make_ignored(parent)
    name = re.sub(r"[^\w.]+", "-", case).strip("-.")[-100:]
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    for folder in (parent / one for one in itertools.chain([name], numbered)):
        if (folder / CASE).is_file() and (folder / CASE).read_text(encoding="utf-8") == f"{case}\n":
            shutil.rmtree(folder)
        # It may be the user's, or that of another case, which another process has just created.
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _environment() -> str:
    """Describe the versions and the machine for the reader of the proof."""
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
        return Proof(folder=folder, confirmed=False, output=f"it took more than {limit_s:.0f} s")
    if done.returncode == DIFFERS and done.stdout.rstrip().endswith("compiled differs from eager"):
        return Proof(folder=folder, confirmed=True)
    # If it ended normally, stderr has only warnings of torch.
    output = done.stdout if done.returncode == 0 else done.stdout + done.stderr
    last = output.strip().splitlines() or [f"it exits with {done.returncode}"]
    return Proof(folder=folder, confirmed=False, output=last[-1][:200])


# --- what scripts share ---------------------------------------------------------------------------


def compile_arguments(options: CheckOptions, *, draws: bool) -> dict[str, Any]:
    """Return the arguments with which a script calls torch.compile.

    Raises:
        CantWrite: if the backend has no name.
    """
    if not isinstance(options.backend, str):
        raise CantWrite(f"the backend {options.backend_name} has no name by which a script can find it")
    own = options.options
    if any(callable(value) for value in (own or {}).values()):
        raise CantWrite("options holds a function, and a script can't find it")
    if draws and options.backend == "inductor" and options.mode is None:
        # As in the check: without this option inductor draws other random numbers than eager.
        own = {**(own or {}), "fallback_random": True}
    given = {"backend": options.backend, "mode": options.mode, "dynamic": options.dynamic, "options": own}
    return {name: value for name, value in given.items() if value is not None}


COMMON = '''
def require_known(backend):
    """Exit if torch has no such backend: its exception would look like one of compiled code."""
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        sys.exit(f"the backend {backend!r} is registered by a module that this script does not import")


def differs(eager, compiled, allowed):
    """Return whether a tensor differs by more than is allowed."""
    if compiled is None or eager.shape != compiled.shape or eager.dtype != compiled.dtype:
        return True
    if eager.is_complex():
        eager, compiled = torch.view_as_real(eager), torch.view_as_real(compiled)
    mine, theirs = eager.to(torch.float64), compiled.to(torch.float64)
    both = torch.isfinite(mine) & torch.isfinite(theirs)
    odd = ~both & ~((mine == theirs) | (mine.isnan() & theirs.isnan()))
    distance = torch.where(both, (mine - theirs).abs(), 0.0)
    return bool(odd.any()) or bool((distance > allowed).any())
'''
"""Source of the functions that every script has."""
