"""Compares what needs no tolerance: exceptions, types, shapes, plain values, random state, settings."""

from __future__ import annotations

from typing import Any

import torch

from pytest_torchcompile.policies.outcome import Outcome
from pytest_torchcompile.results import Difference
from pytest_torchcompile.texts import first_line


def structural(eager: Outcome, compiled: Outcome) -> list[Difference]:
    """Return the exceptions, types, dtypes, shapes, ``requires_grad`` and shared memory that differ."""
    if compiled.error is not None:
        raised = f"raises {first_line(compiled.error)}"
        return [Difference(path="output", problem="exception", eager="returns", compiled=raised)]
    found = []
    one, other = _kinds(eager), _kinds(compiled)
    for path in _paths(one, other):
        mine, theirs = one.get(path), other.get(path)
        if mine != theirs:
            found.append(
                Difference(
                    path=path, problem="structure", eager=mine or "absent", compiled=theirs or "absent"
                )
            )
    if found:
        return found
    tensors, others = eager.elementwise(), compiled.elementwise()
    for path in _paths(tensors, others):
        found += _tensor_facts(path, tensors.get(path), others.get(path))
    unequal = (eager.requires_grad ^ compiled.requires_grad) - eager.unfollowed - compiled.unfollowed
    for path in sorted(unequal):
        follows = path in eager.requires_grad
        found.append(
            Difference(path=path, problem="requires_grad", eager=str(follows), compiled=str(not follows))
        )
    found += [
        Difference(path=path, problem="inference", eager="an ordinary tensor", compiled="an inference tensor")
        for path in sorted(compiled.inference - eager.inference)
    ]
    found += [
        Difference(path=path, problem="memory", eager="memory of its own", compiled=f"shares that of {other}")
        for path, other in sorted(compiled.aliases - eager.aliases)
    ]
    return found + _missing_gradients(eager, compiled)


def _kinds(outcome: Outcome) -> dict[str, str]:
    """Return the types of the outputs, and of what the user's `observe` returns, by path."""
    observed = {path: kind for path, kind in outcome.state.kinds.items() if path.startswith("observed")}
    return outcome.outputs.kinds | observed


def _paths(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys([*mine, *theirs]))


def _tensor_facts(path: str, mine: torch.Tensor | None, theirs: torch.Tensor | None) -> list[Difference]:
    if mine is None or theirs is None:
        return [_presence(path, mine, theirs)]
    facts: dict[str, tuple[Any, Any]] = {
        "dtype": (mine.dtype, theirs.dtype),
        "shape": (tuple(mine.shape), tuple(theirs.shape)),
        "device": (mine.device, theirs.device),
    }
    return [
        Difference(path=path, problem=problem, eager=str(one), compiled=str(two))
        for problem, (one, two) in facts.items()
        if one != two
    ]


def _presence(path: str, mine: torch.Tensor | None, theirs: torch.Tensor | None) -> Difference:
    texts = ["absent" if t is None else f"{t.dtype} {tuple(t.shape)}" for t in (mine, theirs)]
    return Difference(path=path, problem="presence", eager=texts[0], compiled=texts[1])


def _missing_gradients(eager: Outcome, compiled: Outcome) -> list[Difference]:
    """Return the gradients that only one side has; AOTAutograd may give zeros where eager gives None."""
    found = []
    one, other = eager.differentiated(), compiled.differentiated()
    for path in _paths(one, other):
        mine, theirs = one.get(path), other.get(path)
        if mine is None or theirs is None:
            only = mine if theirs is None else theirs
            if only is not None and bool((only != 0).any()):
                found.append(_presence(path, mine, theirs))
    return found


def plain_values(eager: Outcome, compiled: Outcome) -> list[Difference]:
    """Return the numbers, strings and other plain values that are unequal."""
    one, other = eager.plain(), compiled.plain()
    return [
        Difference(
            path=path, problem="value", eager=_value_text(path, one), compiled=_value_text(path, other)
        )
        for path in _paths(one, other)
        if path not in one or path not in other or _unequal(one[path], other[path])
    ]


def _value_text(path: str, values: dict[str, Any]) -> str:
    return repr(values[path]) if path in values else "absent"


def _unequal(mine: Any, theirs: Any) -> bool:
    """Whether two plain values differ; False if comparing them raises, as for lists of object arrays."""
    try:
        return bool(mine != theirs)
    except (TypeError, ValueError, RuntimeError):
        return False


def generators(eager: Outcome, compiled: Outcome) -> list[Difference]:
    """Return a difference for each random generator that the two calls left in different states."""
    return [*_of_the_process(eager, compiled), *_of_the_policy(eager, compiled)]


def _of_the_policy(eager: Outcome, compiled: Outcome) -> list[Difference]:
    both = eager.generators.keys() & compiled.generators.keys()
    pairs = {path: (eager.generators[path], compiled.generators[path]) for path in sorted(both)}
    return [
        _unequal_states(f"generator {path}", mine.drew, theirs.drew)
        for path, (mine, theirs) in pairs.items()
        if mine.state != theirs.state
    ]


def _of_the_process(eager: Outcome, compiled: Outcome) -> list[Difference]:
    if eager.random is None or compiled.random is None:
        return []
    unequal = eager.random.unequal(compiled.random)
    if not unequal:
        return []
    mine, theirs = eager.drew(), compiled.drew()
    return [_unequal_states(f"random state of {name}", name in mine, name in theirs) for name in unequal]


def _unequal_states(path: str, eager_drew: bool, compiled_drew: bool) -> Difference:
    return Difference(
        path=path,
        problem="random state",
        eager="drew" if eager_drew else "did not draw",
        compiled=("drew differently" if eager_drew else "drew") if compiled_drew else "did not draw",
    )


def settings(eager: Outcome, compiled: Outcome) -> list[Difference]:
    """Return a difference for each setting of torch's, such as grad mode, that the two calls left unequal."""
    one, other = eager.settings, compiled.settings
    return [
        Difference(path=name, problem="value", eager=str(one[name]), compiled=str(other[name]))
        for name in one.keys() & other.keys()
        if one[name] != other[name]
    ]
