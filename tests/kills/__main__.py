"""Kills every command at every kind of step: `python -m tests.kills [--sample N] [NAME ...]`."""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.builders.s3_server import s3_server
from tests.kills.commands import COMMANDS
from tests.kills.trial import Case, TrialRunner
from vlatool.storage.retry import SPEED_VARIABLE

_SEED = 9
# In memory: syncing costs nothing there.
_MEMORY = next((name for name in ("/dev/shm",) if os.access(name, os.W_OK)), None)


def main() -> int:
    """Prints a row per command and its problems; returns 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="commands to try; default: all")
    parser.add_argument("--sample", type=int, help="cases of each command; default: all")
    options = parser.parse_args()
    rng = random.Random(_SEED)

    def select(cases: Sequence[Case]) -> Sequence[Case]:
        count = len(cases) if options.sample is None else min(options.sample, len(cases))
        return sorted(rng.sample(cases, count))

    problems = total = 0
    print_line("| Command | Steps | Ended | Not equal | Seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder, s3_server() as server:
        os.environ |= server.env | {SPEED_VARIABLE: "60"}  # locks of killed runs end sooner
        bench = TrialRunner(Path(folder), server.bucket())
        for command in COMMANDS:
            if options.names and command.name not in options.names:
                continue
            clock = time.monotonic()
            trial = bench.trial(command, select)
            seconds = time.monotonic() - clock
            row = (command.name, trial.steps, len(trial.cases), len(trial.problems))
            print_line(f"| {' | '.join(map(str, row))} | {seconds:.0f} |")
            for problem in trial.problems:
                sys.stderr.write(f"{command.name}: {problem}\n")
            problems += len(trial.problems)
            total += len(trial.cases)
    print_line(f"{total} runs ended and repeated, {problems} problems")
    return 1 if problems else 0


def print_line(line: str) -> None:
    """Prints a line and flushes: forks would print buffered lines again."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
