"""Coverage by work: the formulas, the share in graphs, and what is reported and decided from it."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_checks import assert_passes, check
from torch import nn
from torch.nn import functional as F

from pytest_torchcompile import Box, CheckResult, Verdict, internals
from pytest_torchcompile.compiling.work import Operations, Work, owners_of, work_of_graph
from pytest_torchcompile.reports import notes
from pytest_torchcompile.results import Capture


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Function(nn.Module):
    """A function as a module without parameters."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


def counted(model: nn.Module, *args: torch.Tensor) -> Operations:
    with Work(owners_of(model)) as work:
        model(*args)
    return work.operations


def counted_inside(model: nn.Module, *args: torch.Tensor) -> Operations:
    inside: Operations = collections.Counter()
    with (
        internals.graphs_run(lambda call: inside.update(work_of_graph(call, owners_of(model)))),
        internals.allowed_rnns(),
    ):
        torch.compile(model, backend="eager")(*args)
    return inside


# --- formulas -------------------------------------------------------------------------------------

R = torch.randn
ATTENTION = 4 * 2 * 3 * 5 * 5 * 4
"""Of 2 examples with 3 heads, 5 steps and 4 features a head."""
ENCODER = 2 * 2 * 5 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 16) + 4 * 2 * 5 * 5 * 8
FORMULAS: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...], int]] = {
    "mm": (Function(torch.mm), (R(2, 3), R(3, 5)), 2 * 2 * 3 * 5),
    "addmm": (nn.Linear(3, 5), (R(2, 3),), 2 * 2 * 3 * 5),
    "linear of a sequence": (nn.Linear(3, 5), (R(7, 2, 3),), 2 * 14 * 3 * 5),
    "linear of one row": (nn.Linear(3, 5), (R(3),), 2 * 3 * 5),
    "bmm": (Function(torch.bmm), (R(4, 2, 3), R(4, 3, 5)), 4 * 2 * 2 * 3 * 5),
    "baddbmm": (Function(torch.baddbmm), (R(4, 2, 5), R(4, 2, 3), R(4, 3, 5)), 4 * 2 * 2 * 3 * 5),
    "addbmm": (Function(torch.addbmm), (R(2, 5), R(4, 2, 3), R(4, 3, 5)), 4 * 2 * 2 * 3 * 5),
    "mv": (Function(torch.mv), (R(2, 3), R(3)), 2 * 2 * 3),
    "addmv": (Function(torch.addmv), (R(2), R(2, 3), R(3)), 2 * 2 * 3),
    "dot": (Function(torch.dot), (R(3), R(3)), 2 * 3),
    "einsum": (Function(lambda x, y: torch.einsum("bi,oi->bo", x, y)), (R(2, 3), R(5, 3)), 2 * 2 * 3 * 5),
    "conv": (nn.Conv2d(3, 4, 3), (R(2, 3, 6, 6),), 2 * 2 * 4 * 4 * 4 * 3 * 9),
    "conv in groups": (nn.Conv1d(4, 4, 3, groups=4), (R(2, 4, 6),), 2 * 2 * 4 * 4 * 3),
    "transposed conv": (nn.ConvTranspose2d(3, 4, 2), (R(2, 3, 5, 5),), 2 * 2 * 3 * 25 * 4 * 4),
    "attention": (
        Function(F.scaled_dot_product_attention),
        (R(2, 3, 5, 4), R(2, 3, 5, 4), R(2, 3, 5, 4)),
        ATTENTION,
    ),
    "bilinear": (nn.Bilinear(3, 4, 5), (R(2, 3), R(2, 4)), 2 * 2 * 3 * 4 * 5),
    "rnn": (nn.RNN(3, 5), (R(4, 2, 3),), 2 * 8 * (5 * 3 + 5 * 5)),
    "gru": (nn.GRU(3, 5), (R(4, 2, 3),), 2 * 8 * 3 * (5 * 3 + 5 * 5)),
    "lstm": (nn.LSTM(3, 5), (R(4, 2, 3),), 2 * 8 * 4 * (5 * 3 + 5 * 5)),
    "lstm of two layers, both ways": (
        nn.LSTM(3, 5, num_layers=2, bidirectional=True),
        (R(4, 2, 3),),
        2 * 2 * 8 * 4 * (5 * 3 + 5 * 5) + 2 * 2 * 8 * 4 * (5 * 10 + 5 * 5),
    ),
    "gru cell": (nn.GRUCell(3, 5), (R(2, 3),), 2 * 2 * 3 * (5 * 3 + 5 * 5)),
    "encoder layer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (R(2, 5, 8),), ENCODER),
    "no product": (nn.Sequential(nn.LayerNorm(3), nn.ReLU()), (R(2, 3),), 0),
    "whole numbers": (Function(torch.mm), (torch.ones(2, 3).long(), torch.ones(3, 5).long()), 0),
}


@pytest.mark.parametrize("mode", ["no_grad", "enable_grad", "inference_mode"])
@pytest.mark.parametrize("name", FORMULAS)
def test_eager_and_graphs_count_alike(name: str, mode: str) -> None:
    model, args, operations = FORMULAS[name]
    model.train(mode == "enable_grad")
    with getattr(torch, mode)():
        assert counted(model, *args).total() == operations
        if mode != "inference_mode":
            assert counted_inside(model, *args).total() == operations


def test_the_fast_path_counts_as_its_parts() -> None:
    """In eval without gradients eager runs one operator, for which torch's own counter counts 0."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = R(2, 5, 8)
    with torch.no_grad():
        fast, slow = (counted(attention.train(train), x, x, x).total() for train in (False, True))
    assert fast == slow == 2 * 10 * 4 * 8 * 8 + 4 * 10 * 5 * 8


def test_work_is_told_by_the_module_whose_parameters_it_takes() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Sequential(nn.Linear(5, 2)))
    expected = {"0": 2 * 4 * 3 * 5, "2.0": 2 * 4 * 5 * 2}
    assert counted(model, R(4, 3)) == counted_inside(model, R(4, 3)) == expected


@pytest.mark.parametrize("compiled", [False, True])
def test_work_without_parameters_is_told_by_its_line(compiled: bool) -> None:
    def products(x: torch.Tensor) -> torch.Tensor:
        left = torch.mm(
            x,
            x.T,
        )
        return left @ x

    line = products.__code__.co_firstlineno
    operations = (counted_inside if compiled else counted)(Function(products), R(4, 3))
    numbers = {int(place.rpartition(":")[2]) for place in operations}
    assert numbers == {line + 1, line + 5}, operations


def test_backward_is_left_out() -> None:
    model = nn.Linear(3, 5)
    with Work(owners_of(model)) as work:
        model(R(2, 3)).sum().backward()
    assert work.operations.total() == 2 * 2 * 3 * 5


def test_counting_a_graph_runs_nothing() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            x.add_(1)
            return self.layer(x) + torch.randn_like(x)

    model, x = Drawing(), torch.zeros(2, 3)
    torch.manual_seed(3)
    assert counted_inside(model, x).total() == 2 * 2 * 3 * 3
    assert model.calls == 1 and bool((x == 1).all())
    after = torch.rand(())
    torch.manual_seed(3)
    torch.randn(2, 3)
    assert torch.rand(()) == after


# --- of a case ------------------------------------------------------------------------------------


class Body(nn.Module):
    """An encoder that is compiled, a body that is or is not, and a penalty over all parameters that is."""

    def __init__(self, *, encoder: bool, eager: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 8) if encoder else nn.Identity()
        self.body = nn.Linear(8, 24)
        self.run = torch.compiler.disable(self.act) if eager else self.act

    def act(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)

    def forward(self, x: torch.Tensor) -> Any:
        penalty = sum(p.square().sum() for p in self.parameters())
        return self.run(self.encoder(x)), penalty


def check_body(phase: str = "rollout", *, encoder: bool, eager: bool = True, **options: Any) -> CheckResult:
    return check(lambda: Body(encoder=encoder, eager=eager), phase, observation=Box((8,)), **options)


@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_all_parameters_and_nothing_of_the_work(phase: str, backend: str) -> None:
    result = check_body(phase, encoder=False, backend=backend)
    assert result.verdict is Verdict.NOT_COMPILED
    assert "none does any of the 1,536 operations of the products" in result.reason
    assert "eager: body at " in result.reason and "test_work.py:" in result.reason
    assert result.capture.coverage == 1.0
    assert result.capture.coverage_work == 0.0
    assert result.row()["coverage_work"] == 0.0


@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
def test_a_part_of_the_work(phase: str) -> None:
    result = check_body(phase, encoder=True)
    assert_passes(result)
    assert result.capture.coverage == 1.0
    assert result.capture.coverage_work == 0.25
    ((place, operations),) = result.capture.work_left_eager.items()
    assert place.startswith("body at ") and operations == 2 * 4 * 8 * 24


@pytest.mark.parametrize("phase", ["rollout", "update", "lifecycle"])
def test_all_of_the_work(phase: str) -> None:
    """With recompiles for other batch sizes, whose work is not counted again."""
    result = check_body(phase, encoder=True, eager=False, min_coverage_work=1)
    assert_passes(result)
    assert result.capture.coverage_work == 1.0
    assert result.capture.graphs > 1
    assert not result.capture.work_left_eager
    assert not result.capture.what_is_eager


def test_min_coverage_work_makes_a_share_too_small_a_failure() -> None:
    assert_passes(check_body(encoder=True, min_coverage_work=0.25))
    result = check_body(encoder=True, min_coverage_work=0.26)
    assert result.verdict is Verdict.NOT_COMPILED
    assert "25 % of the work was compiled, min_coverage_work=0.26 asks for more; eager: body" in result.reason


def test_a_graph_break_between_two_layers_leaves_all_work_compiled() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.second(x)

    result = check(Broken, observation=Box((8,)), min_coverage_work=1)
    assert_passes(result)
    assert result.capture.breaks
    assert result.capture.coverage_work == 1.0


@pytest.mark.parametrize("eager", [True, False])
def test_an_adapter(eager: bool) -> None:
    def run(model: nn.Module, observation: torch.Tensor) -> torch.Tensor:
        return model(observation)

    run = torch.compiler.disable(run) if eager else run

    def adapter(model: nn.Module, observation: torch.Tensor) -> torch.Tensor:
        return run(model, observation) + sum(p.sum() for p in model.parameters())

    result = check(lambda: nn.Linear(8, 4), observation=Box((8,)), methods=adapter)
    if eager:
        assert result.verdict is Verdict.NOT_COMPILED
    else:
        assert_passes(result)
        assert result.capture.coverage_work == 1.0


class Backwards(torch.autograd.Function):
    """Works in backward only."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x + weight.sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradient, gradient.T @ x + 0 * weight


def test_work_in_backward_only_is_no_work_of_the_call() -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Backwards.apply(x, self.weight)

    result = check(Policy, "update", observation=Box((8,)), backend="aot_eager", min_coverage_work=1)
    assert_passes(result)
    assert result.capture.coverage_work is None


def test_a_policy_without_work_is_not_asked_for_any() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x * self.scale)

    result = check(Scaled, observation=Box((8,)), min_coverage_work=1)
    assert_passes(result)
    assert result.capture.coverage_work is None
    assert result.row()["coverage_work"] == "n/a"
    assert result.metadata()["coverage_work"] is None


def test_what_can_not_be_counted_is_said() -> None:
    """A shape that depends on values, which is in a graph if dynamo's setting captures it."""

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[torch.nonzero(x[:, 0] > -1e9)[:, 0]].sum(0)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        result = check(Chosen, observation=Box((8,)), min_coverage_work=1, nonfinite=False)
    assert_passes(result)
    assert result.capture.coverage_work is None
    assert any(note.startswith("not known what share of the work is compiled: ") for note in result.notes)


# --- recurrent modules ----------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.memory = kind(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.encoder(x))
        return self.head(self.remember(hidden))

    @torch._dynamo.disable(recursive=False)
    def remember(self, x: torch.Tensor) -> torch.Tensor:
        return self.memory(x[None])[0][0]


@pytest.mark.parametrize(
    ("kind", "backend", "helps"),
    [(nn.GRU, "aot_eager", True), (nn.RNN, "eager", True), (nn.LSTM, "eager", True)],
)
def test_the_remedy_for_recurrent_modules(kind: type[nn.RNNBase], backend: str, helps: bool) -> None:
    result = check(lambda: Recurrent(kind), observation=Box((8,)), backend=backend)
    assert_passes(result)
    assert result.capture.modules_left_eager == ("memory",)
    (note,) = result.notes
    assert note.startswith(f"memory: dynamo leaves nn.{kind.__name__} eager by default; ")
    assert "torch._dynamo.config.allow_rnn = True compiles it (tried on " in note


def test_a_remedy_that_does_not_help_is_told_as_what_it_does() -> None:
    """Torch 2.13 raises for an LSTM in AOTAutograd with gradients; a release that does not is reported too."""
    result = check(lambda: Recurrent(nn.LSTM), observation=Box((8,)), backend="aot_eager")
    (note,) = result.notes
    if "compiles it" not in note:
        assert "allow_rnn = True does not help on torch" in note and "raised AssertionError" in note


def test_no_remedy_where_nothing_is_left_eager() -> None:
    with internals.allowed_rnns():
        result = check(lambda: Recurrent(nn.GRU), observation=Box((8,)), min_coverage_work=0)
    assert_passes(result)
    assert check(lambda: nn.Linear(8, 4), observation=Box((8,))).notes == ()


# --- what is said ---------------------------------------------------------------------------------


def test_the_sentence_of_the_terminal() -> None:
    capture = Capture(
        graphs=3,
        parameters=("encoder.weight", "encoder.bias", "head.weight", "head.bias", "log_std"),
        left_eager=("gru.weight", "gru.bias"),
        elements=(4000, 200, 600, 15, 5, 12_000, 480),
        work=1000,
        work_inside=200,
        work_left_eager={"gru at agent.py:31": 800},
    )
    expected = (
        "20 % compiled; eager: gru at agent.py:31 (12,480 of 17,300 parameters, 80 % of the work); the eager part "
        "is compared with itself, and min_coverage_work=0.5 makes that a failure"
    )
    assert capture.what_is_eager == expected
    row = CheckResult(method="act", phase="rollout", verdict=Verdict.EQUAL, capture=capture).row()
    assert notes.sentences([("a", row)]) == [f"a: {expected}"]
    failed = CheckResult(method="act", phase="rollout", verdict=Verdict.NOT_COMPILED, capture=capture).row()
    assert notes.sentences([("a", failed)]) == [], "the reason tells it"


def test_the_work_of_several_methods_is_their_sum() -> None:
    one = Capture(work=10, work_inside=4, work_left_eager={"a": 6}, parameters=("x",), elements=(2,))
    other = Capture(
        work=30, work_inside=6, work_left_eager={"a": 4, "b": 20}, left_eager=("x", "y"), elements=(2, 3)
    )
    both = Capture.of_all([one, other])
    assert (both.work, both.work_inside, both.coverage_work) == (40, 10, 0.25)
    assert both.work_left_eager == {"a": 10, "b": 20}
    assert (both.parameters, both.left_eager, both.elements) == (("x",), ("y",), (2, 3))


def test_an_older_report_has_no_figures() -> None:
    assert Capture(parameters=("a.x",), left_eager=("b.x",)).what_is_eager == "50 % compiled; eager: b"


def test_the_figures_are_plain_data() -> None:
    result = check_body(encoder=True)
    assert json.loads(json.dumps(result.as_dict()))["capture"]["work_inside"] == 2 * 4 * 8 * 8


class Hooked(nn.Module):
    """A hook on a tensor becomes part of the graph; see `torch.Tensor.register_hook`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient / 2)
        return self.head(y)


def test_the_work_of_a_graph_with_a_hook_is_counted() -> None:
    result = check(Hooked, "update", observation=Box((8,)), backend="aot_eager")
    assert (result.capture.work_inside, result.capture.work) == (result.capture.work,) * 2 != (0, 0)
    assert not any("not known what share" in note for note in result.notes)
