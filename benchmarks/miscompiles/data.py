"""The data file: a column for each torch version, a cell for each report."""

from __future__ import annotations

import datetime
import json
import pathlib
import platform
from typing import Any

DOCS = pathlib.Path(__file__).parents[2] / "docs"
DATA = DOCS / "miscompiles.json"
PAGE = DOCS / "miscompiles.md"

Cell = dict[str, Any]
Column = dict[str, Any]


def load() -> dict[str, Column]:
    """The columns by torch version, oldest first."""
    columns: dict[str, Column] = json.loads(DATA.read_text()) if DATA.exists() else {}
    return dict(sorted(columns.items(), key=lambda item: [int(part) for part in item[0].split(".")[:2]]))


def cells(column: Column) -> dict[str, Cell]:
    """The cells that the file has of a column."""
    found: dict[str, Cell] = load().get(column["version"], {}).get("cells", {})
    return found


def this_torch() -> Column:
    """The column of the installed torch, without cells."""
    import torch

    return {
        "version": torch.__version__.partition("+")[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"threads: {torch.get_num_threads()}",
        "date": datetime.date.today().isoformat(),
    }


def keep(column: Column, number: int, cell: Cell) -> None:
    """Write one cell, and what its column says of the machine."""
    columns = load()
    kept = columns.get(column["version"], {}).get("cells", {}) | {str(number): cell}
    columns[column["version"]] = column | {"cells": dict(sorted(kept.items()))}
    DATA.write_text(json.dumps(columns, indent=1, sort_keys=True) + "\n")


def cell_of(path: pathlib.Path) -> Cell:
    """The cell that a process wrote, as far as it came."""
    cell: Cell = (
        json.loads(path.read_text()) if path.exists() and path.stat().st_size else {"word": "crashed"}
    )
    return cell
