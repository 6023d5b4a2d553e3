"""How the wall time of 12 cases falls with pytest-xdist's workers: ``python benchmarks/workers.py``.

Inductor's cache is empty before each run, or filled by one before (``warm``). Nothing is timed, because
timing takes turns by design. Compile threads are one a process, as the pages advise.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

TEST = """
import pytest
from torch import nn
from pytest_torchcompile import Box

@pytest.mark.parametrize("width", [16, 24, 32, 48, 64, 96])
@pytest.mark.compiled_equivalence(observation=Box((8,)), phases="rollout,update")
def test_policy(width):
    layers = nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4)
    return nn.Sequential(*layers)
"""
OPTIONS = ("--compile-check", "--compile-benchmark-seconds=0", "--compile-examples=10", "-q")


def run(project: pathlib.Path, cache: str, workers: int) -> float:
    """Wall seconds of a run that passes."""
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", *OPTIONS, f"--compile-cache={cache}"]
    began = time.perf_counter()
    subprocess.run(
        [*command, f"-n{workers}"],
        cwd=project,
        env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def main() -> None:
    """Print a line for each number of workers."""
    print(f"12 cases on inductor, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("workers    cold      warm")
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            project = pathlib.Path(folder)
            (project / "test_policy.py").write_text(TEST)
            cold, warm = (run(project, "cache", workers) for _ in range(2))
        print(f"{workers:7d} {cold:6.1f} s  {warm:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
