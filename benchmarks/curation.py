"""Planted defects in recordings: the figures that find them, and the policies without them.

    python benchmarks/curation.py --defects tremor,pause --share 0.4 --arms all,clean,kept,random

It needs the extra `train`. For each defect: recordings of the built-in world of which a share has
it; how well each figure of `vlatool curate` separates them from the others; what the rules of
`curation-default` leave out; and the success of a policy from 50 unseen starts, trained on all
episodes, on those that the rules keep, on as many drawn at random, and on those without the defect.
With `--graders forge=PROGRAM deepen=PROGRAM` (packages forge-robotics and deepen-grade, which may
be in environments of their own) also what their scores find in the same episodes as a LeRobot data
set, and `--arms forge,deepen`: as many as the rules keep, the best by their score. With `--task`,
all of it on tasks of Meta-World in place of the built-in world. The same command resumes in DIR.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from planted_defects import DEFECTS, record
from seeds import run

from vlatool.recordings.curation.layout import FIGURES, badness
from vlatool.workflows.sample import SampleConfig

# Layout and options of `sample`, presets of `preprocess` and `train`, and environments.
World = tuple[str, dict[str, Any], str, str, list[str]]


def world_of(tasks: list[str]) -> World:
    if not tasks:
        return "spartan", {}, "world-windows", "world-pick", ["vlatool/PickPlace-v0"]
    options = {"world": "metaworld", "size": "large", "task": tasks}
    return "lerobot", options, "metaworld-windows", "metaworld", [f"metaworld/{t}" for t in tasks]


def record_once(layout: str, output: Path, options: dict[str, Any], defects: list[str]) -> None:
    keys = {"layout": layout, "output": str(output), **options}
    record(SampleConfig.model_validate(keys), defects)


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
                values = [
                    badness(name, each[kind][name]) for each in episodes if name in each[kind]
                ]
                scores[name] = auroc(*split(values, is_bad[known]))
        table[kind] = scores
    dropped = np.array([not episode["keep"] for episode in episodes])
    hits = int((dropped & is_bad).sum())
    table["precision"] = hits / max(int(dropped.sum()), 1)
    table["recall"] = hits / max(int(is_bad.sum()), 1)
    table["wrongly dropped"] = float((dropped & ~is_bad).sum() / max((~is_bad).sum(), 1))
    return table


def grades(
    name: str, program: str, root: Path, options: dict[str, Any], defects: list[str]
) -> list[float]:
    """Score of each episode by another program, high for good ones."""
    report = root / f"{name}.json"
    if not report.exists():
        dataset = str(root / "lerobot")
        record_once("lerobot", root / "lerobot", options, defects)
        words = (
            ["quality", dataset, "--export"]
            if name == "forge"
            else ["grade", dataset, "--json", "-o"]
        )
        subprocess.run([program, *words, str(report)], check=True, stdout=subprocess.DEVNULL)
    document = json.loads(report.read_text())
    if name == "forge":
        return [each["overall_score"] for each in document["per_episode"]]
    # Its score is 100 for nearly all; the findings that do not count in it order the others.
    doubts = [
        [c["severity"] in ("warn", "fail") for c in e["checks"]] for e in document["episodes"]
    ]
    scores = [each["score"] for each in document["episodes"]]
    return [score - sum(of_episode) / 100 for score, of_episode in zip(scores, doubts, strict=True)]


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
    parser.add_argument("--task", action="append", default=[], help="of Meta-World; repeatable")
    parser.add_argument("--graders", nargs="+", default=[], metavar="NAME=PROGRAM")
    parser.add_argument("--rollouts", type=int, default=50, help="unseen starts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, metavar="DIR", default="curation", help="results")
    arguments = parser.parse_args()
    print(describe(), flush=True)
    for defect in arguments.defects.split(","):
        root: Path = arguments.output / f"{defect}-{arguments.share:g}"
        raw, curated = str(root / "raw"), str(root / "curated")
        layout, options, *_ = world_of(arguments.task)
        options["episodes"] = arguments.episodes
        planted = [f"{defect}:{arguments.share}"]
        record_once(layout, root / "raw", options, planted)
        run("curate", raw, "--preset", "curation-default", "--output", curated)
        truth = [*json.loads((root / "raw/defects.json").read_text())["episodes"].values()]
        episodes = json.loads((root / "curated/curation.json").read_text())["episodes"]
        is_bad = [each == defect for each in truth]
        table = detection(is_bad, episodes)
        scores: dict[str, list[float]] = {}
        for name, program in (each.split("=", 1) for each in arguments.graders):
            scores[name] = grades(name, program, root, options, planted)
            negated = [-score for score in scores[name]]
            table[name] = auroc(*split(negated, np.array(is_bad)))
        print(defect, json.dumps(table), flush=True)
        chosen = {
            "all": range(len(truth)),
            "clean": [number for number, each in enumerate(truth) if not each],
            "kept": [number for number, each in enumerate(episodes) if each["keep"]],
        }
        draw = np.random.default_rng(0).permutation(len(truth))
        chosen["random"] = sorted(draw[: len(chosen["kept"])].tolist())
        for name, values in scores.items():
            best = np.argsort(-np.array(values), kind="stable")[: len(chosen["kept"])]
            chosen[name] = sorted(best.tolist())
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
    layout, _, windows, preset, envs = world_of(arguments.task)
    reports = [root / f"{arm}-{seed}" / env.rpartition("/")[2] for env in envs]
    if not all((report / "report.json").exists() for report in reports):
        listed = ["--episodes", ",".join(map(str, numbers))]
        run("preprocess", layout, raw, "--preset", windows, *listed, "--output", data)
        words = ["--data", data, "--output", trained, "--hparams.seed", str(seed)]
        words += ["--total-train-steps", str(arguments.steps)]
        run("train", "--preset", preset, *words)
    counts = ["--episodes", str(arguments.rollouts), "--seed", "100000"]
    rates: list[float] = []
    for env, report in zip(envs, reports, strict=True):
        if not (report / "report.json").exists():
            run("eval", "rollout", trained, "--env", env, *counts, "--output", str(report))
        rates.append(json.loads((report / "report.json").read_text())["success_rate"])
    return sum(rates) / len(rates)


if __name__ == "__main__":
    main()
