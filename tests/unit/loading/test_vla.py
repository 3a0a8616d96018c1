"""Data kind `vla`: samples of every layout, validation by episode, assets, unusable samples."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.codes import CAMERAS, plain_fast, published_windows, write_tree_codes
from tests.builders.s3_runs import upload
from vlatool.config.resolve import load_config
from vlatool.datasets.samples.profile import read_profile
from vlatool.errors import DataError
from vlatool.loading.base import DroppedSample, SampleRef
from vlatool.loading.vla.config import VlaDataConfig, VlaSample, VlaShape
from vlatool.loading.vla.info import VlaInfo
from vlatool.loading.vla.kind import VlaKind
from vlatool.media.images import encode_png
from vlatool.storage.remote_path import RemotePath
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset

EPISODES, FRAMES = 5, 3
SIZES = (4, 50)
KIND = VlaKind()
Break = Callable[[Path], Any]


def build(root: Path, name: str, **options: Any) -> Path:
    keys = {"data": str(root / "A"), "fast": str(root / "fast"), "output": str(root / name)}
    build_dataset(BuildDatasetConfig.model_validate({**keys, "workers": 1, **options}))
    return root / name


@pytest.fixture(scope="module", name="made")
def make_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows with distinct images, and samples of them in every layout."""
    root = tmp_path_factory.mktemp("vla")
    tree = published_windows(root / "A", EPISODES, FRAMES)
    for number, path in enumerate(sorted(tree.rglob("*.png"))):
        path.write_bytes(encode_png(np.full((8, 12, 3), number, np.uint8)))
    write_tree_codes(tree, "packed", sizes=SIZES)
    plain_fast(root / "fast")
    build(root, "lines")
    build(root, "packed", packed=True)
    build(root, "shared", lines_per_file=7)
    shutil.copytree(root / "lines/data", root / "published/data")
    for index in (root / "published/data").glob("*.npz"):
        index.unlink()
    return root


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    """Copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "made"))


def section(folder: Path | str, **keys: Any) -> VlaDataConfig:
    return VlaDataConfig.model_validate({"samples": [str(folder)], **keys})


def read_all(config: VlaDataConfig, info: VlaInfo | None = None) -> list[Any]:
    info = info or KIND.load_info(config)
    reader = pickle.loads(pickle.dumps(KIND.reader(config, info)))
    refs = [
        SampleRef(0, shard, n)
        for shard, entry in enumerate(info.datasets[0].shards)
        for n in range(entry.size)
    ]
    rngs = [np.random.default_rng(0) for _ in refs]
    return reader.read(refs, rngs)


def content(samples: list[VlaSample]) -> list[Any]:
    return [
        (talk.kind, talk.task, talk.action_ids, talk.codes.tolist(), sample.images.tolist())
        for sample in samples
        for talk in [sample.conversation]
    ]


@pytest.mark.parametrize("form", ["packed", "shared"])
def test_samples_are_equal_in_every_layout(made: Path, form: str) -> None:
    lines = read_all(section(made / "lines"))
    assert len(lines) == EPISODES * FRAMES * 2
    assert content(read_all(section(made / form))) == content(lines)
    # Of the third frame: frame 0 fourteen times, then frames 1 and 2; both cameras of each.
    numbers = lines[5].images[:, 0, 0, 0].tolist()
    assert numbers == [0, FRAMES] * 14 + [1, 1 + FRAMES, 2, 2 + FRAMES]
    assert lines[5].key == f"{made / 'lines/data/episode_000000.jsonl'}:6"


def test_published_lines_are_read_with_the_published_sizes(workspace: Path) -> None:
    shutil.rmtree(workspace / "A/tokens")
    write_tree_codes(workspace / "A", "packed")
    data = build(workspace, "A/samples") / "data"
    # Folders above and below the samples stand for them.
    expected, below = (content(read_all(section(folder))) for folder in (workspace / "A", data))
    assert below == expected
    assert len(expected) == EPISODES * FRAMES * 2
    shutil.copytree(data, workspace / "published/data", dirs_exist_ok=True)
    keys = {"images_root": str(workspace / "A"), "fast": str(workspace / "fast")}
    config = section(workspace / "published", **keys)
    info = KIND.load_info(config)
    assert info.first.assets.sizes == (32, 4096, 2048)
    assert content(read_all(config, info)) == expected


def test_sizes_come_from_the_manifests(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(f"type: vla\nsamples: {made / 'lines'}\nval_ratio: 0.25\n")
    config = load_config(VlaDataConfig, files=[str(path)]).config
    assert (config.samples, config.val_ratio) == ([str(made / "lines")], 0.25)
    with pytest.raises(ValueError, match="val_samples and val_ratio exclude each other"):
        section("x", val_ratio=0.1, val_samples=["y"])
    derived, rules = KIND.derive(config, KIND.load_info(config))
    assert derived.shape == VlaShape(CAMERAS, 16, 16, (8, 12), 16, 7)
    assert derived.sizes == (*SIZES, 256)
    assert derived.fps == 10
    assert all(derived.digests.values())
    assert rules["codes_per_image"] == "manifest.json of the samples"


@pytest.mark.parametrize("form", ["lines", "packed", "shared"])
def test_validation_has_its_own_episodes(made: Path, form: str) -> None:
    config = section(made / form, val_ratio=0.4)
    held = KIND.validation(config)
    assert held is not None
    tasks = [{sample.conversation.task[-1] for sample in read_all(part)} for part in (config, held)]
    assert tasks == [{"1", "3", "4"}, {"0", "2"}]
    assert len(read_all(config)) + len(read_all(held)) == EPISODES * FRAMES * 2


FIRST_SIX = ("x", "y", "z", "roll", "pitch", "yaw")


def with_action_range(made: Path, copy: Path, recorded: Any) -> Path:
    """A copy of samples whose manifest has this range, or none."""
    shutil.copytree(made, copy)
    path = copy / "lines" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["action_range"]
    if recorded is not None:
        manifest["action_range"] = recorded
    path.write_text(json.dumps(manifest))
    return copy / "lines"


def test_assets_of_a_run_are_those_of_its_data(made: Path, tmp_path: Path) -> None:
    config = section(made / "lines")
    info = KIND.load_info(config)
    config, _ = KIND.derive(config, info)
    KIND.save_assets(config, info, tmp_path)
    assert KIND.load_assets(config, tmp_path) == KIND.make_assets(config, info)
    other = config.model_copy(update={"profile_digest": "0"})
    with pytest.raises(DataError, match=r"profile.yaml: is not the profile of the run"):
        KIND.load_assets(other, tmp_path)
    profile = KIND.make_assets(config, info).profile
    assert replace(profile, held={}) == read_profile("libero")
    assert profile.held == {"gripper": -1.0}


@pytest.mark.parametrize(
    ("recorded", "held"),
    [
        (None, {}),
        ({"min": [0.0] * 7, "max": [0.0] * 6 + [1.0]}, dict.fromkeys(FIRST_SIX, 0.0)),
    ],
)
def test_what_never_moved_is_held_if_the_samples_record_it(
    recorded: Any, held: dict[str, float], made: Path, tmp_path: Path
) -> None:
    config = section(with_action_range(made, tmp_path / "made", recorded))
    assert KIND.load_info(config).profile.held == held


@pytest.mark.parametrize("recorded", [[], {"min": [0.0]}, {"min": [0.0], "max": [1.0]}, 3])
def test_a_broken_range_of_actions_is_an_error(recorded: Any, made: Path, tmp_path: Path) -> None:
    config = section(with_action_range(made, tmp_path / "made", recorded))
    with pytest.raises(DataError, match="action_range of the manifest"):
        _ = KIND.load_info(config).profile


def in_line(old: str, new: str) -> Break:
    """Changes the second line of the first episode."""

    def change(root: Path) -> None:
        path = root / "lines/data/episode_000000.jsonl"
        (root / "lines/data/episode_000000.index.npz").unlink()
        rows = path.read_text().splitlines()
        assert old in rows[1]
        rows[1] = rows[1].replace(old, new, 1)
        path.write_text("".join(f"{row}\n" for row in rows))

    return change


def in_image(data: bytes | None) -> Break:
    """Changes the second image of the first camera, which lines 3 and later have."""

    def change(root: Path) -> None:
        path = root / "A/images/episode_000000/X_image_episode_000000_frame_000001.png"
        path.unlink() if data is None else path.write_bytes(data)

    return change


@pytest.mark.parametrize(
    ("change", "line", "reason", "message"),
    [
        (in_line("<image>", ""), 2, "broken_sample", "the question has 31 <image>, 32 are listed"),
        (in_line("<Rec>", "<Rec>7 "), 2, "broken_sample", "image 0 has 5 codes, not 4"),
        (in_line("<Rec>", "<Rec>50 "), 2, "broken_sample", "codes of image 0 are not 0 to 49"),
        (
            in_line("executing<Act>", "executing<Act>256 "),
            2,
            "broken_sample",
            "action ids are not 0 to 255",
        ),
        (in_image(None), 3, "missing_image", "frame_000001.png is missing"),
        (in_image(b"no image"), 3, "broken_image", "frame_000001.png cannot be decoded"),
        (in_image(encode_png(np.zeros((8, 8, 3), np.uint8))), 3, "other_image_size", "8 x 8 pix"),
        (
            in_image(encode_png(np.zeros((8, 12), np.uint8))),
            3,
            "not_rgb",
            "not stored as 8-bit RGB",
        ),
    ],
    ids=["image", "codes", "code", "action", "missing", "broken", "size", "gray"],
)
def test_an_unusable_sample_is_dropped_with_file_and_line(
    workspace: Path, change: Break, line: int, reason: str, message: str
) -> None:
    change(workspace)
    samples = read_all(section(workspace / "lines"))
    drops = [sample for sample in samples if isinstance(sample, DroppedSample)]
    assert {drop.reason for drop in drops} == {reason}
    key = f"{workspace / 'lines/data/episode_000000.jsonl'}:{line}"
    assert drops[0].sample == key
    assert drops[0].message.startswith(f"{key}: ")
    assert message in drops[0].message
    assert section(workspace / "lines").max_dropped_share == 0


def build_with_other_codes(root: Path) -> None:
    codes = write_tree_codes(root / "A", "packed", folder=root / "codes", sizes=(3, 50))
    build(root, "vla", kinds=["vla"], tokens=str(codes))


def in_manifest(**values: Any) -> Break:
    def change(root: Path) -> None:
        path = root / "lines/manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("change", "keys", "code", "message"),
    [
        (lambda root: None, {"samples": []}, "data.no_source", "no samples are configured"),
        (lambda root: (root / "A").rename(root / "B"), {}, "data.missing", "names it in its"),
        (
            lambda root: shutil.rmtree(root / "lines/data"),
            {},
            "data.broken",
            "episode_000000.jsonl",
        ),
        (
            lambda root: plain_fast(root / "other", scale=5.0),
            {"fast": "other"},
            "data.mismatch",
            "is not the action tokenizer of",
        ),
        (
            in_manifest(profile={"name": "x", "mean": [0], "std": [1]}),
            {},
            "data.mismatch",
            "fitted with other numbers",
        ),
        (
            lambda root: build(root, "one", limit=1),
            {"samples": ["one"]},
            "data.no_samples",
            "one e",
        ),
        (
            build_with_other_codes,
            {"samples": ["lines", "vla"]},
            "data.mismatch",
            "vla: codes_per_image is 3, but in",
        ),
    ],
    ids=["none", "images", "file", "fast", "profile", "episode", "data sets"],
)
def test_unusable_data_are_an_error_before_training(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Break,
    keys: dict[str, Any],
    code: str,
    message: str,
) -> None:
    change(workspace)
    monkeypatch.chdir(workspace)
    config = section("lines", **{"val_ratio": 0.1, **keys})
    with pytest.raises(DataError, match=message) as caught:
        KIND.load_info(config)
    assert caught.value.code == code


def test_samples_and_images_in_a_bucket_are_equal(made: Path, s3_bucket: str) -> None:
    bucket = RemotePath(f"s3://{s3_bucket}")
    for name in ("A", "packed"):
        upload(made / name, bucket / name)
    config = section(str(bucket / "packed"))
    assert content(read_all(config)) == content(read_all(section(made / "packed")))
