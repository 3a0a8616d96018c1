"""Replay buffers, against the library that writes them."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import pytest
import zarr
import zstandard
from numcodecs.registry import get_codec

from tests.builders import hdf5
from tests.builders.s3_server import Proxy, S3Server
from tests.builders.world_recordings import record_world
from vlatool.episode import Episode, LanguageSpan
from vlatool.errors import DataError
from vlatool.media.video import encode_video
from vlatool.recordings import select
from vlatool.recordings.zarr.reader import ZarrConfig, ZarrReader
from vlatool.recordings.zarr.store import inflated
from vlatool.storage.uri import location
from vlatool.testing import check_reader

_BESIDE = Path(__file__).parents[4] / "shared" / "data" / "formats"
PUSHT = Path(os.environ.get("VLATOOL_RECORDINGS", _BESIDE)) / "pusht.zarr"
STOPS = (4, 9)


def store(path: Path, version: Literal[2, 3] = 2, **changed: Any) -> Path:
    """Two episodes of 4 and 5 frames; `changed` replaces arrays, None leaves one out."""
    arrays: dict[str, Any] = {
        "data/action": np.arange(18.0).reshape(9, 2),
        "data/robot0_eef_pos": np.arange(27, dtype=np.float32).reshape(9, 3),
        "data/keypoint": np.ones((9, 2, 2)),
        "data/camera0_rgb": hdf5.images(9),
        "meta/episode_ends": np.array(STOPS),
    }
    arrays |= {name.replace("__", "/"): value for name, value in changed.items()}
    folder = path.with_suffix("") if path.suffix == ".zip" else path
    root = zarr.open_group(str(folder), mode="w", zarr_format=version)
    for name, values in arrays.items():
        if values is not None:
            root.create_array(name, data=values, chunks=(3, *values.shape[1:]))
    if path.suffix == ".zip":
        shutil.make_archive(str(folder), "zip", folder)
        shutil.rmtree(folder)
    return path


def read(path: Path, number: int = 0, **options: Any) -> Episode:
    reader = ZarrReader(ZarrConfig(**options))
    return reader.read(list(reader.discover([path]))[number])


def test_recordings_of_the_world_keep_the_rules_of_readers(tmp_path: Path) -> None:
    record_world("zarr", tmp_path / "raw", episodes=2, frames=4)
    check_reader(ZarrReader, tmp_path / "raw")
    assert read(tmp_path / "raw").language["original"][0].startswith("put the")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["a.zarr", "a.zarr.zip"])
def test_folders_and_zips_of_both_versions_are_read(
    version: Literal[2, 3], name: str, tmp_path: Path
) -> None:
    path = store(tmp_path / name, version)
    episode = read(path, 1, fps=10, instruction="push")
    assert (episode.id, episode.num_frames) == ("a_episode_000001", 5)
    assert [*episode.lowdim] == ["action", "keypoint", "robot0_eef_pos"]
    np.testing.assert_array_equal(episode.lowdim["action"], np.arange(8.0, 18).reshape(5, 2))
    assert episode.lowdim["keypoint"].shape == (5, 4)
    assert episode.action_fields == ("action",)
    assert episode.proprioception_fields == ("robot0_eef_pos",)
    camera = pickle.loads(pickle.dumps(episode.cameras["camera0_rgb"]))
    np.testing.assert_array_equal(camera.read([4, 0]), hdf5.images(9)[[8, 4]])


@pytest.mark.parametrize(("version", "dtype"), [(2, "U5"), (3, "T")])
def test_texts_of_frames_are_spans(version: Literal[2, 3], dtype: str, tmp_path: Path) -> None:
    rows = np.array(["wave"] * 4 + ["reach"] * 3 + ["lift"] * 2, dtype)
    texts = {"data__instruction": rows, "data__subtask": np.array(["go"] * 9, dtype)}
    path = store(tmp_path / "a.zarr", version, **texts)
    first, second = read(path, 0), read(path, 1)
    assert first.language == {"original": ["wave"], "subtask": ["go"]}
    assert second.language_spans == (
        LanguageSpan("original", "reach", 0, 2),
        LanguageSpan("original", "lift", 3, 4),
    )
    assert second.language == {"subtask": ["go"]}
    assert read(path, 1, instruction="push").instruction_at(3) == "push"


@pytest.mark.skipif(not PUSHT.is_dir(), reason="VLATOOL_RECORDINGS has no PushT")
def test_values_of_a_real_store_are_those_of_zarr() -> None:
    root = zarr.open_group(str(PUSHT), mode="r")
    reader = ZarrReader(ZarrConfig(fps=10))
    refs = list(reader.discover([PUSHT]))
    assert (len(refs), reader.survey(refs).frames) == (206, 25_650)
    for number in (0, 100, 205):
        first, stop = ([0, *root["meta/episode_ends"]][number + i] for i in (0, 1))
        for name, values in reader.read(refs[number]).lowdim.items():
            expected = root[f"data/{name}"][first:stop].reshape(stop - first, -1)
            np.testing.assert_array_equal(values, expected)
    images = reader.read(refs[0]).cameras["img"].read([0, 7])
    np.testing.assert_array_equal(images, root["data/img"][:8][[0, 7]])
    with pytest.raises(DataError, match=r"data/img/\S+: the chunk is missing"):
        reader.read(refs[100]).cameras["img"].read([0])


def test_a_missing_chunk_is_an_error_unless_it_is_allowed(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr")
    (path / "data/action/1.0").unlink()
    with pytest.raises(DataError, match=r"data/action/1\.0: the chunk is missing") as caught:
        read(path)
    assert caught.value.code == "data.broken"
    assert "--missing-chunks fill" in caught.value.hint
    filled = read(path, missing_chunks="fill").lowdim["action"]
    assert filled.tolist() == [[0, 1], [2, 3], [4, 5], [0, 0]]


def test_float_images_of_levels_are_rounded_to_them(tmp_path: Path) -> None:
    whole = store(tmp_path / "a.zarr", data__camera0_rgb=hdf5.images(9).astype(np.float32))
    assert read(whole).cameras["camera0_rgb"].read([1]).tolist() == [hdf5.image(1).tolist()]


def test_float_images_up_to_one_are_shares_of_levels(tmp_path: Path) -> None:
    shares = store(tmp_path / "b.zarr", data__camera0_rgb=hdf5.images(9) / 255)
    camera = read(shares).cameras["camera0_rgb"]
    np.testing.assert_array_equal(camera.read([1])[0], hdf5.image(1))


def test_videos_beside_the_store_are_cameras(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", data__camera0_rgb=None)
    for number, count in enumerate((4, 3)):
        folder = tmp_path / "videos" / str(number)
        folder.mkdir(parents=True)
        (folder / "front.mp4").write_bytes(encode_video(hdf5.images(count)[:, :, :24], 10))
    assert len(read(path).cameras["front"]) == 4
    with pytest.raises(DataError, match=r"front\.mp4 has 3 rows, the other parts have 5"):
        read(path, 1)


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        document = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**document, **changes}))

    return edit


def written(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(data) and None


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (written("data/action/0.0", b"broken"), "unreadable"),
        (written("data/action/.zarray", b"{"), "unreadable"),
        (edited("data/action/.zarray", filters=[{"id": "pickle"}]), "unsafe_codec"),
        (edited("data/action/.zarray", compressor={"id": "mine"}), "unsafe_codec"),
        (edited("data/action/.zarray", chunks=[10**6, 2 * 10**5]), "too_large"),
        (edited("data/action/.zarray", shape=[8, 2]), "length_mismatch"),
        (
            edited("data/action/.zarray", compressor={"id": "imagecodecs_jpegxl"}),
            "missing_codec",
        ),
    ],
)
def test_damaged_stores_are_errors_with_their_place(
    damage: Callable[[Path], None], finding: str, tmp_path: Path
) -> None:
    path = store(tmp_path / "a.zarr")
    damage(path)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.details["finding"] == finding
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("stops", [[4, 10], [5, 4], [-1, 9], [[4, 9]]])
def test_ends_that_do_not_divide_the_rows_are_an_error(stops: Any, tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", meta__episode_ends=np.array(stops))
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.code == "data.broken"


def test_rows_after_the_last_episode_and_empty_episodes_are_named(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", meta__episode_ends=np.array([4, 4]))
    reader = ZarrReader(ZarrConfig())
    refs = list(reader.discover([path]))
    assert [finding.code for finding in reader.source_findings] == ["zarr.rows_without_episode"]
    with pytest.raises(DataError, match="episode 1 has no rows"):
        reader.read(refs[1])


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_a_broken_zip_is_unreadable(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zarr.zip").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert caught.value.code == "data.broken"


def test_remote_store_is_read_chunk_by_chunk(
    s3: S3Server, s3_bucket: str, s3_proxy: Proxy, tmp_path: Path
) -> None:
    path = store(tmp_path / "a.zarr")
    for file in filter(Path.is_file, path.rglob("*")):
        s3.client().upload_file(str(file), s3_bucket, f"a.zarr/{file.relative_to(path)}")
    local, s3_path = read(path, 1), location(f"s3://{s3_bucket}/a.zarr")
    remote = read(s3_path, 1)
    s3_proxy.faults.requests.clear()
    images = remote.cameras["camera0_rgb"].read([0, 1])
    np.testing.assert_array_equal(images, local.cameras["camera0_rgb"].read([0, 1]))
    np.testing.assert_array_equal(remote.lowdim["action"], local.lowdim["action"])
    assert len(s3_proxy.faults.requests) <= 2


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("damage", ["cut", "stored", "inflated"])
def test_a_chunk_of_blosc_that_contradicts_its_header_is_broken(
    version: Literal[2, 3], damage: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.zarr"
    root = zarr.open_group(str(path), mode="w", zarr_format=version)
    codec = zarr.codecs.BloscCodec() if version == 3 else numcodecs.Blosc()
    values = np.random.default_rng(0).random((9, 200))
    for name, array in (("data/action", values), ("meta/episode_ends", np.array(STOPS))):
        root.create_array(name, data=array, chunks=array.shape, compressors=[codec])
    chunk = path / ("data/action/c/0/0" if version == 3 else "data/action/0.0")
    content = bytearray(chunk.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        place = 12 if damage == "stored" else 4
        content[place : place + 4] = (2**30).to_bytes(4, "little")
    chunk.write_bytes(content)
    with pytest.raises(DataError, match=r"is cut off|its header says") as caught:
        read(path)
    assert caught.value.code == "data.broken"


def test_a_chunk_that_zarr_3_leaves_out_is_the_fill_value(tmp_path: Path) -> None:
    still = np.concatenate([np.zeros((3, 2)), np.ones((6, 2))])
    path = store(tmp_path / "a.zarr", 3, data__gripper=still)
    assert not (path / "data/gripper/c/0").exists()
    np.testing.assert_array_equal(read(path).lowdim["gripper"], still[:4])


def test_points_depth_and_channels_first_are_what_they_are(tmp_path: Path) -> None:
    path = store(
        tmp_path / "a.zarr",
        data__cloud=np.ones((9, 64, 3)),
        data__depth=np.full((9, 24, 32), 0.25, np.float32),
        data__img=hdf5.images(9).transpose(0, 3, 1, 2),
    )
    episode = read(path)
    np.testing.assert_array_equal(episode.cameras["img"].read([2])[0], hdf5.image(2))
    assert episode.depth["img"].read([0]).max() == 250
    (left,) = [part for part in episode.parts if part.role == "left_out"]
    assert (left.path, left.note) == ("cloud", "points [64, 3]")


def test_a_mapping_makes_the_next_pose_the_action(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", data__action=None)
    (tmp_path / "m.yaml").write_text(
        "fields: {hand: robot0_eef_pos}\naction_fields: ['next(hand)']\nfps: 30"
    )
    episode = read(path, 1, mapping=str(tmp_path / "m.yaml"))
    poses = np.arange(27, dtype=np.float32).reshape(9, 3)[4:]
    np.testing.assert_array_equal(episode.lowdim["hand_next"], poses[1:])
    assert (episode.num_frames, episode.cut_frames, episode.fps) == (4, 1, 30)


def test_one_broken_store_of_a_folder_costs_only_itself(tmp_path: Path) -> None:
    store(tmp_path / "a.zarr")
    broken = store(tmp_path / "b.zarr")
    (broken / "meta/episode_ends/.zarray").write_bytes(b"{")
    reader = ZarrReader(ZarrConfig())
    refs = list(reader.discover([tmp_path]))
    assert [ref.id for ref in refs] == ["a_episode_000000", "a_episode_000001", "b"]
    with pytest.raises(DataError, match=r"b\.zarr"):
        reader.read(refs[2])


def test_arrays_of_other_lengths_and_attributes_are_named(tmp_path: Path) -> None:
    path = store(
        tmp_path / "a.zarr", data__calibration=np.ones((3, 4)), data__words=np.array(["a", "b"])
    )
    left = {part.path for part in read(path).parts if part.role == "left_out"}
    assert {"calibration", "words"} <= left


@pytest.mark.parametrize("count", [1, 3, 255, 70_000])
@pytest.mark.parametrize("name", ["blosc", "zstd", "lz4", "gzip", "zlib", "bz2", "lzma"])
def test_chunks_of_any_size_are_inflated(name: str, count: int) -> None:
    data = np.random.default_rng(0).bytes(count)
    codec = get_codec({"id": name})
    assert bytes(memoryview(inflated(codec, codec.encode(data), count))) == data


def test_a_frame_of_zstandard_that_does_not_say_its_size_is_inflated() -> None:
    data = bytes(range(200))
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    assert bytes(inflated(get_codec({"id": "zstd"}), frame, len(data))) == data


def test_the_files_of_a_store_are_listed_once_and_anew_for_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(tmp_path / "a.zarr")
    listed: list[Any] = []
    real = select.input_state
    monkeypatch.setattr(select, "input_state", lambda paths: listed.append(paths) or real(paths))
    states: list[list[str]] = []
    for _ in range(2):
        refs = [*ZarrReader(ZarrConfig()).discover([path])]
        states.append([select.episode_state(ref).digest for ref in refs])
        (path / "more").write_bytes(b"x")
    assert len(states[0]) > 1
    assert len(listed) == 2
    assert states[0] != states[1]
