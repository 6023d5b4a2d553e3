"""Budgets for compiling, what the report of a capture says, and compiles that hang."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest
import torch
from small_checks import assert_passes, check
from torch import nn

from pytest_torchcompile import Box, Verdict
from pytest_torchcompile.reports.failure import budget_text
from pytest_torchcompile.runtime.watchdog import CompileTimedOut, Watchdog


class Broken(nn.Module):
    """Breaks its graph once."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.one(x))
        torch._dynamo.graph_break()
        return self.two(hidden)


def whole() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


OBSERVATION = {"observation": Box((8,))}


def test_graph_breaks() -> None:
    result = check(Broken, max_graph_breaks=0, **OBSERVATION)
    assert_passes(result)
    assert result.exceeded == ("1 graph break, max_graph_breaks=0 (check_equivalence())",)
    text = budget_text(result)
    assert "  break     " in text
    assert "test_budgets.py:" in text
    assert check(Broken, max_graph_breaks=1, **OBSERVATION).exceeded == ()
    assert check(whole, max_graph_breaks=0, **OBSERVATION).exceeded == ()


def test_recompiles() -> None:
    """A healthy policy: a batch that varies, a batch of 1, other layouts."""
    result = check(whole, max_recompiles=0, **OBSERVATION)
    assert_passes(result)
    inputs = [text.rpartition(" on ")[2] for text in result.capture.recompiles]
    assert inputs == ["batch 7", "batch 1", *(f"batch 4, {n}" for n in ("expanded", "strided", "transposed"))]
    assert "size mismatch at index 0. expected 4, actual 7" in result.capture.recompiles[0]
    assert result.exceeded == ("5 recompiles, max_recompiles=0 (check_equivalence())",)
    assert "  recompile " in budget_text(result)
    assert check(whole, max_recompiles=5, **OBSERVATION).exceeded == ()
    few = {"batch": (4, 7), "examples": 0, "layouts": False, "nonfinite": False}
    once = check(whole, max_recompiles=0, **few, **OBSERVATION)
    assert once.exceeded == ("1 recompile, max_recompiles=0 (check_equivalence())",)


def test_a_first_batch_of_1_is_no_warm_up() -> None:
    """A graph compiled for a single row has to be compiled again; that is correct."""
    result = check(whole, batch=(1, 4), nonfinite=False, **OBSERVATION)
    inputs = [text.rpartition(" on ")[2] for text in result.capture.recompiles]
    assert inputs == ["batch 4, expanded", "batch 1, strided", "batch 4, strided", "batch 4, transposed"]


def test_the_batches_of_each_graph() -> None:
    result = check(whole, batch=(4, 7, 1), examples=0, **OBSERVATION)
    assert result.capture.batches == ((4,), (7, 4, 2, 3), (1,), *[(4, 7)] * 3)
    text = "  batches   by graph: 1: 4; 2: 7, 4, 2, 3; 3: 1; 4: 4, 7; 5: 4, 7; 6: 4, 7"
    assert text in budget_text(result)


def test_seconds() -> None:
    result = check(whole, max_compile_seconds=0, backend="aot_eager", **OBSERVATION)
    (sentence,) = result.exceeded
    assert sentence.endswith("seconds spent compiling, max_compile_seconds=0 (check_equivalence())")
    assert result.capture.stage_s.keys() == {"dynamo", "AOTAutograd"}
    assert 0 < sum(result.capture.stage_s.values()) <= result.capture.compile_s * 1.5
    assert check(whole, max_compile_seconds=600, **OBSERVATION).exceeded == ()


# --- compiles that hang ---------------------------------------------------------------------------


def hanging(graph: Any, inputs: Any) -> Any:
    """Waits for what never comes, as for a compiler process that is stuck."""
    threading.Event().wait()


def hanging_stubbornly(graph: Any, inputs: Any) -> Any:
    """Swallows the first exception."""
    for _ in range(2):
        try:
            threading.Event().wait()
        except Exception:
            if _:
                raise


@pytest.mark.parametrize("backend", [hanging, hanging_stubbornly])
def test_a_compile_that_hangs_is_stopped(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_torchcompile.runtime.watchdog.AGAIN_S", 0.2)
    before = signal.getsignal(signal.SIGURG)
    result = check(whole, backend=backend, max_seconds=0.3, **OBSERVATION)
    assert result.verdict is Verdict.COMPILE_FAILED
    assert "CompileTimedOut: a compile was stopped after max_seconds=0.3" in result.reason
    assert signal.getsignal(signal.SIGURG) is before
    assert_passes(check(whole, **OBSERVATION))


def test_a_watchdog_that_is_called_off_in_time() -> None:
    watchdog = Watchdog(0.05, "max_seconds")
    watchdog.start()
    watchdog.stop()
    time.sleep(0.2)
    watchdog.start()
    with pytest.raises(CompileTimedOut):
        threading.Event().wait(30)
    watchdog.stop()


def test_a_compile_in_another_thread_is_not_watched() -> None:
    """Signals reach only the main thread."""
    raised: list[BaseException] = []

    def work() -> None:
        watchdog = Watchdog(0.01, "max_seconds")
        try:
            watchdog.start()
            time.sleep(0.1)
            watchdog.stop()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == []
