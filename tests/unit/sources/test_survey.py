"""What a survey tells of the chosen episodes, against what reading them gives."""

import json
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
from vlatool.sources.base import FormatReader, field_specs, survey_by_reading
from vlatool.sources.lerobot.config import LeRobotConfig
from vlatool.sources.lerobot.reader import LeRobotReader
from vlatool.sources.spartan.config import SpartanConfig
from vlatool.sources.spartan.reader import SpartanReader

XYZ = "robot__actual__poses__left::panda__xyz"
FIRST, SECOND = CAMERAS
CAMERA = "observation.images.front"


def spartan(root: Path) -> tuple[SpartanReader, list[EpisodeRef]]:
    reader = SpartanReader(SpartanConfig())
    return reader, list(reader.discover([root]))


def lerobot(root: Path, **config: Any) -> tuple[LeRobotReader, list[EpisodeRef]]:
    reader = LeRobotReader(LeRobotConfig(**config))
    return reader, list(reader.discover([root]))


def surveyed(found: tuple[FormatReader, Sequence[EpisodeRef]]) -> Survey:
    reader, refs = found
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
def test_a_survey_says_what_the_first_of_equal_episodes_says(name: str, tmp_path: Path) -> None:
    found = (
        spartan(spartan_task(tmp_path, 3, 6))
        if name == "spartan"
        else lerobot(lerobot_dataset(tmp_path / "pick", [6, 4]))
    )
    reader, refs = found
    episode, survey = reader.read(refs[0]), surveyed(found)
    assert survey.episodes == len(refs)
    assert list(survey.cameras) == list(episode.cameras)
    sizes = {camera: frames.size for camera, frames in episode.cameras.items()}
    assert survey.cameras == sizes
    assert list(survey.fields.items()) == list(field_specs(episode).items())
    assert survey.frames == sum(reader.read(ref).num_frames for ref in refs)
    assert survey.fps == episode.fps
    assert survey.action_fields == episode.action_fields
    assert survey.proprioception_fields == episode.proprioception_fields
    assert survey.pose_groups == episode.pose_groups


@pytest.mark.parametrize("name", ["spartan", "lerobot"])
def test_a_cheap_survey_is_that_of_reading_every_episode(name: str, tmp_path: Path) -> None:
    if name == "spartan":
        changes = {0: without(FIRST), 1: put("robot__x", np.zeros((6, 2)))}
        reader, refs = spartan(spartan_task(tmp_path, 3, 6, changes=changes))
    else:
        reader, refs = lerobot(lerobot_dataset(tmp_path / "pick", [6, 4]))
    cheap = reader.survey(refs)
    assert cheap == survey_by_reading(reader.read, refs)
    assert list(cheap.fields) == list(survey_by_reading(reader.read, refs).fields)


def test_a_camera_that_the_first_episode_lacks_comes_after_its_own(tmp_path: Path) -> None:
    root = spartan_task(tmp_path, 3, 6, changes={0: without(FIRST)})
    assert list(surveyed(spartan(root)).cameras) == [CAMERAS[SECOND], CAMERAS[FIRST]]


def test_cameras_are_those_that_are_declared_whichever_episode_lacks_its_video(
    tmp_path: Path,
) -> None:
    root = lerobot_dataset(tmp_path / "pick", [3, 3])
    (root / f"videos/chunk-000/{CAMERA}/episode_000000.mp4").unlink()
    found = lerobot(root)
    assert surveyed(found).cameras == {CAMERA: (32, 48)}
    assert surveyed((found[0], found[1][:1])).cameras == {CAMERA: (32, 48)}


def test_one_odd_episode_does_not_decide_a_width(tmp_path: Path) -> None:
    odd = put(XYZ, np.zeros((6, 4)))
    survey = surveyed(spartan(spartan_task(tmp_path / "three", 3, 6, changes={0: odd})))
    assert survey.fields[XYZ] == FieldSpec(3)
    even = surveyed(spartan(spartan_task(tmp_path / "two", 2, 6, changes={0: odd})))
    assert even.fields[XYZ] == FieldSpec(4)


@pytest.mark.parametrize("odd", range(3))
def test_one_odd_episode_neither_brings_nor_takes_a_field(odd: int, tmp_path: Path) -> None:
    more = spartan_task(tmp_path / "more", 3, 6, changes={odd: put("robot__x", np.zeros(6))})
    less = spartan_task(tmp_path / "less", 3, 6, changes={odd: without(XYZ)})
    assert "robot__x" not in surveyed(spartan(more)).fields
    assert XYZ in surveyed(spartan(less)).fields


@pytest.mark.parametrize("odd", [0, 1])
def test_of_two_episodes_the_first_decides_the_fields(odd: int, tmp_path: Path) -> None:
    root = spartan_task(tmp_path, 2, 6, changes={odd: put("robot__x", np.zeros(6))})
    assert ("robot__x" in surveyed(spartan(root)).fields) == (odd == 0)


@pytest.mark.parametrize("number", [0, 1])
def test_an_episode_that_cannot_be_read_is_passed_over(number: int, tmp_path: Path) -> None:
    root = spartan_task(tmp_path / "raw", 3, 6)
    (processed(root, number) / "actions.npz").write_bytes(b"")
    survey = surveyed(spartan(root))
    assert (survey.episodes, survey.frames) == (2, 12)

    root = lerobot_dataset(tmp_path / "pick", [3, 4, 5])
    (root / f"data/chunk-000/episode_{number:06d}.parquet").unlink()
    survey = surveyed(lerobot(root))
    assert (survey.episodes, survey.frames) == (2, 12 - [3, 4][number])


@pytest.mark.parametrize("name", ["spartan", "lerobot"])
def test_a_source_without_a_readable_episode_is_refused_with_the_first_reason(
    name: str, tmp_path: Path
) -> None:
    if name == "spartan":
        root = spartan_task(tmp_path, 2, 6)
        for number in range(2):
            (processed(root, number) / "metadata.yaml").write_text("a: [")
        found, code = spartan(root), "data.broken_yaml"
    else:
        root = lerobot_dataset(tmp_path / "pick", [3, 3])
        for path in root.glob("data/*/*.parquet"):
            path.write_bytes(b"PAR1")
        found, code = lerobot(root), "data.bad_parquet"
    with pytest.raises(DataError) as caught:
        surveyed(found)
    assert (caught.value.code, caught.value.details["episodes"]) == (code, 2)


def test_names_of_channels_are_those_that_are_declared(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "pick", [3])
    tree = json.loads((root / "meta/info.json").read_text())
    tree["features"]["observation.state"]["names"] = {"arm": ["x", "y", "z"]}
    tree["features"]["action"]["names"] = ["one too many", "a", "b"]
    (root / "meta/info.json").write_text(json.dumps(tree))
    fields = surveyed(lerobot(root)).fields
    assert fields["observation.state"] == FieldSpec(3, ("x", "y", "z"))
    assert fields["action"] == FieldSpec(2)


def test_frames_are_unknown_where_the_list_does_not_say(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "pick", [3, 4])
    lines = [{"episode_index": number, "tasks": ["go"]} for number in range(2)]
    write_lines(root / "meta/episodes.jsonl", lines)
    assert surveyed(lerobot(root)).frames is None


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


def test_episodes_of_other_rates_have_no_rate_in_common(tmp_path: Path) -> None:
    reader, refs = spartan(spartan_task(tmp_path, 2, 3))
    rates = iter((10.0, 20.0))
    survey = survey_by_reading(lambda ref: replace(reader.read(ref), fps=next(rates)), refs)
    assert survey.fps is None
