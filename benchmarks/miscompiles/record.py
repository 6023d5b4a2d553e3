"""The record of one report of a wrong result under torch.compile, with the policy that meets it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

ISSUES = "https://github.com/pytorch/pytorch"

PHASES = ("rollout", "update", "lifecycle")

Call = dict[str, Any]
"""The arguments of one call, by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A report of PyTorch's issue tracker, and a policy of ours that does what it describes.

    Args:
        number: of the issue or pull request.
        title: what goes wrong, in a few words.
        kind: of the fault; the kinds are in `reports.KINDS`.
        policy: the class of the policy; its `forward` takes the observation first.
        calls: returns the arguments of each call of the plain reproduction: the report's own inputs, or
            inputs that have the property it describes.
        observation: spec of the first argument, for the check.
        inputs: specs of further arguments by name, for the check.
        change: called with the policy and its outputs after each call of the plain reproduction, on both
            sides, to do what the report's caller does between calls.
        observe: returns what else to compare after a call, given the policy; see `check_equivalence`.
        reset: restores before a call what the check can't restore; see `check_equivalence`.
        phases: those to check; a lifecycle has no place where both sides share state outside of the policy.
        pull: whether the number is of a pull request.
        remark: a part of the remark by which the check names this fault without failing, if it has one.
        blind: why the check does not find it, a sentence; for those that it misses on some torch.
    """

    number: int
    title: str
    kind: str
    policy: type[nn.Module]
    calls: Callable[[], list[Call]]
    observation: Any
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    change: Callable[[Any, Any], None] | None = None
    observe: Callable[[Any], Any] | None = None
    reset: Callable[[Any], Any] | None = None
    phases: tuple[str, ...] = PHASES
    pull: bool = False
    remark: str = ""
    blind: str = ""

    @property
    def link(self) -> str:
        """The address of the report."""
        return f"{ISSUES}/{'pull' if self.pull else 'issues'}/{self.number}"
