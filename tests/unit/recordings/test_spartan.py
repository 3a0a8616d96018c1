import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.builders import spartan
from tests.builders.preprocessing import has_message_and_hint, named
from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError, VlatoolError
from vlatool.recordings.choice import select
from vlatool.recordings.select import check_finite
from vlatool.recordings.spartan.config import SpartanConfig
from vlatool.recordings.spartan.reader import SpartanReader

XYZ = "robot__actual__poses__left::panda__xyz"
CAMERA = next(iter(spartan.CAMERAS))


def discover(*sources: Path) -> list[EpisodeRef]:
    return list(SpartanReader(SpartanConfig()).discover(sources))


def read(root: Path, number: int = 0, **config: Any) -> Episode:
    reader = SpartanReader(SpartanConfig(**config))
    return reader.read(list(reader.discover([root]))[number])


def read_changed(folder: Path, change: spartan.Change, **config: Any) -> Episode:
    spartan.spartan_task(folder, 1, changes={0: change})
    return read(folder, **config)


def read_error(folder: Path, change: spartan.Change) -> DataError:
    with pytest.raises(DataError) as caught:
        read_changed(folder, change)
    return caught.value


def set_value(document: str, key: str, value: Any) -> spartan.Change:
    def change(documents: spartan.Documents) -> None:
        documents[document][key] = value

    return change


def annotations(folder: Path, tasks: dict[str, Any]) -> str:
    path = folder / "annotations.yaml"
    path.write_text(yaml.safe_dump({"language_dict": tasks}))
    return str(path)


# discovery


def test_episode_2_comes_before_episode_10_and_similar_names_are_no_episodes(
    tmp_path: Path,
) -> None:
    spartan.spartan_task(tmp_path, 12, frames=1, stamp="2024.11,14 {x}::y")
    folder = next(tmp_path.rglob("episode_0")).parent
    for name in ("episode_x", "episode_1.tar", "episode", "my_episode_1"):
        spartan.spartan_episode(folder / name)

    refs = discover(tmp_path)

    assert [ref.path.name for ref in refs] == [f"episode_{n}" for n in range(12)]
    assert all(re.fullmatch("[A-Za-z0-9_-]+", ref.id) for ref in refs)


@pytest.mark.parametrize(
    "below",
    [
        lambda root: root,
        lambda root: root / "tasks",
        lambda root: root / "tasks" / spartan.TASK,
        lambda root: spartan.session_folder(root).parent,
        spartan.session_folder,
    ],
    ids=["root", "tasks", "task", "stamp", "diffusion_spartan"],
)
def test_any_folder_above_the_episodes_can_be_the_source_and_an_episode_itself(
    tmp_path: Path, below: Callable[[Path], Path]
) -> None:
    spartan.spartan_task(tmp_path, 2)

    refs = discover(below(tmp_path))

    assert [ref.path.name for ref in refs] == ["episode_0", "episode_1"]
    assert {ref.task for ref in refs} == {spartan.TASK}
    assert [ref.id for ref in refs] == [ref.id for ref in discover(tmp_path)]
    assert [ref.path for ref in discover(refs[1].path)] == [refs[1].path]
    assert len(discover(tmp_path, below(tmp_path))) == 2, "used once"


def test_sources_are_merged_in_the_order_given_and_equal_ids_get_a_suffix(tmp_path: Path) -> None:
    other = "TurnCupUpsideDown"
    for copy, task in (("b", other), ("a", spartan.TASK), ("c", spartan.TASK), ("d", other)):
        spartan.spartan_task(tmp_path / copy, 1, task=task)

    refs = discover(*(tmp_path / copy for copy in "bacd"))

    assert [ref.task for ref in refs] == [other, spartan.TASK, spartan.TASK, other]
    first, second = refs[0].id, refs[1].id
    assert first != second
    assert [ref.id for ref in refs[2:]] == [f"{second}-2", f"{first}-2"]


def test_source_without_episodes_is_rejected_with_its_name_and_an_episode_without_frames(
    tmp_path: Path,
) -> None:
    spartan.spartan_task(tmp_path / "good", 1, frames=0)
    (tmp_path / "empty").mkdir()

    with pytest.raises(DataError) as caught:
        discover(tmp_path / "good", tmp_path / "empty")
    assert caught.value.code == "data.no_episodes"
    assert caught.value.details["path"] == str(tmp_path / "empty")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "good")
    assert caught.value.code == "data.broken"


# selection


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("0:4,7", [0, 1, 2, 3, 7]),
        ("7,0:4", [0, 1, 2, 3, 7]),
        ("2", [2]),
        ("8:", [8, 9]),
        (":2", [0, 1]),
        (":", list(range(10))),
        ("3,3,2:4", [2, 3]),
        ("8:100", [8, 9]),
        (" 1 , 2 ", [1, 2]),
        (None, list(range(10))),
    ],
)
def test_selection_supports_numbers_and_half_open_ranges(
    selection: str | None, expected: list[int]
) -> None:
    refs = [EpisodeRef(f"e{n}", Path(f"/e{n}"), "/") for n in range(10)]

    assert [int(ref.id[1:]) for ref in select(refs, selection)] == expected


@pytest.mark.parametrize(
    ("selection", "code"),
    [
        *((text, "usage.bad_value") for text in ("a", "1-3", "1:2:3", "", "0,,0", "-1")),
        *((text, "data.no_episodes") for text in ("1", "5:9", "0,1")),
    ],
)
def test_invalid_selection_or_one_of_a_missing_episode_is_an_error(
    selection: str, code: str
) -> None:
    with pytest.raises(VlatoolError) as caught:
        select([EpisodeRef("e", Path("/e"), "/")], selection)
    assert (caught.value.code, caught.value.exit_code) == (code, 2 if code[0] == "u" else 3)


# reading


def test_cameras_have_semantic_names_in_the_order_of_the_metadata(tmp_path: Path) -> None:
    names = {camera: spartan.CAMERAS[camera] for camera in reversed(spartan.CAMERAS)}
    change = set_value("metadata", "camera_id_to_semantic_name", names)
    assert list(read_changed(tmp_path, change).cameras) == ["wrist_left_minus", "scene_right_0"]


def test_images_and_fields_are_those_of_the_recording(tmp_path: Path) -> None:
    episode = read(spartan.spartan_task(tmp_path, 1))
    (read_image,) = episode.cameras["wrist_left_minus"].read([4])
    assert (read_image == spartan.image(4, 1, (24, 32))).all()

    np.testing.assert_array_equal(episode.lowdim[XYZ], spartan.robot_signals(6)[XYZ])
    for name, part in {
        "robot__action__poses__right::panda__xyz": slice(0, 3),
        "robot__action__poses__right::panda__rot_6d": slice(3, 9),
        "robot__action__poses__left::panda__xyz": slice(9, 12),
        "robot__action__poses__left::panda__rot_6d": slice(12, 18),
        "robot__action__grippers__right::panda_hand": slice(18, 19),
        "robot__action__grippers__left::panda_hand": slice(19, 20),
    }.items():
        np.testing.assert_array_equal(episode.lowdim[name], spartan.action_vectors(6)[:, part])
    assert not [name for name in episode.lowdim if name.endswith(("_depth", "_label"))]
    assert "skill_type" not in episode.lowdim

    calibration = episode.calibration["scene_right_0"]
    assert calibration.intrinsics is not None
    assert calibration.intrinsics[:2, 2].tolist() == [16, 12]
    assert calibration.extrinsics is not None
    assert calibration.extrinsics[:, 0, 3].tolist() == [0, 1, 2, 3, 4, 5]
    assert episode.action_fields == (
        "robot__action__poses__left::panda__xyz_relative",
        "robot__action__poses__left::panda__rot_6d_relative",
        "robot__action__grippers__left::panda_hand",
        "robot__action__poses__right::panda__xyz_relative",
        "robot__action__poses__right::panda__rot_6d_relative",
        "robot__action__grippers__right::panda_hand",
    )


def test_depth_and_label_images_are_not_inflated(tmp_path: Path) -> None:
    def noise(documents: spartan.Documents) -> None:
        rng = np.random.default_rng(0)
        for name, values in documents["observations"].items():
            if name in unused:
                documents["observations"][name] = rng.integers(0, 9999, values.shape, values.dtype)

    unused = [f"{camera}_{kind}" for camera in spartan.CAMERAS for kind in ("depth", "label")]
    spartan.spartan_task(tmp_path, 1, size=(48, 64), changes={0: noise})
    path = spartan.session_folder(tmp_path) / "episode_0/processed/observations.npz"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for name in unused:
            info = archive.getinfo(f"{name}.npy")
            end = info.header_offset + info.compress_size
            content[end - 1000 : end - 900] = b"\xff" * 100
    path.write_bytes(content)

    episode = read(tmp_path)

    assert episode.cameras["scene_right_0"].read([5]).shape == (1, 48, 64, 3)


def test_object_array_among_the_observations_is_rejected_unless_it_is_discarded(
    tmp_path: Path,
) -> None:
    odd = set_value("observations", "odd", np.array([None] * 6, dtype=object))
    error = read_error(tmp_path, odd)
    assert (error.code, error.details["field"]) == ("data.unsafe", "odd")
    assert "odd" not in read_changed(tmp_path, odd, data_discard_keys=["odd"]).lowdim


def test_wide_action_vector_is_cut_and_a_field_of_one_axis_gets_another(tmp_path: Path) -> None:
    def change(documents: spartan.Documents) -> None:
        documents["actions"]["actions"] = np.zeros((6, 25))
        documents["observations"]["robot__x"] = np.arange(6.0)

    lowdim = read_changed(tmp_path, change).lowdim

    assert lowdim["robot__action__grippers__left::panda_hand"].shape == (6, 1)
    assert lowdim["robot__x"].shape == (6, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_value_is_reported_with_field_and_frame(tmp_path: Path, value: float) -> None:
    def spoil(documents: spartan.Documents) -> None:
        documents["observations"][XYZ][4, 1] = value

    episode = read_changed(tmp_path, spoil)

    with pytest.raises(DataError) as caught:
        check_finite(episode)
    assert caught.value.code == "data.not_finite"
    assert caught.value.details == {"finding": "not_finite", "field": XYZ, "frame": 4}
    assert f"{XYZ}: y" in caught.value.message


def observed(name: str, values: Any) -> spartan.Change:
    return set_value("observations", name, values)


# Code to what is wrong, and a part of the message.
BROKEN: dict[str, list[tuple[spartan.Change, str]]] = {
    "bad_field": [
        (observed("robot__x", np.zeros((6, 1), "M8[s]")), "robot__x"),
        (observed("robot__x", np.zeros((6, 1), complex)), "robot__x"),
        (observed("robot__x", np.zeros(6, [("a", "f8")])), "robot__x"),
        (observed("robot__x", np.zeros((6, 0))), "robot__x"),
    ],
    "length_mismatch": [
        (observed(CAMERA, np.zeros((5, 24, 32, 3), np.uint8)), "camera scene_right_0"),
    ],
    "narrow_actions": [
        (set_value("actions", "actions", np.full((6, 20), "x")), "actions"),
    ],
    "missing_array": [
        (lambda documents: documents.update(actions={"other": np.zeros((6, 20))}), "actions")
    ],
    "bad_calibration": [
        (set_value("intrinsics", CAMERA, np.full((3, 3), "x")), CAMERA),
        (set_value("intrinsics", CAMERA, np.full((3, 3), np.nan)), CAMERA),
    ],
    "not_pictures": [(observed(CAMERA, np.zeros((6, 24, 32, 3))), CAMERA)],
    "broken_npz": [(observed(CAMERA, np.zeros((6, 0, 32, 3), np.uint8)), CAMERA)],
    "missing_field": [
        (set_value("metadata", "camera_id_to_semantic_name", mapping), "camera_id_to_semantic_name")
        for mapping in (None, {}, ["a"], "text")
    ],
    "no_cameras": [
        (set_value("metadata", "camera_id_to_semantic_name", {"none": "front"}), "observations.npz")
    ],
    "bad_camera_name": [
        (named(name), part)
        for name, part in (
            *((name, name) for name in ("a,b", "a/b", "a b", "", "a{0..3}")),
            ("scene_right_0\n", "metadata"),
            ("WRIST_left_minus", "wrist_left_minus"),
        )
    ],
}


@pytest.mark.parametrize(
    ("code", "change", "part"), [(code, *row) for code, rows in BROKEN.items() for row in rows]
)
def test_broken_episode_is_rejected_with_its_code_and_what_is_broken(
    tmp_path: Path, code: str, change: spartan.Change, part: str
) -> None:
    error = read_error(tmp_path, change)

    assert error.details["finding"] == code
    assert part in error.message
    assert has_message_and_hint(vars(error))


def test_mapped_camera_without_images_is_a_warning_and_a_pose_that_is_not_measured_left_out(
    tmp_path: Path,
) -> None:
    def change(documents: spartan.Documents) -> None:
        del documents["observations"]["BFS_23595718"], documents["observations"][XYZ]

    episode = read_changed(tmp_path, change)

    assert list(episode.cameras) == ["scene_right_0"]
    assert "spartan.camera_without_pictures" in [finding.code for finding in episode.findings]
    assert {group.name.split("_")[0] for group in episode.pose_groups} == {"right"}


def test_camera_id_of_digits_stays_text_and_names_are_lower_case_as_tar_readers_make_them(
    tmp_path: Path,
) -> None:
    spartan.spartan_task(tmp_path, 1, cameras={"0123": "Front_0"})

    assert list(read(tmp_path).cameras) == ["front_0"]


# language


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize(
    ("instruction", "sentence"),
    [("lift it", "lift it"), ("", "put cup on saucer"), (None, "put cup on saucer")],
)
def test_task_without_annotation_falls_back_with_a_warning_unless_there_are_none(
    tmp_path: Path, instruction: str | None, sentence: str, annotated: bool
) -> None:
    path = annotations(tmp_path, {"Other": {"original": ["o"]}}) if annotated else None
    spartan.spartan_task(tmp_path, 1, instruction=instruction)

    episode = read(tmp_path, language_annotations_path=path)

    assert episode.language == {"original": [sentence]}
    expected = ["source.language_fallback"] if annotated or not instruction else []
    assert [finding.code for finding in episode.findings] == expected


def test_configured_task_replaces_that_of_the_path(tmp_path: Path) -> None:
    path = annotations(tmp_path, {"Mine": {"original": ["do mine"]}})

    episode = read(spartan.spartan_task(tmp_path, 1), language_annotations_path=path, task="Mine")

    assert episode.language == {"original": ["do mine"]}
