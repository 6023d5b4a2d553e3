"""The command line: measure the installed torch, render the page, or show what plain code says.

python -m benchmarks.miscompiles measure              # the column of the installed torch: about half an hour
python -m benchmarks.miscompiles measure --missing    # only cells that it does not have yet
python -m benchmarks.miscompiles measure --only 198119 pooling
python -m benchmarks.miscompiles table                # docs/miscompiles.md from docs/miscompiles.json
python -m benchmarks.miscompiles plain --only 198119  # eager and compiled on the report's inputs, no check
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from . import data, table
from .record import Report
from .reports import BY_NUMBER, REPORTS


def chosen(only: list[str]) -> list[Report]:
    """The reports whose number is named, or whose kind or title contains a text."""
    return [
        one
        for one in REPORTS
        if not only or any(text == str(one.number) or text in f"{one.kind} {one.title}" for text in only)
    ]


def measured(report: Report, seconds: float) -> data.Cell:
    """The cell of one report, measured in a process of its own that is ended after some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        to = pathlib.Path(folder) / "cell.json"
        command = [sys.executable, "-m", "benchmarks.miscompiles", "cell", str(report.number), str(to)]
        log = pathlib.Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return data.cell_of(to) | {"word": "timed out", "seconds": round(seconds)}
        cell = data.cell_of(to)
        if code:
            lines = log.read_text(errors="replace").strip().splitlines()
            cell |= {"word": "crashed", "detail": f"exit {code}: {' '.join(lines[-1:])}"[:300]}
        return cell


def measure(arguments: argparse.Namespace) -> None:
    """Measure cells of the installed torch, and keep each as it comes."""
    column = data.this_torch()
    for report in chosen(arguments.only):
        if arguments.missing and str(report.number) in data.cells(column):
            continue
        cell = measured(report, arguments.seconds)
        data.keep(column, report.number, cell)
        print(f"{report.number} {cell['word']:14} {cell.get('seconds', 0):4} s  {report.title}", flush=True)


def plain(arguments: argparse.Namespace) -> None:
    """Print what plain code shows."""
    from .plain import reproduce

    for report in chosen(arguments.only):
        said = reproduce(report)
        print(
            f"{report.number} {said['outcome']:14} {report.title}\n    {said['detail']}".rstrip(), flush=True
        )


def cell(arguments: argparse.Namespace) -> None:
    """Measure one cell in this process."""
    from .measuring import measure as measure_cell

    measure_cell(BY_NUMBER[arguments.number], arguments.to)


def render(arguments: argparse.Namespace) -> None:
    """Write the page."""
    data.PAGE.write_text(table.page(data.load(), REPORTS))


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("measure", measure), ("plain", plain)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--only", nargs="*", default=[], help="numbers, or parts of kinds and titles")
        if name == "measure":
            command.add_argument("--seconds", type=float, default=600, help="for one cell")
            command.add_argument("--missing", action="store_true", help="only what was not measured yet")
    commands.add_parser("table").set_defaults(function=render)
    command = commands.add_parser("cell", help="one cell, as `measure` runs it")
    command.set_defaults(function=cell)
    command.add_argument("number", type=int)
    command.add_argument("to", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
