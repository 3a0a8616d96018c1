"""One policy from the recordings of three unlike robots, beside one from those of a single robot.

    python benchmarks/unlike_sets.py --seeds 5 --starts 200

Arms: `one` (all episodes by one robot), `mixed` (a third each by three robots that differ in names,
widths, rate, rotation, relation, frame and units), `wrong` (as mixed, but with the actions of one
robot declared as differences). Starts are unseen and the same for all arms. The same command
resumes in DIR.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from machine import describe

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.builders.unlike_sets import ROBOTS, made_options, write_set

FPS = 10
ENV = {
    "env": "vlatool/PickPlace-v0",
    "cameras": {"scene": "scene_right_0", "wrist": "wrist_right_minus"},
    "fields": {
        "hand__xyz": {"key": "proprio", "start": 0, "stop": 3},
        "hand__rot_6d": {"constant": [1.0, 0, 0, 0, -1, 0]},
        "width": {"key": "proprio", "start": 3, "stop": 4},
    },
    "action": [{"field": "command__xyz"}, {"field": "gripper", "scale": 0.1}],
}
# The same world as another robot: states with axis-angle, commands as differences in units.
LIBERO = {
    "env": "vlatool/PickPlaceLibero-v0",
    "cameras": {"scene": "image", "wrist": "wrist_image"},
    "fields": {"width": {"key": "state", "start": 6, "stop": 7, "scale": 2.0}},
    "pose_groups": [
        {
            "name": "hand",
            "position_key": "state[0:3]",
            "rotation_key": "state[3:6]",
            "rotation": "axis_angle",
        },
        {
            "name": "command",
            "position_key": "action[0:3]",
            "rotation_key": "action[3:6]",
            "rotation": "axis_angle",
            "relation": "delta",
            "scale": 20.0,
            "reference": "hand",
        },
    ],
    "action": [{"field": "command"}, {"field": "gripper", "scale": -2.0, "offset": 1.0}],
}


def run(*arguments: str, check: bool = True) -> dict[str, Any]:
    """Runs a command of vlatool and returns its JSON."""
    command = [sys.executable, "-m", "vlatool", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, check=check, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def written(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def data_sets(root: Path, episodes: int, arms: Collection[str]) -> dict[str, list[str]]:
    """Data sets of each arm."""
    names = list(ROBOTS)
    thirds = {name: range(number, episodes, len(names)) for number, name in enumerate(names)}
    made: dict[str, list[str]] = {"one": [], "mixed": [], "wrong": []}
    sets = [("one", "a", range(episodes), {})]
    sets += [("mixed", name, numbers, {}) for name, numbers in thirds.items()]
    sets += [("wrong", "a", thirds["a"], {"relation": "delta"})]
    needed = {*arms, "mixed"} if "wrong" in arms else {*arms}
    for arm, name, numbers, wrong in (each for each in sets if each[0] in needed):
        raw, data = root / "raw" / f"{name}-{len(numbers)}", root / "data" / f"{arm}-{name}"
        if len(list(raw.glob("*.hdf5"))) < len(numbers):
            write_set(raw, ROBOTS[name], numbers)
        options = written(data.with_suffix(".yaml"), made_options(ROBOTS[name], FPS, **wrong))
        words = ["preprocess", "hdf5", str(raw), "--preset", "world-windows", "--config", options]
        words += ["--sink", "lbm", "--camera-names", "scene,wrist", "--output", str(data)]
        if wrong:
            answer = run(*words, check=False)
            print(f"wrong: {answer.get('error', {}).get('message', 'not refused')}")
            words += ["--trust-declared", "true"]
        run(*words)
        made[arm].append(str(data))
    made["wrong"] += made["mixed"][1:]
    return made


def main() -> None:
    """Writes the sets, trains and evaluates each arm with each seed, and compares them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=200, help="unseen starts per run")
    parser.add_argument("--episodes", type=int, default=200, help="recordings of an arm")
    parser.add_argument("--steps", type=int, default=5300, help="training steps")
    parser.add_argument("--arms", default="one,mixed,wrong")
    parser.add_argument("--output", type=Path, metavar="DIR", default="unlike-sets")
    arguments = parser.parse_args()
    print(describe(), flush=True)
    root: Path = arguments.output
    arms = arguments.arms.split(",")
    sets = data_sets(root, arguments.episodes, arms)
    maps = {name: written(root / f"{name}.yaml", keys) for name, keys in MAPS.items()}
    for seed in range(arguments.seeds):
        for arm in arms:
            trained = str(root / f"run-{arm}-{seed}")
            words = [word for data in sets[arm] for word in ("--data", data)]
            words += ["--data.camera_names", "scene,wrist", "--hparams.seed", str(seed)]
            words += ["--data.proprioception_fields", "hand__xyz,width"]
            words += ["--data.action_fields", "command__xyz_relative,gripper"]
            words += ["--total-train-steps", str(arguments.steps)]
            run("train", "--preset", "world-pick", *words, "--output", trained)
            for name, keys in maps.items():
                words = ["--config", keys, "--episodes", str(arguments.starts)]
                output = str(root / f"{arm}-{seed}-{name}")
                result = run("eval", "rollout", trained, *words, "--output", output)
                low, high = result["confidence_95"]
                rate = result["success_rate"]
                print(f"{arm} seed {seed} {name}: {rate:.1%} ({low:.0%} to {high:.0%})", flush=True)


MAPS = {"world": ENV, "libero": LIBERO}

if __name__ == "__main__":
    main()
