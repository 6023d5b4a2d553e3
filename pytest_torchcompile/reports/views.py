"""Chooses the view of the document by the suffix of a file, and writes it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.reports.document import Plain, to_json
from pytest_torchcompile.reports.markdown import markdown
from pytest_torchcompile.reports.ratios import ratios


class View(NamedTuple):
    """One form of the document.

    Args:
        render: returns its text.
        needs: the packages that `render` imports.
    """

    render: Callable[[Plain], str]
    needs: tuple[str, ...] = ()


def _html(document: Plain) -> str:
    from pytest_torchcompile.reports.html import html

    return html(document)


# The first suffix that matches is used.
VIEWS = {
    ".ratios.json": View(ratios),
    ".json": View(to_json),
    ".md": View(markdown),
    ".html": View(_html, needs=("jinja2",)),
}


def require_view(path: str, source: str) -> View:
    """Return the view for the suffix of `path`.

    Raises:
        UsageError: if there is none, or packages that it needs are not installed; the message names `source`.
    """
    view = next((view for suffix, view in VIEWS.items() if path.endswith(suffix)), None)
    if view is None:
        raise UsageError(f"{source} got {path!r}; accepted: a file that ends in {', '.join(VIEWS)}")
    missing = [name for name in view.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{source} got {path!r}, which needs {' and '.join(missing)}, not installed: "
            f'pip install "pytest-torchcompile[report]"'
        )
    return view


def write(document: Plain, path: str | os.PathLike[str], source: str) -> None:
    """Write the view for the suffix of `path`. An existing file is replaced at once, or not at all.

    Raises:
        UsageError: for a suffix without a view or a file that can't be written; the message names `source`.
    """
    text = require_view(os.fspath(path), source).render(document)
    file = pathlib.Path(path)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(file)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            unfinished.unlink(missing_ok=True)
        raise UsageError(f"{source} can't write {os.fspath(path)!r}: {error}") from None
