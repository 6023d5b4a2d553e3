"""A check reports each of its steps as progress."""

import re

import pytest
import torch
from torch import nn

from pytest_torchcompile import Box
from pytest_torchcompile.check import check_case, check_lifecycle
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.declaration import Declaration
from pytest_torchcompile.policies.methods import as_methods
from pytest_torchcompile.results import Verdict
from pytest_torchcompile.runtime.progress import Progress

DECLARATION = Declaration(observation=Box((3,)), methods="forward")


class Written(Progress):
    """Notes all that it is told."""

    def __init__(self):
        self.steps = []

    def compiling(self, begins):
        self.steps.append("compiling" if begins else "compiled")

    def step(self, what):
        self.steps.append(what)


class Ending(BaseException):
    """Ends the process, so to speak."""


def options(**given):
    return CheckOptions.merge(("test", {"backend": "eager", "examples": 2, "batch": (4,), **given}))


def check(factory, phase, progress, **given):
    (method,) = as_methods("forward")
    return check_case(
        factory, method, phase, declaration=DECLARATION, options=options(**given), progress=progress
    )


def test_the_steps_of_a_case_come_in_order():
    progress = Written()
    assert check(lambda: nn.Linear(3, 2), "update", progress).verdict is Verdict.EQUAL
    assert progress.steps[:7] == [
        "making the policy",
        "the first eager call",
        "example 1, eager call",
        "example 1, compiled call",
        "compiling",
        "compiled",
        "example 1, comparison",
    ]
    assert progress.steps[-2:] == ["what was not declared", "explaining what differs"]
    numbers = [int(step.split()[1].rstrip(",")) for step in progress.steps if step.endswith("comparison")]
    # Learning in eval() tries an example apart.
    assert list(dict.fromkeys(numbers)) == list(range(1, numbers[-1] + 1))


def test_the_steps_of_a_lifecycle_name_the_move():
    progress = Written()
    result = check_lifecycle(
        lambda: nn.Linear(3, 2), declaration=DECLARATION, options=options(steps=1), progress=progress
    )
    assert result.verdict is Verdict.EQUAL
    assert progress.steps[0] == "making the policy"
    moves = [step for step in progress.steps if step.startswith("move ")]
    assert re.fullmatch(r"move 1 of \d+: act\(batch 4\), eager", moves[0])
    assert re.fullmatch(r"move 1 of \d+: act\(batch 4\), compiled", moves[1])
    assert re.fullmatch(r"move 1 of \d+: act\(batch 4\), comparison", moves[2])


def ending_backend(gm, example_inputs):
    raise Ending


def ending_kernel(gm, example_inputs):
    def run(*args):
        raise Ending

    return run


class Ends(nn.Linear):
    """Ends on an input of zeros."""

    def forward(self, x):
        if not torch.compiler.is_compiling() and not x.any():
            raise Ending
        return super().forward(x)


def making():
    raise Ending


@pytest.mark.parametrize(
    ("factory", "backend", "last"),
    [
        (lambda: nn.Linear(3, 2), ending_backend, ["example 1, compiled call", "compiling", "compiled"]),
        (lambda: nn.Linear(3, 2), ending_kernel, ["compiling", "compiled"]),
        (lambda: Ends(3, 2), "eager", [r"example \d+, eager call"]),
        (making, "eager", ["making the policy"]),
    ],
    ids=["backend", "kernel", "eager", "factory"],
)
def test_what_ends_a_check_was_its_last_step(factory, backend, last):
    progress = Written()
    with pytest.raises(Ending):
        check(factory, "rollout", progress, backend=backend)
    for pattern, step in zip(last, progress.steps[-len(last) :], strict=True):
        assert re.fullmatch(pattern, step)
