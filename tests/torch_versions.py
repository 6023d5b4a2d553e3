"""Marks for tests of what older versions of torch can't do; docs/versions.md lists them."""

from __future__ import annotations

import re

import pytest
import torch

RELEASE = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])


def needs_torch(release: str, what: str) -> pytest.MarkDecorator:
    """Skip the test before this release, which is the first that does `what`."""
    wanted = tuple(int(number) for number in release.split("."))
    return pytest.mark.skipif(wanted > RELEASE, reason=f"torch {release} is the first that {what}")
