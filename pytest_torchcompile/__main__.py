"""Compare or merge reports: ``python -m pytest_torchcompile compare`` and ``merge``."""

from __future__ import annotations

import argparse
import pathlib
import sys
import traceback
from collections.abc import Sequence

from pytest_torchcompile.errors import UsageError
from pytest_torchcompile.reports.baseline import compare, rules_of
from pytest_torchcompile.reports.comparison import comparison_markdown
from pytest_torchcompile.reports.document import merge
from pytest_torchcompile.reports.reading import read
from pytest_torchcompile.reports.views import VIEWS, require_view, write

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 1 if ``compare`` finds something worse or no case to compare, 2 if the command
        failed, else 0.
    """
    given = _parser().parse_args(arguments)
    try:
        status: int = given.run(given)
    except UsageError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return USAGE_ERROR
    except Exception:
        # Python would exit with 1, which here means that something got worse.
        traceback.print_exc()
        return USAGE_ERROR
    return status


_PROGRAM = "python -m pytest_torchcompile"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="compare | merge")
    comparing = commands.add_parser(
        "compare", help="compare two reports, as Markdown for a comment on a pull request"
    )
    comparing.add_argument("base", help="the baseline: a report (.json) or a file of pytest-benchmark")
    comparing.add_argument("head", help="the newer report")
    comparing.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="METRIC:THRESHOLD",
        help="exit with 1 also if a case is certainly worse in this metric, such as speedup:10%%; without "
        "this option, only if a verdict got worse",
    )
    comparing.add_argument(
        "--output", metavar="FILE", help="write the Markdown to this file instead of standard output"
    )
    comparing.set_defaults(run=_compare)
    merging = commands.add_parser("merge", help="merge reports of several machines or runs into one")
    merging.add_argument("reports", nargs="+", metavar="REPORT", help="a report (.json)")
    merging.add_argument(
        "--output",
        action="append",
        required=True,
        metavar="FILE",
        help=f"file to write, with the ending {', '.join(VIEWS)}; may be given several times",
    )
    merging.set_defaults(run=_merge)
    return parser


def _compare(given: argparse.Namespace) -> int:
    rules = rules_of(given.fail_on, "--fail-on")
    reports = compare(read(given.base), read(given.head))
    text = comparison_markdown(reports, rules)
    if given.output:
        _write(text, given.output)
    else:
        # The terminal's encoding may lack some characters, which must not raise an error.
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="")
    return 1 if reports.nothing_was_checked or reports.regressions(rules) else 0


def _write(text: str, path: str) -> None:
    try:
        pathlib.Path(path).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"--output can't write {path!r}: {error}") from None


def _merge(given: argparse.Namespace) -> int:
    for path in given.output:
        require_view(path, "--output")
    document = merge(map(read, given.reports))
    for path in given.output:
        write(document, path, "--output")
    return 0


if __name__ == "__main__":
    sys.exit(main())
