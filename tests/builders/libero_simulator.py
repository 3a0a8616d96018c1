"""A stand-in of the package LIBERO with the interface that its own scripts use.

Its physics: the state of a task is one number, the initial one plus the sum of all first entries
of actions, and the task succeeds at 3 or more above the initial one. Images show the task and the
number of steps in their first pixel, which is the last one of turned images.
"""

import json
from pathlib import Path

TASKS, STATES = 3, 4

_PACKAGE = """
def get_libero_path(name):
    assert name == "bddl_files"
    return "/bddl"
"""
_BENCHMARK = f"""
from collections import namedtuple

Task = namedtuple("Task", "name language problem_folder bddl_file")


class Suite:
    n_tasks = {TASKS}

    def get_task(self, i):
        return Task(f"task_{{i}}", f"do thing {{i}}", "folder", f"{{i}}.bddl")

    def get_task_init_states(self, i):
        return [100.0 * i + number for number in range({STATES})]


def get_benchmark_dict():
    return {{"libero_spatial": Suite}}
"""
_ENVS = """
import json, os
from pathlib import Path

import numpy as np


class OffScreenRenderEnv:
    def __init__(self, bddl_file_name, camera_heights, camera_widths):
        self.task = int(Path(bddl_file_name).stem)
        assert str(bddl_file_name) == f"/bddl/folder/{self.task}.bddl"
        self.shape = (camera_heights, camera_widths, 3)
        self.calls = []

    def seed(self, seed):
        self.calls.append(["seed", seed])

    def reset(self):
        self.calls.append(["reset"])
        self.steps = 0
        return self.observe()

    def set_init_state(self, state):
        self.calls.append(["state", state])
        self.start = self.state = state
        return self.observe()

    def step(self, action):
        assert isinstance(action, list) and len(action) == 7
        self.calls.append(["step", *action])
        self.state += action[0]
        self.steps += 1
        done = self.state >= self.start + 3 - 1e-6
        return self.observe(), float(done), done, {}

    def observe(self):
        image = np.zeros(self.shape, np.uint8)
        image[0, 0] = self.task, self.steps % 256, 0
        return {
            "agentview_image": image,
            "robot0_eye_in_hand_image": image + 1,
            "robot0_eef_pos": np.array([getattr(self, "state", 0.0), 0.0, 0.0]),
            "robot0_eef_quat": np.array([1.0, 0.0, 0.0, 0.0]),
            "robot0_gripper_qpos": np.array([0.04, -0.04]),
        }

    def close(self):
        if "LIBERO_CALLS" in os.environ:
            with open(os.environ["LIBERO_CALLS"], "a") as file:
                file.write(json.dumps([self.task, self.calls]) + "\\n")
"""


def write_libero(folder: Path) -> Path:
    """Writes the package; returns the folder to put on the path."""
    package = folder / "libero" / "libero"
    package.mkdir(parents=True)
    (folder / "libero" / "__init__.py").write_text("")
    (package / "__init__.py").write_text(_PACKAGE)
    (package / "benchmark.py").write_text(_BENCHMARK)
    (package / "envs.py").write_text(_ENVS)
    return folder


def calls_of(log: Path) -> list[tuple[int, list[list[object]]]]:
    """Task and calls of each simulator that was closed."""
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()]
