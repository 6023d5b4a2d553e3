"""Whose code a file is, and which line of an exception is told."""

from __future__ import annotations

import contextlib
import linecache
import os
import sysconfig
import types
from pathlib import Path

import hypothesis
import pytest
import torch

import pytest_torchcompile
from pytest_torchcompile.policies import backward
from pytest_torchcompile.texts import is_users_code, raised_text


@pytest.mark.parametrize(
    "module", [torch.nn.functional, hypothesis.strategies, pytest_torchcompile, backward]
)
def test_the_code_of_torch_hypothesis_and_this_package_is_not_the_users(module: types.ModuleType) -> None:
    assert module.__file__ is not None
    assert not is_users_code(module.__file__)


@pytest.mark.parametrize(
    "file",
    [
        __file__,
        os.path.join(os.sep, "home", "me", "torch", "policy.py"),
        os.path.join(os.path.dirname(torch.__file__) + "rl", "modules.py"),
        os.path.join(os.path.dirname(pytest_torchcompile.__file__) + "_extras", "policy.py"),
    ],
)
def test_what_only_has_a_similar_name_is_the_users(file: str) -> None:
    assert is_users_code(file)


def test_the_line_of_an_exception_in_a_folder_named_torch_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "torch"
    folder.mkdir()
    file = folder / "policy.py"
    file.write_text("def fail():\n    raise ValueError('no')\n")
    scope: dict[str, object] = {}
    exec(compile(file.read_text(), str(file), "exec"), scope)
    linecache.checkcache()
    fail = scope["fail"]
    assert isinstance(fail, types.FunctionType)
    with pytest.raises(ValueError, match="no") as caught:
        fail()
    assert raised_text(caught.value).endswith("policy.py:2)")


def test_pythons_own_code_is_nobodys_but_an_installed_package_is_the_users() -> None:
    assert not is_users_code(contextlib.__file__)
    assert not is_users_code(torch.__file__)
    assert is_users_code(__file__)
    library = sysconfig.get_path("stdlib")
    assert is_users_code(os.path.join(library, "site-packages", "agents", "policy.py"))
    assert not is_users_code(os.path.join(library, "json", "decoder.py"))
