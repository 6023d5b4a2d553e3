"""Cases held against a baseline while they can still be measured again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.plugin import benchmark
from pytest_torchcompile.plugin.options import session_option
from pytest_torchcompile.reports.document import Plain, case_of_record, record_of
from pytest_torchcompile.reports.reading import read
from pytest_torchcompile.results import CheckResult

if TYPE_CHECKING:
    from pytest_torchcompile.reports.baseline import Baseline, Comparison, Rules

LATEST = "latest"
_GATE = pytest.StashKey["Gate"]()
_SENT = "compile_baseline"


@dataclasses.dataclass(frozen=True)
class Gate:
    """A baseline and what may not be worse than it.

    Args:
        document: the baseline's, to be sent to workers.
        baseline: its cases.
        rules: thresholds by metric.
    """

    document: Plain
    baseline: Baseline
    rules: Rules

    def compared(
        self, nodeid: str, case: str, result: CheckResult, config: pytest.Config
    ) -> Comparison | None:
        """A result held against its baseline; None if there is none."""
        from pytest_torchcompile.reports.baseline import compare_case

        head = case_of_record(nodeid, record_of(result, case, benchmark.control_of(config)))
        base = self.baseline.of(head)
        return None if base is None else compare_case(base, head)


def open_gate(config: pytest.Config) -> None:
    """Read the baseline, or take what the controller has read.

    Raises:
        UsageError: if there is none, or a rule is none.
    """
    rules_given = session_option(config, "fail_on")
    baselines = session_option(config, "baseline")
    if not baselines:
        if rules_given:
            raise UsageError(f"{rules_given[0][1]} needs a baseline: --compile-baseline=FILE or latest")
        return
    from pytest_torchcompile.reports.baseline import Baseline, rules_of

    rules: dict[str, float] = {}
    for text, source in rules_given:
        rules |= rules_of([text], source)
    path, source = baselines[-1]
    sent = getattr(config, "workerinput", {}).get(_SENT)
    document = sent or read(benchmark.latest_saved(config, source) if path == LATEST else path)
    config.stash[_GATE] = Gate(document, Baseline(document), rules)


def send(config: pytest.Config, workerinput: dict[str, Any]) -> None:
    """Hand the baseline to a worker of pytest-xdist, which may be on another host."""
    if _GATE in config.stash:
        workerinput[_SENT] = config.stash[_GATE].document


def judged(
    item: pytest.Item, case: str, result: CheckResult, again: Callable[[], CheckResult]
) -> CheckResult:
    """A result that passed, with its regressions; what got worse is believed if it does so twice.

    Args:
        item: whose case it is.
        case: tells it apart from others of the item.
        result: of the check.
        again: checks and times the case once more.
    """
    gate = item.config.stash.get(_GATE, None)
    if gate is None:
        return result
    if not result.verdict.passed:
        return _judged_by_verdict(item, case, result, gate)
    first = gate.compared(item.nodeid, case, result, item.config)
    if first is None:
        return dataclasses.replace(result, notes=(*result.notes, "not in the baseline"))
    suspected = first.regressions(gate.rules)
    if not suspected:
        return _noted(result, first, gate.rules)
    with _measuring_anew(result, "compile-time" in suspected):
        result = again()
    second = gate.compared(item.nodeid, case, result, item.config)
    if second is None or not result.verdict.passed:
        return result
    confirmed = second.regressions(gate.rules)
    sentences = tuple(sentence for metric, sentence in confirmed.items() if metric in suspected)
    return dataclasses.replace(_noted(result, second, gate.rules), regressions=sentences)


def _judged_by_verdict(item: pytest.Item, case: str, result: CheckResult, gate: Gate) -> CheckResult:
    """A result that did not pass: nothing was checked where the baseline was, or it failed anyway."""
    compared = gate.compared(item.nodeid, case, result, item.config)
    if compared is None or not gate.rules or not compared.verdict_got_worse:
        return result
    return dataclasses.replace(result, regressions=tuple(compared.regressions({}).values()))


def is_strict(config: pytest.Config) -> bool:
    """Whether what got worse than a baseline fails this session."""
    return _GATE in config.stash and bool(config.stash[_GATE].rules)


@contextlib.contextmanager
def _measuring_anew(result: CheckResult, compile_time: bool) -> Any:
    """Without what the first run left behind: compiled code, and if it matters the graphs on disk."""
    import torch

    from pytest_torchcompile import internals

    torch.compiler.reset()
    cold = compile_time and not result.capture.from_cache
    with internals.fresh_compile_cache() if cold else contextlib.nullcontext():
        yield


def _noted(result: CheckResult, comparison: Comparison, rules: Rules) -> CheckResult:
    """`result` with what changed beside it, and what therefore was not compared."""
    notes = [f"the baseline is of another {said}" for said in comparison.circumstances]
    notes += [
        f"{metric} not compared: {comparison.reasons[metric]}"
        for metric in rules
        if metric in comparison.reasons
    ]
    return dataclasses.replace(result, notes=(*result.notes, *notes))
