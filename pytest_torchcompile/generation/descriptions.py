"""Describes a recipe in one line for reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from pytest_torchcompile.generation.recipes import (
    SMALLEST,
    Fill,
    Recipe,
    equal_specs,
    uses_time,
)
from pytest_torchcompile.generation.tensors import leaves, simplest
from pytest_torchcompile.specs import spaces, trees
from pytest_torchcompile.specs.spaces import Spec


def describe(tree: Any, recipe: Recipe) -> str:
    """Return a line such as ``batch 1; observation: zeros, [0, 3, 1, 2] = -6.0``."""
    parts = [f"batch {recipe.batch}"] + ([f"T = {recipe.time}"] if uses_time(tree) else [])
    inputs = leaves(tree, recipe)
    for (path, spec), fill in zip(trees.leaves(tree), recipe.fills, strict=True):
        if not isinstance(spec, spaces.Constant):
            content = _describe_leaf(spec, fill, inputs[path])
            parts.append(f"{trees.dotted(path) or 'observation'}: {content}")
    names = [trees.dotted(path) for path, _ in trees.leaves(tree)]
    for group in equal_specs(tree) if recipe.shared else ():
        parts.append(f"{' and '.join(names[leaf] for leaf in group)} are {recipe.shared}")
    return "; ".join(parts)


def _describe_leaf(spec: Spec, fill: Fill, tensor: torch.Tensor) -> str:
    layout = "" if fill.layout == "contiguous" else f", {fill.layout}"
    if isinstance(spec, spaces.LegalAction):
        return f"{_elements(tensor.reshape(-1)[:8].tolist())}{' ...' if len(tensor) > 8 else ''}"
    base = torch.from_numpy(simplest(spec, tuple(tensor.shape)).astype(np.float64))
    values = tensor.detach().to(torch.float64)
    different = torch.nonzero((values != base).reshape(-1)).reshape(-1)
    first = float(values.reshape(-1)[0]) if values.numel() else 0.0
    if len(different) <= 4:
        unset = "all legal" if isinstance(spec, spaces.LegalMask) else "zeros"
        if isinstance(spec, spaces.OneHot) or (base.numel() and float(base.reshape(-1)[-1]) not in (0, 1)):
            unset = "the simplest values"
        return f"{unset}{_listed(values, different)}{layout}"
    if bool((values == first).all()):
        return f"all {first:.9g}{layout}"
    if fill.stop == 0 and math.isinf(fill.rest) and not fill.edits:
        return f"the {'largest' if fill.rest > 0 else 'smallest'} values{layout}"
    scale = f", scale {fill.scale:g}" if isinstance(spec, spaces.Box) and fill.scale != 1 else ""
    scale += f" in the first row to {SMALLEST:g} in the last" * (bool(scale) and fill.fading)
    odd = torch.nonzero(~torch.isfinite(values).reshape(-1)).reshape(-1)
    return f"random (seed {fill.seed}{scale}){_listed(values, odd[:4])}{layout}"


def _listed(values: torch.Tensor, flat: torch.Tensor) -> str:
    texts = []
    for position in flat.tolist():
        index = [int(i) for i in np.unravel_index(position, tuple(values.shape))]
        texts.append(f", {index} = {float(values.reshape(-1)[position]):.9g}")
    return "".join(texts)


def _elements(values: list[Any]) -> str:
    return ", ".join(map(str, values))
