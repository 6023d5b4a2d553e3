"""Holds the text of a script that makes the calls after which the sides differ."""

from __future__ import annotations

HEAD = '''"""Compiled differs from eager: {case}

Run it: python repro.py. It exits 1 if compiled differs, 0 if it agrees. It needs torch, and what
{module} imports.
tensors.pt holds the inputs, environment.txt the versions.
Steps: {what}
"""

import contextlib
import copy
import importlib
import pathlib
import random
import sys
import zlib

import numpy
import torch

PATH = {path!r}
# Of each function: module, name, whether it is a method of a new instance, keyword arguments.
OWN = {own!r}
ADAPTERS = {adapters!r}
# Of each method: the names of its positional inputs.
NAMES = {names!r}
COMPILE = {compile!r}  # arguments of torch.compile; None if the factory compiles
STEPS = [
{steps}
]
ALLOWED = {allowed!r}
OVERWRITTEN, RAISES = {overwritten!r}, {raises!r}
FACTORY_SEED, THREADS, AUTOCAST = {factory_seed!r}, {threads!r}, {autocast!r}
'''


BODY = '''

def imported(module, name, of_instance, arguments):
    """Import a function of the user's."""
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


def direction(path, root, seed):
    """Return the gradient for an output: normal random numbers, other ones for each output."""
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(path.encode()))
    return torch.randn(root.shape, generator=generator).to(root)


def without_wrapper(named):
    """Return the names without the prefix of torch.compile's wrapper, and their values."""
    return [(name.replace("_orig_mod.", ""), value) for name, value in named]


def parts(value, path, depth=0):
    """Yield the tensors in what a policy returns, by path; numbers and numpy arrays as tensors."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, (bool, float, numpy.number, numpy.bool_)):
        yield path, torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    elif isinstance(value, int):
        if abs(value) < 2**63:
            yield path, torch.tensor(value)
    elif isinstance(value, numpy.ndarray):
        if value.dtype.kind in "biufc":
            yield path, torch.from_numpy(numpy.ascontiguousarray(value))
    elif depth > 8 or value is None or isinstance(value, (str, bytes, type)):
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
        self.last = {}
        self.around = contextlib.nullcontext
        if not compiled:
            self.around = lambda: torch.compiler.set_stance("force_eager")
        self.functions = {name: self.function(name) for name in NAMES}
        if compiled and COMPILE is not None:
            self.functions = {n: torch.compile(f, **COMPILE) for n, f in self.functions.items()}

    def autocast(self):
        if AUTOCAST is None:
            return contextlib.nullcontext()
        parameters = self.policy.parameters()
        device = next((p.device.type for p in parameters if not p.is_meta), "cpu")
        return torch.autocast(device, dtype=getattr(torch, AUTOCAST))

    def function(self, name):
        if name in ADAPTERS:
            return imported(*ADAPTERS[name])
        found = self.policy
        for part in name.split(".") if name != "forward" else ():
            found = getattr(found, part)
        return found

    def step(self, saved, do, compare, **call):
        """Do one step. Return copies of its results by path, and the outputs themselves."""
        if do == "call":
            args, kwargs = copy.deepcopy(saved["inputs"][call.pop("inputs")])
            return self.call(args, kwargs, **call)
        if do == "write":
            self.write(saved["weights"][call["weights"]], call["how"])
            return self.buffers(), {}
        if do == "set":
            for path, value in call["values"].items():
                setattr(*self.place(path), value)
            return {}, {}
        if do == "train_layer":
            for parameter in self.policy.get_submodule(call["name"]).parameters(recurse=False):
                parameter.requires_grad_(call["on"])
            return {}, {}
        state = self.policy.state_dict()
        self.policy.load_state_dict(state)
        tensors = without_wrapper(state.items())
        return {f"checkpoint[{name!r}]": tensor.clone() for name, tensor in tensors}, {}

    def place(self, path):
        """Return the owner of an attribute, None if there is none, and its name."""
        *owners, name = path.split(".")
        owner = self.policy
        for part in owners:
            if isinstance(owner, (list, tuple)):
                owner = owner[int(part)]
            else:
                owner = owner.get(part) if isinstance(owner, dict) else getattr(owner, part, None)
        return owner, name

    def write(self, tensors, how):
        """Write weights or buffers in the way `how`."""
        if how == "load_state_dict":
            state = self.policy.state_dict()
            new = {n: tensors.get(n.replace("_orig_mod.", ""), t) for n, t in state.items()}
            self.policy.load_state_dict(new)
            return
        named = dict([*self.policy.named_parameters(), *self.policy.named_buffers()])
        known = {path.replace("_orig_mod.", "") for path in named}
        for path in tensors.keys() - known:
            owner, name = self.place(path)
            if isinstance(getattr(owner, name, None), torch.Tensor):
                named[path] = getattr(owner, name)
        for path, tensor in named.items():
            new = tensors.get(path.replace("_orig_mod.", ""))
            if new is None:
                continue
            if how == "assignment":
                owner, name = self.place(path)
                setattr(owner, name, new.clone())
            elif how == ".data =":
                tensor.data = new.clone()
            elif how == ".data.copy_":
                tensor.data.copy_(new)
            else:
                with torch.no_grad():
                    tensor.copy_(new)

    def refilled(self, args, kwargs, method):
        """Copy these inputs into those of the method's last call if they fit. Return the inputs to use."""
        old, new = (list(parts(value, "")) for value in (self.last.get(method, ()), (args, kwargs)))
        if [(p, t.shape, t.dtype) for p, t in old] != [(p, t.shape, t.dtype) for p, t in new]:
            return args, kwargs
        for (_, mine), (_, theirs) in zip(old, new):
            with torch.no_grad():
                mine.copy_(theirs)
        return self.last[method]

    def call(self, args, kwargs, method, train, grad, seed, inference, refill, settled, **learning):
        if refill:
            args, kwargs = self.refilled(args, kwargs, method)
        self.last[method] = (args, kwargs)
        self.policy.train(train)
        for name in settled:
            self.policy.get_submodule(name).eval()
        if "reset" in OWN:
            imported(*OWN["reset"])(self.policy)
        leading = (self.policy,) if method in ADAPTERS else ()
        seed_everything(seed)
        with self.around(), torch.inference_mode() if inference else contextlib.nullcontext():
            with torch.set_grad_enabled(grad), self.autocast():
                outputs = dict(parts(self.functions[method](*leading, *args, **kwargs), "output"))
            named = [*zip(NAMES[method], args), *kwargs.items()]
            inputs = {p: t for name, value in named for p, t in parts(value, f"input {name}")}
            found = {**outputs, **inputs}
            if grad:
                found |= self.gradients(outputs, inputs, seed, **learning)
            if "observe" in OWN:
                found |= dict(parts(imported(*OWN["observe"])(self.policy), "observed"))
        found = {path: tensor.detach().clone() for path, tensor in found.items()}
        return found | self.buffers(), outputs

    def buffers(self):
        named = without_wrapper(self.policy.named_buffers())
        return {f"buffer {name}": buffer.clone() for name, buffer in named}

    def gradients(self, outputs, inputs, seed, learn_from, not_from, summed):
        learnt = (outputs.keys() if learn_from is None else {*learn_from}) - {*not_from}
        roots = {p: outputs[p] for p in sorted(learnt & outputs.keys())}
        roots = {p: t for p, t in roots.items() if t.requires_grad and t.is_floating_point()}
        named = without_wrapper(self.policy.named_parameters())
        leaves = {name: p for name, p in named if p.requires_grad}
        leaves |= {path: tensor for path, tensor in inputs.items() if tensor.requires_grad}
        if not roots or not leaves:
            return {}
        directions = [direction(path, root, seed) for path, root in roots.items()]
        if summed:
            directions = [root.new_ones(()).expand(root.shape) for root in roots.values()]
        gradients = torch.autograd.grad(
            list(roots.values()), list(leaves.values()), directions, allow_unused=True
        )
        return {f"gradient of {name}": g for name, g in zip(leaves, gradients) if g is not None}


COMMON


def try_step(side, step, saved):
    """Do one step. Return its results, or the exception that it raised."""
    try:
        return side.step(saved, **step)
    except (Exception, SystemExit, GeneratorExit) as error:
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
        mine, _ = try_step(eager, step, saved)
        theirs, live = try_step(compiled, step, saved)
        kept += [(number, path, tensor, tensor.detach().clone()) for path, tensor in live.items()]
        raised = [outcome for outcome in (mine, theirs) if isinstance(outcome, BaseException)]
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
