"""Each defect of a raw Spartan episode has a code and a place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.spartan import Documents, session_folder, spartan_task
from vlatool.findings import Finding
from vlatool.sources.spartan.config import SpartanConfig
from vlatool.sources.spartan.reader import SpartanReader

CAMERA = "6CD146030E99"
XYZ = "robot__actual__poses__left::panda__xyz"
ROTATION = "robot__actual__poses__left::panda__rot_6d"
Break = Callable[[Documents], Any]


def checked(root: Path, *, deep: bool = False, **config: Any) -> list[Finding]:
    """Findings in the first episode, without those about the builder's own pickled array."""
    reader = SpartanReader(SpartanConfig(**config))
    ref = next(iter(reader.discover([root])))
    found = reader.check(ref, deep=deep)
    return [one for one in found if one.code != "spartan.ignored_objects"]


def broken(root: Path, change: Break | None, **options: Any) -> list[Finding]:
    def apply(documents: Documents) -> None:
        if change is not None:
            change(documents)

    return checked(spartan_task(root, 1, 6, changes={0: apply}), **options)


def put(document: str, name: str, value: Any) -> Break:
    """Replaces an array, or changes it with a function."""

    def change(documents: Documents) -> None:
        old = documents[document].get(name)
        documents[document][name] = value(old) if callable(value) else value

    return change


def drop(document: str, name: str | None = None) -> Break:
    return lambda d: d.pop(document) if name is None else d[document].pop(name)


def at(frame: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[frame] = value
        return values

    return change


def still(documents: Documents) -> None:
    fields = documents["observations"]
    for name, values in fields.items():
        if "__actual__poses__" in name:
            fields[name] = np.repeat(values[:1], len(values), axis=0)


def name_camera(name: str) -> Break:
    return lambda d: d["metadata"]["camera_id_to_semantic_name"].update({CAMERA: name})


MISSING = [
    (drop(document), "spartan.missing_file", {"path": f"{document}.{suffix}"})
    for document, suffix in (
        ("metadata", "yaml"),
        ("observations", "npz"),
        ("actions", "npz"),
        ("intrinsics", "npz"),
        ("extrinsics", "npz"),
    )
]
DEFECTS: list[tuple[Break, str, dict[str, Any]]] = [
    *MISSING,
    (
        put("observations", "thing", np.array([None] * 6, dtype=object)),
        "spartan.object_array",
        {"field": "thing", "path": "observations.npz"},
    ),
    (put("observations", XYZ, lambda v: v[:-1]), "spartan.length_mismatch", {"field": XYZ}),
    (put("observations", "one", np.float64(1)), "spartan.length_mismatch", {"field": "one"}),
    (put("actions", "actions", lambda v: v[:-1]), "spartan.length_mismatch", {"field": "actions"}),
    (put("extrinsics", CAMERA, lambda v: v[:-1]), "spartan.length_mismatch", {"field": CAMERA}),
    (
        put("observations", XYZ, at(4, np.nan)),
        "spartan.not_finite",
        {"field": XYZ, "frame": 4, "count": 1},
    ),
    (
        put("actions", "actions", at(2, np.inf)),
        "spartan.not_finite",
        {"field": "robot__action__poses__right::panda__xyz", "frame": 2},
    ),
    (
        drop("observations", CAMERA),
        "spartan.camera_without_pictures",
        {"camera": "scene_right_0", "field": CAMERA},
    ),
    (
        put("observations", CAMERA, lambda v: v.astype(np.float32)),
        "spartan.bad_pictures",
        {"camera": "scene_right_0"},
    ),
    (lambda d: d["metadata"].clear(), "spartan.no_cameras", {"path": "metadata.yaml"}),
    (name_camera("a/b"), "spartan.bad_camera_name", {"camera": "a/b"}),
    (name_camera("Scene"), "spartan.camera_name_case", {"camera": "Scene"}),
    (
        drop("intrinsics", CAMERA),
        "spartan.missing_calibration",
        {"field": CAMERA, "path": "intrinsics.npz"},
    ),
    (put("intrinsics", CAMERA, np.eye(2)), "spartan.bad_calibration", {"field": CAMERA}),
    (
        put("extrinsics", CAMERA, np.full((4, 4), np.nan)),
        "spartan.bad_calibration",
        {"path": "extrinsics.npz"},
    ),
    (
        put("intrinsics", CAMERA, np.diag([0.0, 30, 1])),
        "spartan.zero_focal_length",
        {"camera": "scene_right_0"},
    ),
    (put("extrinsics", CAMERA, np.eye(4) * 2), "spartan.odd_extrinsics", {"field": CAMERA}),
    (drop("actions", "actions"), "spartan.missing_actions", {"field": "actions"}),
    (
        put("actions", "actions", lambda v: v[:, :7]),
        "spartan.narrow_actions",
        {"path": "actions.npz"},
    ),
    (
        put("actions", "actions", lambda v: np.concatenate([v, v], axis=1)),
        "spartan.wide_actions",
        {"field": "actions"},
    ),
    (
        put("actions", "actions", lambda v: np.roll(v, 1, axis=0)),
        "spartan.action_not_next_desired",
        {"frame": 0, "share": 1.0},
    ),
    (
        put("observations", ROTATION, at(3, 0)),
        "spartan.degenerate_rot_6d",
        {"field": ROTATION, "frame": 3, "count": 1},
    ),
    (
        put("observations", ROTATION, lambda v: v * 2),
        "spartan.rot_6d_not_unit",
        {"field": ROTATION, "frame": 0, "count": 6},
    ),
    (still, "spartan.no_motion", {"path": "observations.npz"}),
    (
        put("observations", "timestamp_packaged", np.array([[1.0], [2], [2], [4], [5], [6]])),
        "spartan.timestamps_not_ascending",
        {"field": "timestamp_packaged", "frame": 2},
    ),
    (drop("observations", "language_instruction"), "spartan.no_instruction", {}),
    (
        put("observations", "language_instruction", np.array(["a", "", "", "a", "a", "a"])),
        "spartan.no_instruction",
        {"frame": 1},
    ),
    (
        drop("observations", f"{CAMERA}_depth"),
        "spartan.missing_depth_or_label",
        {"field": f"{CAMERA}_depth"},
    ),
    (
        lambda d: d.update(summary={"episode_success": np.array([[False]])}),
        "spartan.not_successful",
        {"path": "summary.npz"},
    ),
]


def holds(finding: Finding, place: dict[str, Any]) -> bool:
    """Whether a finding is at a place, whose path is the file's name."""
    there = dict(finding.place)
    there["path"] = Path(str(there.get("path", ""))).name
    return all(there.get(part) == value for part, value in place.items())


def test_a_good_episode_has_no_findings(tmp_path: Path) -> None:
    assert broken(tmp_path, None, deep=True) == []


@pytest.mark.parametrize(
    ("change", "code", "place"),
    DEFECTS,
    ids=[f"{number}-{row[1]}" for number, row in enumerate(DEFECTS)],
)
def test_a_defect_has_its_code_and_place(
    change: Break, code: str, place: dict[str, Any], tmp_path: Path
) -> None:
    found = broken(tmp_path, change)
    assert any(one.code == code and holds(one, place) for one in found), found
    assert all("episode" in one.place for one in found)


def test_a_broken_number_is_told_with_its_axis(tmp_path: Path) -> None:
    def spoil(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[4, 2] = np.nan
        return values

    found = broken(tmp_path, put("observations", XYZ, spoil))
    assert ["is not finite (z)" in one.message for one in found] == [True]


def test_an_episode_without_frames_is_told(tmp_path: Path) -> None:
    found = checked(spartan_task(tmp_path, 1, 0))
    assert "spartan.empty_episode" in [one.code for one in found]


def test_one_frame_is_enough(tmp_path: Path) -> None:
    assert checked(spartan_task(tmp_path, 1, 1), deep=True) == []


def test_several_defects_are_told_together(tmp_path: Path) -> None:
    def change(documents: Documents) -> None:
        put("observations", XYZ, at(4, np.nan))(documents)
        put("extrinsics", CAMERA, np.eye(4) * 2)(documents)
        drop("intrinsics")(documents)

    codes = {one.code for one in broken(tmp_path, change)}
    expected = {"not_finite", "odd_extrinsics", "missing_file"}
    assert codes == {f"spartan.{code}" for code in expected}


def test_objects_that_nobody_reads_are_worth_knowing(tmp_path: Path) -> None:
    root = spartan_task(tmp_path, 1)
    reader = SpartanReader(SpartanConfig())
    found = list(reader.check(next(iter(reader.discover([root]))), deep=False))
    assert [(one.code, one.severity, one.place["field"]) for one in found] == [
        ("spartan.ignored_objects", "info", "skill_type")
    ]


def test_a_discarded_field_may_be_broken(tmp_path: Path) -> None:
    change = put("observations", XYZ, at(4, np.nan))
    assert broken(tmp_path, change, data_discard_keys=[XYZ]) == []


@pytest.mark.parametrize("name", ["metadata.yaml", "actions.npz"])
def test_an_unreadable_file_is_named(name: str, tmp_path: Path) -> None:
    root = spartan_task(tmp_path, 1)
    path = session_folder(root) / "episode_0/processed" / name
    path.write_bytes(b"\x00{")
    found = [one for one in checked(root) if one.code == "spartan.unreadable_file"]
    assert [one.place["path"] for one in found] == [str(path)]


def images(value: int | None) -> Break:
    def change(images: np.ndarray) -> np.ndarray:
        return np.full_like(images, value) if value is not None else images[[0] * 6]

    return put("observations", CAMERA, change)


@pytest.mark.parametrize(
    ("change", "code", "count"),
    [
        (images(0), "pictures.black", 6),
        (images(9), "pictures.constant", 6),
        (images(None), "pictures.repeated", 6),
    ],
)
def test_odd_images_are_found_when_they_are_decoded(
    change: Break, code: str, count: int, tmp_path: Path
) -> None:
    found = [one for one in broken(tmp_path, change, deep=True) if one.code == code]
    assert [one.place["count"] for one in found] == [count]
    assert found[0].place["camera"] == "scene_right_0"


@pytest.mark.parametrize(
    ("member", "code"),
    [(CAMERA, "spartan.broken_member"), (f"{CAMERA}_label", "spartan.unread_array")],
)
def test_a_damaged_member_is_found_by_its_checksum(member: str, code: str, tmp_path: Path) -> None:
    root = spartan_task(tmp_path, 1)
    path = session_folder(root) / "episode_0/processed/observations.npz"
    data = bytearray(path.read_bytes())
    start = data.index(f"{member}.npy".encode())
    data[start + 60] ^= 0xFF
    path.write_bytes(data)
    found = [one for one in checked(root, deep=True) if one.code == code]
    assert {one.place["field"] for one in found} == {member}


def of_source(root: Path) -> list[tuple[str, str]]:
    found = SpartanReader(SpartanConfig()).check_source([root])
    return [(one.code, Path(one.place["path"]).name) for one in found]


def test_two_episodes_with_equal_actions_are_told(tmp_path: Path) -> None:
    root = spartan_task(tmp_path, 2)
    assert of_source(root) == [("spartan.duplicate_episode", "episode_1")]


def test_folders_that_are_passed_by_are_told(tmp_path: Path) -> None:
    root = spartan_task(tmp_path, 1)
    for name in ("episode_x", "notes"):
        (session_folder(root) / name).mkdir()
    assert of_source(root) == [("spartan.misnamed_episode", "episode_x")]
