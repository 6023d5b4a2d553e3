"""Measures how reliable the timing is on a busy machine.

    python benchmarks/timing_truth.py

Under a load of its own making (a process that computes and sleeps at random), it prints

* how often something timed against itself is called ``faster`` or ``slower``, which should be never;
* how often a policy that is slower by a known share of its own time, which it spends spinning, is called so;
* how many of the intervals of 95 % hold the truth, for a policy against itself and for 30 calls of it
  against 25, without and with the load;
* the spread of the speedup over processes, beside that of the ratio of two medians that were timed one
  after the other, as pytest-benchmark does.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from pytest_torchcompile import Speedup, measure_speedup
from pytest_torchcompile.results.speedup import TOO_FEW

Policy = Callable[..., Any]


def mlp() -> tuple[nn.Module, torch.Tensor]:
    """A small MLP on 16 observations."""
    return nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)), (
        torch.randn(16, 8)
    )


def cnn() -> tuple[nn.Module, torch.Tensor]:
    """A small CNN on 16 images."""
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(16 * 16, 6)), torch.randn(16, 3, 8, 8)


POLICIES = {"mlp": mlp, "cnn": cnn}


def _burn(seed: int) -> None:
    draws = random.Random(seed)
    parent = multiprocessing.parent_process()
    # Whoever is killed can't end its children.
    while parent is not None and parent.is_alive():
        end = time.perf_counter() + draws.uniform(0.01, 0.5)
        while time.perf_counter() < end:
            pass
        time.sleep(draws.uniform(0.01, 0.5))


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Other processes that compute half of the time."""
    context = multiprocessing.get_context("spawn")
    burning = [context.Process(target=_burn, args=(seed,), daemon=True) for seed in range(processes)]
    for process in burning:
        process.start()
    try:
        yield
    finally:
        for process in burning:
            process.terminate()


def seconds_of(policy: Policy, x: torch.Tensor) -> float:
    """The median of some calls."""
    taken = []
    with torch.no_grad():
        for _ in range(300):
            begin = time.perf_counter()
            policy(x)
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def spinning(policy: Policy, extra_s: float) -> Policy:
    """`policy` taking longer by so many seconds."""

    def call(*args: torch.Tensor) -> Any:
        result = policy(*args)
        end = time.perf_counter() + extra_s
        while time.perf_counter() < end:
            pass
        return result

    return call


def repeated(policy: Policy, times: int) -> Policy:
    """`policy` called so often: under any load, 30 calls take six fifths of the time of 25.

    With fewer calls what the timing itself does before each of them would count.
    """

    def call(*args: torch.Tensor) -> Any:
        for _ in range(times - 1):
            policy(*args)
        return policy(*args)

    return call


def coverage(policy: Policy, x: torch.Tensor, times: int, seconds: float, timings: int) -> str:
    """How many intervals of the speedup hold the truth if the second side makes so many calls, not 25."""
    first, second, truth = repeated(policy, 25), repeated(policy, times), 25 / times
    found = [measure_speedup(first, second, x, seconds=seconds) for _ in range(timings)]
    given = [speedup for speedup in found if speedup.conclusion != TOO_FEW]
    held = sum(speedup.interval[0] <= truth <= speedup.interval[1] for speedup in given)
    widths = [speedup.interval[1] / speedup.interval[0] - 1 for speedup in given]
    width = statistics.median(widths) if widths else float("nan")
    none = f", {len(found) - len(given)} without (too few rounds)" if len(given) < len(found) else ""
    return f"{held} of {len(given)} intervals hold {truth:.3f}, median width {width:.1%}{none}"


def sequential(policy: nn.Module, x: torch.Tensor, seconds: float) -> float:
    """The ratio of two medians timed one after the other."""
    medians = []
    with torch.no_grad():
        for _ in range(2):
            taken = []
            end = time.perf_counter() + seconds / 2
            while time.perf_counter() < end:
                begin = time.perf_counter()
                policy(x)
                taken.append(time.perf_counter() - begin)
            medians.append(statistics.median(taken))
    return medians[0] / medians[1]


def _one(name: str, seconds: float) -> None:
    """What one process of the spread prints: both ratios."""
    policy, x = POLICIES[name]()
    print(measure_speedup(policy, policy, x, seconds=seconds).ratio, sequential(policy, x, seconds))


def _spread(name: str, seconds: float, processes: int) -> tuple[list[float], list[float]]:
    command = [sys.executable, __file__, "--one", name, "--seconds", str(seconds)]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(processes)
    ]
    return [float(one) for one, _ in outputs], [float(two) for _, two in outputs]


def _apart(ratios: list[float]) -> str:
    beyond = sum(not 1 / 1.05 < ratio < 1.05 for ratio in ratios)
    return f"{min(ratios):.3f} .. {max(ratios):.3f}, beyond 5 %: {beyond} of {len(ratios)}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20, help="A/A pairs for each policy")
    parser.add_argument("--detections", type=int, default=8, help="runs for each known slow-down")
    parser.add_argument("--processes", type=int, default=10, help="processes of the spread")
    parser.add_argument("--seconds", type=float, default=2.0, help="budget of one timing")
    parser.add_argument("--load", type=int, default=2, help="processes that compute half of the time")
    parser.add_argument("--intervals", type=int, default=100, help="timings whose intervals are judged")
    parser.add_argument("--interval-seconds", type=float, default=1.0, help="budget of one of them")
    parser.add_argument("--only", choices=("intervals",), help="measure this alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        _one(arguments.one, arguments.seconds)
        return
    for name, make in POLICIES.items():
        policy, x = make()
        for processes in (0, arguments.load):
            with load(processes):
                for times in (25, 30):
                    held = coverage(policy, x, times, arguments.interval_seconds, arguments.intervals)
                    print(f"{name}, {processes} processes beside it: {held}", flush=True)
        if arguments.only == "intervals":
            continue
        alone_s = seconds_of(policy, x)
        slow = {share: spinning(policy, share * alone_s) for share in (0.1, 0.2, 0.4)}

        def timed(other: Policy, policy: nn.Module = policy, x: torch.Tensor = x) -> Speedup:
            return measure_speedup(policy, other, x, seconds=arguments.seconds)

        with load(arguments.load):
            same = [timed(policy) for _ in range(arguments.pairs)]
            false = sum(speedup.conclusion != "no clear difference" for speedup in same)
            print(f"{name}: A/A called different: {false} of {len(same)}; {_apart([s.ratio for s in same])}")
            for share, other in slow.items():
                found = [timed(other) for _ in range(arguments.detections)]
                slower = sum(speedup.conclusion == "slower" for speedup in found)
                ratios = ", ".join(f"{s.ratio:.2f}" for s in found)
                print(f"{name}: slower by {share:.0%}: found {slower} of {len(found)} (speedups {ratios})")
            ours, theirs = _spread(name, arguments.seconds, arguments.processes)
        print(f"{name}: A/A over {arguments.processes} processes, interleaved: {_apart(ours)}")
        print(f"{name}: A/A over {arguments.processes} processes, sequential:  {_apart(theirs)}", flush=True)


if __name__ == "__main__":
    main()
