"""The scripts of docs/python.md run unchanged."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlatool.workflows.sample import SampleConfig, sample

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
TITLES = re.findall(r"^## (.*)", PAGE.read_text(), re.MULTILINE)
SCRIPTS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)

# The robot of the page, simulated in the built-in world.
ROBOT = """
import gymnasium
import numpy as np
from vlatool.world.registration import ENVIRONMENT, register_environments

class Robot:
    def __init__(self):
        register_environments()
        self.env = gymnasium.make(ENVIRONMENT)
        self.observation, _ = self.env.reset(seed=0)
        self.steps = 0
    def is_done(self): return self.steps >= 8
    def image(self, camera): return np.repeat(self.observation[camera], 2, axis=0)
    def position(self): return self.observation["proprio"][:3]
    def opening(self): return self.observation["proprio"][3:]
    def rotation(self): return [1, 0, 0, 0, -1, 0]
    def move(self, position, opening):
        self.observation, *_ = self.env.step(np.concatenate([position, opening]))
        self.steps += 1
        print("moved to", *self.position())
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Title of a section to the output of its script; all run in order, in one folder."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "my_robot.py").write_text(ROBOT)
    raw = SampleConfig(
        layout="spartan", output=str(folder / "raw"), episodes=3, frames=20, workers=1
    )
    sample(raw)
    stdout: dict[str, str] = {}
    for title, script in zip(TITLES, SCRIPTS, strict=True):
        path = folder / f"script_{len(stdout)}.py"
        path.write_text(script)
        done = subprocess.run(
            [sys.executable, str(path)],
            cwd=folder,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{title}: {done.stderr}"
        stdout[title] = done.stdout
    return stdout


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Preprocess and train", r"60 samples\nloss \d"),
        (
            "A training loop of your own",
            r"(\d torch.Size.* torch.Size\(\[12, 17, 3\]\) put.*\n){2}",
        ),
        ("A robot", r"(moved to .*\n){8}"),
        ("A `webdataset` pipeline of your own", r"(\(64, 64, 3\) \(16, 3\) put.*\n){60}"),
    ],
)
def test_script_of_the_page_runs(outputs: dict[str, str], title: str, expected: str) -> None:
    assert re.search(expected, outputs[title])


def test_all_scripts_of_the_page_run() -> None:
    assert len(SCRIPTS) == len(TITLES)
