"""Episodes that are held out when recordings are preprocessed, and what leaves them out."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.builders.hdf5 import robomimic
from tests.builders.training import tiny_config
from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.config.resolve import Override, load_config
from vlatool.datasets.frames.layout import FramesFolder
from vlatool.errors import DataError, UsageError
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.loading.dataset import open_dataset
from vlatool.workflows.open_loop import OpenLoopResult, open_loop
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.train import train

EPISODES = 12
SHARE = 0.25
TRAINING: Mapping[str, Any] = {
    "data.proprioception_fields": "state",
    "data.action_fields": "action",
    "data.windows.future_lowdim_steps": 6,
    "total_train_steps": 2,
    "num_checkpoints": 1,
}


def written(raw: Path, output: Path, **keys: Any) -> PreprocessResult:
    words = {"sources": [str(raw)], "output": str(output), "workers": 1, **keys}
    words.setdefault("sink.type", "frames")
    overrides = [Override(key, value, "test") for key, value in words.items()]
    return preprocess(load_config(PreprocessConfig, overrides=overrides).config)


def splits_of(output: Path) -> dict[str, str]:
    return {episode.id: episode.split for episode in FramesFolder(output).episodes}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held_out") / "raw"
    config = SampleConfig(
        layout="folder", output=str(folder), episodes=EPISODES, frames=9, size="small", workers=1
    )
    sample(config)
    return folder


@pytest.fixture(scope="module")
def frames(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held_out_frames") / "data"
    written(raw, folder, hold_out=SHARE)
    return folder


@pytest.fixture(scope="module")
def run(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held_out_runs") / "run"
    keys = {key.replace(".", "__"): value for key, value in TRAINING.items()}
    train(tiny_config(frames, folder, data__dataset_manifest=str(frames), **keys))
    return folder


def evaluated(run: Path, data: Path | str, output: Path) -> OpenLoopResult:
    return open_loop(
        OpenLoopConfig(
            checkpoint=str(run),
            data=str(data),
            output=str(output),
            inference_steps=1,
            allow=["all"],
        )
    )


def test_a_tenth_is_held_out_by_default(raw: Path, tmp_path: Path) -> None:
    result = written(raw, tmp_path / "data")
    held_out = [*splits_of(tmp_path / "data").values()].count("val")
    assert result.amounts["held_out_episodes"] == held_out
    assert 0 < held_out < EPISODES / 2


def test_none_is_held_out_of_fewer_than_five(raw: Path, tmp_path: Path) -> None:
    written(raw, tmp_path / "data", episodes="0:4")
    assert {*splits_of(tmp_path / "data").values()} == {"train"}
    assert "split" not in (tmp_path / "data" / "frames.json").read_text()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"episodes": "0"}, "leaves none to train on"),
        ({"sink.type": "lbm"}, "--sink lbm cannot hold episodes out for evaluation"),
    ],
)
def test_a_share_that_cannot_be_held_out(
    raw: Path, tmp_path: Path, keys: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        written(raw, tmp_path / "data", hold_out=0.5, **keys)
    assert not (tmp_path / "data").exists()


def test_splits_of_the_recording_are_kept(tmp_path: Path) -> None:
    def add_mask(file: Any) -> None:
        file["mask/valid"] = [b"demo_2"]

    lengths = {f"demo_{number}": 4 for number in range(8)}
    path = robomimic(tmp_path / "demo.hdf5", lengths, add_mask)
    keys = {"past_lowdim_steps": 0, "future_lowdim_steps": 2, "image_indices": [0]}
    written(path, tmp_path / "data", **{f"sink.{key}": value for key, value in keys.items()})
    held_out = [name for name, split in splits_of(tmp_path / "data").items() if split == "val"]
    assert held_out == ["demo_demo_2"]


def test_training_leaves_the_held_out_episodes_out_and_validates_on_them(
    frames: Path, run: Path
) -> None:
    rows = read_metrics(RunDir(run).metrics)
    assert any("val/loss" in row for row in rows)
    data = open_dataset(frames, raw=True, shuffle=False)
    names = {item.metadata["episode_id"] for item in data}
    assert names == {name for name, split in splits_of(frames).items() if split == "train"}


def test_statistics_are_those_of_the_episodes_for_training(
    raw: Path, frames: Path, tmp_path: Path
) -> None:
    numbers = [
        str(number) for number, split in enumerate(splits_of(frames).values()) if split == "train"
    ]
    written(raw, tmp_path / "part", episodes=",".join(numbers), hold_out=0)
    first, second = (open_dataset(folder).info.statistics for folder in (frames, tmp_path / "part"))
    assert first == second


def test_python_code_opens_either_part(frames: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sizes = {split: len(open_dataset(frames, split=split)) for split in ("train", "val", "all")}
        assert not caplog.messages
        assert len(open_dataset(frames)) == sizes["train"]
    assert "held out" in caplog.text
    assert sizes["train"] + sizes["val"] == sizes["all"]


def test_evaluation_takes_the_held_out_episodes(frames: Path, run: Path, tmp_path: Path) -> None:
    held_out = {name for name, split in splits_of(frames).items() if split == "val"}
    for data in ("", frames, frames / "frames.json"):
        result = evaluated(run, data, tmp_path / f"report-{Path(data).name}")
        assert {each.episode for each in result.episodes} == held_out
        assert result.split == "val"


def test_evaluation_takes_all_episodes_of_other_data(raw: Path, run: Path, tmp_path: Path) -> None:
    written(raw, tmp_path / "other", episodes="1:7")
    result = evaluated(run, tmp_path / "other", tmp_path / "report")
    assert len(result.episodes) == 6


def test_without_held_out_episodes_the_data_are_asked_for(raw: Path, tmp_path: Path) -> None:
    written(raw, tmp_path / "data", hold_out=0)
    keys = {key.replace(".", "__"): value for key, value in TRAINING.items()}
    config = tiny_config(
        tmp_path, tmp_path / "run", data__dataset_manifest=str(tmp_path / "data"), **keys
    )
    result = train(config)
    assert result.next.startswith("vlatool eval open-loop")
    assert result.next.endswith(str(tmp_path / "data"))
    with pytest.raises(UsageError, match="have no held-out episodes"):
        evaluated(tmp_path / "run", "", tmp_path / "report")


def test_a_choice_without_training_episodes_is_refused(frames: Path) -> None:
    number = [*splits_of(frames).values()].index("val")
    with pytest.raises(DataError, match=r"no episodes for data\.split train among"):
        open_dataset(frames, episodes=str(number))


def test_shards_of_a_part_are_written(frames: Path, tmp_path: Path) -> None:
    keys = {"format": "frames", "source.split": "val", "sink.type": "lbm"}
    result = written(frames, tmp_path / "shards", **keys)
    assert result.episodes == [*splits_of(frames).values()].count("val")
