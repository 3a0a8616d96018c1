"""Lags between images and joints, planted in recordings of the built-in world."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vlatool.episode import Array, Episode, FrameSource
from vlatool.formats.detect import detect_source
from vlatool.formats.image_lags import ImageLags
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.verify import InspectConfig, inspect

CAMERA = "wrist_right_minus"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "raw"
    sample(SampleConfig(layout="spartan", output=str(folder), episodes=4, frames=90, workers=1))
    return folder


@dataclass(frozen=True)
class Late(FrameSource):
    """Images that come some frames late."""

    source: FrameSource
    lag: int

    def __len__(self) -> int:
        return len(self.source)

    @property
    def size(self) -> tuple[int, int]:
        return self.source.size

    def read(self, indices: Sequence[int]) -> Array:
        return self.source.read([max(index - self.lag, 0) for index in indices])


def late(episode: Episode, lag: int) -> Episode:
    return replace(episode, cameras={CAMERA: Late(episode.cameras[CAMERA], lag)})


@pytest.mark.parametrize("lag", range(4))
def test_lag_of_a_camera_is_that_of_its_recordings(raw: Path, lag: int) -> None:
    source = detect_source(raw, None)
    lags = ImageLags(len(source.refs))
    for number, ref in enumerate(source.refs):
        lags.add(number, late(source.reader.read(ref), lag))
    (answer,) = lags.lags().values()
    assert answer["lag"] == lag
    assert {*answer["episodes"].values()} <= {lag, None}


def test_images_that_show_other_motion_have_no_lag(raw: Path) -> None:
    source = detect_source(raw, None)
    episodes = [source.reader.read(ref) for ref in source.refs]
    lags = ImageLags(len(episodes))
    for number, episode in enumerate(episodes):
        other = episodes[number - 1].cameras[CAMERA]
        lags.add(number, replace(episode, cameras={CAMERA: other}))
    assert lags.lags()[CAMERA]["lag"] is None


def test_inspect_shows_the_lag_of_each_camera(raw: Path) -> None:
    report = inspect(InspectConfig(location=str(raw)))
    assert report.document()["image_lags"][CAMERA]["lag"] == 0
    assert f"{CAMERA} 0 frames" in "\n".join(report.lines())
