"""A script that imports the user's factory and makes the calls after which the sides differ.

It shows what no single graph does: what dynamo makes of the code around graphs, several graphs in a
row, a lifecycle, and what comes compiled. It needs what the user's own file imports, and nothing more.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import torch

from pytest_torchcompile.holders import Holder
from pytest_torchcompile.importable import named, users_path
from pytest_torchcompile.lives import Lives
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.pair import Pair
from pytest_torchcompile.policy import Arguments
from pytest_torchcompile.proof import COMMON, CantWrite, Script, compile_arguments
from pytest_torchcompile.recipes import Recipe
from pytest_torchcompile.results import Difference
from pytest_torchcompile.story import Kind, Manner, Move, Story, told

LARGEST = 2**30
"""Bytes of weights that a folder may hold."""

Step = dict[str, Any]
"""What the script does next, as a literal; see `_BODY`."""


def case_script(
    case: str, pair: Pair, recipe: Recipe, differences: tuple[Difference, ...], options: CheckOptions
) -> Script:
    """The script of a case: one call of its method.

    Args:
        case: names the case.
        pair: its two sides.
        recipe: the inputs.
        differences: what differs.
        options: how it was compiled.

    Raises:
        CantWrite: if a script could not import the factory, or make the same call.
    """
    update = pair.phase == "update"
    bound = pair.arguments(recipe, wide=False)
    steps = _Steps(pairs=[pair], what="one call")
    steps.call(pair, bound, train=update, grad=update, seed=recipe.seed, compare=True)
    return _script(case, steps, differences, options)


def story_script(
    case: str, lives: Lives, story: Story, differences: tuple[Difference, ...], options: CheckOptions
) -> Script:
    """The script of a lifecycle: the moves of a story, after its last one alone.

    Code keeps from its first call what must not show later. Where eager learns or loads, the script
    writes eager's new weights into both sides.

    Args:
        case: names the lifecycle.
        lives: its two sides.
        story: what they go through.
        differences: what differs after its last move.
        options: how it was compiled.

    Raises:
        CantWrite: if a script could not import the factory, or make the same moves.
    """
    methods = dict.fromkeys(move.method for move in story if move.method)
    steps = _Steps(pairs=[lives.by_name[method] for method in methods] or [lives.first], what=told(story))
    for moves in (story[-1:], story):
        lives.eager.begin({})
        if steps.all:
            steps.write(lives.eager.weights())
        for number, move in enumerate(moves, start=1):
            _tell(steps, lives, move, compare=number == len(moves))
    return _script(case, steps, differences, options)


@dataclasses.dataclass(kw_only=True)
class _Steps:
    """What a script does, in the making.

    Args:
        pairs: the methods that it calls.
        what: the same in words.
        all: see `_BODY`.
        inputs: of the calls.
        weights: those that are written.
    """

    pairs: list[Pair]
    what: str
    all: list[Step] = dataclasses.field(default_factory=list)
    inputs: list[Any] = dataclasses.field(default_factory=list)
    weights: list[dict[str, torch.Tensor]] = dataclasses.field(default_factory=list)

    def call(
        self,
        pair: Pair,
        bound: Arguments,
        *,
        train: bool,
        grad: bool,
        seed: int,
        compare: bool,
        under: str = "",
    ) -> None:
        how = {"train": train, "grad": grad, "seed": seed, "under": under}
        step = {"do": "call", "compare": compare, "method": pair.method.name, "inputs": len(self.inputs)}
        self.all.append(step | how)
        self.inputs.append((bound.args, bound.kwargs))

    def write(self, weights: dict[str, torch.Tensor]) -> None:
        """Raises `CantWrite` where they get too large."""
        size = sum(tensor.nbytes for tensor in weights.values())
        if size * (len(self.weights) + 1) > LARGEST:
            raise CantWrite(f"the weights of each move, {size / 2**20:.0f} MiB, are too many for a folder")
        self.all.append({"do": "write", "compare": False, "weights": len(self.weights)})
        self.weights.append(weights)


def _tell(steps: _Steps, lives: Lives, move: Move, *, compare: bool) -> None:
    """Make a move in eager, and have the script make it too."""
    if move.method:
        pair = lives.by_name[move.method]
        learns = move.kind is Kind.LEARN
        steps.call(
            pair,
            pair.arguments(move.recipe(pair.tree), wide=False),
            train=learns or move.manner is Manner.TRAINING,
            grad=learns,
            seed=move.seed,
            compare=compare,
            under=move.manner.name.lower() if move.manner in (Manner.AUTOCAST, Manner.INFERENCE) else "",
        )
    else:
        steps.all.append({"do": "checkpoint", "compare": compare})
    lives.eager.play(move)
    if move.changes_weights:
        steps.write(lives.eager.weights())


def _script(case: str, steps: _Steps, differences: tuple[Difference, ...], options: CheckOptions) -> Script:
    first = steps.pairs[0]
    deployed = first.twins.deployed
    draws = any(pair.draws for pair in steps.pairs)
    if isinstance(first.twins.eager, Holder):
        raise CantWrite("the policy is no torch.nn.Module itself")
    if deployed and draws:
        raise CantWrite("it comes compiled and draws, so that its random numbers are others by design")
    _require_loadable(steps.inputs)
    own = {"observe": first.declaration.observe, "reset": first.declaration.reset}
    adapters = {pair.method.name: pair.method.adapter for pair in steps.pairs if pair.method.adapter}
    make = named(first.factory)
    head = _HEAD.format(
        case=case,
        what=steps.what,
        module=make[0],
        path=[*users_path()],
        own={"make": make} | {name: named(f) for name, f in own.items() if f is not None},
        adapters={name: named(function) for name, function in adapters.items()},
        names={pair.method.name: pair.binding.positional for pair in steps.pairs},
        compile=None if deployed else compile_arguments(options, draws=draws),
        steps="\n".join(f"    {step!r}," for step in steps.all),
        allowed={d.path: d.allowed for d in differences},
        overwritten=any(d.problem == "overwritten" for d in differences),
        raises=any(d.problem == "exception" for d in differences),
        factory_seed=options.seed,
        threads=torch.get_num_threads(),
    )
    return Script(
        source=head + _BODY.replace("COMMON", COMMON.strip()),
        tensors={"inputs": steps.inputs, "weights": steps.weights},
    )


def _require_loadable(inputs: list[Any]) -> None:
    """Return if a script can load the inputs, which torch does of plain containers only."""
    file = io.BytesIO()
    try:
        torch.save(inputs, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        raise CantWrite(f"the inputs can't be saved for a script: {type(error).__name__}") from None


_HEAD = '''"""Compiled differs from eager: {case}

Run it: python repro.py. It exits 1 if compiled differs, 0 if it agrees. It needs torch, and what is
imported by {module}.
tensors.pt holds the inputs; environment.txt the versions.
What is done: {what}
"""

import contextlib
import copy
import importlib
import pathlib
import random
import sys

import numpy
import torch

PATH = {path!r}
# Module, name, whether a new instance of its class has it, arguments.
OWN = {own!r}
ADAPTERS = {adapters!r}
# Of the methods, with the names of the inputs that are given by position.
NAMES = {names!r}
COMPILE = {compile!r}  # None: the factory compiles
STEPS = [
{steps}
]
ALLOWED = {allowed!r}
OVERWRITTEN, RAISES = {overwritten!r}, {raises!r}
FACTORY_SEED, THREADS = {factory_seed!r}, {threads!r}
'''

_BODY = '''

def imported(module, name, of_instance, arguments):
    """The user's function of that name."""
    found = importlib.import_module(module)
    *owners, last = name.split(".")
    for owner in owners:
        found = getattr(found, owner)
    function = getattr(found() if of_instance else found, last)
    return (lambda *args, **kwargs: function(*args, **arguments, **kwargs)) if arguments else function


def seed_everything(seed):
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def plainly(named):
    """Names as they are without torch.compile's wrapper, with what they name."""
    return [(name.replace("_orig_mod.", ""), value) for name, value in named]


def parts(value, path, depth=0):
    """The tensors in what a policy returns, by path."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif depth > 8 or value is None or isinstance(value, (str, bytes, int, float, type)):
        return
    elif hasattr(value, "_fields"):
        for name in value._fields:
            yield from parts(getattr(value, name), f"{path}.{name}", depth + 1)
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from parts(part, f"{path}[{i}]", depth + 1)
    elif hasattr(value, "keys") and hasattr(value, "__getitem__"):
        for key in value.keys():
            yield from parts(value[key], f"{path}[{key!r}]", depth + 1)
    elif hasattr(value, "__dict__"):
        for name, part in vars(value).items():
            yield from parts(part, f"{path}.{name}", depth + 1)


class Side:
    """The policy, called eager or compiled."""

    def __init__(self, compiled):
        seed_everything(FACTORY_SEED)
        self.policy = imported(*OWN["make"])()
        self.around = contextlib.nullcontext
        if not compiled:
            self.around = lambda: torch.compiler.set_stance("force_eager")
        self.functions = {name: self.function(name) for name in NAMES}
        if compiled and COMPILE is not None:
            self.functions = {n: torch.compile(f, **COMPILE) for n, f in self.functions.items()}

    def function(self, name):
        if name in ADAPTERS:
            return imported(*ADAPTERS[name])
        found = self.policy
        for part in name.split(".") if name != "forward" else ():
            found = getattr(found, part)
        return found

    def step(self, saved, do, compare, **call):
        """Do one step; what it leaves behind, by path, and the outputs themselves."""
        if do == "call":
            args, kwargs = copy.deepcopy(saved["inputs"][call.pop("inputs")])
            return self.call(args, kwargs, **call)
        if do == "write":
            with torch.no_grad():
                for name, parameter in plainly(self.policy.named_parameters()):
                    parameter.copy_(saved["weights"][call["weights"]][name])
            return {}, {}
        state = self.policy.state_dict()
        self.policy.load_state_dict(state)
        return {f"checkpoint[{name!r}]": tensor.clone() for name, tensor in plainly(state.items())}, {}

    def call(self, args, kwargs, method, train, grad, seed, under):
        self.policy.train(train)
        if "reset" in OWN:
            imported(*OWN["reset"])(self.policy)
        leading = (self.policy,) if method in ADAPTERS else ()
        manner = contextlib.nullcontext()
        if under == "autocast":
            device = next((p.device.type for p in self.policy.parameters()), "cpu")
            manner = torch.autocast(device, dtype=torch.bfloat16)
        elif under == "inference":
            manner = torch.inference_mode()
        seed_everything(seed)
        with self.around(), manner:
            with torch.set_grad_enabled(grad):
                outputs = dict(parts(self.functions[method](*leading, *args, **kwargs), "output"))
            named = [*zip(NAMES[method], args), *kwargs.items()]
            inputs = {p: t for name, value in named for p, t in parts(value, f"input {name}")}
            found = {**outputs, **inputs}
            if grad:
                found |= self.gradients(outputs, inputs, seed)
            if "observe" in OWN:
                found |= dict(parts(imported(*OWN["observe"])(self.policy), "observed"))
        found |= {f"buffer {name}": buffer for name, buffer in plainly(self.policy.named_buffers())}
        return {path: tensor.detach().clone() for path, tensor in found.items()}, outputs

    def gradients(self, outputs, inputs, seed):
        roots = [t for _, t in sorted(outputs.items()) if t.requires_grad and t.is_floating_point()]
        leaves = {name: p for name, p in plainly(self.policy.named_parameters()) if p.requires_grad}
        leaves |= {path: tensor for path, tensor in inputs.items() if tensor.requires_grad}
        if not roots or not leaves:
            return {}
        generator = torch.Generator().manual_seed(seed)
        directions = [torch.randn(root.shape, generator=generator).to(root) for root in roots]
        gradients = torch.autograd.grad(roots, list(leaves.values()), directions, allow_unused=True)
        return {f"gradient of {name}": g for name, g in zip(leaves, gradients) if g is not None}


COMMON


def tried(side, step, saved):
    try:
        return side.step(saved, **step)
    except Exception as error:
        return error, {}


def main():
    print("torch", torch.__version__)
    torch.set_num_threads(THREADS)
    sys.path[:0] = PATH
    saved = torch.load(pathlib.Path(__file__).with_name("tensors.pt"), weights_only=True)
    eager, compiled = Side(compiled=False), Side(compiled=True)
    if COMPILE is not None:
        require_known(COMPILE["backend"])
    compiled.policy.load_state_dict(eager.policy.state_dict())
    wrong, kept = [], []
    for number, step in enumerate(STEPS):
        mine, _ = tried(eager, step, saved)
        theirs, live = tried(compiled, step, saved)
        kept += [(number, path, tensor, tensor.detach().clone()) for path, tensor in live.items()]
        raised = [outcome for outcome in (mine, theirs) if isinstance(outcome, Exception)]
        if raised and not RAISES:
            raise raised[0]
        if raised:
            wrong += [(number, "output", mine, theirs)] if len(raised) == 1 else []
            continue
        wrong += [
            (number, path, mine[path], theirs.get(path))
            for path in ALLOWED.keys() & mine.keys()
            if step["compare"] and differs(mine[path], theirs.get(path), ALLOWED[path])
        ]
    if OVERWRITTEN:
        wrong += [
            (number, f"{path}, after later calls", copied, tensor)
            for number, path, tensor, copied in kept
            if not torch.equal(tensor.nan_to_num(), copied.nan_to_num())
        ]
    for number, path, mine, theirs in wrong:
        print(f"step {number}: {path}", "eager", mine, "compiled", theirs, sep="\\n")
    print("compiled differs from eager" if wrong else "compiled agrees with eager")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
'''
