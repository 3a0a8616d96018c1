"""Errors for invalid raw data and files.

Source: formats/spartan 10, 11; formats/lbm-preprocessing 5; formats/lerobot 12.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.lerobot import lerobot_dataset
from tests.builders.preprocessing import (
    FRAMES,
    arrays,
    failure_of,
    has_message_and_hint,
    metadata,
    processed,
    refusal,
    run,
    samples,
    value,
)
from tests.builders.spartan import CAMERAS, Documents, spartan_task
from vlatool.config.resolve import config_of
from vlatool.datasets.stats.layout import read_stats
from vlatool.errors import ConfigError
from vlatool.workflows.preprocess import PreprocessConfig

XYZ = "robot__actual__poses__left::panda__xyz"


def some_nan(documents: Documents) -> None:
    documents["observations"][XYZ][2, 1] = np.nan


@pytest.fixture(scope="module")
def with_nan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nan")
    source = spartan_task(folder / "raw", 1, FRAMES, changes={0: some_nan})
    run(source, folder / "out", fail_on_nan=False)
    return folder / "out/shards"


def test_nan_is_kept_when_allowed_and_left_out_of_statistics_of_strict_json(with_nan: Path) -> None:
    has_nan = [np.isnan(arrays(sample)[XYZ]).any() for sample in samples(with_nan)]

    assert sum(has_nan) == 4  # the windows of anchors 0 to 3 contain frame 2

    entry = read_stats(with_nan / "stats.json")
    rows = np.concatenate(
        [a[XYZ][a["past_mask"] | a["future_mask"]] for a in map(arrays, samples(with_nan))]
    )
    finite = rows[np.isfinite(rows).all(axis=1)]

    np.testing.assert_allclose(entry[XYZ]["mean"], finite.mean(axis=0))
    assert sum(entry[XYZ]["count"]) == len(finite)

    def reject_constant(literal: str) -> None:
        raise AssertionError(literal)

    json.loads((with_nan / "stats.json").read_text(), parse_constant=reject_constant)


@pytest.mark.parametrize(
    "options",
    [{"camera_names": ["scene_right_o"]}, {"camera_rotations": {"scene_right_o": 1}}],
    ids=["camera_names", "camera_rotations"],
)
def test_unknown_camera_is_reported_with_a_suggestion(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    source = spartan_task(tmp_path / "raw", 1, FRAMES)

    error = refusal(source, tmp_path / "out", **options)

    assert (error.code, error.exit_code) == ("data.unknown_field", 3)
    assert error.details["camera"] == "scene_right_o"
    assert "scene_right_0" in error.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("key", "twice"), [("camera_names", "front"), ("image_indices", 1)])
def test_repeated_names_are_rejected(key: str, twice: Any) -> None:
    with pytest.raises(ConfigError, match="is given twice"):
        config_of(PreprocessConfig, {key: [twice, twice]})


DEEP = "[" * 100_000
# Key and code to contents; None: no file.
BAD_FILES: dict[tuple[str, str], list[str | None]] = {
    ("language_annotations_path", "data.broken"): [
        *(None, "{", DEEP, "a: b", "language_dict: [a]", "language_dict: {T: {original: text}}"),
    ],
    ("validation_episodes_path", "data.broken"): [
        *(None, "{", DEEP, "[1]", '{"T": 3}', '{"T": "12"}', '{"T": ["x"]}', '{"T": [1e999]}'),
    ],
    ("action_fields_config_path", "data.broken"): [
        *(None, DEEP, "[1]", "action_key_fields: [a]"),
        "{action_key_fields: [a, b], action_index_fields: [1]}",
        "{action_key_fields: [a, a], action_index_fields: [1, 2]}",
        "{action_key_fields: [a, b], action_index_fields: [2, 1]}",
        "{action_key_fields: [a], action_index_fields: [1], pose_groups: [{name: x}]}",
        "{action_key_fields: [a], action_index_fields: [1], pose_groups: [x]}",
    ],
}


@pytest.mark.parametrize(
    ("key", "code", "content"),
    [
        pytest.param(*names, content, id=f"{names[0]} {number}")
        for names, contents in BAD_FILES.items()
        for number, content in enumerate(contents)
    ],
)
def test_missing_side_file_or_one_of_another_form_is_reported_with_its_path(
    tmp_path: Path, key: str, code: str, content: str | None
) -> None:
    path = tmp_path / "side"
    if content is not None:
        path.write_text(content)
    source = spartan_task(tmp_path / "raw", 1, FRAMES)

    error = refusal(source, tmp_path / "out", source={key: str(path)})

    assert (error.code, error.exit_code) == (code, 3)
    assert str(path) in error.message
    assert has_message_and_hint(vars(error))


@pytest.mark.parametrize(
    ("options", "reason", "option"),
    [
        ({"future_lowdim_steps": 50, "max_padding_right": 0}, "padding", "--max-padding"),
        ({"filter_still_samples": True, "still_threshold": 1e9}, "still", "--still-threshold"),
        ({"only_successful": True}, "success_unknown", "--only-successful"),
    ],
)
def test_zero_samples_end_with_a_hint_at_the_option(
    tmp_path: Path, options: dict[str, Any], reason: str, option: str
) -> None:
    source = spartan_task(tmp_path / "raw", 2, FRAMES)

    error = refusal(source, tmp_path / "out", **options)

    assert (error.code, error.exit_code) == ("data.no_samples", 3)
    assert list(error.details["dropped"]) == [reason]
    assert option in error.hint


def test_zero_samples_due_to_cameras_end_with_a_hint_at_the_option(tmp_path: Path) -> None:
    right, left = CAMERAS
    changes = {
        0: value("metadata", "camera_id_to_semantic_name", {right: CAMERAS[right]}),
        1: value("metadata", "camera_id_to_semantic_name", {left: CAMERAS[left]}),
    }
    source = spartan_task(tmp_path / "raw", 2, FRAMES, changes=changes)

    error = refusal(
        source,
        tmp_path / "out",
        camera_names=list(CAMERAS.values()),
        skip_episodes_missing_cameras=True,
    )

    assert (error.code, error.details["dropped"]) == (
        "data.no_samples",
        {"episode_missing_camera": 2},
    )
    assert "--skip-episodes-missing-cameras" in error.hint


def test_episode_shorter_than_the_window_is_dropped_and_named(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 1, 9)
    spartan_task(tmp_path / "raw", 1, 2, task="ShortTask")

    result = run(source, tmp_path / "out", max_padding_right=0)

    assert result.dropped == {"padding": 3 + 2}
    assert [name[:9] for name in result.empty_episodes] == ["ShortTask"]


LEFT, RIGHT = "observation.images.left", "observation.images.right"


@pytest.mark.parametrize("episode", [0, 1])
def test_episode_without_a_declared_video_is_an_error_unless_options_allow_it(
    tmp_path: Path, episode: int
) -> None:
    root = tmp_path / "raw"
    lerobot_dataset(root, (FRAMES, FRAMES), cameras={LEFT: "video", RIGHT: "video"})
    next(root.rglob(f"{RIGHT}/episode_{episode:06d}.mp4")).unlink()

    error = refusal(root, tmp_path / "out", format="lerobot")
    assert failure_of(error)["episode"] == f"raw_episode_00000{episode}"
    assert failure_of(error)["code"] == "data.broken"
    stored = [metadata(sample)["camera_names"] for sample in samples(tmp_path / "out/shards")]
    assert stored == [[LEFT, RIGHT]] * FRAMES

    keys: dict[str, Any] = {"format": "lerobot", "dry_run": True}
    dropped = run(root, tmp_path / "dropped", skip_episodes_missing_cameras=True, **keys)
    assert (dropped.samples, dropped.failures) == (FRAMES, ())
    assert dropped.dropped == {"episode_missing_camera": 1}
    chosen = run(root, tmp_path / "chosen", camera_names=[LEFT], **keys)
    assert (chosen.samples, chosen.failures) == (2 * FRAMES, ())

    next(root.rglob(f"{LEFT}/episode_{episode:06d}.mp4")).unlink()
    error = refusal(root, tmp_path / "none", format="lerobot", episodes=str(episode))
    assert error.exit_code == 3


def test_broken_link_in_an_episode_is_ignored(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 2, FRAMES)
    (processed(source) / "notes").symlink_to(tmp_path / "gone")

    assert run(source, tmp_path / "out").samples == 2 * FRAMES
