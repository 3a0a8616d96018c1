"""Codes and locations of findings on raw Spartan episodes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.spartan import Documents, session_folder, spartan_task
from vlatool.findings import Finding
from vlatool.recordings.spartan.config import SpartanConfig
from vlatool.recordings.spartan.reader import SpartanReader

CAMERA = "6CD146030E99"
XYZ = "robot__actual__poses__left::panda__xyz"
ROTATION = "robot__actual__poses__left::panda__rot_6d"
Break = Callable[[Documents], Any]


def episode_findings(root: Path, *, deep: bool = False, **config: Any) -> list[Finding]:
    """Findings on the first episode, without those on the pickled array of the builder."""
    reader = SpartanReader(SpartanConfig(**config))
    ref = next(iter(reader.discover([root])))
    findings = reader.check(ref, deep=deep)
    return [finding for finding in findings if finding.code != "spartan.ignored_objects"]


def broken(root: Path, change: Break | None, **options: Any) -> list[Finding]:
    def apply(documents: Documents) -> None:
        if change is not None:
            change(documents)

    return episode_findings(spartan_task(root, 1, 6, changes={0: apply}), **options)


def put(document: str, name: str, value: Any) -> Break:
    """Change that replaces an array, or applies a function to it."""

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


def without_motion(documents: Documents) -> None:
    fields = documents["observations"]
    for name, values in fields.items():
        if "__actual__poses__" in name:
            fields[name] = np.repeat(values[:1], len(values), axis=0)


def name_camera(name: str) -> Break:
    return lambda d: d["metadata"]["camera_id_to_semantic_name"].update({CAMERA: name})


MISSING = [
    (drop(document), "missing_file", {"path": f"{document}.{suffix}"})
    for document, suffix in (
        ("metadata", "yaml"),
        ("observations", "npz"),
        ("actions", "npz"),
        ("intrinsics", "npz"),
        ("extrinsics", "npz"),
    )
]
# Change, code without the name of the format, place.
DEFECTS: list[tuple[Break, str, dict[str, Any]]] = [
    *MISSING,
    (
        put("observations", "thing", np.array([None] * 6, dtype=object)),
        "object_array",
        {"field": "thing", "path": "observations.npz"},
    ),
    (put("observations", XYZ, lambda v: v[:-1]), "length_mismatch", {"field": XYZ}),
    (put("observations", "one", np.float64(1)), "length_mismatch", {"field": "one"}),
    (put("actions", "actions", lambda v: v[:-1]), "length_mismatch", {"field": "actions"}),
    (put("extrinsics", CAMERA, lambda v: v[:-1]), "length_mismatch", {"field": CAMERA}),
    (put("observations", XYZ, at(4, np.nan)), "not_finite", {"field": XYZ, "frame": 4, "count": 1}),
    (
        put("actions", "actions", at(2, np.inf)),
        "not_finite",
        {"field": "robot__action__poses__right::panda__xyz", "frame": 2},
    ),
    (
        drop("observations", CAMERA),
        "camera_without_pictures",
        {"camera": "scene_right_0", "field": CAMERA},
    ),
    (
        put("observations", CAMERA, lambda v: v.astype(np.float32)),
        "bad_pictures",
        {"camera": "scene_right_0"},
    ),
    (lambda d: d["metadata"].clear(), "no_cameras", {"path": "metadata.yaml"}),
    (name_camera("a/b"), "bad_camera_name", {"camera": "a/b"}),
    (name_camera("Scene"), "camera_name_case", {"camera": "Scene"}),
    (
        drop("intrinsics", CAMERA),
        "missing_calibration",
        {"field": CAMERA, "path": "intrinsics.npz"},
    ),
    (put("intrinsics", CAMERA, np.eye(2)), "bad_calibration", {"field": CAMERA}),
    (
        put("extrinsics", CAMERA, np.full((4, 4), np.nan)),
        "bad_calibration",
        {"path": "extrinsics.npz"},
    ),
    (
        put("intrinsics", CAMERA, np.diag([0.0, 30, 1])),
        "zero_focal_length",
        {"camera": "scene_right_0"},
    ),
    (put("extrinsics", CAMERA, np.eye(4) * 2), "odd_extrinsics", {"field": CAMERA}),
    (drop("actions", "actions"), "missing_actions", {"field": "actions"}),
    (put("actions", "actions", lambda v: v[:, :7]), "narrow_actions", {"path": "actions.npz"}),
    (
        put("actions", "actions", lambda v: np.concatenate([v, v], axis=1)),
        "wide_actions",
        {"field": "actions"},
    ),
    (
        put("actions", "actions", lambda v: np.roll(v, 1, axis=0)),
        "action_not_next_desired",
        {"frame": 0, "share": 1.0},
    ),
    (
        put("observations", ROTATION, at(3, 0)),
        "degenerate_rot_6d",
        {"field": ROTATION, "frame": 3, "count": 1},
    ),
    (
        put("observations", ROTATION, lambda v: v * 2),
        "rot_6d_not_unit",
        {"field": ROTATION, "frame": 0, "count": 6},
    ),
    (without_motion, "no_motion", {"path": "observations.npz"}),
    (
        put("observations", "timestamp_packaged", np.array([[1.0], [2], [2], [4], [5], [6]])),
        "timestamps_not_ascending",
        {"field": "timestamp_packaged", "frame": 2},
    ),
    (drop("observations", "language_instruction"), "no_instruction", {}),
    (
        put("observations", "language_instruction", np.array(["a", "", "", "a", "a", "a"])),
        "no_instruction",
        {"frame": 1},
    ),
    (
        drop("observations", f"{CAMERA}_depth"),
        "missing_depth_or_label",
        {"field": f"{CAMERA}_depth"},
    ),
    (
        lambda d: d.update(summary={"episode_success": np.array([[False]])}),
        "not_successful",
        {"path": "summary.npz"},
    ),
]


def holds(finding: Finding, location: dict[str, Any]) -> bool:
    """True if a finding is at a location, whose path is only the file name."""
    there = dict(finding.place)
    there["path"] = Path(str(there.get("path", ""))).name
    return all(there.get(part) == value for part, value in location.items())


@pytest.mark.parametrize(
    ("change", "code", "location"),
    DEFECTS,
    ids=[f"{number}-{row[1]}" for number, row in enumerate(DEFECTS)],
)
def test_a_defect_has_its_code_and_place(
    change: Break, code: str, location: dict[str, Any], tmp_path: Path
) -> None:
    findings = broken(tmp_path, change)
    matches = [finding for finding in findings if finding.code == f"spartan.{code}"]
    assert any(holds(finding, location) for finding in matches), findings
    assert all("episode" in finding.place for finding in findings)


def test_a_good_episode_has_no_findings_but_an_unused_object_array(tmp_path: Path) -> None:
    assert broken(tmp_path / "good", None, deep=True) == []
    assert episode_findings(spartan_task(tmp_path / "short", 1, 1), deep=True) == []
    empty = episode_findings(spartan_task(tmp_path / "empty", 1, 0))
    assert "spartan.empty_episode" in [finding.code for finding in empty]
    reader = SpartanReader(SpartanConfig())
    findings = list(reader.check(next(iter(reader.discover([tmp_path / "good"]))), deep=False))
    assert [(finding.code, finding.severity, finding.place["field"]) for finding in findings] == [
        ("spartan.ignored_objects", "info", "skill_type")
    ]


def test_several_defects_are_reported_together(tmp_path: Path) -> None:
    def change(documents: Documents) -> None:
        put("observations", XYZ, at(4, np.nan))(documents)
        put("extrinsics", CAMERA, np.eye(4) * 2)(documents)
        drop("intrinsics")(documents)

    codes = {finding.code for finding in broken(tmp_path, change)}
    expected = {"not_finite", "odd_extrinsics", "missing_file"}
    assert codes == {f"spartan.{code}" for code in expected}


def test_a_discarded_field_may_be_broken(tmp_path: Path) -> None:
    change = put("observations", XYZ, at(4, np.nan))
    assert broken(tmp_path, change, data_discard_keys=[XYZ]) == []


@pytest.mark.parametrize("name", ["metadata.yaml", "actions.npz"])
def test_an_unreadable_file_is_named(name: str, tmp_path: Path) -> None:
    root = spartan_task(tmp_path, 1)
    path = session_folder(root) / "episode_0/processed" / name
    path.write_bytes(b"\x00{")
    findings = [
        finding for finding in episode_findings(root) if finding.code == "spartan.unreadable_file"
    ]
    assert [finding.place["path"] for finding in findings] == [str(path)]


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
def test_uniform_and_repeated_images_are_found_by_decoding(
    change: Break, code: str, count: int, tmp_path: Path
) -> None:
    findings = [finding for finding in broken(tmp_path, change, deep=True) if finding.code == code]
    assert [finding.place["count"] for finding in findings] == [count]
    assert findings[0].place["camera"] == "scene_right_0"


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
    findings = [finding for finding in episode_findings(root, deep=True) if finding.code == code]
    assert {finding.place["field"] for finding in findings} == {member}


def source_findings(root: Path) -> list[tuple[str, str]]:
    findings = SpartanReader(SpartanConfig()).check_source([root])
    return [(finding.code, Path(finding.place["path"]).name) for finding in findings]


def test_two_episodes_with_equal_actions_and_skipped_folders_are_reported(tmp_path: Path) -> None:
    root = spartan_task(tmp_path, 2)
    assert source_findings(root) == [("spartan.duplicate_episode", "episode_1")]
    for name in ("episode_x", "notes"):
        (session_folder(root) / name).mkdir()
    assert ("spartan.misnamed_episode", "episode_x") in source_findings(root)
