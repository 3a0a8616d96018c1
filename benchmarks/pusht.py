"""PushT of Diffusion Policy: from its demonstrations to the greatest reward per episode, by seed.

    python benchmarks/pusht.py pusht_cchi_v7_replay.zarr --seeds 0 1 2 --output pusht

It needs the extras `train`, `zarr` and `pusht`. Each seed is trained on one thread; each checkpoint
is rolled out from 50 starts (seeds 100000 and on of gym-pusht) with 16 steps of DDIM, and the last
one with 100 steps of DDPM too. The last checkpoint counts. The same command resumes; `hours` are
those of the call.
"""

import argparse
import json
import os
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

from machine import describe
from seeds import interval, run

STARTS = ("--env", "gym_pusht/PushT-v0", "--episodes", "50", "--seed", "100000")
EXECUTED = ("--execute-steps", "8", "--batch-size", "25")


def rolled_out(trained: Path, checkpoint: str, steps: int) -> dict[str, Any]:
    """Report of 50 rollouts of a checkpoint."""
    output = trained / "eval" / f"{checkpoint}-{steps}"
    if (report := output / "report.json").exists():  # written last
        return json.loads(report.read_text())
    arguments = [*STARTS, *EXECUTED, "--inference-steps", str(steps), "--output", str(output)]
    return run("eval", "rollout", str(trained / "checkpoints" / checkpoint), *arguments)


def with_ddpm(trained: Path, checkpoint: str) -> Path:
    """A copy of one checkpoint of a run that samples with DDPM, which is DDIM with an eta of 1."""
    copy = trained.with_name(f"{trained.name}-ddpm")
    if not copy.exists():
        partial = copy.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        skipped = shutil.ignore_patterns("eval", "checkpoints", ".vlatool", "best.json")
        shutil.copytree(trained, partial, ignore=skipped)
        shutil.copytree(trained / "checkpoints" / checkpoint, partial / "checkpoints" / checkpoint)
        for config in partial.rglob("config.yaml"):
            config.write_text(config.read_text().replace("eta: 0.0", "eta: 1.0"))
        partial.rename(copy)
    return copy


def main() -> None:
    """Preprocesses, trains each seed, rolls its checkpoints out and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="the published replay buffer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", help="episodes to train on, such as 0:90; all by default")
    parser.add_argument("--preset", default="pusht-state")
    parser.add_argument("--output", type=Path, metavar="DIR", default="pusht", help="results")
    parser.add_argument("--train", default="", help="further arguments of train, in quotes")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(describe(), f"{os.environ['OMP_NUM_THREADS']} threads", flush=True)
    windows = str(arguments.output / "windows")
    chosen = ["--episodes", arguments.episodes] if arguments.episodes else []
    source = ["preprocess", "zarr", arguments.data, *chosen, "--preset", "pusht-windows"]
    run(*source, "--fps", "10", "--output", windows)
    results: dict[str, list[float]] = {"ddim16": [], "success16": [], "ddpm100": [], "hours": []}
    for seed in arguments.seeds:
        trained = arguments.output / f"seed_{seed}"
        started = time.perf_counter()
        words = ["--preset", arguments.preset, "--data", windows, "--output", str(trained)]
        run("train", *words, "--hparams.seed", str(seed), *shlex.split(arguments.train))
        results["hours"].append((time.perf_counter() - started) / 3600)
        checkpoints = sorted(path.name for path in (trained / "checkpoints").iterdir())
        for checkpoint in checkpoints:
            report = rolled_out(trained, checkpoint, 16)
            print(seed, checkpoint, report["mean_max_reward"], report["success_rate"], flush=True)
        results["ddim16"].append(report["mean_max_reward"])
        results["success16"].append(report["success_rate"])
        sampled = rolled_out(with_ddpm(trained, checkpoints[-1]), checkpoints[-1], 100)
        results["ddpm100"].append(sampled["mean_max_reward"])
        (arguments.output / "results.json").write_text(json.dumps(results, indent=2))
    for name, values in results.items():
        mean, half = interval(values)
        print(f"{name}: {mean:.3f} +- {half:.3f}, seeds {[round(each, 3) for each in values]}")


if __name__ == "__main__":
    main()
