"""How wall time falls with pytest-xdist's workers, by project: ``python benchmarks/workers.py``.

Inductor's cache, with its precompiled headers, is empty before each run, or filled by one before (``warm``).
Nothing is timed, because timing takes turns by design. Each process has one compile thread, as the pages
advise.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

HEADER = """
import pytest
from torch import nn
from pytest_torchcompile import Box
"""
PROJECTS = {
    "12 cases of six MLPs": """
@pytest.mark.parametrize("width", [16, 24, 32, 48, 64, 96])
@pytest.mark.compiled_equivalence(observation=Box((8,)), phases="rollout,update", examples=10)
def test_policy(width):
    layers = nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4)
    return nn.Sequential(*layers)
""",
    # The CNN of cost.py, under the default profile.
    "3 cases of a CNN": """
@pytest.mark.compiled_equivalence(observation=Box((3, 8, 8)))
def test_policy():
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 6)
    return nn.Sequential(*layers)
""",
}
OPTIONS = ("--compile-check", "--compile-benchmark-seconds=0", "-q")


def run(project: pathlib.Path, workers: int) -> float:
    """Wall seconds of a run that passes."""
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", *OPTIONS, "--compile-cache=cache"]
    # Inductor keeps its precompiled headers in the temporary directory, whatever its cache.
    own = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(project)}
    began = time.perf_counter()
    subprocess.run(
        [*command, f"-n{workers}"],
        cwd=project,
        env={**os.environ, **own},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def main() -> None:
    """Print a line for each project and number of workers."""
    print(f"inductor, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("project               workers    cold      warm")
    for name, source in PROJECTS.items():
        for workers in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                project = pathlib.Path(folder)
                (project / "test_policy.py").write_text(HEADER + source)
                cold, warm = (run(project, workers) for _ in range(2))
            print(f"{name:21} {workers:7d} {cold:6.1f} s  {warm:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
