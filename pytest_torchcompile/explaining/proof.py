"""A difference as a folder that can be handed over: a script, its tensors, the environment.

The script needs nothing of ours, and no pytest unless the user's own file does. It is run once, in a
process of its own, before it is offered.
"""

from __future__ import annotations

import dataclasses
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from typing import Any

import torch

from pytest_torchcompile.options import CheckOptions

SCRIPT, TENSORS, ENVIRONMENT, CASE = "repro.py", "tensors.pt", "environment.txt", "case.txt"
DIFFERS = 1
"""The exit status of a script whose compiled side differs."""


class CantWrite(Exception):
    """Something can't be written as a script; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """A script that shows a difference.

    Args:
        source: of the script, which exits `DIFFERS` if it does.
        tensors: what it loads, plain containers of tensors and numbers.
    """

    source: str
    tensors: dict[str, Any]


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


def write_proof(parent: pathlib.Path, case: str, script: Script, *, limit_s: float) -> Proof:
    """Write the folder of a case and run its script once.

    Args:
        parent: folder of all proofs; made if there is none.
        case: names the case; a folder of the same case is replaced, any other one is left alone.
        script: shows the difference.
        limit_s: seconds that the script may take.
    """
    folder = _folder(parent, case)
    (folder / SCRIPT).write_text(script.source, encoding="utf-8")
    (folder / ENVIRONMENT).write_text(_environment(), encoding="utf-8")
    (folder / CASE).write_text(f"{case}\n", encoding="utf-8")
    torch.save(script.tensors, folder / TENSORS)
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
    # Where it came to its end, stderr has but warnings of torch's.
    said = done.stdout if done.returncode == 0 else done.stdout + done.stderr
    last = said.strip().splitlines() or [f"it exits {done.returncode}"]
    return Proof(folder=folder, confirmed=False, said=last[-1][:200])


# --- what scripts share ---------------------------------------------------------------------------


def compile_arguments(options: CheckOptions, *, draws: bool) -> dict[str, Any]:
    """How a script calls torch.compile.

    Raises:
        CantWrite: if the backend has no name.
    """
    if not isinstance(options.backend, str):
        raise CantWrite(f"the backend {options.backend_name} has no name by which a script could find it")
    own = options.options
    if draws and options.backend == "inductor" and options.mode is None:
        # As in the check: inductor draws other numbers than eager unless it is told not to.
        own = {**(own or {}), "fallback_random": True}
    said = {"backend": options.backend, "mode": options.mode, "dynamic": options.dynamic, "options": own}
    return {name: value for name, value in said.items() if value is not None}


COMMON = '''
def require_known(backend):
    """Exit if torch has no such backend, whose exception would pass for one of compiled code."""
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        sys.exit(f"the backend {backend!r} is registered by a module that this script does not import")


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
'''
"""Source of what every script does."""
