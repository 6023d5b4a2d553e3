"""Policies and backends for the tests that run pytest inside pytest; copied next to each test file.

The policies are small and the backends do not compile, so that a check takes milliseconds. They record
what happened in files, which other processes can read.
"""

import os
import pathlib
import time

import torch  # noqa: F401 (the inner tests take it from here)
from torch import nn
from torch.distributions import Categorical


def note(file, text="x"):
    """Add a line to `file` in the directory of the run."""
    with pathlib.Path(file).open("a") as notes:
        notes.write(f"{text}\n")


class Agent(nn.Module):
    """An actor and a critic, one layer each; the critic's value of zeros is 2."""

    def __init__(self, observations=2, actions=3):
        super().__init__()
        self.observations = observations
        self.actor = nn.Linear(observations, actions)
        self.critic = nn.Linear(observations, 1)
        nn.init.constant_(self.critic.weight, 0.5)
        nn.init.constant_(self.critic.bias, 2.0)

    def forward(self, x):
        return {"logits": self.actor(x), "value": self.critic(x)}

    def get_value(self, x):
        return self.critic(x)

    def get_logits(self, x):
        return self.actor(x)

    def get_log_prob(self, x, action):
        return Categorical(logits=self.actor(x)).log_prob(action)

    def get_masked(self, x, legal, action):
        logits = self.actor(x).masked_fill(~legal, -1e9)
        return Categorical(logits=logits).log_prob(action)


# --- backends, each a kind of compiler ------------------------------------------------------------


def recorded(gm, example_inputs):
    """Runs the graph as it is, and leaves a trace of having been called."""
    note("compiled")
    return gm.forward


def shifted(gm, example_inputs):
    """Computes one too much."""

    def run(*args):
        return tuple(out + 1 if out.is_floating_point() else out for out in gm(*args))

    return run


def broken(gm, example_inputs):
    """Compiles nothing."""
    raise RuntimeError("no kernel for this")


def broken_later(gm, example_inputs):
    """Compiles once."""
    note("compiled")
    if len(pathlib.Path("compiled").read_text().split()) > 1:
        raise RuntimeError("no kernel for this batch")
    return gm.forward


def shifted_then_broken(gm, example_inputs):
    """Compiles once, and wrongly."""
    return shifted(broken_later(gm, example_inputs), example_inputs)


def broken_backward(gm, example_inputs):
    """Compiles the forward only."""
    from torch._dynamo.backends.common import aot_autograd

    def no_backward(gm, example_inputs):
        raise RuntimeError("no backward kernel")

    compiler = aot_autograd(fw_compiler=lambda gm, example_inputs: gm.forward, bw_compiler=no_backward)
    return compiler(gm, example_inputs)


def assertive(gm, example_inputs):
    """Fails like a compiler that violates an assertion of its own without a word."""
    raise AssertionError


def invalid_code(gm, example_inputs):
    """Writes code that can't run, where inductor writes its own."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    source = "def run(*args):\n    if not args:\n        out = 1\n    return out\n"
    names = {}
    exec(compile(source, os.path.join(cache_dir(), "invalid.py"), "exec"), names)
    return names["run"]


def crashing(gm, example_inputs):
    """Compiles to a kernel that fails when it runs."""

    def run(*args):
        raise RuntimeError("kernel died")

    return run


def slow(gm, example_inputs):
    """Takes its time over the first graph."""
    if not pathlib.Path("compiled").exists():
        time.sleep(1.5)
    return recorded(gm, example_inputs)
