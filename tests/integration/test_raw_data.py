"""Training on raw recordings: their frames are written first."""

from pathlib import Path
from typing import Any

import pytest

from tests.builders.training import tiny_config
from vlatool.datasets.frames.layout import FramesFolder
from vlatool.errors import DataError
from vlatool.events import NullReporter
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.train import TrainResult, train

KEYS = {
    "data__proprioception_fields": "state",
    "data__action_fields": "action",
    "data__windows__future_lowdim_steps": 6,
    "total_train_steps": 2,
    "num_checkpoints": 1,
}


class Notes(NullReporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, message: str) -> None:
        self.texts.append(message)

    def warn(self, code: str, message: str) -> None:
        self.texts.append(f"{code}: {message}")


def recorded(folder: Path, episodes: int) -> Path:
    config = SampleConfig(
        layout="folder", output=str(folder), episodes=episodes, frames=9, size="small", workers=1
    )
    sample(config)
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("raw_data") / "raw", 6)


def trained(raw: Path, run: Path, **keys: Any) -> tuple[TrainResult, list[str]]:
    notes = Notes()
    keys = {**KEYS, "data__dataset_manifest": str(raw), **keys}
    return train(tiny_config(raw, run, **keys), reporter=notes), notes.texts


def frames_below(folder: Path) -> list[Path]:
    return sorted((folder / "data").iterdir())


def test_frames_are_written_once_beside_the_runs(raw: Path, tmp_path: Path) -> None:
    trained(raw, tmp_path / "first")
    (frames,) = frames_below(tmp_path)
    assert frames.name.startswith("raw-")
    changed = (frames / "frames.json").stat().st_mtime_ns
    result, _ = trained(raw, tmp_path / "second")
    assert frames_below(tmp_path) == [frames]
    assert (frames / "frames.json").stat().st_mtime_ns == changed
    assert result.next == f"vlatool eval open-loop {tmp_path / 'second'}"


def test_a_dry_run_plans_both_steps_and_writes_nothing(raw: Path, tmp_path: Path) -> None:
    result, notes = trained(raw, tmp_path / "run", dry_run=True)
    assert result.status == "planned"
    assert any("frames of 6 episodes would be written" in text for text in notes)
    assert not [*tmp_path.iterdir()]


def test_other_options_have_frames_of_their_own(raw: Path, tmp_path: Path) -> None:
    trained(raw, tmp_path / "first")
    trained(raw, tmp_path / "second", data__frames_preset="policy-small-data", dry_run=True)
    assert len(frames_below(tmp_path)) == 1
    trained(raw, tmp_path / "third", data__frames_preset="policy-small-data")
    assert len(frames_below(tmp_path)) == 2


def test_episodes_that_are_added_are_trained_on(tmp_path: Path) -> None:
    raw = recorded(tmp_path / "raw", 3)
    trained(raw, tmp_path / "runs" / "first")
    recorded(tmp_path / "more", 5)
    for path in sorted((tmp_path / "more").iterdir()):
        if not (raw / path.name).exists():
            path.rename(raw / path.name)
    trained(raw, tmp_path / "runs" / "second")
    counts = [len(FramesFolder(folder).episodes) for folder in frames_below(tmp_path / "runs")]
    assert sorted(counts) == [3, 5]


def test_a_folder_without_recordings_has_the_usual_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no training data here"):
        trained(tmp_path / "empty", tmp_path / "run")
