"""A check restores the process and the user's module, however it ends."""

from __future__ import annotations

import copy
import gc
import random
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_checks import assert_differs, assert_passes, check
from torch import nn

from pytest_torchcompile import Box, Verdict, assert_equivalent, compile_policy
from pytest_torchcompile.runtime.isolation import (
    FROZEN_AT_START,
    RandomState,
    Settings,
    deferred_warnings,
    drop_frames,
    isolated,
    seed_everything,
)


class Restless(nn.Module):
    """Changes whatever a model can: buffers, attributes, random states and settings of the process."""

    def __init__(self, raises: type[BaseException] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.part = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.register_buffer("seen", torch.zeros(()))
        self.hidden = torch.zeros(4)
        self.raises = raises
        self.part.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.part(self.layer(x)) + torch.randn(4)
        self.seen += 1
        self.hidden = y.detach().mean(0)
        self.settle()
        return y

    @torch.compiler.disable
    def settle(self) -> None:
        np.random.rand()
        random.random()
        if self.raises is not None and float(self.seen) > 0:
            torch.set_grad_enabled(not torch.is_grad_enabled())
            torch.set_default_dtype(torch.float64)
            torch.set_num_threads(2)
            raise self.raises("stop")


def of_the_process() -> dict[str, Any]:
    """What is global to the process."""
    return {
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "validate": torch.distributions.Distribution._validate_args,
        "recompile limit": torch._dynamo.config.recompile_limit,
        "fallback": torch._inductor.config.fallback_random,
        "filters": list(warnings.filters),
        "compile": torch.compile,
        "user compiler": torch._dynamo.output_graph.OutputGraph.call_user_compiler,
        "start callbacks": list(torch._dynamo.callback.callback_handler.start_callbacks),
        "end callbacks": list(torch._dynamo.callback.callback_handler.end_callbacks),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def of_the_module(model: nn.Module) -> dict[str, Any]:
    """Copies of everything that a call can change."""
    return {
        "state": copy.deepcopy(model.state_dict()),
        "training": {name: module.training for name, module in model.named_modules()},
        "grads": {name: p.grad is None for name, p in model.named_parameters()},
        "requires grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "hidden": model.hidden.clone(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name == "state":
            assert value.keys() == after[name].keys()
            assert all(torch.equal(value[key], after[name][key]) for key in value)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, after[name]), name
        else:
            assert value == after[name], name


@pytest.fixture
def unusual_process() -> Iterator[None]:
    """Settings that differ from the defaults, so that putting back the defaults would show."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    validation = torch.distributions.Distribution._validate_args
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float32)
    torch.distributions.Distribution.set_default_validate_args(True)
    torch._dynamo.config.recompile_limit = 5
    with torch.no_grad():
        yield
    torch._dynamo.config.recompile_limit = 8
    torch.distributions.Distribution.set_default_validate_args(validation)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def _check(factory: Any) -> Any:
    return check(factory, "update", observation=Box((8,)), backend="aot_eager", examples=2)


USES: dict[str, Callable[[Any], Any]] = {
    "check": _check,
    "compile_policy": lambda factory: compile_policy(factory, observation=Box((8,)), backend="eager"),
    "assert_equivalent": lambda model: assert_equivalent(
        model, torch.compile(model, backend="eager"), torch.ones(4, 8), phase="update"
    ),
}


@pytest.mark.parametrize("use", USES)
def test_nothing_is_changed(use: str, unusual_process: None) -> None:
    model = Restless()
    hidden = model.hidden
    seed_everything(7)
    process, module, generators = of_the_process(), of_the_module(model), RandomState()
    USES[use](model)
    assert generators.unequal(RandomState()) == ()
    assert_same(process, of_the_process())
    assert_same(module, of_the_module(model))
    assert model.hidden is hidden, "the very tensor, not an equal one"


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, ValueError])
def test_nothing_is_changed_when_forward_raises(
    use: str, error: type[BaseException], unusual_process: None
) -> None:
    model = Restless(raises=error)
    seed_everything(7)
    process, module, generators = of_the_process(), of_the_module(model), RandomState()
    try:
        outcome: Any = USES[use](model)
    except BaseException as raised:
        assert error is not ValueError or use != "check", "a check tells an Exception by its verdict"
        assert isinstance(raised, error) or error is ValueError
    else:
        assert error is ValueError
        assert outcome.verdict is Verdict.EAGER_FAILED
    assert generators.unequal(RandomState()) == ()
    assert_same(process, of_the_process())
    assert_same(module, of_the_module(model))


def test_an_interrupt_on_a_later_call_of_a_module_that_can_not_be_copied() -> None:
    """Both sides share the user's own module, which has to be restored."""

    class Uncopyable(Restless):
        calls = 0

        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("holds a socket")

        def settle(self) -> None:
            Uncopyable.calls += 1
            if Uncopyable.calls > 5:
                raise KeyboardInterrupt

    model = Uncopyable()
    module = of_the_module(model)
    with pytest.raises(KeyboardInterrupt):
        _check(model)
    assert_same(module, of_the_module(model))


def test_an_interrupt_inside_the_factory() -> None:
    generators, process = RandomState(), of_the_process()

    def factory() -> nn.Module:
        torch.rand(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _check(factory)
    assert generators.unequal(RandomState()) == ()
    assert_same(process, of_the_process())


def test_settings_that_the_factory_switches_are_put_back() -> None:
    process = of_the_process()

    def factory() -> nn.Module:
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        return nn.Linear(8, 4)

    check(factory, observation=Box((8,), dtype="float64"), examples=0)
    assert_same(process, of_the_process())


def test_a_module_that_comes_compiled_is_put_back() -> None:
    """It can't be copied, so it is called itself."""
    model = Restless()
    compiled = torch.compile(model, backend="eager")
    module = of_the_module(model)
    assert_passes(check(compiled, "update", observation=Box((8,))))
    assert_same(module, of_the_module(model))


def test_gradients_do_not_land_on_the_users_parameters() -> None:
    model = torch.compile(nn.Linear(8, 4), backend="eager")
    model.weight.grad = torch.full((4, 8), 3.0)
    assert_passes(check(model, "update", observation=Box((8,))))
    assert torch.equal(model.weight.grad, torch.full((4, 8), 3.0))
    assert model.bias.grad is None


def test_parameters_written_in_forward_are_put_back() -> None:
    class Clamping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.layer.weight.mul_(0.5)
            return self.layer(x)

    model = Clamping()
    before = model.layer.weight.detach().clone()
    assert_passes(check(model, observation=Box((8,))))
    assert torch.equal(model.layer.weight, before)
    deployed = torch.compile(model, backend="eager")
    assert_passes(check(deployed, observation=Box((8,))))
    assert torch.equal(model.layer.weight, before)


def test_the_users_constants_are_not_changed() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            scale.mul_(2)
            return self.layer(x) * scale

    scale = torch.ones(4)
    assert_passes(check(Writing, observation=Box((8,)), inputs={"scale": scale}))
    assert torch.equal(scale, torch.ones(4))


# --- the context itself ---------------------------------------------------------------------------


def test_the_number_of_threads_is_the_options_while_a_check_runs() -> None:
    seen: set[int] = set()

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.look()
            return self.layer(x)

        @torch.compiler.disable
        def look(self) -> None:
            seen.add(torch.get_num_threads())

    check(Looking, observation=Box((8,)), threads=2, examples=0)
    assert seen == {2}


def test_arguments_of_distributions_are_not_validated_on_either_side() -> None:
    """Importing dynamo turns validation off for the process; a check uses the same setting for both sides."""
    torch.distributions.Distribution.set_default_validate_args(True)

    class Invalid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return torch.distributions.Normal(self.layer(x), -torch.ones(4))

    try:
        assert_passes(check(Invalid, observation=Box((8,))))
        with pytest.raises(ValueError, match="scale"):
            torch.distributions.Normal(torch.zeros(4), -torch.ones(4))
    finally:
        torch.distributions.Distribution.set_default_validate_args(False)


# --- warnings -------------------------------------------------------------------------------------


class Warning_(UserWarning):
    """The user's own."""


class Warns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.warn()
        return self.layer(x)

    @torch.compiler.disable
    def warn(self) -> None:
        warnings.warn("the observation is odd", Warning_, stacklevel=1)


def test_the_users_warnings_are_emitted_once() -> None:
    with pytest.warns(Warning_, match="the observation is odd") as caught:
        assert_passes(check(Warns, observation=Box((8,))))
    assert [str(w.message) for w in caught] == ["the observation is odd"]
    assert caught[0].filename == __file__


def test_the_users_filters_decide_what_becomes_of_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Warning_)
        assert_passes(check(Warns, observation=Box((8,))))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Warning_)
        with pytest.raises(Warning_):
            check(Warns, observation=Box((8,)))


def test_different_warnings_are_each_emitted() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with isolated():
            for number in (1, 2, 1, 2):
                warnings.warn(f"number {number}", stacklevel=1)
    assert [str(w.message) for w in caught] == ["number 1", "number 2"]


@pytest.mark.parametrize("nested", [True, False])
def test_warnings_are_deferred_to_the_end_of_the_outer_of_two_nested_checks(nested: bool) -> None:
    with deferred_warnings() as emit:
        if nested:
            with deferred_warnings():
                pass  # a check inside a check, without warnings
        with isolated():
            warnings.warn("the observation is odd", Warning_, stacklevel=1)
    with pytest.warns(Warning_, match="the observation is odd"):
        emit()


def test_warnings_of_torch_are_kept_back() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with isolated():
            warnings.warn_explicit("from the compiler", UserWarning, f"{torch.__path__[0]}/_dynamo/x.py", 3)
            warnings.warn_explicit("from the user", UserWarning, "/home/me/policy.py", 3)
    assert [str(w.message) for w in caught] == ["from the user"]


# --- random state ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "name"),
    [(lambda: torch.rand(1), "torch"), (np.random.rand, "numpy"), (random.random, "python")],
    ids=["torch", "numpy", "python"],
)
def test_a_draw_is_seen_in_its_generator_and_undone(draw: Callable[[], Any], name: str) -> None:
    before = RandomState()
    assert before.unequal(RandomState()) == ()
    draw()
    assert before.unequal(RandomState()) == (name,)
    before.restore()
    assert before.unequal(RandomState()) == ()


def test_one_normal_number_of_numpy_is_seen() -> None:
    """numpy keeps the second of a pair of normal numbers: the position in its stream may stay."""
    np.random.seed(0)
    np.random.randn()
    before = RandomState()
    np.random.randn()
    assert before.unequal(RandomState()) == ("numpy",)


@pytest.mark.parametrize("available", [False, True])
def test_devices_are_seeded_where_there_are_any(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere: list[int] = []
    original = torch.manual_seed
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: everywhere.append(seed) or original(seed))
    seed_everything(7)
    drawn = torch.rand(3)
    original(7)
    assert torch.equal(drawn, torch.rand(3))
    assert everywhere == ([7] if available else [])


def test_a_seed_fixes_all_generators() -> None:
    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    seed_everything(2**32 + 5)
    first = drawn()
    seed_everything(2**32 + 5)
    assert drawn() == first
    seed_everything(6)
    assert drawn() != first


class ImportsLibrary(nn.Module):
    """What its library does to the process when the factory first imports it."""

    def __init__(self) -> None:
        super().__init__()
        torch.distributions.Distribution.set_default_validate_args(False)
        self.layer = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


def test_validation_that_a_factory_switches_off_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    assert_passes(check(ImportsLibrary, observation=Box((8,))))
    assert not torch.distributions.Distribution._validate_args


def test_a_factory_runs_under_the_users_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    seen = []

    def factory() -> nn.Module:
        seen.append(torch.distributions.Distribution._validate_args)
        return nn.Linear(8, 2)

    check(factory, observation=Box((8,)))
    assert seen == [True, True]
    assert torch.distributions.Distribution._validate_args


# --- garbage collection ---------------------------------------------------------------------------


def test_what_there_is_stays_out_of_collections_while_a_check_runs() -> None:
    assert gc.get_freeze_count() < FROZEN_AT_START
    with isolated():
        assert gc.get_freeze_count() > 1000
        with isolated():
            assert gc.get_freeze_count() > 1000
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() < FROZEN_AT_START


def test_what_the_user_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with isolated():
            pass
        # A frozen object that is no longer used is freed nevertheless.
        assert 0 <= frozen - gc.get_freeze_count() < 100
    finally:
        gc.unfreeze()


# --- settings that compiled code leaves changed ---------------------------------------------------


def _other_threads() -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


def _other_grad_mode() -> None:
    torch._C._set_grad_enabled(not torch.is_grad_enabled())


_ENTERED: list[torch.inference_mode] = []
"""Contexts that are never left; without a reference torch would leave them."""

_BROKEN: list[Any] = []
"""The same for guards of torch's dispatcher."""


def _other_inference_mode() -> None:
    grad_mode = torch.is_grad_enabled()
    _ENTERED.append(torch.inference_mode(not torch.is_inference_mode_enabled()))
    _ENTERED[-1].__enter__()
    torch._C._set_grad_enabled(grad_mode)


SETTINGS: dict[str, Callable[[], Any]] = {
    "grad mode": _other_grad_mode,
    "inference mode": _other_inference_mode,
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "number of threads": _other_threads,
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "autocast on cpu": lambda: torch.set_autocast_enabled("cpu", True),
}


def leaving(change: Callable[[], Any]) -> Any:
    """A backend whose graphs change a setting after they have run."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            outputs = graph(*args)
            change()
            return outputs

        return run

    return backend


LEFT = [name for name in SETTINGS if name != "autocast on cpu"]
"""Torch itself restores autocast at the end of compiled code."""


@pytest.mark.parametrize("name", SETTINGS)
def test_a_changed_setting_is_seen_and_restored(name: str) -> None:
    with Settings() as before:
        SETTINGS[name]()
        now = Settings().values
        assert {n for n, value in now.items() if value != before.values[n]} == {name}
    assert Settings().values == before.values


def test_a_call_that_breaks_torchs_dispatcher_breaks_no_other_check() -> None:
    """As a compile does that fails under inference mode before torch 2.13; here it is eager's own call.

    Newer versions of dynamo restore the dispatcher themselves, so that no compiled call can leave it broken.
    """

    class Breaks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCPU)
            _BROKEN.append(torch._C._ExcludeDispatchKeyGuard(keys))
            _BROKEN[-1].__enter__()
            raise RuntimeError("not today")

    result = check(lambda: Breaks(8, 4), "update", observation=Box((8,)), backend="eager")
    assert result.verdict is Verdict.EAGER_FAILED
    assert nn.Linear(8, 4)(torch.ones(1, 8)).requires_grad
    assert_passes(check(lambda: nn.Linear(8, 4), "update", observation=Box((8,)), backend="eager"))


class _Late:
    """Changes the grad mode when it is dropped, which only a collection of memory does.

    If torch 2.12 fails to compile code under inference mode, a frame of dynamo's holds an object that does the
    same to the keys of torch's dispatcher.
    """

    dropped = 0

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        _Late.dropped += 1
        _other_grad_mode()


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _raise_with_a_late_one(*_: Any) -> Any:
    late = _Late()
    raise ValueError(f"no code for this, {late is late.itself}")


def _raise_from_it() -> None:
    try:
        _raise_with_a_late_one()
    except ValueError as cause:
        raise RuntimeError from cause


@pytest.mark.parametrize("failing", [_raise_with_a_late_one, _raise_from_it])
def test_what_the_frames_of_an_exception_hold_is_dropped_and_changes_no_setting(
    failing: Callable[[], None], no_collection: None
) -> None:
    dropped = _Late.dropped
    with pytest.raises((ValueError, RuntimeError)) as raised:
        failing()
    assert _Late.dropped == dropped
    drop_frames([raised.value], None)
    assert _Late.dropped == dropped + 1
    assert torch.is_grad_enabled()


def test_a_check_drops_what_an_exception_of_the_compiler_holds(no_collection: None) -> None:
    dropped = _Late.dropped
    result = check(lambda: nn.Linear(8, 4), observation=Box((8,)), backend=_raise_with_a_late_one)
    assert result.verdict is Verdict.COMPILE_FAILED
    assert "ValueError: no code for this, True" in result.reason
    assert _Late.dropped > dropped


def test_what_the_users_own_exception_holds_is_kept() -> None:
    def users(value: str) -> None:
        raise KeyError(value)

    try:
        users("theirs")
    except KeyError as error:
        assert error.__traceback__ is not None
        result = check(lambda: nn.Linear(8, 4), observation=Box((8,)), backend=_raise_with_a_late_one)
        assert result.verdict is Verdict.COMPILE_FAILED
        (_, inner) = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        assert inner.f_locals == {"value": "theirs"}


@pytest.mark.parametrize("phase", ["rollout", "update"])
@pytest.mark.parametrize("name", LEFT)
def test_a_setting_that_compiled_code_leaves_changed_is_found(name: str, phase: str) -> None:
    before = of_the_process()
    wrong = check(
        lambda: nn.Linear(8, 4), phase, observation=Box((8,)), backend=leaving(SETTINGS[name]), examples=2
    )
    assert_differs(wrong, name, "value")
    assert {difference.path for difference in wrong.differences} == {name}
    assert_same(before, of_the_process())


def test_a_setting_that_the_backward_leaves_changed_is_found() -> None:
    class Leaves(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, output: torch.Tensor) -> torch.Tensor:
            return output.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            torch.set_default_dtype(torch.float64)
            return gradient

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return lambda *args: tuple(Leaves.apply(output) for output in graph(*args))

    before = of_the_process()
    wrong = check(lambda: nn.Linear(8, 4), "update", observation=Box((8,)), backend=backend, examples=2)
    assert_differs(wrong, "default dtype after backward", "value")
    assert_same(before, of_the_process())


@pytest.mark.parametrize("name", LEFT)
def test_a_setting_that_eager_leaves_changed_too_is_no_difference(name: str) -> None:
    class Sets(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            self.set()
            return y

        @torch.compiler.disable
        def set(self) -> None:
            SETTINGS[name]()

    before = of_the_process()
    assert_passes(check(lambda: Sets(8, 4), observation=Box((8,)), backend="aot_eager", examples=2))
    assert_same(before, of_the_process())
