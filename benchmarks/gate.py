"""Measures the false alarms and the misses of gates on the speed of a policy, on a shared machine.

    python benchmarks/gate.py

Runs pytest repeatedly on unchanged code, each run under another generated load, and compares each run with
the one before. Then the compiled side is made slower by a known share of its time. In each run three gates
judge the same compiled policies:

* ours, ``--compile-fail-on=speedup:10%``;
* pytest-benchmark's ``--benchmark-compare-fail=mean:10%`` and ``median:10%``, on a benchmark test.

Prints how many of all judgements say that a policy got slower.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
from pytest_benchmark.utils import PercentageRegressionCheck
from timing_truth import POLICIES, load, seconds_of

THRESHOLD = "10%"
LOADS = (0, 1, 2, 4)
"""Processes that compute half of the time: runners differ from run to run."""
SHARES = (0.15, 0.3, 0.6)
FIELDS = ("mean", "median")
HEADER = """
import os

import pytest
import torch
from timing_truth import POLICIES, spinning

from pytest_torchcompile import Box


def compiler(name):
    def compile_slowly(gm, example_inputs):
        return spinning(gm.forward, float(os.environ[f"GATE_EXTRA_S_{name}"]))

    return compile_slowly
"""
TESTS = """

@pytest.mark.compiled_equivalence(
    observation=Box({shape}), phases="rollout", batch={batch}, examples=0, backend=compiler("{name}")
)
def test_ours_{name}():
    return POLICIES["{name}"]()[0]


def test_theirs_{name}(benchmark):
    policy, x = POLICIES["{name}"]()
    compiled = torch.compile(policy, backend=compiler("{name}"))
    with torch.no_grad():
        compiled(x)
        benchmark(compiled, x)
"""


def tests() -> str:
    """A test file in which each policy is judged by both plugins."""
    parts = [HEADER]
    for name, make in POLICIES.items():
        batch, *shape = make()[1].shape
        parts.append(TESTS.format(name=name, batch=batch, shape=tuple(shape)))
    return "".join(parts)


class Project:
    """A directory with the tests, in which pytest runs."""

    def __init__(self, directory: pathlib.Path, seconds: float) -> None:
        self._directory = directory
        self._seconds = seconds
        (directory / "test_gates.py").write_text(tests())

    def run(self, name: str, baseline: str = "", extra_s: dict[str, float] | None = None) -> dict[str, bool]:
        """Run pytest once, keep its reports as `name`, and say which gates find it slower than `baseline`."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(_HERE), os.environ.get("PYTHONPATH", "")]),
            # Threads that wait for each other on a busy machine are another experiment.
            "OMP_NUM_THREADS": "1",
        }
        for policy in POLICIES:
            environment[f"GATE_EXTRA_S_{policy}"] = str((extra_s or {}).get(policy, 0.0))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--compile-check"]
        command += [f"--compile-benchmark-seconds={self._seconds}", f"--compile-report={name}.json"]
        command += [f"--benchmark-json={name}.benchmark.json", f"--benchmark-max-time={self._seconds}"]
        if baseline:
            command += [f"--compile-baseline={baseline}.json", f"--compile-fail-on=speedup:{THRESHOLD}"]
        done = subprocess.run(
            command, cwd=self._directory, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1):
            raise SystemExit(done.stdout + done.stderr)
        return self._judgements(name, baseline) if baseline else {}

    def _judgements(self, name: str, baseline: str) -> dict[str, bool]:
        found = {}
        for case in json.loads((self._directory / f"{name}.json").read_text())["cases"]:
            assert case["verdict"] == "equal", case
            found[f"ours {case['id']}"] = bool(case["regressions"])
        then, now = (self._statistics(run) for run in (baseline, name))
        for test, figures in now.items():
            for field in FIELDS:
                check = PercentageRegressionCheck(field, float(THRESHOLD.rstrip("%")))
                found[f"{field} {test}"] = bool(check.fails(figures, then[test]))
        return found

    def _statistics(self, run: str) -> dict[str, dict[str, float]]:
        entries = json.loads((self._directory / f"{run}.benchmark.json").read_text())["benchmarks"]
        return {entry["fullname"]: entry["stats"] for entry in entries if "test_theirs" in entry["fullname"]}


_HERE = pathlib.Path(__file__).parent


def _slowed(share: float) -> dict[str, float]:
    """Seconds by which each compiled policy is made slower, a share of what it takes."""
    found = {}
    for name, make in POLICIES.items():
        policy, x = make()
        found[name] = share * seconds_of(torch.compile(policy, backend="eager"), x)
    return found


def _tell(title: str, judgements: list[dict[str, bool]]) -> None:
    said: dict[str, list[bool]] = collections.defaultdict(list)
    for judgement in judgements:
        for gate, slower in judgement.items():
            said[gate.partition(" ")[0]].append(slower)
    texts = (f"{gate} {sum(slower)} of {len(slower)}" for gate, slower in said.items())
    print(f"{title}: {', '.join(texts)}", flush=True)


def main() -> None:
    """Print a line for unchanged code and one for each slow-down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=30, help="runs of unchanged code")
    parser.add_argument("--detections", type=int, default=10, help="runs for each slow-down")
    parser.add_argument("--seconds", type=float, default=2.0, help="budget of one timing")
    arguments = parser.parse_args()
    draws = random.Random(0)
    torch.set_num_threads(1)
    extra_s = {share: _slowed(share) for share in SHARES}
    with tempfile.TemporaryDirectory() as directory:
        project = Project(pathlib.Path(directory), arguments.seconds)

        def run(name: str, baseline: str = "", extra_s: dict[str, float] | None = None) -> dict[str, bool]:
            with load(draws.choice(LOADS)):
                return project.run(name, baseline, extra_s)

        run("run-0")
        unchanged = [run(f"run-{i}", f"run-{i - 1}") for i in range(1, arguments.runs + 1)]
        _tell(f"unchanged, {arguments.runs} runs", unchanged)
        for share, extra in extra_s.items():
            found = [
                run("slow", f"run-{draws.randrange(arguments.runs + 1)}", extra)
                for _ in range(arguments.detections)
            ]
            _tell(f"slower by {share:.0%}, {arguments.detections} runs", found)


if __name__ == "__main__":
    main()
