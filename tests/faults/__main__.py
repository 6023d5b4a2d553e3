"""``python -m tests.faults --seeds 20``: counts the faults that are caught and the controls that are reported.

With ``--fresh`` the faults of `faults.fresh` and the correct policies of `faults.correct`.
"""

from __future__ import annotations

import argparse
import sys

from pytest_torchcompile.options import PROFILES

from .catalogue import CONTROLS, FAULTS
from .fresh.tally import main as fresh
from .run import run, summary


def main() -> int:
    """Check every entry under each seed and print the rates; 1 if a fault was missed or a control reported."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them, so that processes can share")
    parser.add_argument("--only", default="", help="entries whose class or name contains this")
    parser.add_argument("--fresh", action="store_true", help="the fresh faults and the correct policies")
    parser.add_argument(
        "--backend", default="aot_eager", help="what compiles the correct policies of --fresh"
    )
    parser.add_argument("--profile", default="default", choices=PROFILES, help="how much a check tries")
    parser.add_argument(
        "--each",
        type=int,
        default=1,
        help="check each N-th entry only, with another seed others (default: all)",
    )
    parser.add_argument("--long", action="store_true", help="with those of --fresh that compile for minutes")
    arguments = parser.parse_args()
    if arguments.fresh:
        return fresh(arguments)

    missed, runs = [], []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for control, entries in ((False, FAULTS), (True, CONTROLS)):
            for number, entry in enumerate(entries):
                name = f"{entry.kind}: {entry.name}"
                if arguments.only not in name or (number + seed) % arguments.each:
                    continue
                one = run(entry, seed, control=control, profile=arguments.profile)
                runs.append(one)
                if control is (one.found is not None):
                    reason = one.found.reason or one.found.worst if one.found else "nothing reported"
                    missed.append(f"seed {seed}, {name}: {reason}")
                    print(missed[-1], file=sys.stderr, flush=True)
    faults = [one for one in runs if one.entry in FAULTS]
    print("\n".join(summary(runs)))
    print(f"caught {sum(one.found is not None for one in faults)} of {len(faults)} faults,")
    print(
        f"reported {sum(one.found is not None for one in runs if one not in faults)} "
        f"of {len(runs) - len(faults)} controls"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
