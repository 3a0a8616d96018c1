"""Planted defects in recordings: the figures that find them, and the policies without them.

    python benchmarks/curation.py --defects tremor,pause --share 0.4 --arms all,clean,kept,random

It needs the extra `train`. For each defect: recordings of the built-in world of which a share has
it; how well each figure of `vlatool curate` separates them from the others; what the rules of
`curation-default` leave out; and the success of a policy from 50 unseen starts, trained on all
episodes, on those that the rules keep, on as many drawn at random, and on those without the defect.
The same command resumes in DIR.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from metaworld import run

from vlatool.artifacts.curation.format import FIGURES, badness
from vlatool.world.defects import DEFECTS

ENV = ("--env", "vlatool/PickPlace-v0", "--seed", "100000")


def auroc(bad: np.ndarray, good: np.ndarray) -> float:
    """Share of pairs in which the bad one has the larger value, ties by half."""
    return float((bad[:, None] > good).mean() + 0.5 * (bad[:, None] == good).mean())


def detection(truth: list[bool], episodes: list[dict[str, Any]]) -> dict[str, Any]:
    """AUROC of each figure, the best one at like length too, and precision and recall of rules."""
    is_bad = np.array(truth)
    table: dict[str, Any] = {"length": auroc(*split([e["frames"] for e in episodes], is_bad))}
    for kind in ("figures", "at_length"):
        scores: dict[str, float] = {}
        for name in FIGURES:
            known = [name in episode[kind] for episode in episodes]
            if sum(known) > len(known) // 2 and name != "success":
                values = [badness(name, each[kind][name]) for each in episodes if name in each[kind]]
                scores[name] = auroc(*split(values, is_bad[known]))
        table[kind] = scores
    dropped = np.array([not episode["keep"] for episode in episodes])
    hits = int((dropped & is_bad).sum())
    table["precision"] = hits / max(int(dropped.sum()), 1)
    table["recall"] = hits / max(int(is_bad.sum()), 1)
    table["wrongly dropped"] = float((dropped & ~is_bad).sum() / max((~is_bad).sum(), 1))
    return table


def split(values: list[float], is_bad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.array(values, float)
    return numbers[is_bad], numbers[~is_bad]


def main() -> None:
    """Records, curates, trains and rolls out each arm, and prints the figures."""
    parser = argparse.ArgumentParser(description="What finds planted defects.")
    parser.add_argument("--defects", default=",".join(DEFECTS), help="a comma between two")
    parser.add_argument("--share", type=float, default=0.4, help="of episodes with the defect")
    parser.add_argument("--arms", default="all,clean,kept,random", help="empty: no policies")
    parser.add_argument("--episodes", type=int, default=250)
    parser.add_argument("--steps", type=int, default=5300, help="training steps")
    parser.add_argument("--rollouts", type=int, default=50, help="unseen starts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, metavar="DIR", default="curation", help="results")
    arguments = parser.parse_args()
    print(describe(), flush=True)
    for defect in arguments.defects.split(","):
        root: Path = arguments.output / f"{defect}-{arguments.share:g}"
        raw, curated = str(root / "raw"), str(root / "curated")
        planted = f"{defect}:{arguments.share}"
        count = ["--episodes", str(arguments.episodes), "--defects", planted]
        run("sample", "spartan", raw, *count)
        run("curate", raw, "--preset", "curation-default", "--output", curated)
        truth = [*json.loads((root / "raw/defects.json").read_text())["episodes"].values()]
        episodes = json.loads((root / "curated/curation.json").read_text())["episodes"]
        table = detection([each == defect for each in truth], episodes)
        print(defect, json.dumps(table), flush=True)
        chosen = {
            "all": range(len(truth)),
            "clean": [number for number, each in enumerate(truth) if not each],
            "kept": [number for number, each in enumerate(episodes) if each["keep"]],
        }
        draw = np.random.default_rng(0).permutation(len(truth))
        chosen["random"] = sorted(draw[: len(chosen["kept"])].tolist())
        for seed in arguments.seeds:
            for arm in filter(None, arguments.arms.split(",")):
                rate = success(raw, root, arm, chosen[arm], seed, arguments)
                print(f"{defect} seed {seed} {arm} ({len(chosen[arm])}): {rate:.2f}", flush=True)


def success(
    raw: str, root: Path, arm: str, numbers: Any, seed: int, arguments: argparse.Namespace
) -> float:
    """Success of a policy that was trained on the episodes with these numbers."""
    if arm == "clean":  # the same episodes for every defect
        root = root.parent / f"clean-{arguments.share:g}"
    data, trained = str(root / f"data-{arm}"), str(root / f"run-{arm}-{seed}")
    report = root / f"{arm}-{seed}"
    if (report / "report.json").exists():
        return json.loads((report / "report.json").read_text())["success_rate"]
    listed = ",".join(map(str, numbers))
    windows = ["--preset", "world-windows", "--episodes", listed, "--output", data]
    run("preprocess", "spartan", raw, *windows)
    words = ["--data", data, "--output", trained, "--hparams.seed", str(seed)]
    words += ["--total-train-steps", str(arguments.steps)]
    run("train", "--preset", "world-pick", *words)
    output = ["--episodes", str(arguments.rollouts), "--output", str(report)]
    return run("eval", "rollout", trained, *ENV, *output)["success_rate"]


if __name__ == "__main__":
    main()
