"""Meta-World from a scripted expert to success: each step of the guide, timed.

    python benchmarks/metaworld.py --task button-press-topdown-v3 --episodes 100 --steps 3000
    python benchmarks/metaworld.py --task reach-v3 --episodes 200 --steps 10000
    python benchmarks/metaworld.py --task faucet-open-v3 --task faucet-close-v3 --episodes 200
    python benchmarks/metaworld.py --task mt10 --episodes 1000 --steps 14000 --seeds 0 1 2

It needs the extras `train` and `sim`. Several tasks are one data set and one policy by seed, which
is rolled out in each of them, from starts that no recording has; `mt10` is the ten of that
benchmark. The same command resumes in DIR.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from machine import describe
from seeds import interval, run

MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)


def rolled_out(trained: Path, task: str, episodes: str) -> dict[str, Any]:
    """Report of the rollouts in a task; kept beside the run."""
    output = trained / "eval" / f"{task}-{episodes}"
    if (report := output / "report.json").exists():  # written last
        return json.loads(report.read_text())
    environment = ["--env", f"metaworld/{task}", "--episodes", episodes]
    return run("eval", "rollout", str(trained), *environment, "--output", str(output))


def main() -> None:
    """Records, preprocesses, trains and rolls out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", action="append", help="may be repeated; mt10: ten of them")
    parser.add_argument("--episodes", type=int, default=100, help="recordings of all tasks")
    parser.add_argument("--steps", type=int, default=10000, help="training steps")
    parser.add_argument("--rollouts", type=int, default=50, help="episodes per task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--output", type=Path, metavar="DIR", default="metaworld", help="results")
    arguments = parser.parse_args()
    named = arguments.task or ["button-press-topdown-v3"]
    tasks = [task for name in named for task in (MT10 if name == "mt10" else [name])]
    raw, data = (str(arguments.output / name) for name in ("raw", "data"))
    print(describe(), f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads")
    words = [word for task in tasks for word in ("--task", task)]
    counts = ["--episodes", str(arguments.episodes)]
    run("sample", "lerobot", raw, "--world", "metaworld", *words, *counts, "--size", "large")
    run("preprocess", "lerobot", raw, "--preset", "metaworld-windows", "--output", data)
    means: list[float] = []
    for seed in arguments.seeds:
        trained = str(arguments.output / f"seed_{seed}")
        words = ["--data", data, "--output", trained, "--hparams.seed", str(seed)]
        run("train", "--preset", "metaworld", *words, "--total-train-steps", str(arguments.steps))
        rates = []
        for task in tasks:
            result = rolled_out(Path(trained), task, str(arguments.rollouts))
            low, high = result["confidence_95"]
            print(
                f"{task}: {result['successes']} of {result['episodes']} ({low:.0%} to {high:.0%})"
            )
            rates.append(result["success_rate"])
        means.append(sum(rates) / len(rates))
        print(f"seed {seed}: mean {means[-1]:.3f}, worst task {min(rates):.3f}", flush=True)
    mean, half = interval(means)
    print(f"mean of the seeds: {mean:.3f} +- {half:.3f}, worst {min(means):.3f}")


if __name__ == "__main__":
    main()
