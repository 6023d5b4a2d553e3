"""Compares cases with a baseline during the session, so that a case that got worse can be measured again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.plugin import benchmark
from pytest_torchcompile.plugin.options import session_option

if TYPE_CHECKING:
    from pytest_torchcompile.reports.baseline import Baseline, Comparison, Rules
    from pytest_torchcompile.reports.document import Plain
    from pytest_torchcompile.results import CheckResult

LATEST = "latest"
_GATE = pytest.StashKey["Gate"]()
_SENT = "compile_baseline"


@dataclasses.dataclass(frozen=True)
class Gate:
    """A baseline and the rules by which a case that is worse than it fails.

    Args:
        document: the baseline's document, which is sent to workers.
        baseline: its cases.
        rules: the allowed change of each metric.
        path: the baseline's file, for messages.
    """

    document: Plain
    baseline: Baseline
    rules: Rules
    path: str

    def compared(
        self, nodeid: str, case: str, result: CheckResult, config: pytest.Config
    ) -> Comparison | None:
        """Return the comparison of a result with the baseline's; None if the baseline has no such case."""
        from pytest_torchcompile.reports.baseline import compare_case
        from pytest_torchcompile.reports.document import case_of_record, record_of

        head = case_of_record(nodeid, record_of(result, case, benchmark.control_of(config)))
        base = self.baseline.of(head)
        return None if base is None else compare_case(base, head)


def open_gate(config: pytest.Config) -> None:
    """Read the baseline. In a worker, take the one that the controller has read.

    Raises:
        UsageError: if there are rules but no baseline, it can't be read, or a rule is not valid.
    """
    rules_given = session_option(config, "fail_on")
    baselines = session_option(config, "baseline")
    if not baselines:
        if rules_given:
            raise UsageError(f"{rules_given[0][1]} needs a baseline: --compile-baseline=FILE or latest")
        return
    from pytest_torchcompile.reports.baseline import Baseline, rules_of
    from pytest_torchcompile.reports.reading import read

    rules: dict[str, float] = {}
    for text, source in rules_given:
        rules |= rules_of([text], source)
    path, source = baselines[-1]
    sent = getattr(config, "workerinput", {}).get(_SENT)
    # In a worker the file may not exist.
    file = path if sent or path != LATEST else benchmark.latest_saved(config, source)
    document = sent or read(file)
    config.stash[_GATE] = Gate(document, Baseline(document), rules, os.path.basename(str(file)))


def send(config: pytest.Config, workerinput: dict[str, Any]) -> None:
    """Send the baseline to a worker of pytest-xdist, which may run on another host."""
    if _GATE in config.stash:
        workerinput[_SENT] = config.stash[_GATE].document


def compare_with_baseline(
    item: pytest.Item, case: str, result: CheckResult, again: Callable[[], CheckResult]
) -> CheckResult:
    """Return a result with its regressions and notes.

    If a metric got worse, the case is measured again. It is a regression only if it is worse both times.

    Args:
        item: the item of the case.
        case: the name of the case, which no other case of the item has.
        result: the result of the check.
        again: checks and times the case once more.
    """
    gate = item.config.stash.get(_GATE, None)
    if gate is None:
        return result
    compared = _compared(item, case, result, again, gate)
    if not gate.rules:
        return compared
    last = gate.compared(item.nodeid, case, compared, item.config)
    from pytest_torchcompile.reports.baseline import held

    return dataclasses.replace(
        compared, baseline=gate.path, held=held(last, gate.rules, compared.regressions)
    )


def _compared(
    item: pytest.Item, case: str, result: CheckResult, again: Callable[[], CheckResult], gate: Gate
) -> CheckResult:
    if not result.verdict.passed:
        return _compare_verdict(item, case, result, gate)
    first = gate.compared(item.nodeid, case, result, item.config)
    if first is None:
        return dataclasses.replace(result, notes=(*result.notes, "not in the baseline"))
    suspected = first.regressions(gate.rules)
    if not suspected:
        return _with_notes(result, first, gate.rules)
    with _without_compiled_code(result, "compile-time" in suspected):
        result = again()
    second = gate.compared(item.nodeid, case, result, item.config)
    if second is None or not result.verdict.passed:
        return result
    confirmed = second.regressions(gate.rules)
    sentences = tuple(sentence for metric, sentence in confirmed.items() if metric in suspected)
    return dataclasses.replace(_with_notes(result, second, gate.rules), regressions=sentences)


def _compare_verdict(item: pytest.Item, case: str, result: CheckResult, gate: Gate) -> CheckResult:
    """Return a result that did not pass, with a regression if its verdict is worse than the baseline's."""
    compared = gate.compared(item.nodeid, case, result, item.config)
    if compared is None or not gate.rules or not compared.verdict_got_worse:
        return result
    return dataclasses.replace(result, regressions=tuple(compared.regressions({}).values()))


def is_strict(config: pytest.Config) -> bool:
    """Return whether a case that is worse than the baseline fails."""
    return _GATE in config.stash and bool(config.stash[_GATE].rules)


@contextlib.contextmanager
def _without_compiled_code(result: CheckResult, compile_time: bool) -> Any:
    """Drop the compiled code of the first run. If `compile_time` counts, use an empty cache on disk too."""
    import torch

    from pytest_torchcompile import internals

    torch.compiler.reset()
    cold = compile_time and not result.capture.from_cache
    with internals.fresh_compile_cache() if cold else contextlib.nullcontext():
        yield


def _with_notes(result: CheckResult, comparison: Comparison, rules: Rules) -> CheckResult:
    """Return the result with notes on what else changed, and on metrics that were therefore not compared."""
    notes = [f"the baseline is of another {change}" for change in comparison.changed]
    notes += [
        f"{metric} not compared: {comparison.reasons[metric]}"
        for metric in rules
        if metric in comparison.reasons
    ]
    return dataclasses.replace(result, notes=(*result.notes, *notes))
