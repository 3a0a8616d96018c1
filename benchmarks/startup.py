"""Median seconds of `vlatool --help` against a bare Typer + Rich program, run in turn.

python benchmarks/startup.py [RUNS]
"""

import statistics
import subprocess
import sys
import time

from machine import describe

BARE = [sys.executable, "-c", "import typer, rich"]
COMMANDS = {
    "bare typer + rich": BARE,
    "vlatool --help": [sys.executable, "-m", "vlatool", "--help"],
    "vlatool resolve-config": [
        *(sys.executable, "-m", "vlatool", "resolve-config"),
        *("--preset", "world-pick"),
    ],
}


def main(runs: int) -> None:
    """Runs the commands in turn and prints medians and ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for index in range(runs + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if index:
                seconds[name].append(time.perf_counter() - started)
    print(describe())
    bare = statistics.median(seconds["bare typer + rich"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:<26}{median:>8.3f} s{median / bare:>8.2f} x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
