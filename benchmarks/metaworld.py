"""Meta-World from a scripted expert to success: each step of the guide, timed.

    python benchmarks/metaworld.py --task button-press-topdown-v3 --episodes 100 --steps 3000
    python benchmarks/metaworld.py --task reach-v3 --episodes 200 --steps 10000
    python benchmarks/metaworld.py --task faucet-open-v3 --task faucet-close-v3 --episodes 200

It needs the extras `train` and `sim`. Several tasks are one data set and one policy, which is
rolled out in each of them, from starts that no recording has. The same command resumes in DIR.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe


def run(*arguments: str) -> dict[str, Any]:
    """Runs a command of vlatool, prints its duration, and returns its JSON."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "vlatool", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = sum(getattr(after, key) - getattr(before, key) for key in ("ru_utime", "ru_stime"))
    seconds = time.perf_counter() - started
    print(f"{' '.join(arguments[:2]):<18} {seconds:7.1f} s, {used:7.1f} CPU s", flush=True)
    return json.loads(done.stdout)


def main() -> None:
    """Records, preprocesses, trains and rolls out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", action="append", help="may be repeated")
    parser.add_argument("--episodes", type=int, default=100, help="recordings of all tasks")
    parser.add_argument("--steps", type=int, default=10000, help="training steps")
    parser.add_argument("--rollouts", type=int, default=50, help="episodes per task")
    parser.add_argument("--output", type=Path, metavar="DIR", default="metaworld", help="results")
    arguments = parser.parse_args()
    tasks = arguments.task or ["button-press-topdown-v3"]
    raw, data, trained = (str(arguments.output / name) for name in ("raw", "data", "run"))
    print(describe(), f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads")
    named = [word for task in tasks for word in ("--task", task)]
    counts = ["--episodes", str(arguments.episodes)]
    run("sample", "lerobot", raw, "--world", "metaworld", *named, *counts, "--size", "large")
    run("preprocess", "lerobot", raw, "--preset", "metaworld-windows", "--output", data)
    steps = ["--total-train-steps", str(arguments.steps)]
    run("train", "--preset", "metaworld", "--data", data, "--output", trained, *steps)
    for task in tasks:
        environment = ["--env", f"metaworld/{task}", "--episodes", str(arguments.rollouts)]
        result = run("eval", "rollout", trained, *environment)
        low, high = result["confidence_95"]
        print(f"{task}: {result['successes']} of {result['episodes']} ({low:.0%} to {high:.0%})")


if __name__ == "__main__":
    main()
