"""Says what to write if eager raises because the declared inputs do not fit the policy.

torch names the operator that failed, and a user needs the line of the declaration. Each reader below knows
one message of torch or Python, and returns a sentence with that line; it returns nothing rather than guess.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pytest_torchcompile.policies.advice_lines import with_line
from pytest_torchcompile.policies.index_advice import (
    of_indices,
    of_masks,
    of_too_many_choices,
    of_too_many_rows,
)
from pytest_torchcompile.policies.reachable import Reachable, path_of
from pytest_torchcompile.policies.state_advice import of_one_instead_of_two, of_wrong_shape
from pytest_torchcompile.specs import spaces, trees
from pytest_torchcompile.texts import line_that_raised, raised_text

Reader = Callable[[BaseException, Mapping[str, Any], Reachable], str]


def eager_raises(error: BaseException, batch: int, tree: Mapping[str, Any], model: nn.Module) -> str:
    """Return a sentence on an exception of eager's first call: the error, the inputs, and what to write.

    Args:
        error: the exception.
        batch: the batch size of the call.
        tree: the declared inputs.
        model: the policy, or the `Holder` around it.
    """
    return (
        f"eager raises {raised_text(error)} on inputs with batch {batch} declared as "
        f"{trees.declared(tree)}{advice(error, tree, model)}"
    )


def advice(error: BaseException, tree: Mapping[str, Any], model: nn.Module) -> str:
    """Return ``; `` and what to write so that the policy accepts its inputs; empty if that is not known."""
    policy = Reachable(model)
    sentence = next(filter(None, (reader(error, tree, policy) for reader in _READERS)), "")
    return f"; {sentence}" if sentence else ""


# --- shapes ---------------------------------------------------------------------------------------

_LAST_DIMENSION = (
    r"shapes cannot be multiplied \(\d+x(?P<got>\d+) and (?P<need>\d+)x\d+\)",
    r"input\.size\(-1\) must be equal to input_size\. Expected (?P<need>\d+), got (?P<got>\d+)",
    r"input has inconsistent input_size: got (?P<got>\d+),? expected (?P<need>\d+)",
    r"expected input with shape \[\*, (?P<need>\d+)\], but got input of size\[(?:\d+, )*(?P<got>\d+)\]",
)
"""What torch says if the last dimension of an input is wrong: matrix products, recurrent layers, norms."""
_CHANNELS = (
    r"expected input\[(?P<shape>[\d, ]+)\] to have (?P<need>\d+) channels, but got (?P<got>\d+) channels"
)


def _last_dimension(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    match = next(filter(None, (re.search(text, str(error)) for text in _LAST_DIMENSION)), None)
    if match is None:
        return ""
    got, need = int(match["got"]), int(match["need"])
    what = f"a layer takes {need} numbers and is given {got}"

    def resized(spec: Any) -> Any:
        if getattr(spec, "n", None) == got and isinstance(spec, (spaces.OneHot, spaces.LegalMask)):
            return dataclasses.replace(spec, n=need)
        shape = getattr(spec, "shape", ())
        return _reshaped(spec, (*shape[:-1], need)) if shape and shape[-1] == got else None

    return with_line(what, tree, resized) or what


def _channels(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    match = re.search(_CHANNELS, str(error))
    if match is None:
        return ""
    need, dimensions = int(match["need"]), len(match["shape"].split(","))

    def with_channels(spec: Any) -> Any:
        shape = getattr(spec, "shape", None)
        if not isinstance(shape, tuple) or len(shape) not in (dimensions - 2, dimensions - 1):
            return None
        if len(shape) == dimensions - 2:  # torch took the batch for the channels
            return _reshaped(spec, (need, *shape))
        others = list(shape)
        # The channels may stand last, as most environments return them.
        del others[-1 if shape[-1] == need else 0]
        return _reshaped(spec, (need, *others))

    what = f"a convolution takes {need} channels, in the first dimension after the batch"
    return with_line(what, tree, with_channels) or what


def _reshaped(spec: Any, shape: tuple[int, ...]) -> Any:
    """Return `spec` with another shape; None if its bounds, which may be arrays, do not fit that."""
    bounds = (getattr(spec, name, None) for name in ("low", "high"))
    if any(getattr(bound, "shape", ()) for bound in bounds):
        return None
    return dataclasses.replace(spec, shape=shape)


# --- dtypes ---------------------------------------------------------------------------------------

_DTYPES = (
    "same dtype",
    "should be the same",
    "expected scalar type",
    "not implemented for 'Byte'",
    "not implemented for 'Long'",
)


def _dtype(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    if not any(text in str(error) for text in _DTYPES):
        return ""
    own = {p.dtype for p in policy.parameters.values() if p.is_floating_point()}
    if len(own) != 1:
        return ""
    name = str(own.pop()).removeprefix("torch.")

    def as_own(spec: Any) -> Any:
        if isinstance(spec, spaces.Image):
            return spaces.Box(spec.shape, low=0, high=255, dtype=name)
        if isinstance(spec, spaces.Discrete) and not spec.start:
            return spaces.OneHot(spec.n, dtype=name)
        has_dtype = isinstance(spec, (spaces.Box, spaces.State, spaces.MultiBinary, spaces.OneHot))
        given = str(getattr(spec, "dtype", "")).removeprefix("torch.")
        return dataclasses.replace(spec, dtype=name) if has_dtype and given != name else None

    what = f"the parameters of the policy are {name}, so give it numbers of that dtype"
    return with_line(what, tree, as_own)


# --- devices --------------------------------------------------------------------------------------

_DEVICES = (
    r"on the same device|is not on the expected device|found at least two devices|type \(torch\.\w+\.\w+\)"
)


def _device(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    if not re.search(_DEVICES, str(error)):
        return ""
    places: dict[str, list[str]] = {}
    for name, tensor in _named_tensors(policy).items():
        places.setdefault(str(tensor.device), []).append(name)
    elsewhere = {device: names for device, names in places.items() if device != "cpu"}
    if not elsewhere:
        return ""
    device, names = next(iter(elsewhere.items()))
    if "cpu" in places:
        return (
            f"the policy is on several devices, {names[0]} on {device} and {places['cpu'][0]} on cpu: "
            f"register tensors as buffers, and move the policy as a whole: return Policy().to('cpu')"
        )
    if device == "meta":
        return "its tensors are on the device meta and hold no numbers: build the policy on the cpu"
    moved = ", ".join(f"{name}=Wrapped({spec!r}, lambda x: x.to({device!r}))" for name, spec in tree.items())
    return (
        f"inputs are made on the cpu and the policy is on {device}: return Policy().to('cpu'), or write "
        f"{moved}"
    )


# --- containers -----------------------------------------------------------------------------------


def _key(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    """Read the exceptions of a policy that takes a dict and is given a tensor or a dict with other keys."""
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        return _without_key(error.args[0], tree)
    keys = re.findall(r"\w\[[\"'](\w+)[\"']\]", line_that_raised(error))
    if keys and isinstance(error, (IndexError, TypeError, UserWarning)):
        for name, spec in tree.items():
            if isinstance(spec, spaces.Spec) and not isinstance(spec, spaces.Constant):
                return f"the policy takes a dict: write {name}={{{keys[0]!r}: {spec!r}}}"
    return ""


def _without_key(key: str, tree: Mapping[str, Any]) -> str:
    for name, spec in tree.items():
        if isinstance(spec, Mapping) and key not in spec:
            only = f"{name} has only {', '.join(map(repr, spec))}: add a spec of {key!r}"
            if len(spec) > 1:
                return only
            (value,) = spec.values()
            return f"{only}, or rename it: write {name}={{{key!r}: {value!r}}}"
    return ""


def _attribute(error: BaseException, tree: Mapping[str, Any], policy: Reachable) -> str:
    """Read the exception of a policy that takes a library's container."""
    match = re.search(r"'(?:Tensor|dict|tuple)' object has no attribute '(\w+)'", str(error))
    if match is None or not isinstance(error, AttributeError) or hasattr(torch.Tensor, match[1]):
        return ""
    name, spec = next(iter(tree.items()))
    inner = spec if isinstance(spec, Mapping) else {match[1]: spec}
    return (
        f"the policy takes an object with the attribute {match[1]!r}: write {name}=Wrapped({inner!r}, "
        f"lambda t: Batch(**t)), with the class that it takes in place of Batch"
    )


# --- what they share ------------------------------------------------------------------------------


def _named_tensors(policy: Reachable) -> dict[str, torch.Tensor]:
    plain = {
        path_of(place): value for place, value in policy.tensors().items() if isinstance(value, torch.Tensor)
    }
    return policy.parameters | policy.buffers | policy.leaves | plain


_READERS: tuple[Reader, ...] = (
    _last_dimension,
    _channels,
    of_one_instead_of_two,
    of_wrong_shape,
    of_indices,
    of_too_many_rows,
    of_too_many_choices,
    of_masks,
    _dtype,
    _device,
    _key,
    _attribute,
)
