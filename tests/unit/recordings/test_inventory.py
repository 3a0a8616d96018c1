"""Roles and names of what episodes store."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlatool.episode import StoredPart
from vlatool.recordings.inventory import (
    Stored,
    assign,
    decide,
    decide_as,
    depth_image,
    left_out_findings,
    part_names,
    rgb_image,
    sampled_decisions,
)

SHADES = np.arange(32 * 40).reshape(1, 32, 40)


def array(path: str, *shape: int, dtype: str = "float32", rows: Any = None) -> Stored:
    look = None if rows is None else lambda: np.asarray(rows)
    return Stored(path, "array", shape, dtype, 10, look=look)


@pytest.mark.parametrize(
    ("stored", "role"),
    [
        (array("rgb", 32, 40, 3, dtype="uint8"), "camera"),
        (array("rgba", 32, 40, 4, dtype="uint8"), "camera"),
        (array("img", 3, 32, 40, dtype="uint8"), "camera"),
        (array("img", 32, 40, 3, rows=SHADES[..., None] % 256 / 255), "camera"),
        (array("img", 32, 40, 3, rows=SHADES[..., None] % 256), "camera"),
        (array("normals", 32, 40, 3, rows=SHADES[..., None] / 1000.0 - 1), "left_out"),
        (array("nan", 32, 40, 3, rows=np.full((1, 2), np.nan)), "left_out"),
        (array("gray", 32, 40, dtype="uint8", rows=SHADES % 256), "camera"),
        (array("black", 32, 40, dtype="uint8", rows=SHADES * 0), "camera"),
        (array("objects", 32, 40, 1, dtype="uint8", rows=SHADES % 2 * 9), "labels"),
        (array("robot_mask", 32, 40, dtype="uint8"), "labels"),
        (array("ids", 32, 40, 1, dtype="int32"), "labels"),
        (array("hand", 32, 40, dtype="bool"), "labels"),
        (array("depth", 32, 40, dtype="uint16"), "depth"),
        (array("depth", 1, 32, 40, dtype="float32"), "depth"),
        (array("flow", 32, 40, 2), "left_out"),
        (array("color16", 32, 40, 3, dtype="uint16"), "left_out"),
        (array("points", 1024, 3), "left_out"),
        (array("map", 23, 23, dtype="uint8"), "left_out"),
        (array("tactile", 16, 16, dtype="uint8"), "field"),
        (array("pose", 4, 4), "field"),
        (array("arms", 2, 7), "field"),
        (array("q"), "field"),
        (array("features", 256), "field"),
        (array("features", 257), "left_out"),
        (array("text_embedding", 512), "field"),
        (array("audio", 800), "left_out"),
        (Stored("a/rgb", "jpeg", (32, 40, 3), "uint8"), "camera"),
        (Stored("a/depth", "png", (32, 40), "uint16"), "depth"),
        (Stored("a/seg", "png", (32, 40), "uint8"), "labels"),
        (Stored("cam.mp4", "video"), "camera"),
        (Stored("language_instruction", "text"), "language"),
        (Stored("notes", "text"), "left_out"),
        (Stored("lidar", "other", note="a point cloud"), "left_out"),
        (Stored("is_first", "array", (), "bool", 10, role="time"), "time"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.path,
)
def test_role_follows_from_kind_shape_type_and_name(stored: Stored, role: str) -> None:
    assert decide(stored).role == role


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["obs/front/rgb", "obs/wrist/rgb"], ["front", "wrist"]),
        (["obs/agentview_image"], ["agentview_image"]),
        (["a/left/rgb", "b/left/rgb"], ["a_left", "b_left"]),
        (["left/rgb", "left/image"], ["left_rgb", "left_image"]),
        (["rgb"], ["rgb"]),
        (["Wrist/rgb", "wrist/rgb"], ["Wrist_rgb-2", "wrist_rgb-3"]),
    ],
)
def test_names_are_the_shortest_ends_that_say_something(paths: list[str], names: list[str]) -> None:
    found = part_names([Stored(path, "video") for path in paths], {}, is_short=True)
    assert [found[path] for path in paths] == names


PARTS = st.sampled_from(["rgb", "front", "wrist", "obs", "depth", "q", "action", "a_b", "a", "b"])
SHAPES = st.sampled_from(
    [(), (7,), (4, 4), (300,), (64, 3), (32, 40), (32, 40, 1), (32, 40, 3), (3, 32, 40), (0,)]
)
THINGS = st.builds(
    lambda parts, kind, shape, dtype: Stored("/".join(parts), kind, shape, dtype, 10),
    st.lists(PARTS, min_size=1, max_size=3),
    st.sampled_from(["array", "array", "array", "jpeg", "png", "video", "text", "other"]),
    SHAPES,
    st.sampled_from(["uint8", "uint16", "int32", "float32", "float64", "bool"]),
)


@given(st.lists(THINGS, max_size=12, unique_by=lambda thing: thing.path))
def test_each_thing_of_any_inventory_has_one_role_and_a_name_of_its_own(
    things: list[Stored],
) -> None:
    _, parts = assign(things, {}, {})
    assert [part.path for part in parts] == [thing.path for thing in things]
    for role in ("camera", "depth", "labels", "field"):
        names = [part.name for part in parts if part.role == role]
        assert len({*names}) == len(names)
        assert all(names)
    assert all(part.note for part in parts if part.role == "left_out")


def test_later_episodes_take_what_rows_of_the_first_decided() -> None:
    first = array("cam", 32, 40, dtype="uint8", rows=SHADES % 256)
    decided = sampled_decisions([first], lambda thing: np.empty(0))
    labels_alone = array("cam", 32, 40, dtype="uint8", rows=SHADES % 2 * 9)
    _, (part,) = assign([labels_alone], decided, {})
    assert part.role == "camera"


def test_a_field_that_is_nan_throughout_is_left_out_as_unusable() -> None:
    rows = np.full((3, 7), np.nan)
    decided = sampled_decisions([array("effort", 7, rows=rows)], lambda thing: rows)
    _, (part,) = assign([array("effort", 7)], decided, {})
    assert (part.role, part.content, part.is_loss) == ("left_out", "unusable", True)


def test_what_is_left_out_is_one_line_and_a_warning_for_images_actions_and_texts() -> None:
    points = StoredPart("cloud", "left_out", "", "other", "points")
    camera = StoredPart("front", "left_out", "", "images", "an odd type")
    (finding,) = left_out_findings("e", [points])
    assert (finding.code, finding.severity) == ("left_out.data", "info")
    (finding,) = left_out_findings("e", [points, camera])
    assert finding.message == "e: left out: front (an odd type); cloud (points)"
    assert (finding.code, finding.severity) == ("left_out.wanted", "warning")


@pytest.mark.parametrize(
    ("row", "scale"),
    [
        (np.full((2, 3, 3), 7, np.uint8), 1),
        (np.full((2, 3, 4), 7, np.uint8), 1),
        (np.full((2, 3, 1), 7, np.uint8), 1),
        (np.full((3, 30, 40), 7, np.uint8), 1),
        (np.full((2, 3, 3), 7 / 255, np.float32), 255),
    ],
)
def test_pixels_of_any_form_are_rgb(row: np.ndarray, scale: float) -> None:
    image = rgb_image(row, scale)
    assert (image.dtype, image.shape[-1], {*image.ravel().tolist()}) == (np.uint8, 3, {7})


def test_depth_in_meters_becomes_millimeters_and_what_is_unknown_zero() -> None:
    meters = np.array([[0.5, np.nan, -1.0, 70.0]], np.float32)
    assert depth_image(meters, 1000).tolist() == [[500, 0, 0, 0]]


def test_a_mapping_cannot_make_a_camera_of_a_vector() -> None:
    with pytest.raises(ValueError, match="no images"):
        decide_as("camera", array("q", 7))
