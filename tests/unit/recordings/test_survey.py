"""Surveys of selected episodes, compared with reading them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.lerobot import Columns, lerobot_dataset, write_lines
from tests.builders.spartan import CAMERAS, Change, Documents, session_folder, spartan_task
from vlatool.episode import EpisodeRef, FieldSpec, Survey
from vlatool.errors import DataError
from vlatool.recordings.base import FormatReader, survey_by_reading
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.reader import LeRobotReader
from vlatool.recordings.spartan.config import SpartanConfig
from vlatool.recordings.spartan.reader import SpartanReader

XYZ = "robot__actual__poses__left::panda__xyz"
FIRST, SECOND = CAMERAS
CAMERA = "observation.images.front"


def spartan(root: Path) -> tuple[SpartanReader, list[EpisodeRef]]:
    reader = SpartanReader(SpartanConfig())
    return reader, list(reader.discover([root]))


def lerobot(root: Path, **config: Any) -> tuple[LeRobotReader, list[EpisodeRef]]:
    reader = LeRobotReader(LeRobotConfig(**config))
    return reader, list(reader.discover([root]))


def survey_of(source: tuple[FormatReader, Sequence[EpisodeRef]]) -> Survey:
    reader, refs = source
    return reader.survey(refs)


def without(camera: str) -> Change:
    return lambda documents: documents["observations"].pop(camera)


def put(name: str, values: np.ndarray) -> Change:
    def change(documents: Documents) -> None:
        documents["observations"][name] = values

    return change


def processed(root: Path, number: int) -> Path:
    return session_folder(root) / f"episode_{number}/processed"


@pytest.mark.parametrize("name", ["spartan", "lerobot"])
def test_cheap_survey_equals_that_of_reading_all_episodes(name: str, tmp_path: Path) -> None:
    if name == "spartan":
        changes = {0: without(FIRST), 1: put("robot__x", np.zeros((6, 2)))}
        reader, refs = spartan(spartan_task(tmp_path, 3, 6, changes=changes))
    else:
        reader, refs = lerobot(lerobot_dataset(tmp_path / "pick", [6, 4]))
    cheap = reader.survey(refs)
    assert cheap == survey_by_reading(reader.read, refs)
    assert list(cheap.fields) == list(survey_by_reading(reader.read, refs).fields)


def test_camera_missing_in_the_first_episode_is_listed_last(tmp_path: Path) -> None:
    root = spartan_task(tmp_path, 3, 6, changes={0: without(FIRST)})
    assert list(survey_of(spartan(root)).cameras) == [CAMERAS[SECOND], CAMERAS[FIRST]]


def test_cameras_are_the_declared_ones_if_any_episode_lacks_a_video(
    tmp_path: Path,
) -> None:
    root = lerobot_dataset(tmp_path / "pick", [3, 3])
    (root / f"videos/chunk-000/{CAMERA}/episode_000000.mp4").unlink()
    source = lerobot(root)
    assert survey_of(source).cameras == {CAMERA: (32, 48)}
    assert survey_of((source[0], source[1][:1])).cameras == {CAMERA: (32, 48)}


@pytest.mark.parametrize("odd", range(3))
def test_one_deviating_episode_decides_neither_fields_nor_widths_but_of_two_the_first_does(
    odd: int, tmp_path: Path
) -> None:
    def surveyed(count: int, change: Change) -> Survey:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        return survey_of(spartan(spartan_task(root, count, 6, changes={odd: change})))

    more, wide = put("robot__x", np.zeros(6)), put(XYZ, np.zeros((6, 4)))
    assert "robot__x" not in surveyed(3, more).fields
    assert surveyed(3, without(XYZ)).fields[XYZ] == surveyed(3, wide).fields[XYZ] == FieldSpec(3)
    if odd < 2:
        assert ("robot__x" in surveyed(2, more).fields) == (odd == 0)
        assert surveyed(2, wide).fields[XYZ] == FieldSpec(4 if odd == 0 else 3)


@pytest.mark.parametrize("number", [0, 1])
def test_unreadable_episode_is_skipped(number: int, tmp_path: Path) -> None:
    root = spartan_task(tmp_path / "raw", 3, 6)
    (processed(root, number) / "actions.npz").write_bytes(b"")
    survey = survey_of(spartan(root))
    assert (survey.episodes, survey.frames) == (2, 12)

    root = lerobot_dataset(tmp_path / "pick", [3, 4, 5])
    (root / f"data/chunk-000/episode_{number:06d}.parquet").unlink()
    survey = survey_of(lerobot(root))
    assert (survey.episodes, survey.frames) == (2, 12 - [3, 4][number])


@pytest.mark.parametrize("name", ["spartan", "lerobot"])
def test_source_without_a_readable_episode_raises_the_first_error(
    name: str, tmp_path: Path
) -> None:
    if name == "spartan":
        root = spartan_task(tmp_path, 2, 6)
        for number in range(2):
            (processed(root, number) / "metadata.yaml").write_text("a: [")
        source, code = spartan(root), "data.broken"
    else:
        root = lerobot_dataset(tmp_path / "pick", [3, 3])
        for path in root.glob("data/*/*.parquet"):
            path.write_bytes(b"PAR1")
        source, code = lerobot(root), "data.broken"
    with pytest.raises(DataError) as caught:
        survey_of(source)
    assert (caught.value.code, caught.value.details["episodes"]) == (code, 2)


def test_frames_are_unknown_without_lengths_in_the_list(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "pick", [3, 4])
    lines = [{"episode_index": number, "tasks": ["go"]} for number in range(2)]
    write_lines(root / "meta/episodes.jsonl", lines)
    assert survey_of(lerobot(root)).frames is None


def test_text_and_flat_columns_have_the_widths_of_reading(tmp_path: Path) -> None:
    def change(number: int, columns: Columns) -> None:
        del number
        columns["action"] = [[1.0] * 2] * len(columns["action"])

    reader, refs = lerobot(
        lerobot_dataset(tmp_path / "pick", [3], change=change), action_keys=["timestamp"]
    )
    assert reader.survey(refs).fields["timestamp"].width == 1
    reader, refs = spartan(spartan_task(tmp_path, 1, 6))
    assert reader.survey(refs).fields["language_instruction"].width == 0


def test_episodes_of_different_rates_have_no_common_rate(tmp_path: Path) -> None:
    reader, refs = spartan(spartan_task(tmp_path, 2, 3))
    rates = iter((10.0, 20.0))
    survey = survey_by_reading(lambda ref: replace(reader.read(ref), fps=next(rates)), refs)
    assert survey.fps is None
