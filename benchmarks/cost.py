"""What a check costs beyond the calls that it has to make.

    python benchmarks/cost.py

For an MLP, a CNN and a Keisei-style tower: the wall time of a whole check (timing off) in a process of its
own, over that of a plain script that imports torch, compiles the same method, and makes the same calls,
eager and compiled, on inputs of the same sizes; with a cold and with a warm inductor cache. Then what the
lifecycle adds, the seconds of each profile, the seconds of an example beyond its calls, graphs by the number
of examples, the start of an idle pytest, and the memory of a check of 50 million parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from pytest_torchcompile.options import PROFILES

POLICIES = {
    "mlp": "nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))",
    "cnn": "nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), "
    "nn.Linear(256, 6))",
    "tower": "Tower()",
}
SHAPES = {"mlp": (8,), "cnn": (3, 8, 8), "tower": (46, 9, 9)}

HEADER = """
import sys, time
begin = time.perf_counter()
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64),
        )
    def forward(self, x): return torch.relu(x + self.body(x))

class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(46, 64, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))
        self.policy, self.value = nn.Linear(64 * 81, 2000), nn.Linear(64 * 81, 1)
    def forward(self, x):
        x = self.blocks(torch.relu(self.stem(x))).flatten(1)
        return self.policy(x), self.value(x)
"""

# The calls of the floor are those that a check made, in their order: shape, layout and dtype of the input, on
# which the graphs depend, and the side. Both sides reject the last few, which are wrong.
FLOOR = """
import json
calls = json.loads(sys.argv[1])
torch.manual_seed(0)
eager, compiled = {policy}, {policy}
compiled.load_state_dict(eager.state_dict())
function = torch.compile(compiled)
update = {update}
for model in (eager, compiled): model.train(update)

def call(f, model, x):
    with torch.set_grad_enabled(update):
        outputs = f(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if update:
        torch.autograd.grad(outputs, list(model.parameters()), [torch.ones_like(o) for o in outputs])

for shape, strides, offset, dtype, side in calls:
    span = offset + sum(stride * (size - 1) for stride, size in zip(strides, shape)) + 1
    x = torch.randn(span, dtype=getattr(torch, dtype)).as_strided(shape, strides, offset)
    try: call(*((eager, eager) if side == "eager" else (function, compiled)), x)
    except Exception: assert shape[1:] != list({shape}) or dtype != "float32"
print(time.perf_counter() - begin)
"""

CHECK = """
import json
from pytest_torchcompile import Box, check_equivalence
from pytest_torchcompile.policies import calls
made = []
original = calls.Side.call
def noting(self, args, kwargs, **more):
    side = "compiled" if self.function is not self.model else "eager"
    outcome = original(self, args, kwargs, **more)
    # What is not rejected runs in the module's own dtype here: the float64 reference is the check's cost.
    x = args[0]
    dtype = str(x.dtype).removeprefix("torch.") if outcome.error else "float32"
    made.append((tuple(x.shape), x.stride(), x.storage_offset(), dtype, side))
    return outcome
calls.Side.call = noting
(result,) = check_equivalence(
    lambda: {policy}, observation=Box({shape}), phases="{phase}", examples={examples}
)
seconds = time.perf_counter() - begin
assert result.verdict.passed, result
print(seconds, result.capture.graphs, result.examples, json.dumps(made), sep="\\t")
"""


def _run(code: str, cache: str, *arguments: str, **variables: str) -> str:
    # Inductor keeps its precompiled headers in the temporary directory, whatever its cache.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": cache, **variables}
    command = [sys.executable, "-c", HEADER + code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[-1]


def wall_times(runs: int) -> None:
    """Check over floor, cold once and warm `runs` times, in turns."""
    print("policy phase   cache   check s   floor s   ratio  examples  eager and compiled calls  graphs")
    for name, policy in POLICIES.items():
        for phase in ("rollout", "update"):
            names = {"policy": policy, "shape": SHAPES[name], "phase": phase, "update": phase == "update"}
            check, floor = CHECK.format(**names, examples=50), FLOOR.format(**names)
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
                seconds, graphs, examples, calls = _run(check, one).split("\t")
                cold = float(seconds), float(_run(floor, two, calls))
                pairs = [
                    (float(_run(check, one).split("\t")[0]), float(_run(floor, two, calls)))
                    for _ in range(runs)
                ]
            warm = tuple(statistics.median(side) for side in zip(*pairs, strict=True))
            for cache, (ours, theirs) in (("cold", cold), ("warm", warm)):
                print(
                    f"{name:6} {phase:7} {cache:6} {ours:8.2f} {theirs:9.2f} {ours / theirs:7.2f} "
                    f"{examples:>9} {len(json.loads(calls)):>16} {graphs:>16}",
                    flush=True,
                )


EXAMPLE = """
from pytest_torchcompile import Box, check_equivalence
from pytest_torchcompile.policies import calls
inside = 0.0
original = calls.Side.call
def timed(self, args, kwargs, **more):
    function = self.function
    def noting(*args, **kwargs):
        global inside
        begin = time.perf_counter()
        try: return function(*args, **kwargs)
        finally: inside += time.perf_counter() - begin
    self.function = noting
    try: return original(self, args, kwargs, **more)
    finally: self.function = function
calls.Side.call = timed
def run(examples):
    global inside
    begin, inside = time.perf_counter(), 0.0
    (result,) = check_equivalence(
        lambda: {policy}, observation=Box({shape}), phases="rollout", examples=examples
    )
    return time.perf_counter() - begin - inside, result.examples, result.capture.graphs
run(5)
less, few, graphs = run(50)
more, many, more_graphs = run(450)
print((more - less) / (many - few) * 1e3, few, graphs, many, more_graphs)
"""


LIFECYCLE = """
from pytest_torchcompile import Box, check_equivalence
def seconds(*phases):
    begin = time.perf_counter()
    for phase in phases:
        torch.compiler.reset()
        (result,) = check_equivalence(lambda: {policy}, observation=Box({shape}), phases=phase)
        assert result.verdict.passed, result
    return time.perf_counter() - begin
phases = ("rollout", "update")
seconds(*phases, "lifecycle")
print(*(s for _ in range({runs}) for s in (seconds(*phases), seconds("lifecycle"))))
"""


def lifecycle(runs: int) -> None:
    """What the lifecycle adds to a check of both phases, warm, in turns within one process."""
    for name, policy in POLICIES.items():
        with tempfile.TemporaryDirectory() as cache:
            code = LIFECYCLE.format(policy=policy, shape=SHAPES[name], runs=runs)
            found = [float(text) for text in _run(code, cache).split()]
        phases, life = found[::2], found[1::2]
        ratios = sorted((one + other) / one for one, other in zip(phases, life, strict=True))
        print(
            f"{name}: phases {statistics.median(phases):.1f} s, lifecycle {statistics.median(life):.1f} s, "
            f"both over the phases {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


PROFILE = """
from pytest_torchcompile import Box, check_equivalence
results = check_equivalence(lambda: {policy}, observation=Box({shape}), profile="{profile}")
assert all(result.verdict.passed for result in results), results
graphs = sum(result.capture.graphs for result in results)
print(time.perf_counter() - begin, graphs, sum(result.examples for result in results))
"""


# What a user runs without us to see that a policy compiles: one step of training, on one batch.
PLAIN = """
model = torch.compile({policy})
model(torch.rand(4, *{shape})).sum().backward()
print(time.perf_counter() - begin, "-", "-")
"""


def profiles(runs: int) -> None:
    """Seconds of a check of all phases under each profile, import included: cold once, warm `runs` times.

    Beside them, a plain script that compiles forward and backward once.
    """
    print("policy profile    cold s   warm s  cold over plain  graphs  examples")
    for name in ("mlp", "cnn"):
        plain = None
        for profile in ("plain", *PROFILES):
            code = PLAIN if profile == "plain" else PROFILE
            code = code.format(policy=POLICIES[name], shape=SHAPES[name], profile=profile)
            with tempfile.TemporaryDirectory() as cache:
                cold, graphs, examples = _run(code, cache).split()
                warm = statistics.median(float(_run(code, cache).split()[0]) for _ in range(runs))
            plain = plain or float(cold)
            print(
                f"{name:6} {profile:9} {float(cold):7.1f} {warm:8.1f} {float(cold) / plain:16.2f} "
                f"{graphs:>7} {examples:>9}",
                flush=True,
            )


def per_example(runs: int) -> None:
    """Seconds of an example beyond its calls, and graphs by the number of examples, on the small CNN."""
    with tempfile.TemporaryDirectory() as cache:
        code = EXAMPLE.format(policy=POLICIES["cnn"], shape=SHAPES["cnn"])
        found = [_run(code, cache).split() for _ in range(runs)]
    spent = sorted(float(one[0]) for one in found)
    _, few, graphs, many, more_graphs = found[0]
    print(
        f"beyond the calls of an example (cnn, rollout): median {statistics.median(spent):.2f} ms of {runs} "
        f"runs, {spent[0]:.2f} to {spent[-1]:.2f}"
    )
    print(f"graphs with {few} examples: {graphs}, with {many}: {more_graphs}")


def idle(runs: int) -> None:
    """Pytest with us and without: in an empty folder, and with 1,000 marked tests, deselected and skipped.

    A marked test is three cases, an item of pytest's each; without us it is parametrized to as many.
    """
    marked = "@pytest.mark.compiled_equivalence(observation=(8,))\ndef test_{}(): pass\n"
    plain = "@pytest.mark.skip\n@pytest.mark.parametrize('phase', PHASES)\ndef test_{}(phase): pass\n"
    start = "import pytest\nPHASES = 'rollout', 'update', 'lifecycle'\n"
    file, other = (start + "".join(map(test.format, range(1000))) for test in (marked, plain))
    for title, arguments in (
        ("empty folder", ["--collect-only"]),
        ("1,000 marked tests, deselected", ["-k", "nothing"]),
        ("1,000 marked tests, skipped", []),
    ):
        with tempfile.TemporaryDirectory() as with_us, tempfile.TemporaryDirectory() as without:
            if title != "empty folder":
                pathlib.Path(with_us, "test_marked.py").write_text(file)
                pathlib.Path(without, "test_marked.py").write_text(other)
            pairs = [
                (_pytest(with_us, *arguments), _pytest(without, "-p", "no:torchcompile", *arguments))
                for _ in range(runs + 1)
            ][1:]
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{title}: {ours:.3f} s, without the plugin {theirs:.3f} s, beyond it {ours - theirs:.3f} s")


def _pytest(directory: str, *arguments: str) -> float:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    # Without compiled files pytest rewrites every plugin at each start, which no user's does.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    subprocess.run(command, cwd=directory, env=environment, capture_output=True, check=False)
    return time.perf_counter() - begin


MEMORY = """
import gc, threading, os
from pytest_torchcompile import Box, check_equivalence
page = os.sysconf("SC_PAGE_SIZE")
def resident(): return int(open("/proc/self/statm").read().split()[1]) * page
class Large(nn.Module):
    def __init__(self):
        super().__init__()
        hidden = (layer for _ in range(12) for layer in (nn.Linear(2048, 2048), nn.ReLU()))
        self.layers = nn.Sequential(nn.Linear(8, 2048), nn.ReLU(), *hidden, nn.Linear(2048, 4))
    def forward(self, x): return self.layers(x)
peak, running = [0], [True]
def watch():
    while running[0]:
        peak[0] = max(peak[0], resident()); time.sleep(0.005)
def wrong(graph, inputs): return lambda *args: [o * 1.5 if o.is_floating_point() else o for o in graph(*args)]
size = sum(p.numel() for p in Large().parameters()) * 4
check_equivalence(lambda: nn.Linear(8, 2), observation=Box((8,)), backend="aot_eager", examples=0)
gc.collect()
before = resident()
threading.Thread(target=watch, daemon=True).start()
(result,) = check_equivalence(
    Large, observation=Box((8,)), phases="{phase}", examples=5, batch=4, shrink_seconds=1.0,
    backend={backend}, reference="{reference}", proof=None,
)
top = peak[0] - before
gc.collect(); time.sleep(0.05)
print(size / 2**20, top / size, (resident() - before) / size, result.verdict.value, sep="\\t")
"""


def memory() -> None:
    """Resident memory of the process beyond what it had, in sizes of the module; a wrong one is explained."""
    for phase, backend, reference in (
        ("rollout", '"aot_eager"', "float64"),
        ("update", '"aot_eager"', "float64"),
        ("update", "wrong", "float64"),
    ):
        code = MEMORY.format(phase=phase, backend=backend, reference=reference)
        with tempfile.TemporaryDirectory() as cache:
            # A fixed threshold makes glibc give large blocks back at once, so that memory is what is in use.
            size, peak, after, verdict = _run(code, cache, MALLOC_MMAP_THRESHOLD_="1048576").split("\t")
        print(
            f"{float(size):.0f} MiB of parameters, {phase}, {verdict}: peak {float(peak):.1f} sizes, "
            f"{float(after):.1f} after"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="runs of each timing")
    parser.add_argument(
        "--only",
        choices=("wall", "lifecycle", "profiles", "example", "idle", "memory"),
        help="one of the tables",
    )
    arguments = parser.parse_args()
    if arguments.only in (None, "wall"):
        wall_times(arguments.runs)
    if arguments.only in (None, "lifecycle"):
        lifecycle(arguments.runs)
    if arguments.only in (None, "profiles"):
        profiles(arguments.runs)
    if arguments.only in (None, "example"):
        per_example(arguments.runs)
    if arguments.only in (None, "idle"):
        idle(3 * arguments.runs)
    if arguments.only in (None, "memory"):
        memory()


if __name__ == "__main__":
    main()
