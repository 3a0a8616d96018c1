"""Frames are stored once; windows that are cut from them are those of `lbm` shards."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.s3_runs import upload
from tests.builders.sink_checks import check_sink
from tests.builders.verifying import verified
from vlatool.config.resolve import Override, load_config
from vlatool.datasets.frames.layout import FramesFolder
from vlatool.datasets.frames.writer import FramesConfig, FramesEpisodeWriter, FramesSink
from vlatool.episode import Episode, EpisodeRef, FrameSource, ObservationSpec
from vlatool.errors import DataError, UsageError
from vlatool.loading.base import DroppedSample, PairOptions, SampleRef
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsKind
from vlatool.loading.robotics.pairs import pairs_info
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.media.images import encode_jpeg, encode_png
from vlatool.media.tar import index_path
from vlatool.recordings.curation.layout import read_curation
from vlatool.storage.remote_path import RemotePath
from vlatool.workflows.curate import CurateConfig, KeepRule, curate
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.verify import InspectConfig, inspect

IMAGES = {"resize_images_size": [24, 20], "image_resizing_filter": "box"}
# Keys of windows, some of them at another rate or with other images of the source.
WINDOWS: Mapping[str, dict[str, Any]] = {
    "defaults": {},
    "published": {"past_lowdim_steps": 1, "future_lowdim_steps": 14, "image_indices": [-1, 0]},
    "padded": {
        "past_lowdim_steps": 3,
        "future_lowdim_steps": 5,
        "stride": 2,
        "max_padding_left": 3,
        "max_padding_right": 5,
        "padding_strategy": "reflect",
        "image_indices": [-5, -2, 0],
    },
    "still": {
        "past_lowdim_steps": 0,
        "future_lowdim_steps": 2,
        "padding_strategy": "zero",
        "filter_still_samples": True,
        "still_threshold": 0.03,
        "image_indices": [0],
    },
}


def written(raw: Path, output: Path, sink: str, **keys: Any) -> PreprocessResult:
    words = {"sources": [str(raw)], "output": str(output), "sink.type": sink, "workers": 1, **keys}
    overrides = [Override(key, value, "test") for key, value in words.items()]
    return preprocess(load_config(PreprocessConfig, overrides=overrides).config)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "raw"
    sample(SampleConfig(layout="spartan", output=str(folder), episodes=3, depth=True))
    return folder


@pytest.fixture(scope="module")
def frames(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames") / "out"
    written(raw, folder, "frames", depth=True, **IMAGES)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, Any]:
    return {"dataset_cache": {"cache_dir": str(tmp_path / "cache")}}


def config_of(data: Path, **keys: Any) -> RoboticsDataConfig:
    return RoboticsDataConfig.model_validate({"dataset_manifest": [str(data)], **keys})


def samples(data: Path, **keys: Any) -> tuple[Any, list[DecodedSample | DroppedSample]]:
    """Info of data, and all samples in stored order."""
    config = config_of(data, **keys)
    kind = RoboticsKind()
    info = kind.load_info(config)
    derived, _ = kind.derive(config, info)
    refs = [
        SampleRef(0, shard, number)
        for shard, each in enumerate(info.datasets[0].shards)
        for number in range(each.size)
    ]
    reader = kind.reader(derived, info)
    return info, reader.read(refs, [np.random.default_rng(0)] * len(refs))


def check_equal(first: Any, second: Any) -> None:
    assert isinstance(first, DecodedSample)
    assert isinstance(second, DecodedSample)
    assert np.array_equal(first.images, second.images)
    assert first.fields.keys() == second.fields.keys()
    for name, values in first.fields.items():
        assert values.dtype == second.fields[name].dtype
        assert np.array_equal(values, second.fields[name]), name
    assert np.array_equal(first.past_mask, second.past_mask)
    assert np.array_equal(first.future_mask, second.future_mask)
    assert (first.key, first.instruction) == (second.key, second.instruction)
    assert first.metadata == second.metadata


def test_the_sink_fulfills_its_contract() -> None:
    check_sink(FramesSink, {"past_lowdim_steps": 0, "future_lowdim_steps": 1})


@pytest.mark.parametrize("name", WINDOWS)
def test_samples_and_statistics_are_those_of_shards(
    raw: Path, frames: Path, tmp_path: Path, cache: dict[str, Any], name: str
) -> None:
    written(raw, tmp_path / "lbm", "lbm", **IMAGES, **WINDOWS[name])
    expected, of_shards = samples(tmp_path / "lbm/episodes/manifest.jsonl", **cache)
    cut, of_frames = samples(frames, windows=WINDOWS[name], **cache)
    assert {*cut.fields} <= cut.statistics.keys()
    assert {n: expected.statistics[n] for n in cut.statistics} == cut.statistics
    assert cut.num_samples == expected.num_samples
    assert len(of_frames) == len(of_shards) > 20
    for pair in zip(of_shards, of_frames, strict=True):
        check_equal(*pair)
    again, _ = samples(frames, windows=WINDOWS[name], **cache)  # from the cache
    assert again.statistics == cut.statistics


def test_the_stored_windows_are_those_of_training_unless_it_has_others(
    raw: Path, tmp_path: Path, cache: dict[str, Any]
) -> None:
    stored = {**WINDOWS["padded"], "filter_still_samples": True, "still_threshold": 0.001}
    expected = written(raw, tmp_path / "frames", "frames", **IMAGES, **stored).samples
    kind = RoboticsKind()
    changed = {"windows": {"stride": 3, "filter_still_samples": False}, **cache}
    derived: list[Any] = []
    for keys in (cache, changed):
        manifest = [str(tmp_path / "frames")]
        config = RoboticsDataConfig.model_validate({"dataset_manifest": manifest, **keys})
        derived.append(kind.derive(config, kind.load_info(config))[0].windows.model_dump())
    assert {key: derived[0][key] for key in stored} == stored
    assert derived[1] == {**derived[0], "stride": 3, "filter_still_samples": False}
    shards = written(tmp_path / "frames", tmp_path / "shards", "lbm")
    assert shards.samples == expected == len(samples(tmp_path / "frames", **cache)[1])


@pytest.mark.parametrize("episodes", ["0,2", "@CURATION"])
def test_training_takes_some_of_the_episodes(
    raw: Path, frames: Path, tmp_path: Path, cache: dict[str, Any], episodes: str
) -> None:
    numbers = ["0", "2"]
    if episodes == "@CURATION":
        folder = tmp_path / "curation"
        rules: Any = {"end_speed": KeepRule(worst=0.4)}
        curate(CurateConfig(sources=[str(raw)], output=str(folder), rules=rules, workers=1))
        episodes = f"@{folder}"
        numbers = [name[-1] for name in read_curation(folder).selected()]
        assert 0 < len(numbers) < 3
    info, _ = samples(frames, episodes=episodes, **cache)
    assert [shard.location.stem[-1] for shard in info.sets[0].shards] == numbers
    # A job on another machine has no curation: its config has the numbers.
    derived, _ = RoboticsKind().derive(config_of(frames, episodes=episodes, **cache), info)
    again, _ = samples(frames, episodes=derived.episodes, **cache)
    assert [*again.sets[0].shards] == [*info.sets[0].shards]
    assert derived.episodes is not None
    assert "@" not in derived.episodes
    written(raw, tmp_path / "lbm", "lbm", episodes=",".join(numbers), **IMAGES)
    expected, _ = samples(tmp_path / "lbm", **cache)
    assert {n: expected.statistics[n] for n in info.statistics} == info.statistics


def test_another_rate_is_that_of_shards(
    raw: Path, frames: Path, tmp_path: Path, cache: dict[str, Any]
) -> None:
    written(raw, tmp_path / "lbm", "lbm", **{**IMAGES, "sink.target.fps": 4})
    _, of_shards = samples(tmp_path / "lbm/episodes/manifest.jsonl", **cache)
    _, of_frames = samples(frames, windows={"fps": 4}, **cache)
    for pair in zip(of_shards, of_frames, strict=True):
        check_equal(*pair)


def test_shards_from_frames_have_the_bytes_of_shards_from_recordings(
    raw: Path, frames: Path, tmp_path: Path
) -> None:
    keys = {**WINDOWS["padded"], "depth": True, "samples_per_shard": 20}
    written(raw, tmp_path / "direct", "lbm", **IMAGES, **keys, jpeg_optimize=False)
    written(frames, tmp_path / "later", "lbm", **keys)
    for part in ("shards", "episodes"):
        for path in sorted((tmp_path / "direct" / part).iterdir()):
            if path.suffix in (".tar", ".npz", ".jsonl") or path.name == "stats.json":
                assert path.read_bytes() == (tmp_path / "later" / part / path.name).read_bytes()


@pytest.mark.parametrize(
    ("sink", "keys", "message"),
    [
        ("lbm", {"jpeg_quality": 80}, "--jpeg-quality is 80, but the images .* with 95"),
        ("lbm", {"resize_images_size": [9, 9]}, r"is \(9, 9\), but the images .* with \(24, 20\)"),
        (
            "lbm",
            {"image_resizing_filter": "lanczos_vips"},
            "is lanczos_vips, but the images .* with box",
        ),
        ("jsonl", {}, "only --sink lbm copies their images"),
    ],
)
def test_an_image_is_never_encoded_twice(
    frames: Path, tmp_path: Path, sink: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        written(frames, tmp_path / "out", sink, **keys)


def test_typed_default_filter_is_that_of_frames_with_it(raw: Path, tmp_path: Path) -> None:
    keys = {"episodes": "0", "image_resizing_filter": "lanczos_vips"}
    written(raw, tmp_path / "frames", "frames", **keys)
    assert written(tmp_path / "frames", tmp_path / "lbm", "lbm", **keys).samples


class Jpegs(FrameSource):
    """Three frames, of which the second is stored as PNG."""

    size = (8, 12)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return 3

    def read(self, indices: Sequence[int]) -> Any:
        return self.pixels[[*indices]]

    def encoded(self, index: int) -> bytes:
        return encode_png(self.pixels[1]) if index == 1 else encode_jpeg(self.pixels[index], 50)


@pytest.mark.parametrize(
    ("keys", "is_copied"),
    [
        ({}, [False] * 3),
        ({"copy_jpeg": True}, [True, False, True]),
        ({"copy_jpeg": True, "resize_images_size": (8, 8)}, [False] * 3),
        ({"copy_jpeg": True, "camera_rotations": {"front": 2}}, [False] * 3),
    ],
)
def test_recorded_jpegs_are_copied_where_nothing_changes(
    tmp_path: Path, keys: dict[str, Any], is_copied: list[bool]
) -> None:
    (tmp_path / "frames").mkdir()
    source = Jpegs()
    episode = Episode("a", "task", 10.0, 3, {"front": source}, {})
    FramesEpisodeWriter(tmp_path, FramesConfig(**keys))(EpisodeRef("a", tmp_path, ""), episode)
    tar = FramesFolder(tmp_path).tar("a")
    stored = [tar.members(number)["front_t0.jpg"] for number in range(3)]
    assert [data == source.encoded(n) for n, data in enumerate(stored)] == is_copied


def test_shards_have_no_other_windows(raw: Path, tmp_path: Path, cache: dict[str, Any]) -> None:
    written(raw, tmp_path / "lbm", "lbm", **IMAGES)
    with pytest.raises(UsageError, match=r"data.windows needs data of the sink frames"):
        samples(tmp_path / "lbm", windows={"stride": 2}, **cache)


def test_episodes_are_chosen_from_one_data_set(frames: Path, cache: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"data\.episodes: there is no episode 7"):
        samples(frames, episodes="7", **cache)
    both = {"dataset_manifest": [str(frames)] * 2, "episodes": "0", **cache}
    with pytest.raises(UsageError, match=r"data\.episodes needs a single data set"):
        RoboticsKind().load_info(RoboticsDataConfig.model_validate(both))


def test_names_that_the_data_lack_are_reported_with_the_known_ones(
    frames: Path, cache: dict[str, Any]
) -> None:
    names = {"action_fields": ["action"], "proprioception_fields": ["observation.state"]}
    with fails("data.unknown_field") as caught:
        samples(frames, camera_names=["none"], **names, **cache)
    assert "robot__desired__pose" in str(caught.value.details["known"])


@pytest.mark.parametrize("sink", ["frames", "lbm"])
def test_a_field_with_the_name_of_calibration_is_refused(
    raw: Path, tmp_path: Path, sink: str
) -> None:
    name = "robot__desired__grippers__right::panda_hand"
    keys = {"rename.fields": {"extrinsics.arm": name}}
    with fails("data.broken"):
        written(raw, tmp_path / "out", sink, **keys)


def test_shards_validate_and_evaluate_a_run_on_frames(
    raw: Path, frames: Path, tmp_path: Path, cache: dict[str, Any]
) -> None:
    written(raw, tmp_path / "lbm", "lbm", **IMAGES)
    shards = str(tmp_path / "lbm")
    keys = {"dataset_manifest": [str(frames)], "val_dataset_manifest": [shards], **cache}
    kind = RoboticsKind()
    config = RoboticsDataConfig.model_validate(keys)
    derived, _ = kind.derive(config, kind.load_info(config))
    validation = kind.validation(derived)
    assert validation is not None
    count = kind.load_info(validation).num_samples
    options = PairOptions(ObservationSpec(past=1), horizon=4)
    assert pairs_info(shards, derived, options, {}).num_samples == count > 0


def test_shards_and_frames_are_one_mixture(
    raw: Path, frames: Path, tmp_path: Path, cache: dict[str, Any]
) -> None:
    written(raw, tmp_path / "lbm", "lbm", **IMAGES)
    paths = [str(tmp_path / "lbm"), str(frames)]
    config = RoboticsDataConfig.model_validate({"dataset_manifest": paths, **cache})
    kind = RoboticsKind()
    info = kind.load_info(config)
    derived, _ = kind.derive(config, info)
    refs = [SampleRef(number % 2, 0, number // 2) for number in range(8)]
    read = kind.reader(derived, info).read(refs, [np.random.default_rng(0)] * 8)
    assert [each.dataset for each in read if isinstance(each, DecodedSample)] == [0, 1] * 4
    first, second = info.datasets
    assert first.size == second.size


def test_frames_in_a_bucket_and_without_indexes(
    frames: Path, s3_bucket: str, tmp_path: Path, cache: dict[str, Any]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(frames, bare)
    for each in FramesFolder(bare).episodes:
        index_path(FramesFolder(bare).tar(each.id).path).unlink()
    _, expected = samples(frames, **cache)
    remote = upload(frames, RemotePath(f"s3://{s3_bucket}/frames"))
    ranges = {"dataset_cache": {**cache["dataset_cache"], "enabled": False}}
    for place, keys in ((bare, cache), (remote, ranges), (remote, cache)):
        _, cut = samples(place, **keys)
        for pair in zip(expected, cut, strict=True):
            check_equal(*pair)


def damaged_image(tar: bytearray, index: Any) -> None:
    tar[int(index.offsets[5]) + 148] ^= 1  # the checksum of a header


def damaged_numbers(tar: bytearray, index: Any) -> None:
    tar[600:700] = bytes(100)


@pytest.mark.parametrize("damage", [damaged_image, damaged_numbers])
def test_damage_is_found_and_named(
    frames: Path, tmp_path: Path, cache: dict[str, Any], damage: Callable[..., None]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(frames, copy)
    assert verified(copy).whole
    samples(copy, **cache)  # the statistics are known
    tar = FramesFolder(copy).tar(FramesFolder(copy).episodes[0].id)
    content = bytearray(tar.path.read_bytes())
    damage(content, tar.index)
    tar.path.write_bytes(content)
    assert not verified(copy).whole
    if damage is damaged_image:
        _, read = samples(copy, **cache)
        broken = [each for each in read if isinstance(each, DroppedSample)]
        assert {each.reason for each in broken} == {"broken_sample"}
        assert len(broken) == 2  # the frame is in two windows
    else:
        with pytest.raises(DataError, match="the numbers"):
            samples(copy, **cache)


def test_a_missing_episode_is_named(frames: Path, tmp_path: Path, cache: dict[str, Any]) -> None:
    shutil.copytree(frames, tmp_path / "copy")
    folder = FramesFolder(tmp_path / "copy")
    folder.tar(folder.episodes[1].id).path.unlink()
    with pytest.raises(DataError, match=r"episode_1\.tar: is missing, but frames.json names it"):
        samples(tmp_path / "copy", **cache)


def test_inspect_describes_frames(frames: Path) -> None:
    facts = inspect(InspectConfig(location=str(frames))).document()
    assert facts["kind"] == "frames"
    assert facts["episodes"] == 3
    assert facts["options"]["resize_images_size"] == [24, 20]
    assert {"conventions", "language", "fields", "cameras"} <= {*facts}
