"""The scripts of docs/guides/python.md run, with fewer steps of training."""

import re
import runpy
from pathlib import Path

import pytest

from tests.surface.invoke import run_vlatool
from vlatool.workflows.sample import SampleConfig, sample

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "python.md"
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
    def image(self, camera): return np.repeat(np.repeat(self.observation[camera], 2, 0), 2, 1)
    def position(self): return self.observation["proprio"][:3]
    def opening(self): return self.observation["proprio"][3:]
    def rotation(self): return [1, 0, 0, 0, -1, 0]
    def move(self, position, opening):
        self.observation, *_ = self.env.step(np.concatenate([position, opening]))
        self.steps += 1
        print("moved to", *self.position())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw data and the module of the robot; the scripts run here, in the order of the page."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "my_robot.py").write_text(ROBOT)
    raw = str(folder / "raw")
    sample(SampleConfig(layout="spartan", output=raw, episodes=3, frames=20, workers=1))
    shards = ["--sink", "lbm", "--preset", "world-windows", "--output", str(folder / "data-lbm")]
    assert run_vlatool("preprocess", "spartan", raw, *shards)[0] == 0
    return folder


EXPECTED = {
    "Preprocess and train": r"60 samples\nloss \d",
    "A training loop of your own": r"([01] \(12, 16, 20\) \d\S+ put.*\n){2}",
    "A robot": r"(moved to .*\n){8}",
    "A `webdataset` pipeline of your own": r"(\(64, 64, 3\) \(16, 3\) put.*\n){60}",
}


@pytest.mark.parametrize("title", TITLES)
def test_script_of_the_page_runs(
    folder: Path, title: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = folder / f"script_{TITLES.index(title)}.py"
    text = SCRIPTS[TITLES.index(title)]
    script.write_text(text.replace('"total_train_steps": 20}', '"total_train_steps": 2}'))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))

    runpy.run_path(str(script), run_name="__main__")

    assert re.search(EXPECTED[title], capsys.readouterr().out)


def test_all_scripts_of_the_page_run() -> None:
    assert len(SCRIPTS) == len(TITLES)
