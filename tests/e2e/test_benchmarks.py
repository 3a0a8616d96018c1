"""Every script of `benchmarks/` runs once, at its smallest size."""

import shlex
from pathlib import Path

import pytest

from tests.builders.forks import Forks
from tests.builders.training import world_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
HELPERS = {"equal_bytes_runs", "forked_commands", "lerobot_sides"}  # processes of others
SCRIPTS = {
    path.stem: path
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text() and path.stem not in HELPERS
}
# RAW and DATA are small Spartan episodes and their shards; HERE is this checkout.
SMALLEST = {
    "act_world": "--help",  # needs the package lerobot
    "acting": "--help",  # needs a trained run
    "action_codes": "--chunks 40 --runs 1",
    "build_dataset": "--episodes 1 --frames 4 --repeat 1 --plain-up-to 1",
    "curation": "--help",  # trains policies, as test_curate does
    "download": "--megabytes 0.1 --files 2 --runs 1",
    "encode": "--images 1 --batch 1 --workers 1",
    "equal_bytes": "--help",  # makes the inputs of all commands first
    "future_vla": "--help",  # three processes with torch
    "future_vla_acts": "--help",  # its commands are those of the guide
    "future_vla_images": "--size tiny --batch 1 --repeats 1",
    "gpu": "--help",  # runs others of these scripts
    "in_turn": "--before HERE --runs 1 -- --version",
    "lerobot": "--help",  # installs several GB
    "lerobot_step": "--help",  # needs the package lerobot
    "loading": "DATA --workers 1 --batch 2 --steps 2 --runs 1",
    "loading_plainly": "DATA --workers 1 --batch 2 --samples 4 --runs 1",
    "loss_curve": "--steps 1",
    "memory_forecast": "diffusion-policy-tiny DATA --steps 2 hparams.global_batch_size=2",
    "metaworld": "--help",  # the same
    "policy_step": "--steps 1 --batch 1",
    "preprocess": "--raw RAW --workers 1 --repeat 1",
    "resume_across_commits": "--before HERE/src --only split*",
    "pusht": "--help",  # needs the published demonstrations
    "record": "--seconds 1",
    "recordings": "--help",  # needs recordings of others
    "run_sync": "--help",  # trains, as test_run_sync does
    "scaling": "--only start --most 100",
    "seams": "--help",  # needs trained runs
    "serving": "--clients 1,2 --requests 4 --model-ms 1",
    "serving_hostile": "--bad 2 --requests 4 --forms deep,unfinished --sizes 1000",
    "stages": "RAW --size 16,16",
    "startup": "1",
    "titok": "--batch 1 --repeats 1",
    "training": "DATA --workers 1 --steps 1",
    "unlike_sets": "--help",  # trains policies, as test_unlike_sets does
    "windows": "--episodes 1 --frames 4 --workers 1 --repeat 1",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world_shards(folder, episodes=2, frames=20)
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_benchmark_runs_at_its_smallest_size(
    script: str, world: Path, warm: Forks, tmp_path: Path
) -> None:
    locations = {"RAW": world / "raw", "DATA": world / "data", "HERE": ROOT}
    words = SMALLEST[script]
    for name, location in locations.items():
        words = words.replace(name, str(location))
    done = warm.run(
        shlex.split(words),
        script=SCRIPTS[script],
        folder=tmp_path,
        seconds=600,
        environment={"PYTHONPATH": str(ROOT / "src")},
    )
    assert done.code == 0, done.stdout + done.stderr
