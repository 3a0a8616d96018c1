"""Effects of all options of `preprocess`.

Source: formats/lbm-preprocessing 1, 2.4, 2.5, 2.6, 3, 4.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.builders.lerobot import lerobot_dataset
from tests.builders.preprocessing import (
    arrays,
    contents,
    metadata,
    refusal,
    run,
    samples,
)
from tests.builders.spartan import CAMERAS, TASK, Documents, session_folder, spartan_task
from vlatool.cli.app import run as run_command
from vlatool.cli.keys import declared_keys
from vlatool.config.base import ignored_names
from vlatool.config.resolve import load_config
from vlatool.workflows.preprocess import PreprocessConfig, preprocess

FRAMES = 6
CAMERA = next(iter(CAMERAS))
NAME = CAMERAS[CAMERA]


def decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def at_anchor(folder: Path, anchor: int) -> dict[str, Any]:
    return next(
        sample for sample in samples(folder) if metadata(sample)["anchor_timestep"] == anchor
    )


def written_config(output: Path) -> dict[str, Any]:
    return yaml.safe_load((output / "shards/preprocessing_config.yaml").read_text())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(tmp_path_factory.mktemp("raw"), 2, FRAMES)


# still windows


def mostly_still(documents: Documents) -> None:
    """Change without motion, except that one finger jumps by 5 at frame 9."""
    for key, values in documents["observations"].items():
        if key.startswith("robot__"):
            documents["observations"][key] = np.zeros_like(values)
    documents["observations"]["robot__actual__joint"] = np.where(np.arange(12) < 9, 0.0, 5.0)
    documents["actions"]["actions"] = np.zeros((12, 20))


@pytest.fixture(scope="module")
def still_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(
        tmp_path_factory.mktemp("still"), 1, 12, changes={0: mostly_still}, cameras={CAMERA: NAME}
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"still_threshold": 1.0}, [6, 7, 8, 9]),
        ({"still_threshold": 2.0}, [7, 8, 9]),
        ({"still_threshold": 2.5}, []),
        ({"still_field_thresholds": {"robot__actual__joint": 4.9}}, [6, 7, 8, 9]),
        ({"still_field_thresholds": {"robot__version": 0.1}}, []),
    ],
)
def test_windows_with_a_deviation_or_range_above_the_threshold_are_kept(
    still_source: Path, tmp_path: Path, options: Mapping[str, Any], expected: list[int]
) -> None:
    keys = {"filter_still_samples": True, "image_indices": [0], **options}
    if not expected:
        assert refusal(still_source, tmp_path / "out", **keys).details["dropped"] == {"still": 12}
        return

    result = run(still_source, tmp_path / "out", **keys)

    anchors = {metadata(sample)["anchor_timestep"] for sample in samples(tmp_path / "out/shards")}
    assert (sorted(anchors), result.dropped) == (expected, {"still": 12 - len(expected)})


# images


def test_rotation_keeps_points_at_their_pixels(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", episodes="0", camera_rotations={NAME: 1})
    fields = arrays(at_anchor(tmp_path / "out/shards", 0))
    camera_t_base = np.linalg.inv(fields[f"extrinsics.{NAME}"][1])

    x, y, z = (fields[f"rescaled_intrinsics.{NAME}"][1] @ camera_t_base[:3]) @ [0.1, 0.2, 1, 1]

    # f 30, center (16, 12): at (19, 18) in 32 x 24; clockwise (24 - 18, 19) in 24 x 32.
    np.testing.assert_allclose((x / z, y / z), (6, 19))


def values(document_key: str, content: np.ndarray) -> Any:
    def change(documents: Documents) -> None:
        documents["observations"][document_key] = content

    return change


@pytest.mark.parametrize(("kind", "dtype"), [("depth", np.uint16), ("label", np.int16)])
@pytest.mark.parametrize("method", ["center_crop", "resize_no_crop", "resize_fit"])
def test_values_are_kept_exactly_in_16_bit_png(
    tmp_path: Path, kind: str, dtype: Any, method: str
) -> None:
    content = np.random.default_rng(0).integers(300, 30_000, (FRAMES, 24, 32)).astype(dtype)
    change = values(f"{CAMERA}_{kind}", content)
    raw = spartan_task(tmp_path / "raw", 1, FRAMES, changes={0: change})
    shape = {"resize_images_size": [16, 16], "image_resizing_method": method}
    on = {"depth": kind == "depth", "labels": kind == "label", "camera_rotations": {NAME: 1}}
    run(raw, tmp_path / "out", image_indices=[0], **shape, **on)

    data = at_anchor(tmp_path / "out/shards", 3)[f"{NAME}_{kind}_t0.png"]

    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "I;16", (16, 16))
        assert set(np.unique(np.asarray(image))) <= {0, *np.unique(content[3]).tolist()}


def test_depth_has_the_geometry_of_the_image(tmp_path: Path) -> None:
    bright = np.zeros((FRAMES, 24, 32, 3), np.uint8)
    bright[:, 4:12, 8:16] = 255

    def change(documents: Documents) -> None:
        documents["observations"][CAMERA] = bright
        documents["observations"][f"{CAMERA}_depth"] = bright[..., 0].astype(np.uint16) * 10

    raw = spartan_task(tmp_path / "raw", 1, FRAMES, changes={0: change})
    run(raw, tmp_path / "out", depth=True, camera_rotations={NAME: 1}, resize_images_size=[12, 12])

    sample_ = next(samples(tmp_path / "out/shards"))
    light = decoded(sample_[f"{NAME}_t0.jpg"])[..., 0] > 127
    far = decoded(sample_[f"{NAME}_depth_t0.png"]) > 1270
    assert (light != far).sum() <= 0.15 * light.sum()


@pytest.mark.parametrize("compat", [False, True])
def test_resize_filter_is_recorded_and_changes_pixels(
    source: Path, tmp_path: Path, compat: bool
) -> None:
    images = set()
    for name in ("lanczos_vips", "lanczos", "nearest"):
        options = {"resize_images_size": [16, 12], "image_resizing_filter": name}
        run(source, tmp_path / name, **options, compat=compat)
        assert written_config(tmp_path / name)["image_resizing_filter"] == name
        images.add(at_anchor(tmp_path / name / "shards", 0)[f"{NAME}_t0.jpg"])

    assert len(images) == 3


@pytest.mark.parametrize(("compat", "used"), [(False, "lanczos_vips"), (True, "lanczos")])
def test_default_filter_is_recorded_by_its_name(
    source: Path, tmp_path: Path, compat: bool, used: str
) -> None:
    options = {"resize_images_size": [16, 12], "compat": compat}
    run(source, tmp_path / "default", **options)
    run(source, tmp_path / "chosen", **options, image_resizing_filter=used)

    assert written_config(tmp_path / "default")["image_resizing_filter"] == used
    assert contents(tmp_path / "default") == contents(tmp_path / "chosen")


# selection of episodes


def test_only_successful_keeps_only_episodes_with_success(tmp_path: Path) -> None:
    raw = spartan_task(tmp_path / "raw", 4, FRAMES)
    summaries = {0: np.array([[True]]), 1: np.array([[False]]), 3: np.array(["True"])}
    for number, value in summaries.items():
        folder = session_folder(raw) / f"episode_{number}/processed"
        np.savez(folder / "summary.npz", episode_success=value)

    result = run(raw, tmp_path / "out", only_successful=True)

    remaining = {metadata(sample)["episode_id"][-1] for sample in samples(tmp_path / "out/shards")}
    assert remaining == {"0"}
    assert result.dropped == {"unsuccessful_episode": 1, "success_unknown": 2}


def test_validation_episodes_are_held_out_and_counted(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "validation.json"
    path.write_text(json.dumps({TASK: [1], "Other": [0]}))

    result = run(source, tmp_path / "out", source={"validation_episodes_path": str(path)})

    remaining = {metadata(sample)["episode_id"][-1] for sample in samples(tmp_path / "out/shards")}
    assert remaining == {"0"}
    assert result.dropped["validation_episode"] == 1


# statistics, compatibility


def test_without_statistics_no_statistics_are_written(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", compute_statistics=False)

    assert not list((tmp_path / "out").rglob("stats*.json"))


# published names. Source: formats/lbm-preprocessing 1

PUBLISHED: dict[str, Any] = {
    "source_episodes": ["raw"],
    "output_dir": "out",
    "output_dir_fixed_path": "s3://your-bucket/your-path/",
    "past_lowdim_steps": 1,
    "future_lowdim_steps": 14,
    "camera_names": None,
    "skip_episodes_missing_cameras": False,
    "image_indices": [-1, 0],
    "stride": 1,
    "max_padding_left": 1,
    "max_padding_right": 7,
    "padding_strategy": "copy",
    "filter_still_samples": False,
    "still_threshold": 0.01,
    "samples_per_shard": 128,
    "num_workers": 20,
    "max_episodes_to_process": -1,
    "fail_on_nan": False,
    "compute_statistics": True,
    "auto_tag": True,
    "skip_git_tagging": False,
    "resize_images_size": None,
    "image_resizing_method": "CENTER_CROP",
    "camera_rotations": None,
    "jpeg_quality": 95,
    "ray_address": None,
    "ray_num_cpus": None,
    "db_logging": False,
}
OF_FORMAT: dict[str, dict[str, Any]] = {
    "spartan": {
        "data_discard_keys": None,
        "language_annotations_path": "language.yaml",
        "action_fields_config_path": "actions.yaml",
        "validation_episodes_path": None,
    },
    "lerobot": {"observation_keys": None, "action_keys": None},
}


@pytest.mark.parametrize("format_", OF_FORMAT)
def test_published_keys_are_accepted_in_a_file(tmp_path: Path, format_: str) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(yaml.safe_dump({"type": format_, **PUBLISHED, **OF_FORMAT[format_]}))

    load_config(PreprocessConfig, files=[str(path)])


@pytest.mark.parametrize("method", ["center_crop", "resize_no_crop", "resize_fit"])
@pytest.mark.parametrize("spell", [str.lower, str.upper])
def test_resizing_method_is_accepted_in_both_spellings(
    tmp_path: Path, method: str, spell: Any
) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(f"image_resizing_method: {spell(method)}")

    config = load_config(PreprocessConfig, files=[str(path)]).config

    assert config.sink.image_resizing_method == method


def test_ignored_options_give_a_warning_each(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["preprocess", "spartan", str(source), "--output", str(tmp_path / "out"), "--dry-run"]
    ignored = [*ignored_names(PreprocessConfig)]
    options = [f"--{key}={PUBLISHED.get(key, True)}" for key in ignored]

    assert run_command([*words, *options]) == 0

    shown = capsys.readouterr().err
    assert [key for key in ignored if f"{key} does nothing" not in shown] == []


# recorded options


def test_preprocessing_config_has_every_published_key_and_is_accepted_as_a_config(
    source: Path, tmp_path: Path
) -> None:
    run(source, tmp_path / "out", camera_names=list(CAMERAS.values()))
    written = written_config(tmp_path / "out")
    of_machine = ("output_dir", "output_dir_fixed_path", "num_workers", "ray_address")
    assert [written[key] for key in (*of_machine, "ray_num_cpus")] == [None] * 5
    content = {key: written[key] for key in ("type", *PUBLISHED, *OF_FORMAT["spartan"])}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "place.yaml").write_text("output: there")
    files = [str(tmp_path / name) for name in ("again.yaml", "place.yaml")]

    config = load_config(PreprocessConfig, files=files).config

    assert config.camera_names == list(CAMERAS.values())


@pytest.mark.parametrize("layout", ["published", "bare"])
@pytest.mark.parametrize("broken", [False, True])
def test_no_file_of_the_data_has_a_path_of_the_machine(
    tmp_path: Path,
    layout: str,
    broken: bool,
) -> None:
    def spoil(documents: Documents) -> None:
        del documents["actions"]

    raw = spartan_task(tmp_path / "raw", 2, FRAMES, changes={1: spoil} if broken else {})
    if layout == "bare":
        raw = session_folder(raw).rename(tmp_path / "bare")
    run_or_fail = refusal if broken else run
    run_or_fail(raw, tmp_path / "out")

    matches = [
        path.name
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
        and ".vlatool" not in path.parts
        and str(tmp_path).lstrip("/").encode() in path.read_bytes()
    ]
    assert matches == []


# other layouts


@pytest.mark.parametrize("name", ["spartan", "lerobot"])
def test_every_key_has_a_group_in_the_help(name: str) -> None:
    schema = PreprocessConfig.specialize({"format": name, "sink": "lbm"})
    ungrouped = {key.name for key in declared_keys(schema).values() if key.group == "Keys"}
    assert ungrouped == {"format", "sources"}


# detected formats


WINDOW = ["--past-lowdim-steps", "1", "--future-lowdim-steps", "2", "--max-padding-right", "2"]


@pytest.fixture
def pick(tmp_path: Path) -> Path:
    return lerobot_dataset(tmp_path / "pick", (4, 4), cameras={})


def preprocessed(*words: str, output: Path) -> int:
    """Exit code of `vlatool preprocess WORDS...`."""
    return run_command(["-q", "preprocess", *words, "-o", str(output), "--workers", "1", *WINDOW])


def test_output_is_that_of_the_format_by_name_and_both_resume_each_other(
    pick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pick.parent)
    keys = ["--source.observation-keys", "observation.state"]
    assert preprocessed(pick.name, *keys, output=tmp_path / "found") == 0
    assert preprocessed("lerobot", str(pick), *keys, output=tmp_path / "named") == 0
    assert contents(tmp_path / "found") == contents(tmp_path / "named")
    assert preprocessed(pick.name, *keys, output=tmp_path / "named") == 0
    config = PreprocessConfig(sources=[str(pick)], output=str(tmp_path / "out"), dry_run=True)
    assert preprocess(config).episodes == 2


@pytest.mark.parametrize(
    ("words", "code", "exit_code", "word"),
    [
        (["lerobto", "pick"], "usage.unknown_name", 2, "lerobot"),
        (["lerobto"], "usage.unknown_name", 2, "lerobot"),
        (["./gone"], "data.no_source", 3, "gone"),
        (["pick", "--observation-keys", "x"], "data.unknown_field", 3, "observation.state"),
        (["pick", "--source.observation-kyes", "x"], "config.unknown_key", 2, "observation_keys"),
        (["meta"], "data.no_episodes", 3, "meta"),
    ],
    ids=["misspelt", "misspelt alone", "missing", "flat key", "misspelt key", "no source"],
)
def test_argument_that_is_neither_source_nor_format_is_reported(
    words: list[str],
    code: str,
    exit_code: int,
    word: str,
    pick: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "meta").mkdir()
    monkeypatch.chdir(pick.parent)
    assert run_command(["--json", "preprocess", *words, "-o", "out"]) == exit_code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert word in error["message"] + error["hint"]
