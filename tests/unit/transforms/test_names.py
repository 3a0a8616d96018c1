"""New names of cameras and fields: text, globs, collisions, and all that has the old names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.builders.errors import fails
from vlatool.config.resolve import load_config, parse_override
from vlatool.episode import Calibration, Declaration, Episode, PoseGroup
from vlatool.errors import DataError
from vlatool.recordings.base import survey_episode
from vlatool.recordings.renaming import renamed_survey
from vlatool.recordings.select import SelectionConfig
from vlatool.transforms.names import NameMap, renamed_episode

CAMERAS = ("images.front", "images.wrist_left", "depth_cam")
FIELDS = ("state", "state.extra", "action")


@dataclass
class Frames:
    """Images that are never read."""

    size: tuple[int, int] = (4, 6)

    def __len__(self) -> int:
        return 2


def names(*texts: str) -> NameMap:
    return NameMap.model_validate(NameMap.from_texts(texts))


def expanded(*texts: str) -> NameMap:
    return names(*texts).expanded(CAMERAS, FIELDS)


def episode() -> Episode:
    frames: Any = Frames()
    return Episode(
        id="a",
        task="",
        fps=10.0,
        num_frames=2,
        cameras={"images.front": frames},
        missing_cameras={"images.side": DataError("gone")},
        calibration={"images.front": Calibration(np.eye(3))},
        depth={"images.front": frames},
        lowdim={
            "state": np.arange(8.0).reshape(2, 4),
            "robot__action__x": np.ones((2, 3)),
            "robot__action__r": np.ones((2, 6)),
            "robot__actual__x": np.ones((2, 3)),
            "robot__actual__r": np.ones((2, 6)),
        },
        dimension_names={"state": ["a", "b", "c", "d"]},
        action_fields=("robot__action__x_relative", "state"),
        proprioception_fields=("state",),
        pose_groups=(PoseGroup("hand", "robot__action__x", "robot__action__r"),),
        declared=(Declaration("state", 1, 3, "meta", "absolute"),),
    )


def test_a_glob_takes_what_no_exact_entry_has() -> None:
    matched = expanded("cameras.*=images.*", "cameras.hand=images.wrist_left")
    assert matched.cameras == {"front": "images.front", "hand": "images.wrist_left"}


def test_names_may_be_exchanged() -> None:
    matched = expanded("fields.action=state", "fields.state=action")
    assert {name: part.key for name, part in matched.fields.items()} == {
        "action": "state",
        "state": "action",
    }


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        (["cameras.hand=images.wrist"], "data.unknown_field"),
        (["fields.*=zz*"], "data.unknown_field"),
        (["cameras.depth_cam=images.front"], "data.broken"),
        (["cameras.a=depth_cam", "cameras.b=depth_cam"], "data.broken"),
        (["fields.x=state", "fields.x*=action*"], "data.broken"),
    ],
)
def test_names_that_do_not_fit_the_data_are_errors(texts: Sequence[str], code: str) -> None:
    with fails(code, 3) as caught:
        expanded(*texts)
    assert texts[-1] in caught.value.message


def test_an_unknown_name_comes_with_those_that_are_there_and_the_nearest() -> None:
    with fails("data.unknown_field") as caught:
        expanded("cameras.hand=images.wrist")
    assert "images.front, images.wrist_left, depth_cam" in caught.value.message
    assert "images.wrist_left" in caught.value.hint


@pytest.mark.parametrize("text", ["cameras.a=a", "fields.a=a", "cameras.a*=b", "cameras.**=**"])
def test_a_rename_of_nothing_and_a_glob_on_one_side_are_invalid(text: str) -> None:
    with pytest.raises(ValidationError, match=r"the old name|one \*"):
        names(text)


@pytest.mark.parametrize("text", ["wrist=front", "cameras.=front", "cameras.a=", "depth.a=b"])
def test_a_text_of_another_form_is_an_error_with_the_form(text: str) -> None:
    override = parse_override(f"rename={text}", "--rename")
    with fails("config.invalid_value", 2) as caught:
        load_config(SelectionConfig, overrides=[override])
    assert "cameras.NEW=OLD or fields.NEW=OLD[0:3]" in caught.value.message


def test_text_is_merged_over_nested_and_dotted_keys_of_files(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("rename: {cameras: {top: a, side: b}, fields.x: {key: 'y', scale: 0.001}}\n")
    typed = ["rename=cameras.side=c", "rename=fields.z=observation/state[2:5]"]
    overrides = [parse_override(text, "--rename") for text in typed]
    rename = load_config(SelectionConfig, files=[str(file)], overrides=overrides).config.rename
    assert rename.cameras == {"top": "a", "side": "c"}
    assert rename.fields["x"].scale == 0.001
    part = rename.fields["z"]
    assert (part.key, part.start, part.stop) == ("observation/state", 2, 5)


def test_all_that_names_a_camera_has_the_new_name() -> None:
    old = episode()
    new = renamed_episode(old, NameMap(cameras={"front": "images.front", "side": "images.side"}))
    assert [*new.cameras, *new.missing_cameras] == ["front", "side"]
    assert [*new.calibration] == [*new.depth] == ["front"]


def test_slices_share_the_dimensions_of_a_field() -> None:
    parts = names("fields.arm=state[0:3]", "fields.hand=state[3:4]")
    new = renamed_episode(episode(), parts)
    assert new.lowdim["arm"].tolist() == [[0, 1, 2], [4, 5, 6]]
    assert new.dimension_names == {"arm": ["a", "b", "c"], "hand": ["d"]}
    assert new.action_fields == ("robot__action__x_relative", "arm", "hand")
    assert new.proprioception_fields == ("arm", "hand")
    assert [(row.field, row.first, row.last) for row in new.declared] == [
        ("arm", 1, 2),
        ("hand", 0, 0),
    ]


def test_a_pose_keeps_its_reference_when_its_names_change() -> None:
    old = episode()
    maps = names("fields.*=robot__action__*").expanded(old.cameras, old.lowdim)
    new = renamed_episode(old, maps)
    assert new.pose_groups == (PoseGroup("hand", "x", "r", "robot__actual__x", "robot__actual__r"),)
    assert new.action_fields == ("x_relative", "state")


def test_a_factor_and_fixed_values_make_fields_too() -> None:
    new = renamed_episode(
        episode(),
        NameMap.model_validate(
            {"fields": {"mm": {"key": "state", "scale": 1000}, "down": {"constant": [0, 1]}}}
        ),
    )
    assert new.lowdim["mm"][0].tolist() == [0, 1000, 2000, 3000]
    assert new.lowdim["down"].tolist() == [[0, 1], [0, 1]]


def test_the_survey_has_what_the_episode_has() -> None:
    maps = names("fields.arm=state[1:3]", "cameras.top=images.front")
    old = episode()
    assert renamed_survey(survey_episode(old), maps) == survey_episode(renamed_episode(old, maps))


def test_a_slice_outside_its_field_is_an_error() -> None:
    with fails("data.mismatch", 3):
        renamed_survey(survey_episode(episode()), names("fields.arm=state[2:9]"))
