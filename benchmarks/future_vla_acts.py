"""A tiny FUTURE-VLA that acts: from recordings of the built-in world to success, by seed.

    python benchmarks/future_vla_acts.py --seeds 0 1 2 --output acts

It needs the extra `train`. Recordings and tokenizers are made once, weights to start from by seed.
Each seed is rolled out from 50 starts that no recording has, with the true instruction and with one
that names another block, and its actions and images are compared with those of new recordings. The
last checkpoint counts. The same command resumes; `hours` are those of the call.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from machine import describe
from seeds import interval, run

import vlatool
from vlatool.episode import Array, UInt8Array
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.evaluation.policy_runner import open_policy
from vlatool.models.policy import in_batches
from vlatool.models.tokenizer import open_tokenizer, rank_device
from vlatool.workflows.evaluate import recorded_pairs
from vlatool.world.registration import LIBERO_ENVIRONMENT, register_environments
from vlatool.world.scene import COLORS, instruction_for

START = Path(__file__).parents[1] / "examples/tiny_start.py"
FIRST_SEED = 100_000
STARTS = ("--env", LIBERO_ENVIRONMENT, "--seed", str(FIRST_SEED))
HELD_OUT_SEED = "7"
SCENE = "image"  # the camera whose images show the gripper from outside
COMPARED = 64  # samples whose images are predicted
WHITE, GRAY, FEWEST = 190, 40, 4  # least value, largest difference and least number of its pixels


def prepare(root: Path, arguments: argparse.Namespace) -> None:
    """Samples to train on and new ones, and their tokenizers."""

    def at(name: str) -> str:
        return str(root / name)

    episodes = {"raw": (arguments.episodes, "3"), "raw-new": (arguments.new, HELD_OUT_SEED)}
    for name, (count, seed) in episodes.items():
        run("sample", "libero", at(name), "--episodes", str(count), "--seed", seed)
    data = ["--preset", "future-vla-tiny-data", "--output"]
    run("preprocess", "libero", at("raw"), *data, at("windows"))
    run("preprocess", "libero", at("raw-new"), *data, at("windows-new"))
    shards = [at("windows"), "--val-ratio", "0.02", "--output", at("shards")]
    run("preprocess", "images", *shards)
    trained = ["--data", at("shards"), "--output", at("tokenizer")]
    steps = shlex.split(arguments.tokenizer)
    run("tokenizer", "train", "--preset", "future-vla-tiny-tokenizer", *trained, *steps)
    vocabulary = ["--vocab-size", "256", "--scale", "5"]
    for name in ("windows", "windows-new"):
        run("encode", at(name), "--tokenizer", at("tokenizer"))
        if name == "windows":
            run("tokenizer", "fit-fast", at(name), "--output", at("fast"), *vocabulary)
        build = ["--preset", "future-vla-tiny-build", "--fast", at("fast")]
        run("build-dataset", at(name), *build)


def trained_from_seed(root: Path, seed: int, arguments: argparse.Namespace) -> Path:
    """The run of a seed: weights to start from, the last layer alone, then all of them."""
    start, first, last = (root / f"{name}_{seed}" for name in ("start", "first", "seed"))
    if not (start / "future_vla.json").exists():  # written last
        words = [str(start), "--fast", str(root / "fast"), "--seed", str(seed)]
        words += shlex.split(arguments.start)
        subprocess.run([sys.executable, str(START), *words], check=True)
    words = ["--data", str(root / "windows/samples"), "--hparams.seed", str(seed)]
    words += shlex.split(arguments.train)
    for preset, begin, output in (("-first", start, first), ("", first, last)):
        line = ["--preset", f"future-vla-tiny{preset}", "--init-from", str(begin)]
        run("train", *line, *words, "--output", str(output))
    return last


def obeys(trained: Path, episodes: int) -> dict[str, float]:
    """Shares of episodes with a wrong instruction that end in its goal, and in the true one."""
    register_environments()
    env = gymnasium.make(LIBERO_ENVIRONMENT)
    policy = vlatool.load_policy(trained)
    placed = {"obeyed": 0, "true goal": 0}
    with vlatool.ControlLoop(policy, execute_steps=4) as loop:
        for number in range(episodes):
            target, wrong = (COLORS[(number + shift) % len(COLORS)] for shift in (0, 1))
            options = {"target": target, "instruction": instruction_for(wrong)}
            seen, info = env.reset(seed=FIRST_SEED + number, options=options)
            loop.reset()
            is_over = False
            while not is_over:
                images = {name: seen[name] for name in ("image", "wrist_image")}
                action = loop.step(images | {"instruction": seen["instruction"]})["actions"]
                seen, _, success, truncated, info = env.step(action)
                is_over = success or truncated or info["placed"] is not None
            placed["obeyed"] += info["placed"] == wrong
            placed["true goal"] += info["placed"] == target
    return {name: count / episodes for name, count in placed.items()}


def gripper_at(image: UInt8Array) -> Array:
    """Column and row of the white pixels of an image; nan where there are too few."""
    low, high = image.min(axis=-1).astype(int), image.max(axis=-1)
    rows, columns = np.nonzero((low >= WHITE) & (high - low < GRAY))
    return np.median([columns, rows], axis=1) if len(rows) >= FEWEST else np.full(2, np.nan)


def gripper_misses(root: Path, trained: Path) -> dict[str, float]:
    """Median distance in pixels of the gripper in predicted images from that in recorded ones, and
    of that in the present image; and the share of predicted images that show one.
    """
    policy, opened = open_policy(str(trained), "auto", OpenLoopConfig())
    tokenizer = open_tokenizer(str(root / "tokenizer"), rank_device())
    policy = policy.with_tokenizer(tokenizer.network)
    pairs = recorded_pairs(str(root / "windows-new/samples"), policy, opened, seed=0)
    chosen = [number * len(pairs) // COMPARED for number in range(COMPARED)]
    observations = [observation for observation, _ in pairs.read(chosen)]
    drawn = in_batches(policy.futures, observations, chosen, 32)
    misses: dict[int, list[list[float]]] = {}
    for index, observation, images in zip(chosen, observations, drawn[SCENE], strict=True):
        recorded = pairs.futures(index)
        steps = zip(images, recorded.images[SCENE], recorded.mask, strict=True)
        for step, (predicted, real, is_recorded) in enumerate(steps, 1):
            truth = gripper_at(real)
            if is_recorded and not np.isnan(truth).any():
                present = observation.images[SCENE][-1]
                grippers = [gripper_at(image) for image in (predicted, present)]
                distances = np.linalg.norm(np.subtract(grippers, truth), axis=1)
                misses.setdefault(step, []).append(distances.tolist())
    figures = {}
    for step, rows in sorted(misses.items()):
        predicted, present = np.transpose(rows)
        figures[f"gripper +{step}, pixels"] = float(np.nanmedian(predicted))
        figures[f"gripper +{step}, present"] = float(np.nanmedian(present))
        figures[f"gripper +{step}, shown"] = float(np.isfinite(predicted).mean())
    return figures


def main() -> None:
    """Prepares, trains each seed, measures it and prints the figures."""
    parser = argparse.ArgumentParser(description="A tiny FUTURE-VLA that acts.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=1000, help="recordings")
    parser.add_argument("--new", type=int, default=40, help="new recordings to compare with")
    parser.add_argument("--rollouts", type=int, default=50, help="starts")
    parser.add_argument("--tokenizer", default="", help="further arguments of its training")
    parser.add_argument("--start", default="", help="further arguments of tiny_start.py")
    parser.add_argument("--train", default="", help="further arguments of train, in quotes")
    parser.add_argument("--output", type=Path, metavar="DIR", default="acts", help="results")
    arguments = parser.parse_args()
    root: Path = arguments.output
    print(describe(), flush=True)
    prepare(root, arguments)
    results: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        started = time.perf_counter()
        trained = trained_from_seed(root, seed, arguments)
        hours = (time.perf_counter() - started) / 3600
        figures = measured(root, trained, arguments.rollouts) | {"hours": hours}
        print(seed, json.dumps(figures), flush=True)
        for name, value in figures.items():
            results.setdefault(name, []).append(value)
        (root / "results.json").write_text(json.dumps(results, indent=2))
    for name, values in results.items():
        mean, half = interval(values)
        print(f"{name}: {mean:.3f} +- {half:.3f}, seeds {[round(each, 3) for each in values]}")


def measured(root: Path, trained: Path, rollouts: int) -> dict[str, float]:
    """Success, obedience, and errors on new recordings; kept beside the run."""
    report_file = trained / "measured.json"
    if report_file.exists():
        return json.loads(report_file.read_text())
    report = run("eval", "rollout", str(trained), *STARTS, "--episodes", str(rollouts))
    new = [str(root / "windows-new/samples"), "--tokenizer", str(root / "tokenizer")]
    compared: dict[str, Any] = run("eval", "open-loop", str(trained), *new)
    images = compared["futures"]["steps"]["4"]
    figures = {
        "success": report["success_rate"],
        **obeys(trained, rollouts),
        **{name: images[name] for name in images if name.startswith("moving_")},
        **gripper_misses(root, trained),
    }
    report_file.write_text(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main()
